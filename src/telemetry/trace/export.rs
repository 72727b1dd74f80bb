//! The queue between what a process does and its collector, and the task that empties it. A collector that is slow or not
//! there costs what waits, which is counted, and nothing else: nobody waits for the queue.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::collector::Collector;
use super::config::{CollectorUrl, TracingConfig, TracingError, headers};
use super::metrics::{Kind, Reason, TraceMetrics};
use super::otlp::{
    KeyValue, LogRecord, LogsRequest, Resource, ResourceLogs, ResourceSpans, Scope, ScopeLogs, ScopeSpans, Span,
    TraceRequest,
};
use crate::lifecycle::Tasks;

/// What is sent together, and how long the first of it waits for others.
const BATCH: usize = 512;
const LINGER: Duration = Duration::from_millis(500);

/// A collector that did not take a batch is left alone for so long; what comes meanwhile waits in the queue.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) enum Item {
    Span(Span),
    Log(LogRecord),
}

/// The end that is filled, from anywhere.
#[derive(Debug, Clone)]
pub(super) struct Queue(mpsc::Sender<Item>);

impl Queue {
    pub(super) fn span(&self, span: Span) {
        self.put(Item::Span(span), Kind::Span);
    }

    pub(super) fn log(&self, log: LogRecord) {
        self.put(Item::Log(log), Kind::Log);
    }

    fn put(&self, item: Item, kind: Kind) {
        if let Err(TrySendError::Full(_) | TrySendError::Closed(_)) = self.0.try_send(item) {
            TraceMetrics::of_process().dropped(kind, Reason::Full, 1);
        }
    }
}

/// The end that is emptied, once there is a runtime.
#[derive(Debug)]
pub struct Exporter {
    items: mpsc::Receiver<Item>,
    collector: Collector,
    resource: Resource,
}

/// An exporter that runs. Dropped, it exports no more.
#[derive(Debug)]
pub struct Exporting(Tasks);

impl Exporter {
    pub(super) fn new(
        endpoint: CollectorUrl,
        config: &TracingConfig,
        service: &str,
    ) -> Result<(Queue, Self), TracingError> {
        let headers = config.headers_file.as_deref().map(headers).transpose()?.unwrap_or_default();
        let (sender, items) = mpsc::channel(config.queue.max(1));
        let collector = Collector::new(endpoint, config.protocol, headers, config.timeout);
        let attributes = vec![
            KeyValue::text("service.name", service),
            KeyValue::text("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::text("service.instance.id", std::process::id().to_string()),
            KeyValue::text("host.name", rustix::system::uname().nodename().to_string_lossy()),
        ];
        Ok((Queue(sender), Self { items, collector, resource: Resource { attributes } }))
    }

    /// Within a runtime.
    pub fn run(self) -> Exporting {
        let tasks = Tasks::new();
        let ending = tasks.token().clone();
        tasks.spawn_finishing("export traces", self.work(ending));
        Exporting(tasks)
    }

    async fn work(mut self, ending: tokio_util::sync::CancellationToken) {
        let (mut batch, mut warned) = (Vec::with_capacity(BATCH), false);
        loop {
            let is_last = ending.run_until_cancelled(self.collect(&mut batch)).await.is_none();
            if is_last {
                // What is there by now, and nothing that comes later.
                while batch.len() < BATCH
                    && let Ok(item) = self.items.try_recv()
                {
                    batch.push(item);
                }
            }
            let is_taken = self.send(std::mem::take(&mut batch), &mut warned).await;
            if is_last && (!is_taken || self.items.is_empty()) {
                return;
            }
            if !is_taken {
                ending.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
            }
        }
    }

    /// A batch: what comes within [`LINGER`] of its first item.
    async fn collect(&mut self, batch: &mut Vec<Item>) {
        if self.items.recv_many(batch, BATCH).await == 0 {
            return std::future::pending().await;
        }
        let end = Instant::now() + LINGER;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            match tokio::time::timeout_at(end.into(), self.items.recv_many(batch, room)).await {
                Ok(more) if more > 0 => {}
                _ => return,
            }
        }
    }

    /// False if the collector did not take it. That is told once, until it takes something again.
    async fn send(&self, batch: Vec<Item>, warned: &mut bool) -> bool {
        let (mut spans, mut logs) = (Vec::new(), Vec::new());
        for item in batch {
            match item {
                Item::Span(span) => spans.push(span),
                Item::Log(log) => logs.push(log),
            }
        }
        let metrics = TraceMetrics::of_process();
        let counts = [(Kind::Span, spans.len() as u64), (Kind::Log, logs.len() as u64)];
        match self.send_all(spans, logs).await {
            Ok(()) => {
                counts.iter().for_each(|(kind, number)| metrics.exported(*kind, *number));
                *warned = false;
                true
            }
            Err(reason) => {
                counts.iter().for_each(|(kind, number)| metrics.dropped(*kind, Reason::Collector, *number));
                if !std::mem::replace(warned, true) {
                    tracing::warn!(collector = %self.collector, reason, "traces are dropped: is `tracing.endpoint` right, and the collector running?");
                }
                false
            }
        }
    }

    async fn send_all(&self, spans: Vec<Span>, log_records: Vec<LogRecord>) -> Result<(), String> {
        let resource = Some(self.resource.clone());
        let scope = Some(Scope { name: "warmd".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() });
        if !spans.is_empty() {
            let scope_spans = vec![ScopeSpans { scope: scope.clone(), spans }];
            let resource_spans = vec![ResourceSpans { resource: resource.clone(), scope_spans }];
            self.collector.traces(TraceRequest { resource_spans }).await?;
        }
        if !log_records.is_empty() {
            let scope_logs = vec![ScopeLogs { scope, log_records }];
            let resource_logs = vec![ResourceLogs { resource, scope_logs }];
            self.collector.logs(LogsRequest { resource_logs }).await?;
        }
        Ok(())
    }
}

impl Exporting {
    /// Exports what waits.
    pub async fn shutdown(self, deadline: Duration) {
        self.0.shutdown(deadline).await;
    }
}
