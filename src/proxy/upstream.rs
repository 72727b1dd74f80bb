//! Connections to the engine. Whoever asks owns the connection and drives it: dropping a request closes its connection at
//! once, and the engine stops working on it.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming, SizeHint};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_util::either::Either;

use crate::engine::{Address, Secret};

/// Of the head of an engine's answer, and what is read of its body at a time.
const MAX_BUFFER: usize = 64 * 1024;

/// Where the engine is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    pub address: Address,
    pub key: Option<Secret>,
    /// Another one is another process, that knows nothing of what the one before was told.
    pub epoch: u64,
}

pub(super) type Ask = Request<Full<Bytes>>;

type Io = TokioIo<Either<UnixStream, TcpStream>>;

/// One connection to the engine.
pub(super) struct Link {
    sender: SendRequest<Full<Bytes>>,
    driver: Connection<Io, Full<Bytes>>,
    over: bool,
}

impl Link {
    pub(super) async fn connect(address: &Address) -> io::Result<Box<Self>> {
        let stream = address.connect().await?;
        let mut builder = http1::Builder::new();
        let (sender, driver) =
            builder.max_buf_size(MAX_BUFFER).handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        Ok(Box::new(Self { sender, driver, over: false }))
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        self.over = self.over || Pin::new(&mut self.driver).poll(cx).is_ready();
    }

    /// Whether the next request can be sent: the last answer has ended, and the engine has not closed its side.
    fn is_free(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.over && self.sender.is_ready()
    }

    /// The head of the answer.
    pub(super) async fn ask(&mut self, request: Ask) -> Result<Response<Incoming>, Box<TrySendError<Ask>>> {
        let mut answer = pin!(self.sender.try_send_request(request));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer.map_err(Box::new));
            }
            if !self.over {
                self.over = Pin::new(&mut self.driver).poll(cx).is_ready();
            }
            answer.as_mut().poll(cx).map_err(Box::new)
        })
        .await
    }
}

/// Connections that wait for the next request, the latest used last.
pub(super) struct Pool {
    kept: Mutex<Kept>,
    keep_alive: Duration,
    max: usize,
}

struct Kept {
    epoch: u64,
    links: Vec<(Instant, Box<Link>)>,
}

impl Pool {
    pub(super) fn new(keep_alive: Duration, max: usize) -> Self {
        Self { kept: Mutex::new(Kept { epoch: 0, links: Vec::new() }), keep_alive, max }
    }

    pub(super) fn take(&self, epoch: u64) -> Option<Box<Link>> {
        let now = Instant::now();
        loop {
            let (since, mut link) = {
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.epoch != epoch {
                    return None;
                }
                kept.links.pop()?
            };
            if now.duration_since(since) < self.keep_alive && link.is_free() {
                return Some(link);
            }
        }
    }

    fn put(&self, epoch: u64, mut link: Box<Link>) {
        if !link.is_free() {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch > kept.epoch {
            kept.links.clear();
            kept.epoch = epoch;
        }
        if epoch == kept.epoch && kept.links.len() < self.max {
            kept.links.push((Instant::now(), link));
        }
    }

    /// Closes those that were kept for long enough.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.links.retain(|(since, _)| now.duration_since(*since) < self.keep_alive);
    }
}

/// The body of an answer, and the connection that it comes over; the pool gets that back at the end.
pub(super) struct Exchange {
    body: Incoming,
    link: Option<Box<Link>>,
    pool: Arc<Pool>,
    epoch: u64,
}

impl Exchange {
    pub(super) fn new(body: Incoming, link: Box<Link>, pool: Arc<Pool>, epoch: u64) -> Self {
        let mut exchange = Self { body, link: Some(link), pool, epoch };
        exchange.end_if_over();
        exchange
    }

    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        let mut driven = false;
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    self.end_if_over();
                    return Poll::Ready(Some(Ok(data)));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.link = None;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => {
                    self.give_back();
                    return Poll::Ready(None);
                }
                Poll::Pending if driven => return Poll::Pending,
                Poll::Pending => {
                    if let Some(link) = &mut self.link {
                        link.drive(cx);
                    }
                    driven = true;
                }
            }
        }
    }

    /// A body of known length is over with its last byte; nobody asks for more.
    fn end_if_over(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if let Some(link) = self.link.take() {
            self.pool.put(self.epoch, link);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
