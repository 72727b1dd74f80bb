//! Bodies of answers: the proxy's own, and the engine's as it comes.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use super::metrics::{By, Metrics, Phase, Stage};
use super::models::Lease;
use super::rewrite::Rewriter;
use super::slots::Slot;
use super::upstream::Exchange;
use crate::lifecycle::Cancelled;

/// Ends a body that must not look whole: the connection is closed without its end.
type Broken = Box<dyn Error + Send + Sync>;

pub(super) enum Body {
    Whole(Bytes),
    Relay(Box<Relay>),
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Relay(relay) => relay.poll(cx).map(|next| next.map(|data| data.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Relay(relay) if relay.rewriter.changes_length() => SizeHint::default(),
            Self::Relay(relay) => relay.exchange.size_hint(),
        }
    }
}

/// Does something with the number of tokens of an answer that has ended.
pub(super) type Account = Box<dyn FnOnce(u64) + Send + Sync>;

/// What lives as long as an answer.
#[expect(dead_code, reason = "held to be dropped")]
pub(super) struct Held {
    pub(super) lease: Option<Lease>,
    pub(super) permit: Option<Lease>,
    pub(super) slot: Option<Slot>,
    pub(super) stage: Stage,
}

/// An answer of the engine on its way to the client.
pub(super) struct Relay {
    exchange: Exchange,
    rewriter: Rewriter,
    /// Longest time between two pieces.
    idle: Duration,
    /// When the last piece came, or the head.
    heard: Instant,
    /// Until the first piece: when the request came.
    begun: Option<Instant>,
    aborted: Option<Cancelled>,
    state: Progress,
    metrics: Arc<Metrics>,
    account: Option<Account>,
    held: Option<Held>,
}

enum Progress {
    Flowing,
    /// Said after the last piece; the end follows.
    Last(Bytes),
    Over,
}

impl Relay {
    pub(super) fn new(
        exchange: Exchange,
        rewriter: Rewriter,
        idle: Duration,
        begun: Instant,
        metrics: Arc<Metrics>,
    ) -> Self {
        let state = if exchange.is_over() { Progress::Over } else { Progress::Flowing };
        Self {
            exchange,
            rewriter,
            idle,
            heard: Instant::now(),
            begun: Some(begun),
            aborted: None,
            state,
            metrics,
            account: None,
            held: None,
        }
    }

    pub(super) fn holding(mut self, held: Held, aborted: Option<CancellationToken>, account: Account) -> Self {
        self.account = Some(account);
        self.held = Some(held);
        match self.state {
            Progress::Over => self.over(),
            Progress::Flowing | Progress::Last(_) => self.aborted = aborted.as_ref().map(Cancelled::of),
        }
        self
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            match std::mem::replace(&mut self.state, Progress::Over) {
                Progress::Flowing => self.state = Progress::Flowing,
                Progress::Last(bytes) => return Poll::Ready(Some(Ok(bytes))),
                Progress::Over => return Poll::Ready(None),
            }
            if self.aborted.as_mut().is_some_and(|aborted| aborted.poll_unpin(cx).is_ready()) {
                self.metrics.aborted(By::Operator);
                return Poll::Ready(Some(self.broken(&Answer::Aborted)));
            }
            let data = match self.exchange.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => self.arrived(data),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "the engine's answer broke off");
                    self.metrics.failed(Phase::Body);
                    return Poll::Ready(Some(self.broken(&Answer::Engine("its answer broke off"))));
                }
                Poll::Ready(None) => {
                    let rest = self.rewriter.finish();
                    self.over();
                    rest
                }
                Poll::Pending if self.exchange.is_late(cx, self.heard + self.idle) => {
                    self.metrics.failed(Phase::Idle);
                    return Poll::Ready(Some(self.broken(&Answer::EngineTimeout("its answer stalled"))));
                }
                Poll::Pending => return Poll::Pending,
            };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(data)));
            }
        }
    }

    fn arrived(&mut self, data: Bytes) -> Bytes {
        let now = Instant::now();
        let heard = std::mem::replace(&mut self.heard, now);
        let begun = self.begun.take();
        if self.rewriter.is_events() {
            match begun {
                Some(begun) => self.metrics.first_token(now - begun),
                None => self.metrics.next_token(now - heard),
            }
        }
        let data = self.rewriter.push(data);
        if self.exchange.is_over() {
            // Of a body with a length, nobody asks for more than its last byte.
            let rest = self.rewriter.finish();
            self.over();
            if !rest.is_empty() {
                self.state = Progress::Last(rest);
            }
        }
        data
    }

    /// Ends a stream with an event that says why, if that can be said between two others. Otherwise the body is cut off,
    /// and the client sees that too. Nothing claims that the answer was whole.
    fn broken(&mut self, answer: &Answer) -> Result<Bytes, Broken> {
        let says = self.rewriter.between_events();
        self.over();
        if says { Ok(answer.event()) } else { Err(answer.to_string().into()) }
    }

    fn over(&mut self) {
        self.state = Progress::Over;
        self.account();
        self.held = None;
    }

    fn account(&mut self) {
        if let Some(account) = self.account.take() {
            let tokens = self.rewriter.tokens();
            self.metrics.tokens.inc_by(tokens);
            account(tokens);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if matches!(self.state, Progress::Flowing) {
            self.metrics.aborted(By::Client);
            self.account();
        }
    }
}
