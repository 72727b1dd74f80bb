//! Agents as processes of their own: for what only a real kill shows.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use warmd::agent::AgentConfig;
use warmd::local::Client;

/// Killed when dropped.
pub struct AgentProcess {
    child: Child,
    /// Kept open: an agent that cannot write its log would be another test.
    _log: Lines<BufReader<ChildStderr>>,
    pub client: Client,
}

impl AgentProcess {
    /// Returns once the agent says that it is ready.
    pub async fn start(config: &AgentConfig) -> Self {
        let path = config.state_dir.join("warmd.toml");
        std::fs::write(&path, warmd::config::render(config)).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_warmd"))
            .args(["agent", "--config"])
            .arg(path)
            .env("WARMD_LOG_LEVEL", "info")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = String::new();
        loop {
            let line = log.next_line().await.unwrap().unwrap_or_else(|| panic!("the agent ended: {seen}"));
            if line.contains("agent ready") {
                break;
            }
            seen.push_str(&line);
        }
        let client = Client::connect(&config.local.socket).await.unwrap();
        Self { child, _log: log, client }
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// SIGTERM, and the exit code.
    pub async fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().await.unwrap().code()
    }
}
