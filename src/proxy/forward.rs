//! One request to the engine, and its answer back.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap,
    HeaderName, HeaderValue, SERVER, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::answer::Answer;
use super::metrics::Phase;
use super::rewrite::Framing;
use super::route::Endpoint;
use super::trace::Trace;
use super::upstream::{Ask, Exchange, Link, Pool, Unanswered, Upstream};
use super::{Config, Metrics};

/// Headers of clients that the engine gets; no key, no cookie, and nothing that chooses a replica is among them.
static ASKED: [HeaderName; 4] =
    [ACCEPT, USER_AGENT, HeaderName::from_static("anthropic-version"), HeaderName::from_static("anthropic-beta")];

/// Says that the client itself would send the request again.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Headers that concern one connection (RFC 9110, 7.6.1), and those that tell about the engine.
static OWN: [HeaderName; 11] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-authorization"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    SERVER,
    HeaderName::from_static("date"),
];

/// Longer answers that a model was not found are not understood.
const MAX_NOT_FOUND: usize = 64 * 1024;

/// That a request to the engine has, and those of its message.
const MOST_HEADERS: usize = 12;

/// What the engine is asked, apart from the body.
pub(super) struct Head<'r> {
    pub(super) endpoint: Endpoint,
    pub(super) headers: &'r HeaderMap,
    pub(super) trace: &'r Trace,
    /// Connections to the engine, of the thread that serves this.
    pub(super) pool: &'r Arc<Pool>,
}

impl Head<'_> {
    /// Made of what was parsed: what a client wrote does not frame what the engine reads.
    fn request(&self, upstream: &Upstream, body: Bytes) -> Ask {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = hyper::Uri::from_static(self.endpoint.path());
        let headers = request.headers_mut();
        headers.reserve(MOST_HEADERS);
        headers.insert(HOST, HeaderValue::from_static("localhost"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for name in &ASKED {
            if let Some(value) = self.headers.get(name) {
                headers.insert(name, value.clone());
            }
        }
        if let Some(key) = &upstream.key {
            headers.insert(AUTHORIZATION, key.header());
        }
        self.trace.ask(headers);
        request
    }
}

/// Asks engines.
pub(super) struct Forward {
    connect: Duration,
    first_byte: Duration,
    idle: Duration,
    /// When to come again, if there is no engine.
    retry_after: Duration,
    metrics: Arc<Metrics>,
}

/// The head of an engine's answer, and where its body comes from.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) exchange: Exchange,
}

