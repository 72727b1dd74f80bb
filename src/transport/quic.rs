//! Connections over QUIC. The only place that names quinn, beside its settings and its sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use quinn::rustls::pki_types::CertificateDer;
use tracing::{Dispatch, dispatcher};

use super::{Buffers, MAX_PIECE, PathStats, StreamCode, TransportConfig, TransportError, socket};
use crate::identity::{NodeId, NodeTls, PEER_ALPN, server_name};

/// One socket that accepts, and one or more for dialling.
pub(super) struct Sockets {
    accepting: quinn::Endpoint,
    dialling: Vec<quinn::Endpoint>,
    next: AtomicUsize,
    pub(super) buffers: Buffers,
    pub(super) local_addr: SocketAddr,
}

impl Sockets {
    pub(super) fn bind(config: &TransportConfig, tls: &NodeTls) -> Result<Self, TransportError> {
        let server = server_config(config, tls)?;
        let client = client_config(config, tls)?;
        let (accepting, buffers) = socket::bind(config.listen, config, Some(server))?;
        let local_addr =
            accepting.local_addr().map_err(|source| TransportError::Bind { addr: config.listen, source })?;
        let any: IpAddr = match config.listen.ip() {
            ip if ip.is_loopback() => ip,
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let mut dialling = Vec::with_capacity(config.dial_sockets);
        for _ in 0..config.dial_sockets {
            let (mut endpoint, _) = socket::bind(SocketAddr::new(any, 0), config, None)?;
            endpoint.set_default_client_config(client.clone());
            dialling.push(endpoint);
        }
        Ok(Self { accepting, dialling, next: AtomicUsize::new(0), buffers, local_addr })
    }

    pub(super) async fn dial(&self, node: NodeId, addr: SocketAddr) -> Result<Connection, TransportError> {
        let refused = |reason: String| TransportError::Refused { addr, reason };
        let socket = self.next.fetch_add(1, Ordering::Relaxed) % self.dialling.len();
        // quinn keeps the span of whoever dials for as long as the connection lives: a trace would lack it until then.
        let connecting = dispatcher::with_default(&Dispatch::none(), || {
            self.dialling[socket].connect(addr, &server_name(node)).map_err(|error| refused(error.to_string()))
        })?;
        let connection = connecting.await.map_err(|error| match error {
            quinn::ConnectionError::TimedOut => TransportError::TimedOut(addr),
            error => refused(error.to_string()),
        })?;
        Connection::new(connection).ok_or_else(|| refused("the peer shows no node certificate".to_owned()))
    }

    pub(super) async fn accept(&self) -> Option<quinn::Incoming> {
        self.accepting.accept().await
    }

    pub(super) async fn close(&self, code: StreamCode) {
        let endpoints = || std::iter::once(&self.accepting).chain(&self.dialling);
        endpoints().for_each(|endpoint| endpoint.close(code.quic(), b""));
        for endpoint in endpoints() {
            endpoint.wait_idle().await;
        }
    }
}

pub(super) async fn handshake(incoming: quinn::Incoming) -> Result<Connection, TransportError> {
    let addr = incoming.remote_address();
    let refused = |reason: String| TransportError::Refused { addr, reason };
    let connecting = incoming.accept().map_err(|error| refused(error.to_string()))?;
    let connection = connecting.await.map_err(|error| refused(error.to_string()))?;
    Connection::new(connection).ok_or_else(|| refused("the peer shows no node certificate".to_owned()))
}

impl StreamCode {
    fn quic(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(self.number())
    }

