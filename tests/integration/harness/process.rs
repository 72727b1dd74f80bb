//! Agents and servers as processes of their own: for what only a real kill, or a network of their own, shows.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;
use warmd::agent::AgentConfig;
use warmd::artifact::SourceIdentity;
use warmd::local::Client;
use warmd::serve::warm::{Job, Report, warm};

use super::cluster::{DEADLINE, Published, publish};

/// Killed when dropped.
pub struct Role {
    child: Child,
    /// Reads on: one that cannot write its log would be another test.
    _log: JoinSet<()>,
}

impl Role {
    /// Returns once it says that it is ready. `on` goes before the command: where it runs.
    pub async fn start(on: &[String], arguments: &[&str], state_dir: &Path) -> Self {
        let program = env!("CARGO_BIN_EXE_warmd").to_owned();
        let [first, more @ ..] = &[on, &[program]].concat()[..] else { unreachable!("the program at least") };
        let mut child = Command::new(first)
            .args(more)
            .args(arguments)
            .arg("--state-dir")
            .arg(state_dir)
            .env("WARMD_LOG_LEVEL", "info")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = String::new();
        loop {
            let line = timeout(DEADLINE, log.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("{arguments:?} does not become ready: {seen}")).unwrap();
            let line = line.unwrap_or_else(|| panic!("{arguments:?} ended: {seen}"));
            if line.contains("agent ready") || line.contains("metadata server ready") {
                break;
            }
            seen.push_str(&line);
        }
        let mut rest = JoinSet::new();
        rest.spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Self { child, _log: rest }
    }
}

/// Killed when dropped.
pub struct AgentProcess {
    role: Role,
    pub client: Client,
    socket: std::path::PathBuf,
}

impl AgentProcess {
    pub async fn start(config: &AgentConfig) -> Self {
        Self::start_on(&[], config).await
    }

    /// `on` goes before the command.
    pub async fn start_on(on: &[String], config: &AgentConfig) -> Self {
        let path = config.state_dir.join("warmd.toml");
        std::fs::write(&path, warmd::config::render(config)).unwrap();
        let role = Role::start(on, &["agent", "--config", path.to_str().unwrap()], &config.state_dir).await;
        let client = Client::connect(&config.local.socket).await.unwrap();
        Self { role, client, socket: config.local.socket.clone() }
    }

    pub async fn publish(&self, directory: &Path, identity: &SourceIdentity) -> Published {
        publish(&self.socket, directory, identity, "").await.unwrap()
    }

    pub async fn warm(&self, job: Job) -> Report {
        warm(&self.client, job, &|_| ()).await.unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.role.child.id().unwrap()
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(mut self) {
        self.role.child.kill().await.unwrap();
    }

    /// Has it read its configuration again.
    pub fn hang_up(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    /// SIGTERM, and the exit code.
    pub async fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_raw(self.role.child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        timeout(DEADLINE, self.role.child.wait()).await.expect("it does not end").unwrap().code()
    }
}
