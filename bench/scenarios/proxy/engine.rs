//! An engine that takes no time: OpenAI's answers from memory.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep_until};

/// The answer's model, as the request names it.
const PLAIN: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"MODEL","choices":[{"index":0,"message":{"role":"assistant","content":"The capital of France is Paris, and that of Italy is Rome."},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"total_tokens":28,"completion_tokens":16}}"#;
const EVENT: &str = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"MODEL","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}],"sent_ns":"#;

/// Between two tokens of a stream.
pub(super) const PACE: Duration = Duration::from_millis(10);
pub(super) const TOKENS: usize = 200;

/// Where the engine at `addr` is reached as well.
pub(super) fn socket(dir: &Path, addr: SocketAddr) -> PathBuf {
    dir.join(format!("engine-{}.sock", addr.port()))
}

/// Serves until the process is killed, at a TCP address and on a Unix socket.
pub(crate) fn serve(addr: SocketAddr, dir: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let (tcp, unix) = (TcpListener::bind(addr).await?, UnixListener::bind(socket(dir, addr))?);
        let state = Arc::new(State::default());
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                accepted = tcp.accept() => {
                    let (stream, _) = accepted?;
                    stream.set_nodelay(true)?;
                    tokio_util::either::Either::Left(stream)
                }
                accepted = unix.accept() => tokio_util::either::Either::Right(accepted?.0),
            };
            let state = state.clone();
            let service = service_fn(move |request| answer(request, state.clone()));
            while connections.try_join_next().is_some() {}
            connections.spawn(async move {
                let mut builder = hyper::server::conn::http1::Builder::new();
                // Clients that go away are no matter here.
                let _ = builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

type Answer = Either<Full<Bytes>, Stream>;

/// Tells how many streams are being sent, and how many were sent to their end.
pub(super) const STREAMS: &str = "/bench/streams";

#[derive(Default)]
struct State {
    /// Name and path of each adapter that was registered.
    adapters: Mutex<Vec<(String, String)>>,
    running: AtomicUsize,
    finished: AtomicUsize,
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Answer>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let json = HeaderValue::from_static("application/json");
    let (kind, body) = match path.as_str() {
        "/version" => (json, whole(r#"{"version":"0.32.0"}"#.to_owned())),
        "/health" => (json, whole(String::new())),
        STREAMS => {
            let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
            (json, whole(format!("[{},{}]", count(&state.running), count(&state.finished))))
        }
        "/v1/models" => (json, whole(models(&state))),
        "/v1/load_lora_adapter" => {
            let (name, path) = (field(&body, "lora_name"), field(&body, "lora_path"));
            let said = format!("Success: LoRA adapter '{name}' added successfully.");
            state.adapters.lock().unwrap_or_else(PoisonError::into_inner).push((name, path));
            (HeaderValue::from_static("text/plain"), whole(said))
        }
        _ if body.windows(13).any(|part| part == br#""stream":true"#) => {
            let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
            (events, Either::Right(Stream::new(EVENT.replace("MODEL", &field(&body, "model")), state)))
        }
        _ => (json, whole(PLAIN.replace("MODEL", &field(&body, "model")))),
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

fn whole(text: String) -> Answer {
    Either::Left(Full::new(Bytes::from(text)))
}

/// A text of a flat JSON object without escapes.
fn field(body: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(body);
    let after = text.split(&format!("\"{name}\"")).nth(1).unwrap_or_default();
    after.split('"').nth(1).unwrap_or_default().to_owned()
}

fn models(state: &State) -> String {
    let adapters = state.adapters.lock().unwrap_or_else(PoisonError::into_inner);
    let cards = adapters.iter().map(|(name, path)| {
        format!(r#",{{"id":"{name}","object":"model","created":1,"owned_by":"vllm","root":"{path}","parent":"base"}}"#)
    });
    let base = r#"{"id":"base","object":"model","created":1,"owned_by":"vllm","root":"base","parent":null,"max_model_len":2048}"#;
    format!(r#"{{"object":"list","data":[{base}{}]}}"#, cards.collect::<String>())
}

/// A token now and then, each with the time when it was sent.
pub(super) struct Stream {
    event: String,
    sent: usize,
    due: Pin<Box<Sleep>>,
    state: Arc<State>,
}

impl Stream {
    fn new(event: String, state: Arc<State>) -> Self {
        state.running.fetch_add(1, Ordering::Relaxed);
        Self { event, sent: 0, due: Box::pin(sleep_until(Instant::now())), state }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.state.running.fetch_sub(1, Ordering::Relaxed);
        if self.sent > TOKENS {
            self.state.finished.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.sent > TOKENS {
            return Poll::Ready(None);
        }
        std::task::ready!(self.due.as_mut().poll(cx));
        let due = self.due.deadline() + PACE;
        self.due.as_mut().reset(due);
        self.sent += 1;
        let text = match self.sent {
            sent if sent > TOKENS => "data: [DONE]\n\n".to_owned(),
            _ => format!("data: {}{}}}\n\n", self.event, now_ns()),
        };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(text)))))
    }
}

/// Of the clock that all processes of a machine share.
pub(super) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
