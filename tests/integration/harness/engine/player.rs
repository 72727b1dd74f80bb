//! The fake engine's inside: runs in a process of its own.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, exit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Signal, getpid, getsid, kill_process, setsid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use warmd::lifecycle::Tasks;

use super::{Entry, Kin, Step, flood};

/// Path of the steps, as JSON.
pub(super) const STEPS: &str = "WARMD_FAKE_ENGINE";
/// The command line, one argument a line.
pub(super) const ARGUMENTS: &str = "WARMD_FAKE_ENGINE_ARGUMENTS";
/// What a child is, as JSON.
const KIN: &str = "WARMD_FAKE_ENGINE_KIN";
/// Process id of a parent that a child waits to lose.
const LEFT_BY: &str = "WARMD_FAKE_ENGINE_LEFT_BY";
pub(super) const ENTRY: &str = "harness::engine::player::as_a_fake_engine";

/// Whatever happens to the test, nothing of it stays.
const LIFETIME: Duration = Duration::from_secs(120);

#[test]
#[ignore = "the program that other tests run as an engine"]
fn as_a_fake_engine() {
    let kin = std::env::var(KIN).map(|kin| serde_json::from_str::<Kin>(&kin).unwrap());
    let Ok(steps) = std::env::var(STEPS) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let code = runtime.block_on(async {
        let playing = async {
            match kin {
                Ok(kin) => be(kin).await,
                Err(_) => play(serde_json::from_slice(&fs::read(steps).unwrap()).unwrap()).await,
            }
        };
        tokio::time::timeout(LIFETIME, playing).await.unwrap_or(99)
    });
    exit(code);
}

/// In one write, and on a line of its own: test processes print their test's name without an end, to the same pipe.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{line}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
}

/// A line as vLLM's logger writes it.
fn log(file: &str, text: &str) {
    say(&format!("(EngineCore pid={}) INFO 11-21 05:43:39 [{file}] {text}", getpid().as_raw_nonzero()));
}

#[derive(Default)]
struct State {
    deaf: AtomicBool,
    requests: AtomicUsize,
    answers: AtomicUsize,
    tasks: Tasks,
}

async fn play(steps: Vec<Step>) -> i32 {
    let state = Arc::new(State::default());
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let mut interrupt = signal(SignalKind::interrupt()).unwrap();
    let mut hangup = signal(SignalKind::hangup()).unwrap();
    let mut user = signal(SignalKind::user_defined1()).unwrap();
    let mut core = None;
    let code = {
        let mut playing = std::pin::pin!(run(steps, &state, &mut core));
        loop {
            let ended = tokio::select! {
                code = &mut playing => Some(code),
                _ = terminate.recv() => (!state.deaf.load(Ordering::SeqCst)).then_some(0),
                _ = interrupt.recv() => (!state.deaf.load(Ordering::SeqCst)).then_some(0),
                _ = hangup.recv() => { say("got SIGHUP"); None }
                _ = user.recv() => { say("got SIGUSR1"); None }
            };
            if let Some(code) = ended {
                break code;
            }
        }
    };
    if let Some(mut core) = core {
        let _ = core.kill();
        let _ = core.wait();
    }
    code
}