impl Forward {
    pub(super) fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        let Config { connect, first_byte, idle, retry_after, .. } = *config;
        Self { connect, first_byte, idle, retry_after, metrics }
    }

    pub(super) async fn ask(&self, upstream: &Upstream, head: &Head<'_>, body: Bytes) -> Result<Answered, Answer> {
        let (response, link) = self.send(upstream, head, body).await?;
        let (parts, body) = response.into_parts();
        let exchange = Exchange::new(body, link, head.pool.clone(), upstream.epoch);
        if parts.status == StatusCode::UNAUTHORIZED {
            // It is our key that is wrong, not the client's.
            self.metrics.failed(Phase::Request);
            return Err(Answer::Engine("it refused the proxy's key"));
        }
        Ok(Answered { status: parts.status, headers: parts.headers, exchange })
    }

    async fn send(
        &self,
        upstream: &Upstream,
        head: &Head<'_>,
        body: Bytes,
    ) -> Result<(Response<Incoming>, Box<Link>), Answer> {
        let due = Instant::now() + self.first_byte;
        let mut request = head.request(upstream, body.clone());
        if let Some(mut link) = head.pool.take(upstream.epoch) {
            let mut error = match link.ask(request, due).await {
                Ok(response) => return Ok((response, link)),
                Err(Unanswered::Late) => return Err(self.late()),
                Err(Unanswered::Broken(error)) => error,
            };
            // The engine may have closed the connection just now. Once is safe what it did not begin to read, or what the
            // client would repeat itself; anything else may be what the engine died of.
            request = match error.take_message() {
                Some(request) => request,
                None if head.headers.contains_key(IDEMPOTENCY_KEY) => head.request(upstream, body),
                None => return Err(self.broke(error.error())),
            };
            self.metrics.retries.inc();
        }
        let mut link = self.connected(upstream).await?;
        match link.ask(request, due).await {
            Ok(response) => Ok((response, link)),
            Err(Unanswered::Late) => Err(self.late()),
            Err(Unanswered::Broken(error)) => Err(self.broke(error.error())),
        }
    }

    async fn connected(&self, upstream: &Upstream) -> Result<Box<Link>, Answer> {
        let connecting = timeout(self.connect, Link::connect(&upstream.address)).await;
        let failed = |answer| {
            self.metrics.failed(Phase::Connect);
            answer
        };
        match connecting {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) => {
                // It has just gone: nothing was sent, so whoever comes again loses nothing.
                tracing::warn!(%error, "connect to the engine");
                Err(failed(Answer::NotReady { retry_after: self.retry_after }))
            }
            Err(_) => Err(failed(Answer::EngineTimeout("no connection"))),
        }
    }

    fn late(&self) -> Answer {
        self.metrics.failed(Phase::FirstByte);
        Answer::EngineTimeout("no answer")
    }

    fn broke(&self, error: &hyper::Error) -> Answer {
        tracing::debug!(%error, "the engine did not answer");
        self.metrics.failed(Phase::Request);
        Answer::Engine("it closed the connection without an answer")
    }

    /// The whole body of an answer that is short.
    pub(super) async fn whole(&self, exchange: &mut Exchange) -> Result<Bytes, Answer> {
        let deadline = Instant::now() + self.idle;
        let mut whole = BytesMut::new();
        loop {
            let next = tokio::time::timeout_at(deadline, std::future::poll_fn(|cx| exchange.poll_data(cx))).await;
            match next.map_err(|_| Answer::EngineTimeout("its answer stalled"))? {
                None => return Ok(whole.freeze()),
                Some(Ok(data)) if whole.len() + data.len() <= MAX_NOT_FOUND => whole.extend_from_slice(&data),
                Some(Ok(_)) => return Err(Answer::Engine("its error is too long")),
                Some(Err(error)) => return Err(self.broke(&error)),
            }
        }
    }
}

/// Whether the engine says that it does not know `served`, as vLLM does: 404 with `NotFoundError`, the parameter `model`,
/// and the name.
pub(super) fn names_us(body: &[u8], served: &str) -> bool {
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(body) else { return false };
    // Before 0.10 the error was not wrapped.
    let error = body.get("error").unwrap_or(&body);
    let message = error["message"].as_str().unwrap_or_default();
    error["type"] == "NotFoundError" && error["param"] == "model" && message.contains(&format!("`{served}`"))
}

/// Headers of an answer without those that concern the connection to the engine.
pub(super) fn relayed(mut headers: HeaderMap, framing: Framing, keeps_length: bool) -> HeaderMap {
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let is_own = |name: &&HeaderName| OWN.contains(name) || listed.contains(name);
    while let Some(name) = headers.keys().find(is_own).cloned() {
        headers.remove(name);
    }
    if !keeps_length {
        headers.remove(CONTENT_LENGTH);
    }
    if framing == Framing::Events {
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    headers
}

pub(super) fn framing(headers: &HeaderMap) -> Framing {
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Framing::Opaque;
    }
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    match kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii() {
        b"text/event-stream" => Framing::Events,
        b"application/json" => Framing::Json,
        _ => Framing::Opaque,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_404_that_names_us_is_about_us() {
        let error = |kind: &str, param: &str, message: &str| {
            format!(r#"{{"error":{{"message":"{message}","type":"{kind}","param":{param},"code":404}}}}"#)
        };
        let ours = "The model `sql@1` does not exist. Valid aliases: base";
        assert!(names_us(error("NotFoundError", "\"model\"", ours).as_bytes(), "sql@1"));
        for body in [
            error("NotFoundError", "null", ours),
            error("BadRequestError", "\"model\"", ours),
            error("NotFoundError", "\"model\"", "The model `sql@12` does not exist."),
            r#"{"detail":"Not Found"}"#.to_owned(),
            String::new(),
        ] {
            assert!(!names_us(body.as_bytes(), "sql@1"), "{body}");
        }
    }

    #[test]
    fn headers_of_one_connection_do_not_go_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("server", "uvicorn"),
            ("content-type", "text/event-stream; charset=utf-8"),
            ("x-kept", "1"),
            ("content-length", "3"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let relayed = relayed(headers, Framing::Events, false);
        let mut names: Vec<&str> = relayed.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["cache-control", "content-type", "x-accel-buffering", "x-kept"]);
    }
}
