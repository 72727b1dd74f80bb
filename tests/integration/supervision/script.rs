//! A starter that does as it is told, and looks whether anything of the engine before is left.

use std::future::pending;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{MutexGuard, Notify, mpsc, watch};
use tokio::time::timeout;
use warmd::engine::{
    Command, End, Launch, Metrics, Output, Probe, Starter, State, Status, SupervisionConfig, Supervisor,
};
use warmd::telemetry::Registry;

use crate::harness::engine::{DEADLINE, Kept, alone};

/// Every process of an engine has it in its environment.
const MARK: &str = "WARMD_TEST_SUPERVISION";

/// Waits that no test notices.
pub fn config() -> SupervisionConfig {
    SupervisionConfig {
        backoff_first: Duration::from_millis(1),
        backoff_most: Duration::from_millis(10),
        crash_loop_crashes: 1_000_000,
        ..Default::default()
    }
}

pub fn shell(script: &str) -> Command {
    Command { program: "sh".into(), args: vec!["-c".into(), script.into()], ..Default::default() }
}

type Commands = Box<dyn Fn(u64) -> Command + Send + Sync>;

pub struct Script {
    commands: Commands,
    probe: Option<Probe>,
    prepares: bool,
    becomes_ready: bool,
    hangs: Option<Arc<Notify>>,
    mark: String,
    told: Option<mpsc::UnboundedSender<(u64, End)>>,
    lines: Option<mpsc::UnboundedSender<String>>,
    found: Arc<Mutex<Vec<String>>>,
}

impl Script {
    pub fn of(command: Command) -> Self {
        Self::by_epoch(move |_| command.clone())
    }

    pub fn by_epoch(commands: impl Fn(u64) -> Command + Send + Sync + 'static) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            commands: Box::new(commands),
            probe: None,
            prepares: true,
            becomes_ready: true,
            hangs: None,
            mark: format!("{}-{}-", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
            told: None,
            lines: None,
            found: Arc::default(),
        }
    }

    pub fn ready_at(self, probe: Probe) -> Self {
        Self { probe: Some(probe), ..self }
    }

    pub fn never_ready(self) -> Self {
        Self { becomes_ready: false, ..self }
    }

    pub fn never_prepared(self) -> Self {
        Self { prepares: false, ..self }
    }

    pub fn dies_when_told(self) -> Self {
        Self { hangs: Some(Arc::default()), ..self }
    }

    /// Notes what is left of any engine of this script.
    fn look(&self, when: &str) {
        let left = marked(&self.mark);
        if !left.is_empty() {
            self.found.lock().unwrap().push(format!("{when}: {left:?}"));
        }
    }
}

/// Processes whose environment says that they belong to that script.
fn marked(mark: &str) -> Vec<String> {
    let wanted = format!("{MARK}={mark}");
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    pids.filter(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(wanted.as_bytes()))
    })
    .collect()
}

impl Starter for Script {
    fn prepare(&self, epoch: u64) -> BoxFuture<'_, Result<Launch, String>> {
        async move {
            self.look(&format!("before start {epoch}"));
            if !self.prepares {
                return pending().await;
            }
            let mut command = (self.commands)(epoch);
            command.set.push((MARK.to_owned(), format!("{}{epoch}", self.mark)));
            let lines = self.lines.clone().unwrap();
            let output = Output {
                stdout: Box::new(Kept::default()),
                stderr: Box::new(Kept::default()),
                observer: Arc::new(move |_, line| drop(lines.send(line.to_owned()))),
            };
            Ok(Launch { command, output })
        }
        .boxed()
    }

    fn ready(&self, _: u64) -> BoxFuture<'_, Result<(), String>> {
        async move {
            if !self.becomes_ready {
                return pending().await;
            }
            if let Some(probe) = &self.probe {
                warmd::engine::wait(probe, DEADLINE, pending()).await;
            }
            Ok(())
        }
        .boxed()
    }

    fn running(&self, _: u64) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    fn dead(&self, epoch: u64) -> BoxFuture<'_, String> {
        async move {
            match &self.hangs {
                Some(hangs) if epoch == 1 => hangs.notified().await,
                _ => pending().await,
            }
            "told".to_owned()
        }
        .boxed()
    }

    fn ended<'a>(&'a self, epoch: u64, end: &'a End) -> BoxFuture<'a, ()> {
        self.look(&format!("after the end of {epoch}"));
        let _ = self.told.as_ref().unwrap().send((epoch, end.clone()));
        std::future::ready(()).boxed()
    }
}

