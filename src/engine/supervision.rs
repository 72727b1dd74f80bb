//! Keeps an engine running: started, watched, drained, stopped, and started again after a crash.
//!
//! ```text
//! Stopped -> Warming -> Starting -> Ready -> Draining -> Stopping -> Stopped
//!               ^                      a crash -> Stopping -> Backoff -> Warming
//! ```
//!
//! `machine` decides, `task` does it; `task` is the only owner of the [`Engine`](super::Engine). Any end that nobody
//! asked for is a crash: vLLM's exit code says nothing. Each start has an *epoch*, from 1 on: what an engine of another
//! epoch was told is not known to this one. No engine is started while anything of the one before lives, also where warmd
//! itself was killed in between (`leftovers`).

mod cgroup;
mod config;
mod crashes;
mod leftovers;
mod machine;
mod metrics;
mod task;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use hyper::StatusCode;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::health::{Probe, ProbeFailure};
use super::output::Output;
use super::process::{Command, Exit, Stopped};
use crate::lifecycle::Tasks;
use crate::telemetry::label;

pub use config::SupervisionConfig;
pub use metrics::Metrics;

/// Beyond a shutdown's deadline: killing takes a moment, and something stuck in the kernel is reported.
const OVERTIME: Duration = Duration::from_secs(40);

/// What there is to do around each start.
pub trait Starter: Send + Sync + 'static {
    /// Before each start: install caches, say what to run. An error counts as a crash. Dropped when the engine is not wanted
    /// any more, or after `prepare_timeout`. For each launch that it returns, [`Starter::ended`] is called once.
    fn prepare(&self, epoch: u64) -> BoxFuture<'_, Result<Launch, String>>;

    /// Completes when the engine serves, or tells why it never will. Dropped when it ends or is told to.
    fn ready(&self, epoch: u64) -> BoxFuture<'_, Result<(), String>>;

    /// It was ready: proofs, publishing. Goes on while it drains; dropped when it ends or is told to.
    fn running(&self, epoch: u64) -> BoxFuture<'_, ()>;

    /// Completes, with the reason, only when a ready engine is found to be of no use any more, though its process lives
    /// ([`unhealthy`]). Dropped as `running`.
    fn dead(&self, epoch: u64) -> BoxFuture<'_, String>;

    /// It has ended, and nothing of it is left but what `end` names. Cut off after 10 s.
    fn ended<'a>(&'a self, epoch: u64, end: &'a End) -> BoxFuture<'a, ()>;
}

/// What to run.
#[derive(Debug)]
pub struct Launch {
    pub command: Command,
    pub output: Output,
}

/// How an engine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Whether it was told to; otherwise it crashed.
    pub asked: bool,
    /// Whether it had been ready.
    pub was_ready: bool,
    /// Why it crashed.
    pub reason: Option<String>,
    /// `None` if its process could not be started.
    pub stopped: Option<Stopped>,
}

label! {
    #[derive(Default, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum State {
        /// There is no engine, and none is wanted.
        #[default]
        Stopped,
        /// What an earlier engine left is ended, and [`Starter::prepare`] is under way; there is no process yet.
        Warming,
        /// There is a process, and it does not serve yet.
        Starting,
        /// The only state in which the engine is to be asked.
        Ready,
        /// It serves what it was asked before, and gets nothing new.
        Draining,
        /// It was told to end, or has ended, and its processes are not all gone.
        Stopping,
        /// It crashed; there is no process until the next start.
        Backoff,
    }
}

/// How things stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub state: State,
    /// Of the latest start; 0 before the first.
    pub epoch: u64,
    /// When this state of this epoch began.
    pub since: SystemTime,
    /// Starts that followed a crash without an order.
    pub restarts: u64,
    /// Of the latest leader that has ended.
    pub last_exit: Option<Exit>,
    /// What went wrong last; `None` once an engine is ready.
    pub reason: Option<String>,
    /// Present while a crash loop is waited off: why the engine crashed last.
    pub crash_loop: Option<String>,
    /// Process id, from the start until nothing is left of the engine.
    pub leader: Option<i32>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            state: State::default(),
            epoch: 0,
            since: SystemTime::UNIX_EPOCH,
            restarts: 0,
            last_exit: None,
            reason: None,
            crash_loop: None,
            leader: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Stop,
    Restart,
}

