//! What this node gives one peer, as it is traced: a span for each trace that the peer is in, however many requests it makes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;

use crate::identity::NodeId;
use crate::lifecycle::Tasks;
use crate::protocol::peer::{Request, Traced};
use crate::telemetry::trace;

/// A part without a request for so long has ended.
const IDLE: Duration = Duration::from_secs(1);

/// Traces of one peer at a time; others are not traced here.
const MAX_PARTS: usize = 64;

struct Part {
    span: Span,
    used: Instant,
}

/// Of one connection.
pub(super) struct Parts {
    peer: NodeId,
    by_trace: Mutex<HashMap<String, Part>>,
}

impl Parts {
    pub(super) fn new(peer: NodeId) -> Self {
        Self { peer, by_trace: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Part>> {
        self.by_trace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The span that a request belongs to. Whoever asks for it first begins it, and a task of `tasks` ends it.
    pub(super) fn span(self: &Arc<Self>, traced: &Traced, tasks: &Tasks) -> Span {
        if !tracing::span_enabled!(target: trace::OPERATIONS, tracing::Level::DEBUG) {
            return Span::none();
        }
        let (traceparent, now) = (&traced.traceparent, Instant::now());
        let mut parts = self.lock();
        if let Some(part) = parts.get_mut(traceparent) {
            part.used = now;
            return part.span.clone();
        }
        let (Request::Manifest(artifact)
        | Request::Have(artifact, _)
        | Request::Chunks(artifact, _)
        | Request::FreshChunks(artifact, _)) = &traced.request;
        let span = tracing::debug_span!(target: trace::OPERATIONS, "serve", peer = %self.peer, %artifact, traceparent);
        if span.is_disabled() || parts.len() >= MAX_PARTS {
            return span;
        }
        let parent = traceparent.clone();
        parts.insert(parent.clone(), Part { span: span.clone(), used: now });
        drop(parts);
        let all = self.clone();
        tasks.spawn("trace of a part", async move { all.end(&parent).await });
        span
    }

    /// Ends a part once nobody asks for it any more.
    async fn end(&self, traceparent: &str) {
        loop {
            tokio::time::sleep(IDLE).await;
            let mut parts = self.lock();
            if parts.get(traceparent).is_none_or(|part| part.used.elapsed() >= IDLE) {
                parts.remove(traceparent);
                return;
            }
        }
    }
}
