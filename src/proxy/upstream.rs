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

use super::alarm::Alarm;
use super::gather::Gather;
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

type Io = TokioIo<Gather<Either<UnixStream, TcpStream>>>;

/// One connection to the engine.
pub(super) struct Link {
    sender: SendRequest<Full<Bytes>>,
    /// None once the connection has ended.
    driver: Option<Connection<Io, Full<Bytes>>>,
    alarm: Alarm,
}

/// Why there is no answer.
pub(super) enum Unanswered {
    Late,
    /// With the request, if nothing of it was sent.
    Broken(Box<TrySendError<Ask>>),
}

impl Link {
    pub(super) async fn connect(address: &Address) -> io::Result<Box<Self>> {
        let stream = address.connect().await?;
        let mut builder = http1::Builder::new();
        let (sender, driver) =
            builder.max_buf_size(MAX_BUFFER).handshake(TokioIo::new(Gather(stream))).await.map_err(io::Error::other)?;
        Ok(Box::new(Self { sender, driver: Some(driver), alarm: Alarm::default() }))
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.driver, cx);
    }

    /// Whether the driver has seen the end of the last answer.
    fn is_done(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Whether the next request can be sent: the last answer has ended, and the engine has not closed its side.
    fn is_free(&mut self) -> bool {
        self.drive(&mut unwoken());
        self.is_done()
    }

    /// The head of the answer.
    pub(super) async fn ask(&mut self, request: Ask, due: Instant) -> Result<Response<Incoming>, Unanswered> {
        let Self { sender, driver, alarm } = self;
        let mut answer = pin!(sender.try_send_request(request));
        std::future::poll_fn(|cx| {
            drive(driver, cx);
            // It is there or not: only the driver brings it, so nobody has to be woken for it.
            match answer.as_mut().poll(&mut unwoken()) {
                Poll::Ready(answer) => Poll::Ready(answer.map_err(|error| Unanswered::Broken(Box::new(error)))),
                Poll::Pending => alarm.poll(cx, due).map(|()| Err(Unanswered::Late)),
            }
        })
        .await
    }
}

/// An ended connection is dropped, which tells everybody who waits for it.
fn drive(driver: &mut Option<Connection<Io, Full<Bytes>>>, cx: &mut Context<'_>) {
    if driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(cx).is_ready()) {
        *driver = None;
    }
}

/// For what is polled again anyway before the task waits.
fn unwoken<'w>() -> Context<'w> {
    Context::from_waker(Waker::noop())
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
        if !link.is_done() && !link.is_free() {
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
    /// What [`Self::whole`] has found.
    found: Option<Result<Bytes, hyper::Error>>,
    link: Option<Box<Link>>,
    pool: Arc<Pool>,
    epoch: u64,
}

impl Exchange {
    pub(super) fn new(body: Incoming, link: Box<Link>, pool: Arc<Pool>, epoch: u64) -> Self {
        let mut exchange = Self { body, found: None, link: Some(link), pool, epoch };
        exchange.end_if_over();
        exchange
    }

    /// A body that has come with its head, as short ones do.
    pub(super) fn whole(&mut self) -> Option<Bytes> {
        self.body.size_hint().exact()?;
        let Poll::Ready(Some(frame)) = Pin::new(&mut self.body).poll_frame(&mut unwoken()) else { return None };
        let found = frame.map(|frame| frame.into_data().unwrap_or_default());
        match found {
            Ok(data) if self.body.is_end_stream() => {
                self.give_back();
                Some(data)
            }
            found => {
                self.found = Some(found);
                None
            }
        }
    }

    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        if let Some(found) = self.found.take() {
            if found.is_err() {
                self.link = None;
            }
            return Poll::Ready(Some(found));
        }
        // Whoever takes a piece wakes the driver, and the driver whoever takes pieces: both are here. Only the last look
        // before the task waits leaves its waker.
        let mut wakers = [unwoken(), Context::from_waker(cx.waker())].into_iter();
        loop {
            match Pin::new(&mut self.body).poll_frame(&mut unwoken()) {
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
                Poll::Pending => match (wakers.next(), &mut self.link) {
                    (Some(mut cx), Some(link)) => link.drive(&mut cx),
                    _ => return Poll::Pending,
                },
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

    /// After [`Self::poll_data`] had nothing: whether `due` has passed.
    pub(super) fn is_late(&mut self, cx: &mut Context<'_>, due: Instant) -> bool {
        self.link.as_mut().is_some_and(|link| link.alarm.poll(cx, due).is_ready())
    }

    pub(super) fn is_over(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