async fn run(steps: Vec<Step>, state: &Arc<State>, core: &mut Option<Child>) -> i32 {
    let mut others = Vec::new();
    for step in steps {
        match step {
            Step::Say(line) => say(&line),
            Step::Complain(line) => std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap(),
            Step::Flood(len) => {
                let mut out = std::io::stdout().lock();
                out.write_all(&flood(len)).and_then(|()| out.flush()).unwrap();
            }
            Step::Report { variable } => report(&variable),
            Step::Cache { root, entry } => cache(&directory(&root), &entry),
            Step::Child(kin) => {
                let mut child = spawn(kin);
                if kin.orphan {
                    child.wait().unwrap();
                }
                if kin.core { *core = Some(child) } else { others.push(child) }
            }
            Step::BeDeaf => state.deaf.store(true, Ordering::SeqCst),
            Step::Serve { unavailable } => serve(state, unavailable).await,
            Step::AwaitHealthy => {
                while state.answers.load(Ordering::SeqCst) == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Step::AwaitFile(path) => {
                while !path.exists() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Step::Exit(code) => return code,
            Step::Raise(raised) => kill_process(getpid(), Signal::from_named_raw(raised).unwrap()).unwrap(),
        }
    }
    match core {
        Some(child) => watch(child).await,
        None => std::future::pending().await,
    }
}

/// vLLM's end when its engine core dies: a log line, and exit code 0.
async fn watch(core: &mut Child) -> i32 {
    while core.try_wait().unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    say("(APIServer pid=1) ERROR 11-21 05:43:39 [async_llm.py:906] AsyncLLM output_handler failed.");
    0
}

fn report(variable: &str) {
    let (session, pid) = (getsid(None).unwrap().as_raw_nonzero(), getpid().as_raw_nonzero());
    let directory = std::env::current_dir().unwrap();
    let value = std::env::var(variable).unwrap_or_default();
    say(&format!("session {session} pid {pid} directory {} {variable}={value}", directory.display()));
}

fn spawn(kin: Kin) -> Child {
    spawn_with(kin, &[])
}

fn spawn_with(kin: Kin, variables: &[(&str, String)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", ENTRY, "--ignored", "--nocapture", "--test-threads=1"]);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.env(KIN, serde_json::to_string(&kin).unwrap()).stdin(Stdio::null()).spawn().unwrap()
}

/// The life of a child.
async fn be(kin: Kin) -> i32 {
    if kin.orphan {
        let child = spawn_with(Kin { orphan: false, ..kin }, &[(LEFT_BY, std::process::id().to_string())]);
        // Not waited for: this process is about to end.
        drop(child);
        return 0;
    }
    if kin.own_session {
        setsid().unwrap();
    }
    // Until the one that leaves it has been waited for: from then on the table shows neither a parent nor a ghost of it.
    while std::env::var(LEFT_BY).is_ok_and(|parent| Path::new("/proc").join(parent).exists()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Before it says so: who reads the line may send it.
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    say(&format!("{} {}", if kin.core { "core" } else { "child" }, getpid().as_raw_nonzero()));
    while terminate.recv().await.is_some() && kin.deaf {}
    0
}

fn directory(root: &str) -> PathBuf {
    root.strip_prefix('$').map_or_else(|| root.into(), |name| std::env::var_os(name).unwrap().into())
}

/// What a healthy file of that name holds.
fn content(path: &Path) -> Vec<u8> {
    format!("compiled {}\n", path.file_name().unwrap().display()).repeat(100).into_bytes()
}

fn cache(root: &Path, entry: &Entry) {
    match entry {
        Entry::Aot { key, rank } => {
            aot(&root.join("torch_compile_cache/torch_aot_compile").join(key).join(rank).join("model"))
        }
        Entry::Piecewise { hash } => piecewise(&root.join("torch_compile_cache").join(hash).join("rank_0_0/backbone")),
        Entry::ModelInfo { class } => {
            let file = root.join("modelinfos").join(format!("{}.json", class.replace('.', "-")));
            if is_good(&file) {
                log("registry.py:1065", &format!("Loaded model info for class {class} from cache"));
            } else {
                log("registry.py:1072", &format!("Cache model info for class {class} miss. Loading model instead."));
                write(&file);
            }
        }
        Entry::Silent { path } => {
            let file = root.join(path);
            if !is_good(&file) {
                write(&file);
            }
        }
    }
}

fn aot(model: &Path) {
    let path = model.display();
    if is_good(model) {
        log("decorators.py:319", &format!("[backbone] Directly load AOT compilation from path {path}"));
        log("monitor.py:53", "[backbone] torch.compile took 0.50 s in total");
        return;
    }
    if model.exists() {
        let reason = "Compile cache file corrupted.";
        log(
            "decorators.py:331",
            &format!("[backbone] Compiling model again due to a load failure from {path}, reason: {reason}"),
        );
    }
    write(model);
    log("decorators.py:743", &format!("[backbone] saved AOT compiled function to {path}"));
    log("monitor.py:53", "[backbone] torch.compile took 12.50 s in total");
}

fn piecewise(directory: &Path) {
    let (range, graph) = ("compile range (1, 2048)", directory.join("artifact_compile_range_1_2048_subgraph_0"));
    let tagged = |file: &str, text: &str| log(file, &format!("[backbone] {text}"));
    let directory = directory.display();
    tagged("backends.py:1104", &format!("Using cache directory: {directory} for vLLM's torch.compile"));
    tagged("backends.py:1166", "Dynamo bytecode transform time: 1.25 s");
    if is_good(&graph) {
        let text = format!("Directly load the compiled graph(s) for {range} from the cache, took 0.250 s");
        return tagged("backends.py:295", &text);
    }
    write(&graph);
    tagged("backends.py:382", &format!("Cache the graph of {range} for later use"));
    tagged("backends.py:398", &format!("Compiling a graph for {range} takes 5.50 s"));
}

fn is_good(file: &Path) -> bool {
    fs::read(file).is_ok_and(|bytes| bytes == content(file))
}

/// As vLLM: beside, then renamed.
fn write(file: &Path) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let beside = file.with_extension(format!("{}.tmp", getpid().as_raw_nonzero()));
    fs::write(&beside, content(file)).unwrap();
    fs::rename(beside, file).unwrap();
}

fn argument(name: &str) -> Option<String> {
    let arguments = std::env::var(ARGUMENTS).unwrap_or_default();
    let mut lines = arguments.lines().skip_while(|argument| *argument != name);
    lines.nth(1).map(str::to_owned)
}

async fn serve(state: &Arc<State>, unavailable: usize) {
    log("core.py:302", "init engine (profile, create kv cache, warmup model) took 3.00 s (compilation: 1.00 s)");
    log("launcher.py:37", "Available routes are:");
    let answering = state.clone();
    if let Some(path) = argument("--uds") {
        let listener = UnixListener::bind(path).unwrap();
        state.tasks.spawn("health", async move {
            loop {
                answer(listener.accept().await.unwrap().0, &answering, unavailable).await;
            }
        });
    } else {
        let host = argument("--host").unwrap_or_else(|| "127.0.0.1".to_owned());
        let port: u16 = argument("--port").map_or(8000, |port| port.parse().unwrap());
        let listener = TcpListener::bind((host, port)).await.unwrap();
        state.tasks.spawn("health", async move {
            loop {
                answer(listener.accept().await.unwrap().0, &answering, unavailable).await;
            }
        });
    }
    say("(APIServer pid=1) INFO:     Application startup complete.");
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, state: &State, unavailable: usize) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if request.len() > 10_000 || stream.read_exact(&mut byte).await.is_err() {
            return;
        }
        request.push(byte[0]);
    }
    let status = if !request.starts_with(b"GET /health ") {
        "404 Not Found"
    } else if state.requests.fetch_add(1, Ordering::SeqCst) < unavailable {
        "503 Service Unavailable"
    } else {
        "200 OK"
    };
    let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
    if status == "200 OK" {
        state.answers.fetch_add(1, Ordering::SeqCst);
    }
}
