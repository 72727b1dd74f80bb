//! The engine's processes, from the first to the last.
//!
//! The *leader* is what was started; it leads a session of its own. As a child subreaper, warmd adopts whatever loses its
//! parent below it, so all that the engine ever started descends from warmd, in whichever session: that is how the
//! processes are found. Nothing that warmd starts elsewhere leaves warmd's session.
//!
//! When warmd dies without [`Engine::stop`] (SIGKILL, OOM), the kernel sends SIGTERM to the leader. A SIGKILL would free
//! the port and leave vLLM's engine core alone with the GPU; at SIGTERM the leader takes its children along. Not covered
//! then: a leader that ignores SIGTERM, and whatever does not end with its leader. In a container whose first process is
//! warmd, the kernel kills all that is left.
//!
//! Where warmd is the first process of a container, it also adopts what `kubectl exec` leaves behind. Such an orphan is
//! taken for the engine's if it has a session of its own and began after the engine.

mod launch;
pub(super) mod processes;
pub(super) mod table;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

pub use self::launch::replace_by;
use self::processes::{Kill, Processes};
use super::output::{Output, Stream, pump};
use crate::lifecycle::Tasks;

/// What an ended leader's children get to end without being told: Python's resource tracker removes shared memory then.
const SETTLE: Duration = Duration::from_secs(1);

/// From the first SIGKILL until what is still there is reported: only a process stuck in the kernel takes so long.
const SWEEP: Duration = Duration::from_secs(10);

/// For the last output, once no process is left that could write more.
const DRAIN: Duration = Duration::from_secs(5);

/// Between two looks at the process table while something is awaited there: at first, doubled up to at last.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_millis(200);

/// Between two looks for adopted processes that have ended.
const REAP_EVERY: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Command {
    /// A path, or a name that is looked up in the child's `PATH`.
    pub program: OsString,
    pub args: Vec<OsString>,
    /// Changes of the environment, for the child only.
    pub set: Vec<(String, String)>,
    /// Variables that the child does not inherit.
    pub unset: Vec<String>,
    /// Working directory; warmd's own unless given.
    pub directory: Option<PathBuf>,
}

/// No engine was started, and none is left.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("`{program}` was not found in PATH ({path})")]
    NotFound { program: String, path: String },
    #[error("`{}` does not exist", .0.display())]
    Missing(PathBuf),
    #[error("`{}` cannot be executed: it is no file with execute permission", .0.display())]
    NotExecutable(PathBuf),
    #[error("working directory `{}` does not exist", .0.display())]
    NoDirectory(PathBuf),
    #[error("another engine runs in this process: stop it first")]
    AlreadyRunning,
    #[error("`{}` cannot be executed: the interpreter in its first line does not exist", .0.display())]
    NoInterpreter(PathBuf),
    #[error("start `{program}`: {source}")]
    Spawn { program: String, source: io::Error },
    /// [`replace_by`] can start it all the same.
    #[error("an engine cannot be watched: /proc {0}; mount it in this container (`mount -t proc proc /proc`)")]
    Unwatchable(&'static str),
    #[error("watch the engine's processes: {0}")]
    Watch(#[from] io::Error),
}

/// How the leader ended. It says little about the engine: vLLM exits with 0 when its engine core was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It was killed, and the kernel has not let go of it.
    Unseen,
}

impl Exit {
    /// As shells report it: 128 + signal.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
            Self::Signal(signal) => u8::try_from(128 + (signal & 0x7f)).unwrap_or(u8::MAX),
            Self::Unseen => 128 + 9,
        }
    }
}

/// What is passed on to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Interrupt,
    Hangup,
    User1,
}

/// A process of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub pid: i32,
    /// Clock ticks from the boot to its start. With the pid, it names a process for good.
    pub begun: u64,
    /// As in `/proc/<pid>/comm`: at most 15 bytes.
    pub name: String,
}

/// How an engine was stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    pub exit: Exit,
    /// What outlived the leader and ended at a SIGTERM of ours, in the order of process ids.
    pub terminated: Vec<Member>,
    /// What got SIGKILL.
    pub killed: Vec<Member>,
    /// What SIGKILL did not end. Another engine would not find the memory that these hold.
    pub left: Vec<Member>,
    /// Whether all that it printed was passed on.
    pub output_complete: bool,
}

/// What [`Engine::sweep`] has done.
struct Swept {
    terminated: Vec<Member>,
    killed: Vec<Member>,
    left: Vec<Member>,
}

/// A running engine. Dropping it kills every process of it, within 2 s, which blocks the thread: call [`Engine::stop`].
#[derive(Debug)]
pub struct Engine {
    /// Empty once nothing is left to kill.
    processes: Arc<Mutex<Option<Processes>>>,
    leader: i32,
    exit: watch::Receiver<Option<Exit>>,
    pumps: Tasks,
    tasks: Tasks,
}

