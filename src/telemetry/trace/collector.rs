//! An OpenTelemetry collector, spoken to over gRPC or HTTP.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::TcpStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::config::{CollectorUrl, OtlpProtocol};
use super::otlp::{LogsRequest, Response, TraceRequest};

const TRACES: [&str; 2] = ["/opentelemetry.proto.collector.trace.v1.TraceService/Export", "/v1/traces"];
const LOGS: [&str; 2] = ["/opentelemetry.proto.collector.logs.v1.LogsService/Export", "/v1/logs"];

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 64 * 1024;

/// Where exports go. Connects when something is sent.
pub(super) struct Collector {
    url: CollectorUrl,
    protocol: OtlpProtocol,
    /// Perhaps with secrets: not to be shown.
    headers: Vec<(String, String)>,
    timeout: Duration,
    /// Made within the runtime; reconnects by itself.
    channel: OnceLock<Channel>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Collector({})", self.url)
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl Collector {
    pub(super) fn new(
        url: CollectorUrl,
        protocol: OtlpProtocol,
        headers: Vec<(String, String)>,
        timeout: Duration,
    ) -> Self {
        Self { url, protocol, headers, timeout, channel: OnceLock::new() }
    }

    pub(super) async fn traces(&self, request: TraceRequest) -> Result<(), String> {
        self.export(TRACES, request).await
    }

    pub(super) async fn logs(&self, request: LogsRequest) -> Result<(), String> {
        self.export(LOGS, request).await
    }

    /// In words, why it was not taken.
    async fn export(
        &self,
        [grpc, http]: [&'static str; 2],
        request: impl Message + Clone + 'static,
    ) -> Result<(), String> {
        let sending = async {
            match self.protocol {
                OtlpProtocol::Grpc => self.by_grpc(grpc, request).await,
                OtlpProtocol::Http => self.by_http(http, request.encode_to_vec().into()).await,
            }
        };
        let late = |_| format!("no answer within {:?}", self.timeout);
        tokio::time::timeout(self.timeout, sending).await.map_err(late)?
    }

    async fn by_grpc<R: Message + Clone + 'static>(&self, path: &'static str, request: R) -> Result<(), String> {
        let endpoint = Endpoint::from_shared(self.url.to_string()).map_err(|error| error.to_string())?;
        let channel = self.channel.get_or_init(|| endpoint.connect_lazy()).clone();
        let mut request = tonic::Request::new(request);
        for (name, value) in &self.headers {
            let name = MetadataKey::from_bytes(name.as_bytes());
            // They were checked when they were read.
            if let (Ok(name), Ok(value)) = (name, MetadataValue::try_from(value.as_str())) {
                request.metadata_mut().insert(name, value);
            }
        }
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.map_err(|error| error.to_string())?;
        let codec = ProstCodec::<R, Response>::default();
        let answered = grpc.unary(request, PathAndQuery::from_static(path), codec).await;
        answered.map(drop).map_err(|status| status.code().description().to_owned())
    }

    async fn by_http(&self, path: &str, body: Bytes) -> Result<(), String> {
        let words = |error: hyper::Error| error.to_string();
        let stream = TcpStream::connect(self.url.authority()).await.map_err(|_| "it is not reached".to_owned())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.map_err(words)?;
        let mut request = Request::post(path).header(HOST, self.url.authority());
        request = request.header(CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        let asking = async {
            let answer = sender.send_request(request).await.map_err(words)?;
            let (head, body) = answer.into_parts();
            // The rest of it says nothing that is needed; read, the connection ends in good order.
            let _ = Limited::new(body, MAX_ANSWER).collect().await;
            if head.status.is_success() { Ok(()) } else { Err(format!("it answers {}", head.status)) }
        };
        let mut asking = std::pin::pin!(asking);
        tokio::select! {
            answered = &mut asking => answered,
            ended = connection => match ended {
                // With the answer, if it asked for that.
                Ok(()) => asking.await,
                Err(error) => Err(words(error)),
            },
        }
    }
}