    fn from_quic(number: quinn::VarInt) -> Self {
        u32::try_from(number.into_inner()).map_or(Self::Unknown, Self::from_number)
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

#[derive(Debug, Clone)]
pub(super) struct Connection {
    quinn: quinn::Connection,
    peer: NodeId,
}

impl Connection {
    /// `None` if the peer's certificate carries no node key.
    pub(super) fn new(quinn: quinn::Connection) -> Option<Self> {
        let identity = quinn.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        let peer = NodeId::from_certificate(identity.first()?)?;
        Some(Self { quinn, peer })
    }

    pub(super) fn peer(&self) -> NodeId {
        self.peer
    }

    pub(super) fn remote_address(&self) -> SocketAddr {
        self.quinn.remote_address()
    }

    pub(super) async fn open(&self) -> Result<(SendStream, RecvStream), TransportError> {
        let (send, recv) = self.quinn.open_bi().await.map_err(lost)?;
        Ok((SendStream { quinn: send, finished: false }, RecvStream(recv)))
    }

    pub(super) async fn accept(&self) -> Result<(SendStream, RecvStream), TransportError> {
        let (send, recv) = self.quinn.accept_bi().await.map_err(lost)?;
        Ok((SendStream { quinn: send, finished: false }, RecvStream(recv)))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.quinn.close_reason().is_some()
    }

    pub(super) async fn closed(&self) {
        self.quinn.closed().await;
    }

    pub(super) fn close(&self, code: StreamCode) {
        self.quinn.close(code.quic(), b"");
    }

    pub(super) fn stats(&self) -> PathStats {
        let stats = self.quinn.stats();
        PathStats {
            rtt: stats.path.rtt,
            congestion_window: stats.path.cwnd,
            lost_packets: stats.path.lost_packets,
            sent_packets: stats.path.sent_packets,
            mtu: stats.path.current_mtu,
            black_holes: stats.path.black_holes_detected,
            sent_bytes: stats.udp_tx.bytes,
            sent_datagrams: stats.udp_tx.datagrams,
            sends: stats.udp_tx.ios,
            received_bytes: stats.udp_rx.bytes,
            received_datagrams: stats.udp_rx.datagrams,
        }
    }
}

fn lost(error: quinn::ConnectionError) -> TransportError {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            TransportError::Reset(StreamCode::from_quic(close.error_code))
        }
        other => TransportError::Lost(other.to_string()),
    }
}

/// Reset, not finished, if it is dropped before its end.
pub(super) struct SendStream {
    quinn: quinn::SendStream,
    finished: bool,
}

impl SendStream {
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), TransportError> {
        self.quinn.write_chunk(bytes).await.map_err(write_failed)
    }

    pub(super) async fn write_all(&mut self, parts: &mut [Bytes]) -> Result<(), TransportError> {
        self.quinn.write_all_chunks(parts).await.map_err(write_failed)
    }

    pub(super) fn finish(&mut self) -> Result<(), TransportError> {
        self.finished = true;
        self.quinn.finish().map_err(|_| TransportError::Ended)
    }

    pub(super) fn reset(&mut self, code: StreamCode) {
        self.finished = true;
        // Already reset: then the peer knows.
        let _ = self.quinn.reset(code.quic());
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        // quinn would finish it, and a short answer would look complete.
        if !self.finished {
            self.reset(StreamCode::Failed);
        }
    }
}

fn write_failed(error: quinn::WriteError) -> TransportError {
    match error {
        quinn::WriteError::Stopped(code) => TransportError::Reset(StreamCode::from_quic(code)),
        quinn::WriteError::ConnectionLost(error) => lost(error),
        other => TransportError::Lost(other.to_string()),
    }
}

pub(super) struct RecvStream(quinn::RecvStream);

impl RecvStream {
    pub(super) async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), TransportError> {
        self.0.read_exact(buffer).await.map_err(|error| match error {
            quinn::ReadExactError::FinishedEarly(_) => TransportError::Ended,
            quinn::ReadExactError::ReadError(error) => read_failed(error),
        })
    }

    pub(super) async fn read_piece(&mut self) -> Result<Option<(u64, Bytes)>, TransportError> {
        let piece = self.0.read_chunk(MAX_PIECE as usize, false).await.map_err(read_failed)?;
        Ok(piece.map(|piece| (piece.offset, piece.bytes)))
    }

    pub(super) fn stop(&mut self, code: StreamCode) {
        // Already at its end: then there is nothing to stop.
        let _ = self.0.stop(code.quic());
    }
}

fn read_failed(error: quinn::ReadError) -> TransportError {
    match error {
        quinn::ReadError::Reset(code) => TransportError::Reset(StreamCode::from_quic(code)),
        quinn::ReadError::ConnectionLost(error) => lost(error),
        other => TransportError::Lost(other.to_string()),
    }
}
