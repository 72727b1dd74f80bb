//! A caller's connection, as one of those that its user may have.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

use crate::lifecycle::Share;

/// Counts for as long as it is open.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    uid: u32,
    place: Share<u32>,
    /// As long as it is open.
    open: Arc<()>,
}

/// Who calls, as a handler knows it.
#[derive(Debug, Clone)]
pub struct Caller {
    pub uid: u32,
    /// There for as long as the connection is open.
    pub open: Weak<()>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, uid: u32, place: Share<u32>) -> Self {
        Self { stream, uid, place, open: Arc::default() }
    }

    /// The user at the other end.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The stream counts until the share is dropped.
    pub fn into_parts(self) -> (UnixStream, Share<u32>) {
        (self.stream, self.place)
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller { uid: self.uid, open: Arc::downgrade(&self.open) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