impl Engine {
    /// Starts the program and returns once it was executed. Needs a tokio runtime with I/O and time. There is one engine
    /// at a time in a process: orphans of two could not be told apart.
    pub async fn start(command: Command, output: Output) -> Result<Self, StartError> {
        // Before the fork: an inherited "ignore" for SIGCHLD would lose the exit code.
        let children = signal(SignalKind::child())?;
        let launched = launch::launch(command).await?;
        let stdout = pipe::Receiver::from_owned_fd(launched.stdout)?;
        let stderr = pipe::Receiver::from_owned_fd(launched.stderr)?;
        let leader = launched.processes.leader();
        let exit = launched.processes.exit();
        let processes = Arc::new(Mutex::new(Some(launched.processes)));
        let tasks = Tasks::new();
        let pumps = tasks.child();
        tasks.spawn("engine children", reap(children, processes.clone()));
        let engine = Self { processes, leader, exit, pumps, tasks };
        let Output { stdout: to_stdout, stderr: to_stderr, observer } = output;
        let observe = observer.clone();
        engine.pump(pump(stdout, to_stdout, engine.exited(), move |line: &str| observe(Stream::Stdout, line)));
        engine.pump(pump(stderr, to_stderr, engine.exited(), move |line: &str| observer(Stream::Stderr, line)));
        Ok(engine)
    }

    /// Process id of the leader, which is also its session.
    pub fn leader(&self) -> i32 {
        self.leader
    }

    /// Completes when the leader has ended, for any number of callers; at once if it has already.
    pub fn exited(&self) -> impl Future<Output = Exit> + Send + 'static {
        let mut exit = self.exit.clone();
        async move {
            let seen = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
            seen.unwrap_or(Exit::Unseen)
        }
    }

    /// Passes a signal on to the leader; false if it has ended.
    pub fn signal(&self, signal: Signal) -> bool {
        self.lock().as_ref().is_some_and(|processes| processes.signal(signal))
    }

    /// What is alive of the engine, the leader among it.
    pub fn members(&self) -> io::Result<Vec<Member>> {
        match self.lock().as_ref() {
            Some(processes) => Ok(list(processes.pass(|_| None)?)),
            None => Ok(Vec::new()),
        }
    }

    /// SIGTERM to the leader, which tells its children. What outlives it by a second gets SIGTERM too, and after `grace`
    /// all that is left gets SIGKILL. Returns when nothing is left and its last output was passed on, or with what could
    /// not be killed. May be dropped and called again, with another grace; once it has returned, it does nothing more.
    pub async fn stop(&mut self, grace: Duration) -> Stopped {
        let ends = Instant::now() + grace;
        self.signal(Signal::Terminate);
        let _ = timeout_at(ends, self.exited()).await;
        let Swept { terminated, killed, left } = self.sweep(Instant::now() + SETTLE, ends).await;
        self.end();
        let output_complete = self.pumps.shutdown(DRAIN).await;
        Stopped { exit: self.exited().await, terminated, killed, left, output_complete }
    }

    /// Reaps until nothing is left; from `settled` on each process gets SIGTERM once, from `ends` on SIGKILL.
    async fn sweep(&self, settled: Instant, ends: Instant) -> Swept {
        let gives_up = Instant::now().max(ends) + SWEEP;
        let (mut terminated, mut killed, mut left) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut pause = LOOK_EVERY;
        loop {
            let now = Instant::now();
            let decide = |member: &Member| {
                if now >= ends {
                    killed.insert(member.pid, member.clone());
                    return Some(Kill::AtOnce);
                }
                let first = now >= settled && terminated.insert(member.pid, member.clone()).is_none();
                first.then_some(Kill::Terminate)
            };
            let passed = self.lock().as_ref().map_or_else(|| Ok(BTreeMap::new()), |processes| processes.pass(decide));
            let whole = passed.is_ok();
            match passed {
                Ok(alive) => left = alive,
                // Such as too many open files: nothing is known, least of all that nothing is left.
                Err(error) => tracing::warn!(%error, "look for the engine's processes"),
            }
            if (whole && left.is_empty()) || now >= gives_up {
                if whole && let Some(processes) = self.lock().take() {
                    processes.release();
                }
                terminated.retain(|pid, _| !killed.contains_key(pid));
                return Swept { terminated: list(terminated), killed: list(killed), left: list(left) };
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK_AT_LEAST_EVERY);
        }
    }

    fn pump(&self, pump: impl Future<Output = ()> + Send + 'static) {
        let token = self.tasks.token().clone();
        // Not cancelled by the shutdown of `pumps`, which waits for its end.
        self.pumps.spawn_finishing("engine output", async move {
            token.run_until_cancelled(pump).await;
        });
    }

    /// Kills what is left, and lets go whoever awaits the exit of a leader that cannot be killed.
    fn end(&self) {
        let processes = self.lock().take();
        drop(processes);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Processes>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether engines can be watched here.
pub fn check() -> Result<(), StartError> {
    table::check().map_err(StartError::Unwatchable)
}

fn list(members: BTreeMap<i32, Member>) -> Vec<Member> {
    members.into_values().collect()
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits for what has ended: the leader at once, adopted processes, for which nobody else waits, soon after.
async fn reap(mut children: tokio::signal::unix::Signal, processes: Arc<Mutex<Option<Processes>>>) {
    let mut next_look = Instant::now();
    let mut look = false;
    loop {
        tokio::select! {
            child = children.recv() => match child {
                Some(()) => look = true,
                None => return,
            },
            () = sleep_until(next_look), if look => {
                look = false;
                next_look = Instant::now() + REAP_EVERY;
            }
        }
        let processes = processes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(processes) = processes.as_ref() else { return };
        processes.reap_leader();
        if !look {
            let _ = processes.pass(|_| None);
        }
    }
}
