//! A fake engine's HTTP side, played by the test: each request comes to the test, which decides what is answered, and when.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use warmd::lifecycle::Tasks;
use warmd::proxy;

type Body = BoxBody<Bytes, io::Error>;

/// Closes the connection without an answer.
#[derive(Debug)]
struct Hangup;

impl std::fmt::Display for Hangup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hang up")
    }
}

impl std::error::Error for Hangup {}

pub struct Upstream {
    home: tempfile::TempDir,
    open: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    connections: Arc<Mutex<Tasks>>,
    tasks: Tasks,
}

/// What came, and the place for an answer.
pub struct Asked {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    reply: Option<oneshot::Sender<Option<Response<Body>>>>,
    gone: mpsc::Sender<Infallible>,
}

/// A body that goes out piece by piece.
pub struct Pieces(mpsc::Sender<Result<Frame<Bytes>, io::Error>>);

impl Upstream {
    /// Requests come in the order in which their bodies were whole.
    pub fn start() -> (Self, mpsc::UnboundedReceiver<Asked>) {
        let home = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(home.path().join("engine.sock")).unwrap();
        let (asks, asked) = mpsc::unbounded_channel();
        let (open, accepted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks = Tasks::new();
        let connections = Arc::new(Mutex::new(tasks.child()));
        let (accepting, counts) = (connections.clone(), (open.clone(), accepted.clone()));
        tasks.spawn("fake engine", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counts.0.fetch_add(1, Ordering::SeqCst);
                counts.1.fetch_add(1, Ordering::SeqCst);
                let (asks, open) = (asks.clone(), Open(counts.0.clone()));
                accepting.lock().unwrap().spawn("fake engine's connection", async move {
                    let _open = open;
                    let service = service_fn(move |request| played(request, asks.clone()));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        (Self { home, open, accepted, connections, tasks }, asked)
    }

    pub fn at(&self, epoch: u64) -> proxy::Upstream {
        let key = Some(proxy::Secret::new("engine-key").unwrap());
        proxy::Upstream { address: proxy::Address::Uds(self.home.path().join("engine.sock")), key, epoch }
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Connections that were ever opened.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Closes all connections.
    pub async fn hang_up(&self) {
        let connections = std::mem::replace(&mut *self.connections.lock().unwrap(), self.tasks.child());
        connections.shutdown(super::cluster::DEADLINE).await;
    }

    /// Closes all connections, and takes no more.
    pub async fn die(&self) {
        self.hang_up().await;
        self.tasks.shutdown(super::cluster::DEADLINE).await;
    }
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn played(request: Request<Incoming>, asks: mpsc::UnboundedSender<Asked>) -> Result<Response<Body>, Hangup> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Hangup)?.to_bytes();
    let (reply, answer) = oneshot::channel();
    // Its other end is dropped with this future.
    let (gone, _here) = mpsc::channel(1);
    let (path, headers) = (head.uri.to_string(), head.headers);
    asks.send(Asked { method: head.method, path, headers, body, reply: Some(reply), gone }).map_err(|_| Hangup)?;
    answer.await.ok().flatten().ok_or(Hangup)
}

impl Asked {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The request was dropped by whoever asked, before there was an answer.
    pub async fn gone(&self) {
        self.gone.closed().await;
    }

    pub fn answer(mut self, status: u16, kind: &str, body: impl Into<Bytes>) {
        let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
        self.reply(status, kind, body);
    }

    pub fn json_answer(self, status: u16, body: serde_json::Value) {
        self.answer(status, "application/json", body.to_string());
    }

    /// vLLM's answer to a name that it does not know.
    pub fn unknown_model(self) {
        let message = format!("The model `{}` does not exist.", self.json()["model"].as_str().unwrap());
        let error = serde_json::json!({"message": message, "type": "NotFoundError", "param": "model", "code": 404});
        self.json_answer(404, serde_json::json!({"error": error}));
    }

    pub fn stream(self) -> Pieces {
        self.pieces(200, "text/event-stream; charset=utf-8")
    }

    pub fn pieces(mut self, status: u16, kind: &str) -> Pieces {
        let (sender, pieces) = mpsc::channel(1);
        self.reply(status, kind, StreamBody::new(ReceiverStream::new(pieces)).boxed());
        Pieces(sender)
    }

    fn reply(&mut self, status: u16, kind: &str, body: Body) {
        let response = Response::builder().status(status).header("content-type", kind).header("server", "uvicorn");
        let _ = self.reply.take().unwrap().send(Some(response.body(body).unwrap()));
    }

    pub fn hang_up(mut self) {
        let _ = self.reply.take().unwrap().send(None);
    }
}

impl Pieces {
    pub async fn send(&self, piece: &str) {
        assert!(self.offer(piece).await, "nobody reads any more");
    }

    /// False if whoever reads has gone.
    pub async fn offer(&self, piece: &str) -> bool {
        self.0.send(Ok(Frame::data(Bytes::copy_from_slice(piece.as_bytes())))).await.is_ok()
    }

    /// The connection breaks off in the midst of the body.
    pub async fn die(self) {
        let _ = self.0.send(Err(io::Error::other("the engine died"))).await;
    }

    /// Whoever reads has gone.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}
