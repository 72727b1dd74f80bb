//! One trace for each warm start and each load of an adapter, across the pod, agents, holders, metadata servers and the
//! engine: spans of operations and log lines go to an OpenTelemetry collector, if one is configured.
//!
//! A span takes its parent from the span around it, or from a field `traceparent` (<https://www.w3.org/TR/trace-context/>)
//! where the work began in another process. Whoever asks another process tells it [`current`]. What others say is a hint:
//! it is bounded when it is read, and how many of their traces are recorded is this process's to limit.
//!
//! ```text
//! tracing spans -> layer -> bounded queue -> exporter (a task of the role) -> OTLP over gRPC or HTTP
//! ```
//!
//! Without a collector no span has a context, nothing is queued, and [`current`] is none.

mod collector;
mod config;
mod context;
mod export;
mod layer;
mod metrics;
mod otlp;
mod sampling;

use tonic::metadata::MetadataMap;
use tracing::Span;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, filter};

pub use self::config::{CollectorUrl, OtlpProtocol, TracingConfig, TracingError};
pub use self::context::TraceParent;
pub use self::export::{Exporter, Exporting};
use self::layer::{Exported, Recorder};
pub(crate) use self::metrics::TraceMetrics;
pub use self::sampling::set_sampling;

/// Name of the header and of the field.
pub const TRACEPARENT: &str = "traceparent";

/// Target of spans that nobody wants in a log: they are made only where traces are exported, or `debug` is logged.
pub const OPERATIONS: &str = "warmd::operations";

/// The layer that records, and the exporter to run; none where no collector is configured.
pub(super) fn layer<S>(
    config: &TracingConfig,
    service: &str,
) -> Result<Option<(impl Layer<S> + use<S>, Exporter)>, TracingError>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let Some(endpoint) = &config.endpoint else { return Ok(None) };
    let (queue, exporter) = Exporter::new(endpoint.clone(), config, service)?;
    set_sampling(config);
    let own = filter::Targets::new().with_target("warmd", tracing::Level::INFO);
    let own = own.with_target(OPERATIONS, tracing::Level::DEBUG);
    Ok(Some((Recorder::new(queue, config.logs).with_filter(own), exporter)))
}

/// The context of a span, or of the closest one around it that has one.
pub fn of(span: &Span) -> Option<TraceParent> {
    let found = span.with_subscriber(|(id, dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        span.scope().find_map(|span| span.extensions().get::<Exported>().map(Exported::context))
    });
    found.flatten()
}

/// Of the span that is entered.
pub fn current() -> Option<TraceParent> {
    of(&Span::current())
}

/// The context to tell others: of the current span, or one that is recorded nowhere and by which their logs are found.
pub fn to_tell() -> TraceParent {
    current().unwrap_or_else(TraceParent::unrecorded)
}

/// Tells the one who is asked by gRPC.
pub fn inject(metadata: &mut MetadataMap) {
    if let Some(value) = current().and_then(|context| context.to_string().parse().ok()) {
        metadata.insert(TRACEPARENT, value);
    }
}

/// For clients of gRPC.
#[derive(Debug, Clone, Copy, Default)]
pub struct Propagate;

impl tonic::service::Interceptor for Propagate {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        inject(request.metadata_mut());
        Ok(request)
    }
}

/// The span of a call by gRPC, if the caller is in a trace.
pub fn of_call(request: &tonic::codegen::http::Request<()>) -> Span {
    let Some(traceparent) = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok()) else {
        return Span::none();
    };
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    tracing::debug_span!(target: OPERATIONS, "call", rpc.method = method, traceparent)
}
