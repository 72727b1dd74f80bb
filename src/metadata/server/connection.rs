//! A connection whose other end is known.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::identity::NodeId;
use crate::lifecycle::Share;

/// Whoever is admitted must say something within this time; later, keep-alive tells the dead.
const FIRST_BYTE: Duration = Duration::from_secs(5);

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(in crate::metadata) struct Peer {
    pub(in crate::metadata) node: NodeId,
    pub(in crate::metadata) addr: SocketAddr,
}

impl Peer {
    /// On this machine, so that loopback endpoints mean the same to both.
    pub(in crate::metadata) fn is_local(self) -> bool {
        self.addr.ip().to_canonical().is_loopback()
    }
}

/// What a connection takes of all that there may be, and of those of its node, if that is known.
pub(in crate::metadata) struct Slot {
    _of_all: OwnedSemaphorePermit,
    _of_node: Option<Share<NodeId>>,
}

impl From<OwnedSemaphorePermit> for Slot {
    fn from(of_all: OwnedSemaphorePermit) -> Self {
        Self { _of_all: of_all, _of_node: None }
    }
}

impl From<(OwnedSemaphorePermit, Share<NodeId>)> for Slot {
    fn from((of_all, of_node): (OwnedSemaphorePermit, Share<NodeId>)) -> Self {
        Self { _of_all: of_all, _of_node: Some(of_node) }
    }
}

/// Fails all reading and writing once it is cut: so a connection ends with the server, whoever drives it.
pub(in crate::metadata) struct Connection<S = TlsStream<TcpStream>, P = Peer> {
    stream: S,
    peer: P,
    silent: Option<Pin<Box<Sleep>>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    open: Gauge,
    _slot: Slot,
}

impl<S, P> Connection<S, P> {
    pub(in crate::metadata) fn new(
        stream: S,
        peer: P,
        slot: impl Into<Slot>,
        cut: CancellationToken,
        open: Gauge,
    ) -> Self {
        open.inc();
        let silent = Some(Box::pin(tokio::time::sleep(FIRST_BYTE)));
        Self { stream, peer, silent, cut: Box::pin(cut.cancelled_owned()), open, _slot: slot.into() }
    }

    fn check_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.cut.as_mut().poll(cx).is_ready() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl<S, P> Drop for Connection<S, P> {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl<S, P: Clone + Send + Sync + 'static> Connected for Connection<S, P> {
    type ConnectInfo = P;

    fn connect_info(&self) -> P {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin, P: Unpin> AsyncRead for Connection<S, P> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_cut(cx)?;
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.silent = None;
        } else if self.silent.as_mut().is_some_and(|silent| silent.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, P: Unpin> AsyncWrite for Connection<S, P> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_cut(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_cut(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_cut(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
