//! A fake engine: a program `vllm` that prints, serves `/health`, leaves processes and dies as vLLM does, without Python.
//!
//! The program is this test binary, started again through a small shell script, so that it has the command line of the
//! real one. What it does stands in a [`Step`] list.

mod player;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, mpsc};
use warmd::engine::{Command, Engine, Output, Probe, Serving, StartError};

/// For whatever a test waits for.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What a fake engine does, one after the other. After the last step it waits for signals: SIGTERM and SIGINT end it with
/// exit code 0 and take its core along, SIGHUP and SIGUSR1 are printed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Step {
    /// A line on standard output.
    Say(String),
    /// A line on standard error.
    Complain(String),
    /// That many bytes of [`flood`] on standard output.
    Flood(usize),
    /// `session <own> pid <own> directory <its own> NAME=<value>`
    Report {
        variable: String,
    },
    /// Looks for the entry below the root. What is there and as it should be is loaded, what is missing or damaged is
    /// compiled and written, and vLLM's log lines say so. A root that begins with `$` is the value of that variable.
    Cache {
        root: String,
        entry: Entry,
    },
    /// Starts another process, which prints `child <pid>`, or `core <pid>`, once it runs.
    Child(Kin),
    /// SIGTERM and SIGINT have no effect any more.
    BeDeaf,
    /// Listens as the command line says (`--uds`, or `--host` and `--port`), prints what vLLM prints then, and answers
    /// `/health`: 503 for the first `unavailable` requests.
    Serve {
        unavailable: usize,
    },
    /// Goes on once `/health` was answered with 200.
    AwaitHealthy,
    /// Goes on once there is a file of that name.
    AwaitFile(PathBuf),
    Exit(i32),
    /// Ends by that signal.
    Raise(i32),
}

/// A file or directory that vLLM finds or makes in a cache root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Entry {
    /// `torch_compile_cache/torch_aot_compile/<key>/<rank>/model`
    Aot { key: String, rank: String },
    /// `torch_compile_cache/<hash>/rank_0_0/backbone` with a graph of one range.
    Piecewise { hash: String },
    /// `modelinfos/<class>.json`
    ModelInfo { class: String },
    /// Any other file, such as a Triton kernel. Nothing is printed.
    Silent { path: String },
}

/// A process below the engine's.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Kin {
    /// It leaves the engine's session.
    pub own_session: bool,
    /// Its parent ends at once, so that it is adopted.
    pub orphan: bool,
    /// SIGTERM has no effect on it.
    pub deaf: bool,
    /// When it ends, the engine says so and exits with 0, as vLLM does; the engine's own end takes it along.
    pub core: bool,
}

/// Bytes in which any loss or disorder shows.
pub fn flood(len: usize) -> Vec<u8> {
    (0..).map(|n: u32| format!("{n:015}\n")).flat_map(String::into_bytes).take(len).collect()
}

/// A program `vllm` in a directory of its own.
pub struct FakeEngine {
    dir: tempfile::TempDir,
}

impl FakeEngine {
    pub fn new(steps: Vec<Step>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Self { dir };
        std::fs::write(fake.path("steps.json"), serde_json::to_vec(&steps).unwrap()).unwrap();
        let script = format!(
            "IFS='\n'\nexport {}=\"$*\" {}='{}'\nexec '{}' --exact {} --ignored --nocapture --test-threads=1",
            player::ARGUMENTS,
            player::STEPS,
            fake.path("steps.json").display(),
            std::env::current_exe().unwrap().display(),
            player::ENTRY,
        );
        std::fs::create_dir(fake.path("bin")).unwrap();
        crate::exec::program(&fake.program(), &script);
        fake
    }

    pub fn program(&self) -> PathBuf {
        self.path("bin/vllm")
    }

    /// `vllm serve model --uds <socket>`
    pub fn command(&self) -> Command {
        let socket = self.socket().into_os_string();
        let args = vec!["serve".into(), "model".into(), "--uds".into(), socket];
        Command { program: self.program().into(), args, ..Default::default() }
    }

    pub fn socket(&self) -> PathBuf {
        self.path("engine.sock")
    }

    /// Where the engine of [`FakeEngine::command`] says whether it is ready.
    pub fn probe(&self) -> Probe {
        let serving = Serving { socket: Some(self.socket()), ..Default::default() };
        Probe::of_engine(&serving, &warmd::caches::Environment::default()).unwrap()
    }

    pub async fn start(&self) -> Running {
        Running::start(self.command()).await.unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A running engine and what it prints.
pub struct Running {
    pub engine: Engine,
    pub stdout: Kept,
    pub stderr: Kept,
    lines: mpsc::UnboundedReceiver<String>,
    passed: VecDeque<String>,
    _alone: MutexGuard<'static, ()>,
}

/// A process runs one engine at a time, and tests share a process.
pub async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: AsyncMutex<()> = AsyncMutex::const_new(());
    ALONE.lock().await
}

impl Running {
    pub async fn start(command: Command) -> Result<Self, StartError> {
        let alone = alone().await;
        let (stdout, stderr) = (Kept::default(), Kept::default());
        let (sender, lines) = mpsc::unbounded_channel();
        let output = Output {
            stdout: Box::new(stdout.clone()),
            stderr: Box::new(stderr.clone()),
            observer: Arc::new(move |_, line| drop(sender.send(line.to_owned()))),
        };
        let engine = Engine::start(command, output).await?;
        Ok(Self { engine, stdout, stderr, lines, passed: VecDeque::new(), _alone: alone })
    }

    /// Waits for a line that begins so; the rest of it. Each line is found once.
    pub async fn line(&mut self, start: &str) -> String {
        let rest = |line: &String| line.strip_prefix(start).map(str::to_owned);
        if let Some(at) = self.passed.iter().position(|line| line.starts_with(start)) {
            return self.passed.remove(at).as_ref().and_then(rest).unwrap();
        }
        while let Some(line) = tokio::time::timeout(DEADLINE, self.lines.recv()).await.expect(start) {
            match rest(&line) {
                Some(rest) => return rest,
                None => self.passed.push_back(line),
            }
        }
        panic!("the output ended without `{start}`: {:?}", self.passed);
    }

    /// The process id of the next child that has come up.
    pub async fn child(&mut self) -> i32 {
        self.line("child ").await.parse().unwrap()
    }

    /// The process id of the core, once it has come up.
    pub async fn core(&mut self) -> i32 {
        self.line("core ").await.parse().unwrap()
    }

    /// What was printed and not found by [`Running::line`], once the output has ended.
    pub async fn rest(&mut self) -> Vec<String> {
        while let Some(line) = tokio::time::timeout(DEADLINE, self.lines.recv()).await.expect("the output does not end")
        {
            self.passed.push_back(line);
        }
        self.passed.drain(..).collect()
    }
}

/// Says why a test ends here.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// Whether `/proc` is of this process's namespace: without it no engine can be watched, and a test of that is skipped.
pub fn own_proc() -> bool {
    let own = warmd::engine::check();
    if let Err(error) = &own {
        skipped(&error.to_string());
    }
    own.is_ok()
}

/// Whether a process is there and has not ended.
pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X']))
}

/// SIGKILL.
pub fn kill(pid: i32) {
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

/// Waits until `done`, and fails with `what` if that never happens.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    super::cluster::until(what, async || done()).await;
}

/// Bytes in memory.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl AsyncWrite for Kept {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
