//! QUIC between nodes: connections to pinned peers, one bidirectional stream a request. The only place that names quinn.
//!
//! Knows bytes, not artifacts. A puller's connections receive a lot and a holder's receive next to nothing, so the two have
//! different windows: what a hostile client can pin in a holder's memory stays small.

mod config;
mod connection;
mod socket;

pub use config::{Congestion, TransportConfig};
pub use connection::{Connection, Incoming, PathStats, RecvStream, SendStream};
pub use socket::Buffers;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::identity::{NodeId, NodeTls, PEER_ALPN, TlsError, server_name};

/// How long a TLS handshake with a peer may take before the next of its addresses is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection or stream failed. The variants are what a puller acts on.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("bind UDP socket on {addr}")]
    Bind { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Config(&'static str),
    #[error("no answer from {0} in time")]
    TimedOut(SocketAddr),
    #[error("peer {0} has no address")]
    NoAddress(NodeId),
    /// The peer is not who it should be, or does not admit us.
    #[error("handshake with {addr} refused: {reason}")]
    Refused { addr: SocketAddr, reason: String },
    #[error("connection lost: {0}")]
    Lost(String),
    /// Every failure on the other side resets the stream, because a stream that is merely dropped looks complete.
    #[error("stream reset by the peer ({0})")]
    Reset(StreamCode),
    #[error("stream ended early")]
    Ended,
}

/// Why a stream was reset or a connection closed; goes over the wire as a QUIC application error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamCode {
    Done,
    Malformed,
    Failed,
    Cancelled,
    Draining,
    TooSlow,
    Unknown,
}

impl StreamCode {
    const ALL: [(Self, u32, &'static str); 6] = [
        (Self::Done, 0, "done"),
        (Self::Malformed, 1, "malformed message"),
        (Self::Failed, 2, "failed"),
        (Self::Cancelled, 3, "cancelled"),
        (Self::Draining, 4, "draining"),
        (Self::TooSlow, 5, "too slow"),
    ];

    fn code(self) -> quinn::VarInt {
        let found = Self::ALL.iter().find(|(code, ..)| *code == self);
        quinn::VarInt::from_u32(found.map_or(2, |(_, number, _)| *number))
    }

    fn from_code(number: quinn::VarInt) -> Self {
        let found = Self::ALL.iter().find(|(_, known, _)| u64::from(*known) == number.into_inner());
        found.map_or(Self::Unknown, |(code, ..)| *code)
    }
}

impl std::fmt::Display for StreamCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let found = Self::ALL.iter().find(|(code, ..)| code == self);
        f.write_str(found.map_or("unknown code", |(.., text)| text))
    }
}

/// This node's UDP sockets: one that accepts, and one or more of their own for dialling.
pub struct Endpoint {
    accepting: quinn::Endpoint,
    dialling: Vec<quinn::Endpoint>,
    next: AtomicUsize,
    buffers: Buffers,
    local_addr: SocketAddr,
}

impl Endpoint {
    pub fn bind(config: &TransportConfig, tls: &NodeTls) -> Result<Self, TransportError> {
        config.check()?;
        let server = server_config(config, tls)?;
        let client = client_config(config, tls)?;
        let (accepting, buffers) = socket::bind(config.listen, config, Some(server))?;
        let local_addr =
            accepting.local_addr().map_err(|source| TransportError::Bind { addr: config.listen, source })?;
        let any: IpAddr = match config.listen.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => ip.into(),
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(ip) if ip.is_loopback() => ip.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let mut dialling = Vec::with_capacity(config.dial_sockets);
        for _ in 0..config.dial_sockets {
            let (mut endpoint, _) = socket::bind(SocketAddr::new(any, 0), config, None)?;
            endpoint.set_default_client_config(client.clone());
            dialling.push(endpoint);
        }
        Ok(Self { accepting, dialling, next: AtomicUsize::new(0), buffers, local_addr })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What the kernel really gave the accepting socket.
    pub fn buffers(&self) -> Buffers {
        self.buffers
    }

    /// Dials `node` at its addresses in turn. Whoever answers must hold the key of `node`.
    pub async fn connect(&self, node: NodeId, addrs: &[SocketAddr]) -> Result<Connection, TransportError> {
        let mut last = TransportError::NoAddress(node);
        for &addr in addrs {
            match tokio::time::timeout(CONNECT_TIMEOUT, self.dial(node, addr)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => last = error,
                Err(_) => last = TransportError::TimedOut(addr),
            }
        }
        Err(last)
    }

    async fn dial(&self, node: NodeId, addr: SocketAddr) -> Result<Connection, TransportError> {
        let refused = |reason: String| TransportError::Refused { addr, reason };
        let socket = self.next.fetch_add(1, Ordering::Relaxed) % self.dialling.len();
        let connecting =
            self.dialling[socket].connect(addr, &server_name(node)).map_err(|error| refused(error.to_string()))?;
        let connection = connecting.await.map_err(|error| refused(error.to_string()))?;
        Connection::new(connection).ok_or_else(|| refused("the peer shows no node certificate".to_owned()))
    }

    /// The next connection attempt; `None` once the endpoint is closed. Complete it in a task of its own.
    pub async fn accept(&self) -> Option<Incoming> {
        self.accepting.accept().await.map(Incoming::new)
    }

    /// Refuses new connections, ends the open ones, and waits until the peers were told, at most until `deadline`.
    pub async fn close(&self, code: StreamCode, deadline: Duration) {
        let endpoints = || std::iter::once(&self.accepting).chain(&self.dialling);
        endpoints().for_each(|endpoint| endpoint.close(code.code(), b""));
        let idle = async {
            for endpoint in endpoints() {
                endpoint.wait_idle().await;
            }
        };
        // Peers that were not told in time find out by their own idle timeout.
        let _ = tokio::time::timeout(deadline, idle).await;
    }
}

fn server_config(config: &TransportConfig, tls: &NodeTls) -> Result<quinn::ServerConfig, TransportError> {
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls.server_config(PEER_ALPN)?)
        .map_err(|_| TransportError::Config("the TLS configuration has no initial cipher suite for QUIC"))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::new(config.holder_side()));
    // Pods do not roam; an address that changes in mid-connection is somebody else.
    server.migration(false);
    server.max_incoming(256);
    Ok(server)
}

fn client_config(config: &TransportConfig, tls: &NodeTls) -> Result<quinn::ClientConfig, TransportError> {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls.client_config(PEER_ALPN)?)
        .map_err(|_| TransportError::Config("the TLS configuration has no initial cipher suite for QUIC"))?;
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(config.puller_side()));
    Ok(client)
}

#[cfg(test)]
mod tests;
