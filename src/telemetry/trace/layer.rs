//! Gives spans their contexts, and hands what has ended to the queue.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::context::TraceParent;
use super::export::Queue;
use super::otlp::{AnyValue, KeyValue, LogRecord, Span, Status, Value};
use super::{TRACEPARENT, sampling};
use crate::telemetry::escaped;

/// Of one span or line; the rest is left out.
const MAX_ATTRIBUTES: usize = 32;

/// Bytes of one value.
const MAX_VALUE: usize = 1024;

/// What a span is exported as.
#[derive(Debug)]
pub(super) struct Exported {
    context: TraceParent,
    parent: Option<u64>,
    started: SystemTime,
    /// When it was left last: tasks may hold a span for longer than they work in it.
    left: Option<SystemTime>,
    attributes: Vec<KeyValue>,
    failed: bool,
}

impl Exported {
    pub(super) fn context(&self) -> TraceParent {
        self.context
    }

    fn span(self, name: &str) -> Span {
        let method = self.attributes.iter().find(|one| one.key == "rpc.method").and_then(|one| one.value.clone());
        let (name, kind) = match method.and_then(|method| method.value) {
            Some(Value::Text(method)) => (method, 2),
            _ => (name.to_owned(), 1),
        };
        Span {
            trace_id: self.context.trace.to_be_bytes().to_vec(),
            span_id: self.context.span.to_be_bytes().to_vec(),
            parent_span_id: self.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
            name,
            kind,
            start_time_unix_nano: nanoseconds(self.started),
            end_time_unix_nano: nanoseconds(self.left.unwrap_or_else(SystemTime::now)),
            attributes: self.attributes,
            status: self.failed.then(|| Status { message: String::new(), code: 2 }),
        }
    }
}

fn nanoseconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The layer.
pub(super) struct Recorder {
    queue: Queue,
    logs: bool,
}

impl Recorder {
    pub(super) fn new(queue: Queue, logs: bool) -> Self {
        Self { queue, logs }
    }
}

/// Collects fields, bounded and escaped.
#[derive(Default)]
struct Fields {
    attributes: Vec<KeyValue>,
    message: String,
    remote: Option<TraceParent>,
    failed: bool,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.failed |= field.name() == "error";
        if self.attributes.len() < MAX_ATTRIBUTES {
            self.attributes.push(KeyValue::new(field.name(), value));
        }
    }

    fn text(&mut self, field: &Field, text: &str) {
        if field.name() == TRACEPARENT {
            self.remote = text.parse().ok();
            return;
        }
        let end = (0..=MAX_VALUE.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let text = escaped(&text[..end]).into_owned();
        if field.name() == "message" { self.message = text } else { self.put(field, Value::Text(text)) }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Int(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::Double(value));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let around = span.parent().and_then(|parent| {
            parent.scope().find_map(|span| span.extensions().get::<Exported>().map(Exported::context))
        });
        let (context, parent) = match (fields.remote, around) {
            (Some(remote), _) => (remote.child(remote.sampled && sampling::takes_remote()), Some(remote.span)),
            (None, Some(around)) => (around.child(around.sampled), Some(around.span)),
            (None, None) => (TraceParent::root(sampling::begins()), None),
        };
        let attributes = if context.sampled { fields.attributes } else { Vec::new() };
        let (started, failed) = (SystemTime::now(), fields.failed);
        span.extensions_mut().insert(Exported { context, parent, started, left: None, attributes, failed });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        let mut extensions = span.extensions_mut();
        let Some(exported) = extensions.get_mut::<Exported>().filter(|exported| exported.context.sampled) else {
            return;
        };
        let mut fields = Fields { attributes: std::mem::take(&mut exported.attributes), ..Fields::default() };
        values.record(&mut fields);
        exported.attributes = fields.attributes;
        exported.failed |= fields.failed;
    }

    fn on_exit(&self, id: &Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        if let Some(exported) = span.extensions_mut().get_mut::<Exported>().filter(|one| one.context.sampled) {
            exported.left = Some(SystemTime::now());
        }
    }

    fn on_close(&self, id: Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(&id) else { return };
        let exported = span.extensions_mut().remove::<Exported>();
        if let Some(exported) = exported.filter(|exported| exported.context.sampled) {
            self.queue.span(exported.span(span.name()));
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        if !self.logs {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let around = ctx
            .event_scope(event)
            .and_then(|mut scope| scope.find_map(|span| span.extensions().get::<Exported>().map(Exported::context)));
        let ids = around.map(|context| (context.trace.to_be_bytes().to_vec(), context.span.to_be_bytes().to_vec()));
        let (trace_id, span_id) = ids.unwrap_or_default();
        let level = *event.metadata().level();
        self.queue.log(LogRecord {
            time_unix_nano: nanoseconds(SystemTime::now()),
            severity_number: severity(level),
            severity_text: level.to_string(),
            body: Some(AnyValue { value: Some(Value::Text(fields.message)) }),
            attributes: fields.attributes,
            trace_id,
            span_id,
        });
    }
}

/// OTLP's number of a level.
fn severity(level: Level) -> i32 {
    match level {
        Level::ERROR => 17,
        Level::WARN => 13,
        Level::INFO => 9,
        Level::DEBUG => 5,
        Level::TRACE => 1,
    }
}
