//! HTTP on the admin socket: small requests in, JSON out.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::lifecycle::Tasks;
use crate::local::Connection;
use crate::proxy::BoxFuture;
use crate::proxy::pause::Reply;

const MAX_CONNECTIONS: usize = 64;
/// Bytes of a request's body.
const MAX_BODY: usize = 64 * 1024;
/// For a request's head, and for its body.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request, read whole.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) body: Bytes,
    /// The caller's user id; the kernel vouches for it.
    pub(super) uid: u32,
}

/// Whoever answers. A future that is dropped has lost its caller.
pub(super) trait Answers: Send + Sync + 'static {
    fn answer(&self, asked: Asked) -> BoxFuture<'_, Reply>;
}

/// Answers those who come until there are no more.
pub(super) async fn serve(
    mut incoming: impl Stream<Item = Connection> + Unpin,
    answers: Arc<dyn Answers>,
    connections: Arc<Tasks>,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        let Some(stream) = incoming.next().await else { return };
        let answers = answers.clone();
        connections.spawn("admin connection", async move {
            let _slot = slot;
            connection(stream, answers).await;
        });
    }
}

async fn connection(stream: Connection, answers: Arc<dyn Answers>) {
    let uid = stream.uid();
    let service = service_fn(move |request| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(response(answer(&*answers, request, uid).await)) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "admin connection");
    }
}

async fn answer(answers: &dyn Answers, request: Request<Incoming>, uid: u32) -> Reply {
    let (head, body) = request.into_parts();
    let body = match timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return failed(StatusCode::PAYLOAD_TOO_LARGE, &format!("expected at most {MAX_BODY} bytes")),
        Err(_) => return failed(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"),
    };
    let path = head.uri.path().to_owned();
    let query = head.uri.query().map(str::to_owned);
    answers.answer(Asked { method: head.method.as_str().to_owned(), path, query, body, uid }).await
}

/// In the shape of the proxy's errors.
pub(super) fn failed(status: StatusCode, message: &str) -> Reply {
    let status = status.as_u16();
    let body = json!({"error": {"message": message, "type": "admin_error", "param": null, "code": status}});
    Reply { status, body }
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{}\n", reply.body))));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
