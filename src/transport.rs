//! Between nodes: connections to pinned peers, one bidirectional stream a request. QUIC, and TCP where UDP does not get
//! through: a peer that does not answer one is asked by the other. The only place that names quinn and h2.
//!
//! Knows bytes, not artifacts. A puller's connections receive a lot and a holder's receive next to nothing, so the two have
//! different windows: what a hostile client can pin in a holder's memory stays small.

mod choice;
mod config;
mod connection;
mod quic;
mod socket;
mod tcp;
mod traffic;

pub use config::{Carriers, Congestion, TransportConfig};
pub use connection::{Carried, Connection, Incoming, PathStats, RecvStream, SendStream};
pub use socket::Buffers;

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::identity::{NodeId, NodeTls, TlsError};
use choice::Choice;
use connection::Attempt;

/// How long a TLS handshake with a peer may take before the next of its addresses is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What QUIC gets before TCP is tried beside it.
const HEAD_START: Duration = Duration::from_secs(1);

/// Ports that are tried until one is free for both.
const FREE_PORTS: u32 = 16;

/// Largest piece in bytes that is read at once.
const MAX_PIECE: u32 = 256 * 1024;

/// A connection or stream failed. The variants are what a puller acts on.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("bind UDP socket on {addr}")]
    Bind { addr: SocketAddr, source: io::Error },
    #[error("bind TCP socket on {addr} (`transport.carrier = \"quic\"` does without)")]
    BindTcp { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Config(&'static str),
    #[error("no answer from {0} in time")]
    TimedOut(SocketAddr),
    #[error("connect to {addr} over TCP: {source}")]
    Unreachable { addr: SocketAddr, source: io::Error },
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

/// Why a stream was reset or a connection closed; goes over the wire as a number.
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

    fn number(self) -> u32 {
        let found = Self::ALL.iter().find(|(code, ..)| *code == self);
        found.map_or(2, |(_, number, _)| *number)
    }

    fn from_number(number: u32) -> Self {
        let found = Self::ALL.iter().find(|(_, known, _)| *known == number);
        found.map_or(Self::Unknown, |(code, ..)| *code)
    }
}

impl std::fmt::Display for StreamCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let found = Self::ALL.iter().find(|(code, ..)| code == self);
        f.write_str(found.map_or("unknown code", |(.., text)| text))
    }
}

/// How bytes get to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    Quic,
    Tcp,
}

/// This node's sockets: those that accept, and those that dial.
pub struct Endpoint {
    sides: Sides,
    choice: Mutex<Choice>,
    local_addr: SocketAddr,
}

enum Sides {
    Quic(quic::Sockets),
    Tcp(tcp::Side),
    /// At the same address.
    Both(quic::Sockets, tcp::Side),
}

impl Sides {
    fn quic(&self) -> Option<&quic::Sockets> {
        match self {
            Self::Quic(quic) | Self::Both(quic, _) => Some(quic),
            Self::Tcp(_) => None,
        }
    }

    fn tcp(&self) -> Option<&tcp::Side> {
        match self {
            Self::Tcp(tcp) | Self::Both(_, tcp) => Some(tcp),
            Self::Quic(_) => None,
        }
    }
}

impl Endpoint {
    pub fn bind(config: &TransportConfig, tls: &NodeTls) -> Result<Self, TransportError> {
        config.check()?;
        let mut attempts = if config.listen.port() == 0 { FREE_PORTS } else { 1 };
        loop {
            attempts -= 1;
            match Self::bind_once(config, tls) {
                // The port that was free for UDP is not for TCP.
                Err(TransportError::BindTcp { .. }) if attempts > 0 => {}
                bound => return bound,
            }
        }
    }

