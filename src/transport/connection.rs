//! A connection to one peer, and its streams.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use quinn::rustls::pki_types::CertificateDer;

use super::{CONNECT_TIMEOUT, StreamCode, TransportError};
use crate::identity::NodeId;

/// Largest piece that one unordered read returns.
const MAX_PIECE: usize = 256 * 1024;

/// A connection attempt that has arrived and is not yet authenticated.
pub struct Incoming(quinn::Incoming);

impl Incoming {
    pub(super) fn new(incoming: quinn::Incoming) -> Self {
        Self(incoming)
    }

    pub fn remote_address(&self) -> SocketAddr {
        self.0.remote_address()
    }

    /// Completes the handshake; the peer is then one that the cluster admits.
    pub async fn handshake(self) -> Result<Connection, TransportError> {
        let addr = self.0.remote_address();
        let refused = |reason: String| TransportError::Refused { addr, reason };
        let connecting = self.0.accept().map_err(|error| refused(error.to_string()))?;
        let connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| TransportError::TimedOut(addr))?
            .map_err(|error| refused(error.to_string()))?;
        Connection::new(connection).ok_or_else(|| refused("the peer shows no node certificate".to_owned()))
    }
}

/// What the path to a peer is like. Counters are of the connection's life.
#[derive(Debug, Clone, Copy, Default)]
pub struct PathStats {
    pub rtt: Duration,
    /// Bytes.
    pub congestion_window: u64,
    pub lost_packets: u64,
    pub sent_packets: u64,
    /// Largest UDP payload in bytes that we send.
    pub mtu: u16,
    pub black_holes: u64,
    pub sent_bytes: u64,
    pub sent_datagrams: u64,
    /// Send calls; fewer than datagrams when segmentation offload works.
    pub sends: u64,
    pub received_bytes: u64,
    pub received_datagrams: u64,
}

/// An authenticated connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Connection {
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

    pub fn peer(&self) -> NodeId {
        self.peer
    }

    pub fn remote_address(&self) -> SocketAddr {
        self.quinn.remote_address()
    }

    /// Opens a stream for one request; waits while the peer allows no more of them.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), TransportError> {
        let (send, recv) = self.quinn.open_bi().await.map_err(lost)?;
        Ok((SendStream { quinn: send, finished: false }, RecvStream(recv)))
    }

    /// The peer's next request.
    pub async fn accept(&self) -> Result<(SendStream, RecvStream), TransportError> {
        let (send, recv) = self.quinn.accept_bi().await.map_err(lost)?;
        Ok((SendStream { quinn: send, finished: false }, RecvStream(recv)))
    }

    pub fn is_closed(&self) -> bool {
        self.quinn.close_reason().is_some()
    }

    pub async fn closed(&self) {
        self.quinn.closed().await;
    }

    pub fn close(&self, code: StreamCode) {
        self.quinn.close(code.code(), b"");
    }

    pub fn stats(&self) -> PathStats {
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
            TransportError::Reset(StreamCode::from_code(close.error_code))
        }
        other => TransportError::Lost(other.to_string()),
    }
}

/// Our half of a stream. Reset, not finished, if it is dropped before [`SendStream::finish`].
pub struct SendStream {
    quinn: quinn::SendStream,
    finished: bool,
}

impl SendStream {
    /// Hands `bytes` over without copying them; waits for the peer's window.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), TransportError> {
        self.quinn.write_chunk(bytes).await.map_err(write_failed)
    }

    /// Hands all of `parts` over without copying them.
    pub async fn write_all(&mut self, parts: &mut [Bytes]) -> Result<(), TransportError> {
        self.quinn.write_all_chunks(parts).await.map_err(write_failed)
    }

    /// No more will be written.
    pub fn finish(&mut self) -> Result<(), TransportError> {
        self.finished = true;
        self.quinn.finish().map_err(|_| TransportError::Ended)
    }

    pub fn reset(&mut self, code: StreamCode) {
        self.finished = true;
        // Already reset: then the peer knows.
        let _ = self.quinn.reset(code.code());
    }

    /// Waits until the peer has all bytes, or has stopped the stream.
    pub async fn delivered(&mut self) -> Result<(), TransportError> {
        match self.quinn.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(TransportError::Reset(StreamCode::from_code(code))),
            Err(error) => Err(TransportError::Lost(error.to_string())),
        }
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
        quinn::WriteError::Stopped(code) => TransportError::Reset(StreamCode::from_code(code)),
        quinn::WriteError::ConnectionLost(error) => lost(error),
        other => TransportError::Lost(other.to_string()),
    }
}

/// The peer's half of a stream. The peer is told to stop if it is dropped before its end.
pub struct RecvStream(quinn::RecvStream);

impl RecvStream {
    /// In order. Not to be used after [`RecvStream::read_piece`].
    pub async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), TransportError> {
        self.0.read_exact(buffer).await.map_err(|error| match error {
            quinn::ReadExactError::FinishedEarly(_) => TransportError::Ended,
            quinn::ReadExactError::ReadError(error) => read_failed(error),
        })
    }

    /// Bytes as they arrive, each with its place counted from the beginning of the stream; `None` at the end. A lost
    /// packet holds up nothing but itself.
    pub async fn read_piece(&mut self) -> Result<Option<(u64, Bytes)>, TransportError> {
        let piece = self.0.read_chunk(MAX_PIECE, false).await.map_err(read_failed)?;
        Ok(piece.map(|piece| (piece.offset, piece.bytes)))
    }

    pub fn stop(&mut self, code: StreamCode) {
        // Already at its end: then there is nothing to stop.
        let _ = self.0.stop(code.code());
    }
}

fn read_failed(error: quinn::ReadError) -> TransportError {
    match error {
        quinn::ReadError::Reset(code) => TransportError::Reset(StreamCode::from_code(code)),
        quinn::ReadError::ConnectionLost(error) => lost(error),
        other => TransportError::Lost(other.to_string()),
    }
}
