//! A collector of traces and log lines that speaks gRPC. Its messages are written down here once more, from OTLP's description.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{interval, timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use warmd::lifecycle::Tasks;
use warmd::telemetry::TracingConfig;

use super::super::harness::cluster::DEADLINE;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<OfResource>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OfResource {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<OfScope>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OfScope {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub parent: Vec<u8>,
    #[prost(string, tag = "5")]
    pub name: String,
    #[prost(fixed64, tag = "7")]
    pub start: u64,
    #[prost(fixed64, tag = "8")]
    pub end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct LogExport {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<LogsOfResource>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LogsOfResource {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<LogsOfScope>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LogsOfScope {
    #[prost(message, repeated, tag = "2")]
    records: Vec<Record>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    #[prost(fixed64, tag = "1")]
    pub time: u64,
    #[prost(int32, tag = "2")]
    pub severity: i32,
    #[prost(string, tag = "3")]
    pub level: String,
    #[prost(message, optional, tag = "5")]
    body: Option<AnyValue>,
    #[prost(message, repeated, tag = "6")]
    attributes: Vec<KeyValue>,
}

/// A log line, and the role that has sent it.
#[derive(Debug, Clone)]
pub struct Line {
    pub role: String,
    pub text: String,
    pub record: Record,
}

impl Line {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        text_of(&self.record.attributes, name)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(string, tag = "1")]
    text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Nothing {}

/// A span, and the role that has sent it.
#[derive(Debug, Clone)]
pub struct Told {
    pub role: String,
    pub span: Span,
}

impl Told {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        text_of(&self.span.attributes, name)
    }
}

fn text_of<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|one| one.key == name)?;
    found.value.as_ref().map(|value| value.text.as_str())
}

fn role_of(resource: &Option<Resource>) -> String {
    let attributes = resource.as_ref().map(|resource| &resource.attributes[..]).unwrap_or_default();
    text_of(attributes, "service.name").unwrap_or_default().to_owned()
}

trait Exported: prost::Message + Default + Clone + Send + Sync + 'static {
    const SERVICE: &'static str;
}

impl Exported for Export {
    const SERVICE: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl Exported for LogExport {
    const SERVICE: &'static str = "opentelemetry.proto.collector.logs.v1.LogsService";
}

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Taker<E>(Arc<Mutex<Vec<E>>>);

impl<E: Exported> NamedService for Taker<E> {
    const NAME: &'static str = E::SERVICE;
}

impl<E: Exported> UnaryService<E> for Taker<E> {
    type Response = Nothing;
    type Future = std::future::Ready<Result<Response<Nothing>, Status>>;

    fn call(&mut self, request: Request<E>) -> Self::Future {
        self.0.lock().unwrap().push(request.into_inner());
        std::future::ready(Ok(Response::new(Nothing {})))
    }
}

impl<E: Exported> Service<http::Request<Body>> for Taker<E> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(Grpc::new(ProstCodec::<Nothing, E>::default()).unary(this, request).await) })
    }
}

/// Takes all that it is sent, as long as it lives.
pub struct Collector {
    traces: Taker<Export>,
    logs: Taker<LogExport>,
    addr: SocketAddr,
    _tasks: Tasks,
}

impl Collector {
    pub async fn start() -> Self {
        let (traces, logs) = (Taker::default(), Taker::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(traces.clone()).add_service(logs.clone());
        let tasks = Tasks::new();
        tasks.spawn("collector", async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { traces, logs, addr, _tasks: tasks }
    }

    /// Spans for it, and no log lines.
    pub fn config(&self) -> TracingConfig {
        let endpoint = Some(format!("http://{}", self.addr).parse().unwrap());
        TracingConfig { endpoint, logs: false, ..TracingConfig::default() }
    }

    /// The same, for a command that reads no file.
    pub fn environment(&self) -> Vec<String> {
        let endpoint = format!("WARMD_TRACING_ENDPOINT=http://{}", self.addr);
        vec!["env".to_owned(), endpoint, "WARMD_TRACING_LOGS=false".to_owned()]
    }

    fn spans(&self) -> Vec<Told> {
        let all = self.traces.0.lock().unwrap();
        let of = all.iter().flat_map(|export| &export.resources).flat_map(|of| {
            let spans = of.scopes.iter().flat_map(|scope| scope.spans.clone());
            spans.map(move |span| Told { role: role_of(&of.resource), span })
        });
        of.collect()
    }

    fn lines(&self) -> Vec<Line> {
        let all = self.logs.0.lock().unwrap();
        let of = all.iter().flat_map(|export| &export.resources).flat_map(|of| {
            let records = of.scopes.iter().flat_map(|scope| scope.records.clone());
            let text = |record: &Record| record.body.as_ref().map(|body| body.text.clone()).unwrap_or_default();
            records.map(move |record| Line { role: role_of(&of.resource), text: text(&record), record })
        });
        of.collect()
    }

    /// What `look` finds among all that has come.
    async fn find<T>(&self, look: impl Fn() -> Option<T>) -> T {
        let mut tick = interval(Duration::from_millis(50));
        let found = async {
            loop {
                tick.tick().await;
                if let Some(found) = look() {
                    return found;
                }
            }
        };
        timeout(DEADLINE, found).await.unwrap_or_else(|_| {
            let spans = self.spans().into_iter().map(|told| (told.role, told.span.name));
            let lines = self.lines().into_iter().map(|line| (line.role, line.text));
            panic!("only {:#?}", spans.chain(lines).collect::<Vec<_>>())
        })
    }

    /// The trace that has a span of this name and is whole.
    pub async fn trace(&self, name: &str, is_whole: impl Fn(&[Told]) -> bool) -> Vec<Told> {
        let look = || {
            let all = self.spans();
            let firsts = all.iter().filter(|told| told.span.name == name);
            let mut traces = firsts.map(|first| {
                all.iter().filter(|told| told.span.trace == first.span.trace).cloned().collect::<Vec<_>>()
            });
            traces.find(|trace| is_whole(trace))
        };
        self.find(look).await
    }

    /// The first line that has this text.
    pub async fn line(&self, text: &str) -> Line {
        self.find(|| self.lines().into_iter().find(|line| line.text.contains(text))).await
    }
}
