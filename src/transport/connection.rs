//! A connection to one peer, and its streams, over whichever carrier it came about.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::{CONNECT_TIMEOUT, Carrier, StreamCode, TransportError, quic, tcp};
use crate::identity::NodeId;

/// A connection attempt that has arrived and is not yet authenticated.
pub struct Incoming(Attempt);

pub(super) enum Attempt {
    Quic(Box<quinn::Incoming>),
    Tcp(tcp::Arrived),
}

impl Incoming {
    pub(super) fn new(attempt: Attempt) -> Self {
        Self(attempt)
    }

    pub fn remote_address(&self) -> SocketAddr {
        match &self.0 {
            Attempt::Quic(incoming) => incoming.remote_address(),
            Attempt::Tcp(arrived) => arrived.addr,
        }
    }

    /// Completes the handshake; the peer is then one that the cluster admits.
    pub async fn handshake(self) -> Result<Connection, TransportError> {
        let addr = self.remote_address();
        let shaking = async {
            match self.0 {
                Attempt::Quic(incoming) => quic::handshake(*incoming).await.map(Connection::from),
                Attempt::Tcp(arrived) => arrived.handshake().await.map(Connection::from),
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, shaking).await.map_err(|_| TransportError::TimedOut(addr))?
    }
}

/// What the path to a peer is like over QUIC. Counters are of the connection's life.
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

/// Bytes of a connection's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    pub sent: u64,
    pub received: u64,
}

/// An authenticated connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Connection(Over);

#[derive(Debug, Clone)]
enum Over {
    Quic(quic::Connection),
    Tcp(tcp::Connection),
}

impl From<quic::Connection> for Connection {
    fn from(connection: quic::Connection) -> Self {
        Self(Over::Quic(connection))
    }
}

impl From<tcp::Connection> for Connection {
    fn from(connection: tcp::Connection) -> Self {
        Self(Over::Tcp(connection))
    }
}

impl Connection {
    pub fn peer(&self) -> NodeId {
        match &self.0 {
            Over::Quic(connection) => connection.peer(),
            Over::Tcp(connection) => connection.peer(),
        }
    }

    pub fn remote_address(&self) -> SocketAddr {
        match &self.0 {
            Over::Quic(connection) => connection.remote_address(),
            Over::Tcp(connection) => connection.remote_address(),
        }
    }

    pub fn carrier(&self) -> Carrier {
        match &self.0 {
            Over::Quic(_) => Carrier::Quic,
            Over::Tcp(_) => Carrier::Tcp,
        }
    }

    /// Opens a stream for one request; waits while the peer allows no more of them. Only who has dialled does that.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), TransportError> {
        match &self.0 {
            Over::Quic(connection) => connection.open().await.map(|(send, recv)| (send.into(), recv.into())),
            Over::Tcp(connection) => connection.open().await.map(|(send, recv)| (send.into(), recv.into())),
        }
    }

    /// The peer's next request.
    pub async fn accept(&self) -> Result<(SendStream, RecvStream), TransportError> {
        match &self.0 {
            Over::Quic(connection) => connection.accept().await.map(|(send, recv)| (send.into(), recv.into())),
            Over::Tcp(connection) => connection.accept().await.map(|(send, recv)| (send.into(), recv.into())),
        }
    }

    pub fn is_closed(&self) -> bool {
        match &self.0 {
            Over::Quic(connection) => connection.is_closed(),
            Over::Tcp(connection) => connection.is_closed(),
        }
    }

    pub async fn closed(&self) {
        match &self.0 {
            Over::Quic(connection) => connection.closed().await,
            Over::Tcp(connection) => connection.closed().await,
        }
    }

    pub fn close(&self, code: StreamCode) {
        match &self.0 {
            Over::Quic(connection) => connection.close(code),
            Over::Tcp(connection) => connection.close(code),
        }
    }

    /// `None` over TCP, where the kernel looks after the path.
    pub fn stats(&self) -> Option<PathStats> {
        match &self.0 {
            Over::Quic(connection) => Some(connection.stats()),
            Over::Tcp(_) => None,
        }
    }

    /// What it has carried so far: payload of UDP datagrams, or of TLS over TCP.
    pub fn carried(&self) -> Carried {
        match &self.0 {
            Over::Quic(connection) => {
                let stats = connection.stats();
                Carried { sent: stats.sent_bytes, received: stats.received_bytes }
            }
            Over::Tcp(connection) => connection.carried(),
        }
    }
}

/// Our half of a stream. Reset, not finished, if it is dropped before [`SendStream::finish`].
pub struct SendStream(Sending);

enum Sending {
    Quic(quic::SendStream),
    Tcp(tcp::SendStream),
}

impl From<quic::SendStream> for SendStream {
    fn from(stream: quic::SendStream) -> Self {
        Self(Sending::Quic(stream))
    }
}

impl From<tcp::SendStream> for SendStream {
    fn from(stream: tcp::SendStream) -> Self {
        Self(Sending::Tcp(stream))
    }
}

impl SendStream {
    /// Hands `bytes` over without copying them; waits for the peer's window.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), TransportError> {
        match &mut self.0 {
            Sending::Quic(stream) => stream.write(bytes).await,
            Sending::Tcp(stream) => stream.write(bytes).await,
        }
    }

    /// Hands all of `parts` over without copying them.
    pub async fn write_all(&mut self, parts: &mut [Bytes]) -> Result<(), TransportError> {
        match &mut self.0 {
            Sending::Quic(stream) => stream.write_all(parts).await,
            Sending::Tcp(stream) => {
                for part in parts {
                    stream.write(std::mem::take(part)).await?;
                }
                Ok(())
            }
        }
    }

    /// No more will be written.
    pub fn finish(&mut self) -> Result<(), TransportError> {
        match &mut self.0 {
            Sending::Quic(stream) => stream.finish(),
            Sending::Tcp(stream) => stream.finish(),
        }
    }

    pub fn reset(&mut self, code: StreamCode) {
        match &mut self.0 {
            Sending::Quic(stream) => stream.reset(code),
            Sending::Tcp(stream) => stream.reset(code),
        }
    }
}

/// The peer's half of a stream. The peer is told to stop if it is dropped before its end.
pub struct RecvStream(Receiving);

enum Receiving {
    Quic(quic::RecvStream),
    Tcp(tcp::RecvStream),
}

impl From<quic::RecvStream> for RecvStream {
    fn from(stream: quic::RecvStream) -> Self {
        Self(Receiving::Quic(stream))
    }
}

impl From<tcp::RecvStream> for RecvStream {
    fn from(stream: tcp::RecvStream) -> Self {
        Self(Receiving::Tcp(stream))
    }
}

impl RecvStream {
    /// In order. Not to be used after [`RecvStream::read_piece`].
    pub async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), TransportError> {
        match &mut self.0 {
            Receiving::Quic(stream) => stream.read_exact(buffer).await,
            Receiving::Tcp(stream) => stream.read_exact(buffer).await,
        }
    }

    /// Bytes as they arrive, each with its place counted from the beginning of the stream; `None` at the end. Over QUIC a
    /// lost packet holds up nothing but itself.
    pub async fn read_piece(&mut self) -> Result<Option<(u64, Bytes)>, TransportError> {
        match &mut self.0 {
            Receiving::Quic(stream) => stream.read_piece().await,
            Receiving::Tcp(stream) => stream.read_piece().await,
        }
    }

    pub fn stop(&mut self, code: StreamCode) {
        match &mut self.0 {
            Receiving::Quic(stream) => stream.stop(code),
            Receiving::Tcp(stream) => stream.stop(),
        }
    }
}
