//! What is asked over HTTP.

use std::convert::Infallible;
use std::io;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request, Response};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;
use warmd::lifecycle::Tasks;

use super::adapters::Adapters;
use super::completions::{self, Kind};
use super::options::Options;
use super::texts::{self, Refusal};

pub type Body = BoxBody<Bytes, io::Error>;

pub struct State {
    pub options: Options,
    pub adapters: Mutex<Adapters>,
    pub tasks: Tasks,
    core: u32,
    /// Names of all loads that were asked for.
    loads: Mutex<Vec<String>>,
    running: watch::Sender<usize>,
    dead: watch::Sender<bool>,
    draining: AtomicBool,
}

/// Counts a request for as long as it runs.
pub struct Running(Arc<State>);

impl State {
    pub fn new(options: Options, core: u32) -> Self {
        let adapters = Adapters::new(options.max_cpu_loras, options.max_lora_rank, options.release);
        let (running, dead) = (watch::Sender::new(0), watch::Sender::new(false));
        let draining = AtomicBool::new(false);
        let (adapters, loads) = (Mutex::new(adapters), Mutex::default());
        Self { options, adapters, tasks: Tasks::new(), core, loads, running, dead, draining }
    }

    pub fn die(&self) {
        self.dead.send_replace(true);
    }

    pub async fn died(&self) {
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }

    pub fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Nothing runs.
    pub async fn idle(&self) {
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }

    pub fn run(self: &Arc<Self>) -> Running {
        self.running.send_modify(|running| *running += 1);
        Running(self.clone())
    }

    /// What every request is answered that needs the core.
    pub fn refuses(&self, draining: &str) -> Result<(), Refusal> {
        self.refuses_dead()?;
        if self.draining.load(Ordering::SeqCst) { Err(texts::internal(draining)) } else { Ok(()) }
    }

    pub fn refuses_dead(&self) -> Result<(), Refusal> {
        if self.is_dead() { Err(texts::internal(texts::DEAD)) } else { Ok(()) }
    }

    fn admits(&self, request: &Request<Incoming>) -> bool {
        let guarded = ["/v1", "/v2", "/inference"].iter().take(if self.options.release < (0, 22, 1) { 1 } else { 3 });
        let keys = &self.options.keys;
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = given.and_then(|given| given.split_once(' ')).map_or("", |(_, key)| key);
        keys.is_empty()
            || !guarded.into_iter().any(|prefix| request.uri().path().starts_with(prefix))
            || keys.iter().any(|known| known == key)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}

pub async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    Ok(routed(&state, request).await.unwrap_or_else(|(status, body)| json(status, &body)))
}

async fn routed(state: &Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    if !state.admits(&request) {
        return Err(texts::unauthorized());
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if let Some(parent) = request.headers().get("traceparent").and_then(|value| value.to_str().ok()) {
        // For tests of traces; nowhere is left to report a failure of this write to.
        let _ = writeln!(std::io::stderr(), "traceparent of {path} is {parent}");
    }
    match (method, path.as_str()) {
        (Method::GET, "/health" | "/ping") => Ok(plain(if state.is_dead() { 503 } else { 200 }, String::new())),
        (Method::GET, "/version")
            if state.options.end.as_ref().is_some_and(|end| std::fs::remove_file(end).is_ok()) =>
        {
            Ok(crash(state, &json!({"who": "leader"})))
        }
        (Method::GET, "/version") => Ok(json(200, &json!({"version": state.options.version}))),
        (Method::GET, "/v1/models") => Ok(json(200, &models(state))),
        (Method::POST, "/v1/load_lora_adapter") if state.options.updating => load(state, &read(request).await?).await,
        (Method::POST, "/v1/unload_lora_adapter") if state.options.updating => unload(state, &read(request).await?),
        (Method::POST, "/v1/chat/completions") => completions::answer(state, Kind::Chat, &read(request).await?).await,
        (Method::POST, "/v1/completions") => completions::answer(state, Kind::Text, &read(request).await?).await,
        (Method::GET, "/fake") => Ok(json(200, &json!({"core": state.core, "loads": *state.loads.lock().unwrap()}))),
        (Method::POST, "/fake/crash") => Ok(crash(state, &read(request).await?)),
        _ => Err(texts::no_route()),
    }
}

async fn read(request: Request<Incoming>) -> Result<Value, Refusal> {
    let body = request.into_body().collect().await.map_err(|error| texts::unreadable(&error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| texts::unreadable(&error.to_string()))
}

fn models(state: &State) -> Value {
    let card = |id: &str, root: &str, parent: Option<&str>, length: Option<u32>| {
        json!({"id": id, "object": "model", "created": 1, "owned_by": "vllm", "root": root, "parent": parent,
            "max_model_len": length, "permission": []})
    };
    let Options { names, model, .. } = &state.options;
    let bases = names.iter().map(|name| card(name, model, None, Some(2048)));
    let adapters = state.adapters.lock().unwrap();
    let adapters = adapters.list().iter().map(|adapter| card(&adapter.name, &adapter.path, Some(&names[0]), None));
    json!({"object": "list", "data": bases.chain(adapters).collect::<Vec<_>>()})
}

async fn load(state: &State, body: &Value) -> Result<Response<Body>, Refusal> {
    state.refuses(texts::DRAINING_LOAD)?;
    let text =
        |name: &str| body[name].as_str().ok_or_else(|| texts::unreadable(&format!("body.{name}: Field required")));
    let (name, path) = (text("lora_name")?, text("lora_path")?);
    let in_place = body["load_inplace"] == true;
    state.loads.lock().unwrap().push(name.to_owned());
    let Options { release, names, .. } = &state.options;
    if name.is_empty() || path.is_empty() {
        return Err(texts::empty());
    }
    if *release >= (0, 32, 0) && names.iter().any(|base| base == name) {
        return Err(texts::base_name(name));
    }
    if !in_place && state.adapters.lock().unwrap().find(name).is_some() {
        return Err(texts::duplicate(name));
    }
    if !state.options.enable_lora {
        return Err(texts::internal("Call to add_lora method failed: LoRA is not enabled"));
    }
    sleep(state.options.load).await;
    while state.options.hold.as_ref().is_some_and(|hold| hold.exists()) {
        sleep(Duration::from_millis(5)).await;
    }
    let loaded = state.adapters.lock().unwrap().load(name, path, in_place);
    loaded.map_err(|failure| texts::not_read(*release, name, path, failure))?;
    Ok(plain(200, texts::loaded(name)))
}

fn unload(state: &State, body: &Value) -> Result<Response<Body>, Refusal> {
    let name = body["lora_name"].as_str().unwrap_or_default();
    if state.adapters.lock().unwrap().unload(name) {
        return Ok(plain(200, texts::unloaded(name)));
    }
    Err(texts::not_loaded(name))
}

/// For a test by hand; no vLLM has it.
fn crash(state: &State, body: &Value) -> Response<Body> {
    if body["who"] == "leader" {
        kill_process(getpid(), Signal::KILL).unwrap();
    }
    state.die();
    plain(200, String::new())
}

pub fn json(status: u16, body: &Value) -> Response<Body> {
    response(status, "application/json", full(body.to_string()))
}

fn plain(status: u16, text: String) -> Response<Body> {
    response(status, "text/plain; charset=utf-8", full(text))
}

pub fn response(status: u16, kind: &str, body: Body) -> Response<Body> {
    Response::builder().status(status).header("server", "uvicorn").header(CONTENT_TYPE, kind).body(body).unwrap()
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}