/// What is wanted now. Held as a state, so that no order can be lost and none needs a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    run: bool,
    /// An engine from before this number changed is not wanted.
    renewals: u64,
    /// Everything has to be over by then.
    shutdown: Option<Instant>,
}

/// An engine that is kept running. Dropping it kills the engine, within 2 s, which blocks the thread: call
/// [`Supervisor::shutdown`].
#[derive(Debug)]
pub struct Supervisor {
    wish: watch::Sender<Wish>,
    status: watch::Receiver<Status>,
    tasks: Tasks,
}

impl Supervisor {
    /// Starts an engine at once. Needs a tokio runtime with I/O and time.
    ///
    /// `in_flight`: requests under way at the engine, for which `Draining` waits. None is missed if who asks the engine first
    /// counts the request and then looks at the status: it is either counted when the engine is told to end, or sees that
    /// the engine is not ready any more.
    ///
    /// `record`: a file that tells the next life of warmd what this one left; in a directory that exists.
    pub fn start(
        config: SupervisionConfig,
        starter: Arc<dyn Starter>,
        in_flight: watch::Receiver<usize>,
        record: Option<PathBuf>,
        metrics: Metrics,
    ) -> Self {
        let (wish, wishes) = watch::channel(Wish { run: true, renewals: 0, shutdown: None });
        let (owner, status) = task::Owner::new(config, starter, wishes, in_flight, record, metrics);
        let tasks = Tasks::new();
        tasks.spawn("engine supervision", owner.run());
        Self { wish, status, tasks }
    }

    /// Closed when supervision has ended.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Drains and stops the engine; `Stopped` follows from every state.
    pub fn stop(&self) {
        self.wish.send_modify(|wish| *wish = Wish { run: false, renewals: wish.renewals + 1, ..*wish });
    }

    /// Starts an engine unless there is one.
    pub fn run(&self) {
        self.wish.send_modify(|wish| wish.run = true);
    }

    /// Drains, stops, and starts again; at once, also where a crash would have to be waited off.
    pub fn restart(&self) {
        self.wish.send_modify(|wish| *wish = Wish { run: true, renewals: wish.renewals + 1, ..*wish });
    }

    /// Drains for `drain` at most, stops, and ends the task: what is left of `deadline` then is the engine's grace, at least
    /// half of it if that is not longer than `grace`. The status at the end; if its `leader` is there, something of the
    /// engine could not be killed in time.
    pub async fn shutdown(mut self, deadline: Duration) -> Status {
        let by = Instant::now() + deadline;
        self.wish.send_modify(|wish| *wish = Wish { run: false, shutdown: Some(by), ..*wish });
        let over = async { while self.status.changed().await.is_ok() {} };
        if timeout_at(by + OVERTIME, over).await.is_err() {
            tracing::error!("the supervision of the engine does not end: it is cut off");
        }
        self.tasks.shutdown(OVERTIME).await;
        self.status.borrow().clone()
    }
}

/// Completes at the first 503, by which vLLM says that its core is dead, or when `failures` questions in a row, one `every`
/// so often, had no good answer: `health_failures` and `health_every` of a [`SupervisionConfig`]. An engine that is merely
/// busy answers late: each question has the time of [`Probe::ask`].
pub async fn unhealthy(probe: &Probe, every: Duration, failures: u32) -> String {
    let mut in_a_row = 0;
    loop {
        sleep(every).await;
        match probe.ask().await {
            Ok(()) => in_a_row = 0,
            Err(failure @ ProbeFailure::Status(StatusCode::SERVICE_UNAVAILABLE)) => {
                return format!("{probe}: {failure}");
            }
            Err(failure) => {
                in_a_row += 1;
                tracing::debug!(%probe, %failure, in_a_row, "the engine is not healthy");
                if in_a_row >= failures {
                    return format!("{probe} failed {in_a_row} times in a row: {failure}");
                }
            }
        }
    }
}