/// A supervisor and all that it tells.
pub struct Supervised {
    pub supervisor: Supervisor,
    pub in_flight: watch::Sender<usize>,
    status: watch::Receiver<Status>,
    ends: mpsc::UnboundedReceiver<(u64, End)>,
    lines: mpsc::UnboundedReceiver<String>,
    passed: Vec<String>,
    hangs: Option<Arc<Notify>>,
    mark: String,
    found: Arc<Mutex<Vec<String>>>,
    registry: Registry,
    alone: MutexGuard<'static, ()>,
}

impl Supervised {
    pub async fn start(config: SupervisionConfig, script: Script) -> Self {
        Self::recorded(config, script, None, alone().await)
    }

    pub fn recorded(
        config: SupervisionConfig,
        mut script: Script,
        record: Option<PathBuf>,
        alone: MutexGuard<'static, ()>,
    ) -> Self {
        let (told, ends) = mpsc::unbounded_channel();
        let (said, lines) = mpsc::unbounded_channel();
        (script.told, script.lines) = (Some(told), Some(said));
        let (hangs, mark, found) = (script.hangs.clone(), script.mark.clone(), script.found.clone());
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (in_flight, requests) = watch::channel(0);
        let supervisor = Supervisor::start(config, Arc::new(script), requests, record, metrics);
        let status = supervisor.status();
        Self { supervisor, in_flight, status, ends, lines, passed: Vec::new(), hangs, mark, found, registry, alone }
    }

    pub async fn until(&mut self, reached: impl FnMut(&Status) -> bool) -> Status {
        let waiting = self.status.wait_for(reached);
        let reached = timeout(DEADLINE, waiting).await.map(|status| status.map(|status| status.clone()));
        match reached {
            Ok(status) => status.unwrap(),
            Err(_) => panic!("it stays at {:?}", *self.status.borrow()),
        }
    }

    /// With a leader, if the state has one.
    pub async fn reach(&mut self, state: State) -> Status {
        let has_leader = !matches!(state, State::Stopped | State::Warming | State::Backoff);
        self.until(|status| status.state == state && status.leader.is_some() == has_leader).await
    }

    /// Of the next engine that has ended.
    pub async fn end(&mut self) -> (u64, End) {
        timeout(DEADLINE, self.ends.recv()).await.expect("no engine ends").unwrap()
    }

    /// Waits for a line that begins so; the rest of it.
    pub async fn line(&mut self, start: &str) -> String {
        loop {
            if let Some(at) = self.passed.iter().position(|line| line.starts_with(start)) {
                return self.passed.remove(at)[start.len()..].to_owned();
            }
            self.passed.push(timeout(DEADLINE, self.lines.recv()).await.expect(start).unwrap());
        }
    }

    pub async fn pid(&mut self, start: &str) -> i32 {
        self.line(start).await.parse().unwrap()
    }

    /// Whether any process of any engine is there.
    pub fn has_processes(&self) -> bool {
        !marked(&self.mark).is_empty()
    }

    /// The engine is found to be of no use.
    pub fn hang(&self) {
        self.hangs.as_ref().unwrap().notify_one();
    }

    /// Drops the supervisor.
    pub fn give_up(self) -> MutexGuard<'static, ()> {
        self.alone
    }

    /// Fails if anything of any engine was left at any time; the metrics.
    pub async fn shutdown(self) -> String {
        let text = warmd::telemetry::encode(&self.registry);
        self.shutdown_within(DEADLINE).await;
        text
    }

    pub async fn shutdown_within(self, deadline: Duration) -> Status {
        let status = self.supervisor.shutdown(deadline).await;
        assert_eq!(status.state, State::Stopped);
        assert_eq!((marked(&self.mark), self.found.lock().unwrap().clone()), (vec![], vec![]));
        status
    }
}