    fn bind_once(config: &TransportConfig, tls: &NodeTls) -> Result<Self, TransportError> {
        let sides = match config.carrier {
            Carriers::Quic => Sides::Quic(quic::Sockets::bind(config, tls)?),
            Carriers::Tcp => Sides::Tcp(tcp::Side::bind(config.listen, config, tls)?),
            Carriers::Auto => {
                let quic = quic::Sockets::bind(config, tls)?;
                let tcp = tcp::Side::bind(quic.local_addr, config, tls)?;
                Sides::Both(quic, tcp)
            }
        };
        let local_addr = match &sides {
            Sides::Quic(quic) | Sides::Both(quic, _) => quic.local_addr,
            Sides::Tcp(tcp) => tcp.local_addr,
        };
        Ok(Self { sides, choice: Mutex::default(), local_addr })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What the kernel really gave the accepting UDP socket.
    pub fn buffers(&self) -> Option<Buffers> {
        self.sides.quic().map(|quic| quic.buffers)
    }

    /// Dials `node` at its addresses in turn. Whoever answers must hold the key of `node`.
    pub async fn connect(&self, node: NodeId, addrs: &[SocketAddr]) -> Result<Connection, TransportError> {
        let mut last = TransportError::NoAddress(node);
        for &addr in addrs {
            let dialled = match &self.sides {
                Sides::Quic(quic) => by_quic(quic, node, addr).await,
                Sides::Tcp(tcp) => by_tcp(tcp, node, addr).await,
                Sides::Both(quic, tcp) if self.choice().is_tcp(node, Instant::now()) => {
                    match by_tcp(tcp, node, addr).await {
                        Ok(connection) => return Ok(connection),
                        Err(_) => self.choice().forget(node),
                    }
                    by_quic(quic, node, addr).await
                }
                Sides::Both(quic, tcp) => self.race(quic, tcp, node, addr).await,
            };
            match dialled {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// QUIC, and TCP beside it if that gets no answer soon. A peer that refuses us by one refuses us by the other.
    async fn race(
        &self,
        quic: &quic::Sockets,
        tcp: &tcp::Side,
        node: NodeId,
        addr: SocketAddr,
    ) -> Result<Connection, TransportError> {
        let mut by_quic = pin!(by_quic(quic, node, addr));
        let mut by_tcp = pin!(async {
            tokio::time::sleep(HEAD_START).await;
            by_tcp(tcp, node, addr).await
        });
        let answered = tokio::select! {
            biased;
            answered = &mut by_quic => match answered {
                Err(TransportError::TimedOut(_)) => by_tcp.await,
                other => return other,
            },
            answered = &mut by_tcp => match answered {
                Err(_) => return by_quic.await,
                answered => answered,
            },
        };
        if answered.is_ok() && self.choice().needs_tcp(node, Instant::now()) {
            let (node, minutes) = (node.short(), choice::REMEMBERED.as_secs() / 60);
            tracing::warn!(%node, %addr, "no answer over UDP: the peer is asked over TCP for {minutes} min");
        }
        answered.map_err(|error| match error {
            TransportError::Refused { .. } => error,
            _ => TransportError::TimedOut(addr),
        })
    }

    fn choice(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next connection attempt; `None` once the endpoint is closed. Complete it in a task of its own.
    pub async fn accept(&self) -> Option<Incoming> {
        let quic = async {
            match self.sides.quic() {
                Some(quic) => quic.accept().await,
                None => pending().await,
            }
        };
        let tcp = async {
            match self.sides.tcp() {
                Some(tcp) => tcp.accept().await,
                None => pending().await,
            }
        };
        tokio::select! {
            arrived = quic => arrived.map(|incoming| Incoming::new(Attempt::Quic(Box::new(incoming)))),
            arrived = tcp => arrived.map(|arrived| Incoming::new(Attempt::Tcp(arrived))),
        }
    }

    /// Refuses new connections, ends the open ones, and waits until the peers were told, at most until `deadline`.
    pub async fn close(&self, code: StreamCode, deadline: Duration) {
        let quic = async {
            if let Some(quic) = self.sides.quic() {
                quic.close(code).await;
            }
        };
        let tcp = async {
            if let Some(tcp) = self.sides.tcp() {
                tcp.close(code).await;
            }
        };
        // Peers that were not told in time find out by their own idle timeout.
        let _ = tokio::time::timeout(deadline, async { tokio::join!(quic, tcp) }).await;
    }
}

async fn by_quic(quic: &quic::Sockets, node: NodeId, addr: SocketAddr) -> Result<Connection, TransportError> {
    let dialled = tokio::time::timeout(CONNECT_TIMEOUT, quic.dial(node, addr)).await;
    dialled.map_err(|_| TransportError::TimedOut(addr))?.map(Connection::from)
}

async fn by_tcp(tcp: &tcp::Side, node: NodeId, addr: SocketAddr) -> Result<Connection, TransportError> {
    let dialled = tokio::time::timeout(CONNECT_TIMEOUT, tcp.dial(node, addr)).await;
    dialled.map_err(|_| TransportError::TimedOut(addr))?.map(Connection::from)
}

#[cfg(test)]
mod tests;
