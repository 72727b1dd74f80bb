//! One bounded HTTP/1.1 request over a connection of its own.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderName};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};

use super::LoraError;
use super::answer::Reply;
use crate::engine::{Address, Secret};
use crate::telemetry::trace;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Of an answer's head.
const MAX_HEAD: usize = 64 << 10;

/// Of an answer's body: a list of 10,000 adapters has 7 MiB.
const MAX_BODY: usize = 16 << 20;

/// How long an engine may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    pub connect: Duration,
    /// For the whole of a load: the engine reads the files before it answers.
    pub load: Duration,
    /// For the whole of any other request; it waits behind a step of the model, or a load.
    pub ask: Duration,
}

impl Default for Deadlines {
    /// 2 s, 120 s, 10 s.
    fn default() -> Self {
        Self { connect: Duration::from_secs(2), load: Duration::from_secs(120), ask: Duration::from_secs(10) }
    }
}

/// There is no whole answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("no connection within {0:?}")]
    NoConnection(Duration),
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    #[error("{0}")]
    CutOff(hyper::Error),
    #[error("the answer is longer than {MAX_BODY} bytes")]
    TooLong,
    #[error("the answer broke off: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

impl Failure {
    /// Whether the engine may have got the request.
    pub(super) fn was_sent(&self) -> bool {
        !matches!(self, Self::Connect(_) | Self::NoConnection(_))
    }
}

/// Where to ask, and as whom.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) address: Address,
    pub(super) key: Option<Secret>,
    pub(super) deadlines: Deadlines,
}

impl Endpoint {
    pub(super) async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, LoraError> {
        let reply = self.ask(path).await?;
        serde_json::from_slice(&reply.body).map_err(|error| self.unavailable(format!("{path}: {error}")))
    }

    /// A question changes nothing: whatever goes wrong, it can be asked again.
    pub(super) async fn ask(&self, path: &str) -> Result<Reply, LoraError> {
        let reply = self.send(Method::GET, path, Vec::new(), self.deadlines.ask).await;
        let reply = reply.map_err(|failure| self.unavailable(format!("{path}: {failure}")))?;
        if reply.status == StatusCode::OK {
            return Ok(reply);
        }
        Err(self.unavailable(format!("{path}: {}", reply.reason())))
    }

    /// Of what was sent and has no whole answer, nothing is known.
    pub(super) async fn change(
        &self,
        path: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> Result<Reply, LoraError> {
        let body = serde_json::to_vec(body).map_err(|error| self.unavailable(error.to_string()))?;
        self.send(Method::POST, path, body, deadline).await.map_err(|failure| {
            let reason = format!("{path}: {failure}");
            if failure.was_sent() { self.unknown(reason) } else { self.unavailable(reason) }
        })
    }

    pub(super) fn unavailable(&self, reason: String) -> LoraError {
        LoraError::Unavailable { address: self.address.clone(), reason }
    }

    pub(super) fn unknown(&self, reason: String) -> LoraError {
        LoraError::Unknown { address: self.address.clone(), reason }
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>, deadline: Duration) -> Result<Reply, Failure> {
        let ends = Instant::now() + deadline;
        let limit = self.deadlines.connect.min(deadline);
        let stream = timeout(limit, self.address.connect()).await.map_err(|_| Failure::NoConnection(limit))?;
        let stream = stream.map_err(Failure::Connect)?;
        let request = self.request(method, path, body).map_err(|error| Failure::Connect(io::Error::other(error)))?;
        timeout_at(ends, exchange(stream, request)).await.map_err(|_| Failure::NoAnswer(deadline))?
    }

    fn request(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let id = format!("warmd-{:032x}", rand::random::<u128>());
        tracing::debug!(%method, path, request_id = %id, "ask the engine");
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(HOST, "localhost").header(CONNECTION, "close").header(REQUEST_ID, id);
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key.header());
        }
        if let Some(context) = trace::current() {
            request = request.header(trace::TRACEPARENT, context.to_string());
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(body.into()))
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Reply, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(Failure::CutOff)?;
    let mut answer = pin!(async {
        let response = sender.send_request(request).await.map_err(Failure::CutOff)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|error| match error.is::<LengthLimitError>() {
            true => Failure::TooLong,
            false => Failure::Body(error),
        })?;
        Ok(Reply { status, body: body.to_bytes() })
    });
    // The connection does the work, and may be over in the moment in which the answer is whole.
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
}
