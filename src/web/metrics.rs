//! What the page counts.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::reply::{Body, Reply};
use crate::telemetry::{Bounded, Registry, label, labels};

label! {
    /// What was asked for.
    pub(super) enum Route {
        /// The page and its parts.
        Page,
        Events,
        Fleet,
        Config,
        Login,
        Logout,
        /// Nothing that there is.
        Other,
    }
}

labels! {
    struct Labels {
        route: Route,
        /// As answered here: some of fifteen.
        code: Bounded<u16>,
    }
}

/// Metrics of the page. They stay at zero where none is served.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
    streams: Gauge,
    sent: Counter,
}

impl Metrics {
    pub fn register(r: &mut Registry) -> Self {
        Self {
            requests: r.add("warmd_web_requests_total", "Requests of the page by what was asked and HTTP status"),
            streams: r.add("warmd_web_open_streams", "Streams of events that somebody follows"),
            sent: r
                .add("warmd_web_sent_bytes_total", "Bytes of the page and its streams that were taken, without heads"),
        }
    }

    /// Counts the answer now, and its bytes as they are taken.
    pub(super) fn answered(&self, route: Route, reply: Reply) -> Reply {
        let code = Bounded(reply.status().as_u16());
        self.requests.get_or_create(&Labels { route, code }).inc();
        reply.map(|body| Counted { body, sent: self.sent.clone() }.boxed_unsync())
    }

    /// A stream is open as long as what is returned lives; so is `held`.
    pub(super) fn open<T>(&self, held: T) -> Open<T> {
        self.streams.inc();
        Open { streams: self.streams.clone(), _held: held }
    }
}

pub(super) struct Open<T> {
    streams: Gauge,
    _held: T,
}

impl<T> Drop for Open<T> {
    fn drop(&mut self) {
        self.streams.dec();
    }
}

struct Counted {
    body: Body,
    sent: Counter,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.sent.inc_by(data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
