//! A collector of traces that speaks gRPC. Its messages are written down here once more, from OTLP's description.

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
        let found = self.span.attributes.iter().find(|one| one.key == name)?;
        found.value.as_ref().map(|value| value.text.as_str())
    }
}

#[derive(Clone, Default)]
struct Taker(Arc<Mutex<Vec<Told>>>);

impl NamedService for Taker {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl UnaryService<Export> for Taker {
    type Response = Nothing;
    type Future = std::future::Ready<Result<Response<Nothing>, Status>>;

    fn call(&mut self, request: Request<Export>) -> Self::Future {
        for of in request.into_inner().resources {
            let attributes = of.resource.unwrap_or_default().attributes;
            let name = attributes.into_iter().find(|one| one.key == "service.name");
            let role = name.and_then(|name| name.value).unwrap_or_default().text;
            let spans = of.scopes.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| Told { role: role.clone(), span }));
        }
        std::future::ready(Ok(Response::new(Nothing {})))
    }
}

impl Service<http::Request<Body>> for Taker {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(Grpc::new(ProstCodec::<Nothing, Export>::default()).unary(this, request).await) })
    }
}

/// Takes all spans that it is sent, as long as it lives.
pub struct Collector {
    taker: Taker,
    addr: SocketAddr,
    _tasks: Tasks,
}

impl Collector {
    pub async fn start() -> Self {
        let taker = Taker::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(taker.clone());
        let tasks = Tasks::new();
        tasks.spawn("collector", async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { taker, addr, _tasks: tasks }
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

    /// The trace that has a span of this name and is whole.
    pub async fn trace(&self, name: &str, is_whole: impl Fn(&[Told]) -> bool) -> Vec<Told> {
        let look = || {
            let all = self.taker.0.lock().unwrap();
            let firsts = all.iter().filter(|told| told.span.name == name);
            let mut traces = firsts.map(|first| {
                all.iter().filter(|told| told.span.trace == first.span.trace).cloned().collect::<Vec<_>>()
            });
            traces.find(|trace| is_whole(trace))
        };
        let mut tick = interval(Duration::from_millis(50));
        let whole = async {
            loop {
                tick.tick().await;
                if let Some(trace) = look() {
                    return trace;
                }
            }
        };
        timeout(DEADLINE, whole).await.unwrap_or_else(|_| {
            let all = self.taker.0.lock().unwrap();
            panic!("only {:#?}", all.iter().map(|told| (&told.role, &told.span.name)).collect::<Vec<_>>())
        })
    }
}
