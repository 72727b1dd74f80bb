//! A proxy with models that the test decides about, and a client that sends any bytes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncBufReadExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use warmd::proxy::auth::AnonymousConfig;
use warmd::proxy::{
    Admission, Answer, Asking, BoxFuture, Caller, Capabilities, Config, Lease, Metrics, ModelCard, Models, Permit,
    Proxy, Resolution, Route, Server,
};
use warmd::telemetry::Registry;

use super::cluster::DEADLINE;
use super::upstream::{Asked, Upstream};

pub const SERVED: &str = "sql@0a1b2c";
pub const SALT: &str = "0a1b2c";

/// Knows `base`, and `sql` once it is loaded.
#[derive(Default)]
pub struct Fleet {
    loaded: watch::Sender<bool>,
    pub leases: Arc<AtomicUsize>,
    pub lost: Mutex<Vec<(String, u64)>>,
    pub waiting: Arc<AtomicUsize>,
}

/// Counts for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fleet {
    pub fn load(&self) {
        self.loaded.send_replace(true);
    }

    pub fn leases(&self) -> usize {
        self.leases.load(Ordering::SeqCst)
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    fn look(&self, model: &str) -> Resolution {
        match model {
            "base" => Resolution::Ready(Route::Base { upstream_name: "base".to_owned() }),
            "sql" if *self.loaded.borrow() => Resolution::Ready(Route::Adapter {
                upstream_name: SERVED.to_owned(),
                shown_name: "sql".to_owned(),
                cache_salt: Some(SALT.to_owned()),
                lease: Box::new(Counted::new(&self.leases)),
            }),
            "sql" => Resolution::Loading { state: "fetching".to_owned(), retry_after: Duration::from_secs(3) },
            "theirs" => Resolution::Refused { status: 403.try_into().unwrap(), reason: "not yours".to_owned() },
            _ => Resolution::Unknown,
        }
    }
}

impl Models for Fleet {
    fn knows(&self, _: &str, _: &Caller) -> bool {
        true
    }

    fn resolve<'a>(&'a self, model: &'a str, _: &'a Caller) -> BoxFuture<'a, Resolution> {
        Box::pin(async { self.look(model) })
    }

    fn wait<'a>(&'a self, model: &'a str, _: &'a Caller, deadline: Instant) -> BoxFuture<'a, Resolution> {
        Box::pin(async move {
            let _waiting = Counted::new(&self.waiting);
            let mut loaded = self.loaded.subscribe();
            let _ = tokio::time::timeout_at(deadline, loaded.wait_for(|loaded| *loaded)).await;
            self.look(model)
        })
    }

    fn list<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Vec<ModelCard>> {
        let owned_by = caller.tenant().to_string();
        let (parent, state) = (Some("base".to_owned()), Some("ready".to_owned()));
        let card = ModelCard { id: "sql".to_owned(), owned_by, created: 1, parent, max_model_len: None, state };
        Box::pin(std::future::ready(vec![card]))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { base: vec!["base".to_owned()], ..Capabilities::default() }
    }

    fn not_found(&self, upstream_name: &str, epoch: u64) {
        self.lost.lock().unwrap().push((upstream_name.to_owned(), epoch));
    }
}

/// Knows one key; each request can be aborted.
#[derive(Default)]
pub struct Guard {
    pub abort: CancellationToken,
    pub tokens: AtomicU64,
}

impl Admission for Guard {
    fn authenticate(&self, asking: &Asking<'_>, _: Option<&[u8]>) -> Result<Option<Caller>, Answer> {
        let is_known = asking.authorization == Some(b"Bearer client-key");
        let caller = || Caller::anonymous(&AnonymousConfig { tenant: "t".parse().unwrap(), ..Default::default() });
        is_known.then(|| Some(caller())).ok_or_else(|| Answer::Unauthorized("unknown key".to_owned()))
    }

    fn look_for_unknown(&self, _: &Caller) -> Result<(), Answer> {
        Ok(())
    }

    fn wait(&self, _: &Caller) -> Result<Lease, Answer> {
        Ok(Box::new(()))
    }

    fn admit<'a>(&'a self, _: &'a Caller, _: Option<&'a str>, _: &'a str) -> BoxFuture<'a, Result<Permit, Answer>> {
        let permit = Permit { aborted: Some(self.abort.child_token()), ..Permit::default() };
        Box::pin(std::future::ready(Ok(permit)))
    }

    fn account(&self, _: &Caller, tokens: u64) {
        self.tokens.fetch_add(tokens, Ordering::SeqCst);
    }
}

pub struct Front {
    pub engine: Upstream,
    pub asked: mpsc::UnboundedReceiver<Asked>,
    pub fleet: Arc<Fleet>,
    pub guard: Arc<Guard>,
    pub upstream: watch::Sender<Option<warmd::proxy::Upstream>>,
    pub registry: Registry,
    pub server: Server,
}

impl Front {
    /// Limits are those of a small server, and times those of tests.
    pub async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let (engine, asked) = Upstream::start();
        let (upstream, place) = watch::channel(Some(engine.at(1)));
        let (fleet, guard) = (Arc::new(Fleet::default()), Arc::new(Guard::default()));
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let mut config = Config { notice: Duration::ZERO, max_body_bytes: 1 << 20, ..Config::default() };
        change(&mut config);
        let proxy = Proxy::new(config, place, fleet.clone(), guard.clone(), metrics);
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), proxy).await.unwrap();
        Self { engine, asked, fleet, guard, upstream, registry, server }
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.addr()).await
    }

    /// The next request that reaches the engine.
    pub async fn next(&mut self) -> Asked {
        tokio::time::timeout(DEADLINE, self.asked.recv()).await.expect("nothing reached the engine").unwrap()
    }

    pub fn nothing_asked(&mut self) -> bool {
        self.asked.try_recv().is_err()
    }

    pub fn metrics(&self) -> String {
        warmd::telemetry::encode(&self.registry)
    }
}

pub struct Client(BufReader<TcpStream>);

#[derive(Debug)]
pub struct Head {
    pub status: u16,
    pub headers: HashMap<String, String>,
}

impl Head {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl Client {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self(BufReader::new(TcpStream::connect(addr).await.unwrap()))
    }

    pub async fn send(&mut self, bytes: &str) {
        self.0.get_mut().write_all(bytes.as_bytes()).await.unwrap();
    }

    pub async fn post(&mut self, path: &str, body: &str) {
        self.post_with(path, "", body).await;
    }

    /// `headers` end with line ends.
    pub async fn post_with(&mut self, path: &str, headers: &str, body: &str) {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer client-key\r\n");
        self.send(&format!("{head}{headers}Content-Length: {length}\r\n\r\n{body}")).await;
    }

    pub async fn get(&mut self, path: &str) -> (Head, Value) {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer client-key\r\n\r\n")).await;
        self.answer().await
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        tokio::time::timeout(DEADLINE, self.0.read_line(&mut line)).await.expect("no answer").unwrap();
        line.trim_end().to_owned()
    }

    pub async fn head(&mut self) -> Head {
        let status = self.line().await;
        let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {status:?}")).parse().unwrap();
        let mut headers = HashMap::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(": ") else { return Head { status, headers } };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
    }

    /// The next chunk of a chunked body, empty at its end; `None` if the connection ended before.
    pub async fn chunk(&mut self) -> Option<String> {
        let size = self.line().await;
        let size = usize::from_str_radix(&size, 16).ok()?;
        let mut chunk = vec![0; size + 2];
        self.0.read_exact(&mut chunk).await.ok()?;
        chunk.truncate(size);
        Some(String::from_utf8(chunk).unwrap())
    }

    /// A whole answer, chunked or not.
    pub async fn text(&mut self) -> (Head, String) {
        let head = self.head().await;
        let mut body = String::new();
        if head.header("transfer-encoding") == "chunked" {
            loop {
                match self.chunk().await.expect("the answer broke off") {
                    end if end.is_empty() => return (head, body),
                    chunk => body.push_str(&chunk),
                }
            }
        }
        let mut bytes = vec![0; head.header("content-length").parse().unwrap()];
        tokio::time::timeout(DEADLINE, self.0.read_exact(&mut bytes)).await.expect("no body").unwrap();
        (head, String::from_utf8(bytes).unwrap())
    }

    pub async fn answer(&mut self) -> (Head, Value) {
        let (head, text) = self.text().await;
        let json = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        (head, json)
    }

    /// The status and code of a refusal.
    pub async fn refusal(&mut self) -> (u16, String) {
        let (head, json) = self.answer().await;
        assert!(json["error"]["message"].is_string() && json["error"]["type"].is_string(), "{json}");
        (head.status, json["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    /// Everything until the other side closes.
    pub async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(DEADLINE, self.0.read_to_end(&mut rest)).await.expect("it is not closed");
        String::from_utf8(rest).unwrap()
    }
}
