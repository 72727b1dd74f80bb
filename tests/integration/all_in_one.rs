//! `warmd agent` with an engine: one process that is agent, engine and proxy, as a user runs it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;
use warmd::config::{self, AgentFile, EngineSection, ServedEngine};
use warmd::digest::IdentityId;

use crate::harness::cluster::DEADLINE;
use crate::harness::engine::{is_alive, own_proc};
use crate::harness::http::Connection;
use crate::harness::served::{Adapter, Fleet, until, waiting};

/// The file of a node of that fleet, which runs the fake vLLM.
fn file(fleet: &Fleet, more: &str) -> AgentFile {
    let engine = EngineSection {
        command: fleet.command(more),
        cache_root: Some(fleet.cluster.path("caches")),
        reserve_bytes: 0,
        ..EngineSection::default()
    };
    let served = Some(ServedEngine { engine, serve: fleet.config() });
    AgentFile { agent: fleet.cluster.config("all"), served }
}

/// Killed when dropped; what it has started ends with it.
pub(super) struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    /// What it has said so far.
    said: Vec<String>,
}

impl Process {
    pub(super) fn start(fleet: &Fleet, file: &AgentFile) -> Self {
        Self::start_at(fleet, file, "info")
    }

    /// With this log level.
    pub(super) fn start_at(fleet: &Fleet, file: &AgentFile, level: &str) -> Self {
        let path = fleet.cluster.path("warmd.toml");
        std::fs::write(&path, config::render(file)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_warmd"));
        command.args(["agent", "--config"]).arg(path).env("WARMD_LOG_LEVEL", level);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines, said: Vec::new() }
    }

    /// What follows `text` on the first line that has it.
    pub(super) async fn says(&mut self, text: &str) -> String {
        loop {
            let line = timeout(DEADLINE, self.lines.next_line()).await.expect("it says nothing more").unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended without `{text}`: {:#?}", self.said));
            self.said.push(line.clone());
            if let Some((_, rest)) = line.split_once(text) {
                return rest.to_owned();
            }
        }
    }

    /// All that it has said so far.
    pub(super) fn said(&self) -> String {
        self.said.join("\n")
    }

    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().unwrap() as i32).unwrap()
    }

    fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
    }

    /// The exit code, once it has said its last word.
    pub(super) async fn end(&mut self) -> Option<i32> {
        let ending = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                self.said.push(line);
            }
            self.child.wait().await.unwrap().code()
        };
        timeout(DEADLINE * 2, ending).await.expect("it does not end")
    }

    /// The number of the first line that has all of these.
    fn line(&self, words: &[&str]) -> usize {
        let found = self.said.iter().position(|line| words.iter().all(|word| line.contains(word)));
        found.unwrap_or_else(|| panic!("nothing of {words:?}: {:#?}", self.said))
    }
}

async fn holders(fleet: &Fleet, identity: IdentityId) -> u32 {
    let found = fleet.agent.as_ref().unwrap().client.find(&[identity]).await.unwrap().found;
    found.iter().map(|one| one.holders).sum()
}

#[tokio::test]
async fn one_process_brings_adapters_by_its_own_agent_and_ends_proxy_engine_and_agent_in_this_order() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    let identity = fleet.publish(Adapter::new("sql", 1)).await;
    let mut process = Process::start(&fleet, &file(&fleet, "--fake-token 0.01"));
    process.says("agent ready").await;
    let addr: SocketAddr = process.says("clients connect to http://").await.parse().unwrap();
    let ask = async |method, path: &str, body: String| {
        Connection::tcp(addr, None).await.unwrap().ask(method, path, &body).await.unwrap()
    };
    until("it is not ready", async || ask(Method::GET, "/health", String::new()).await.status == 200).await;
    let weights = ask(Method::POST, "/v1/completions", waiting("sql").to_string()).await.weights();
    until("its agent does not hold the adapter", async || holders(&fleet, identity).await == 2).await;

    let health = fleet.config().state_dir.unwrap().join("admin.sock");
    let mut operator = Connection::unix(&health, None).await.unwrap();
    let health = operator.ask(Method::GET, "/admin/v1/health", "").await.unwrap().json();
    let leader = health["engine"]["leader"].as_i64().unwrap() as i32;
    let body = json!({"model": "sql", "prompt": "p", "max_tokens": 50, "stream": true}).to_string();
    let mut connection = Connection::tcp(addr, None).await.unwrap();
    let stream = connection.begin(Method::POST, "/v1/completions", &body).await.unwrap();
    process.terminate();
    let (answer, code) = tokio::join!(stream.whole(), process.end());
    assert_eq!((answer.weights(), answer.digests().len()), (weights, 50), "a request that was admitted is answered");
    assert_eq!(code, Some(0), "{:#?}", process.said);
    assert!(!is_alive(leader));
    let order = [
        process.line(&["SIGTERM: draining"]),
        process.line(&["engine", "state=Stopped"]),
        process.line(&["agent ended"]),
    ];
    assert!(order.is_sorted(), "{:#?}", process.said);
    assert_eq!(holders(&fleet, identity).await, 1, "nobody is sent to a node that has said its last word");
}

#[tokio::test]
async fn a_crash_loop_of_the_engine_ends_the_process_with_an_error_that_says_so() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    let mut file = file(&fleet, "--fake-fail 3");
    file.served.as_mut().unwrap().serve.supervision.crash_loop_crashes = 2;
    let mut process = Process::start(&fleet, &file);
    assert_eq!(process.end().await, Some(1), "{:#?}", process.said);
    let told = process.said.last().unwrap();
    assert!(told.contains("the engine is in a crash loop") && told.contains("exit code 3"), "{told}");
    process.line(&["agent ended"]);
}

#[tokio::test]
async fn an_agent_that_does_not_start_starts_no_engine() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    let started: PathBuf = fleet.cluster.path("started");
    let mut file = file(&fleet, "");
    file.agent.signer = Some(fleet.cluster.path("missing.key"));
    file.served.as_mut().unwrap().engine.command = vec!["touch".to_owned(), started.display().to_string()];
    let mut process = Process::start(&fleet, &file);
    assert_eq!(process.end().await, Some(1));
    let told = process.said.last().unwrap();
    assert!(told.contains("signer") && told.contains("missing.key"), "{told}");
    assert!(!started.exists());
}

#[tokio::test]
async fn an_engine_that_cannot_be_served_ends_the_agent_in_order() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    let mut file = file(&fleet, "");
    let served = file.served.as_mut().unwrap();
    served.serve.listen = Some(([0, 0, 0, 0], 0).into());
    let mut process = Process::start(&fleet, &file);
    assert_eq!(process.end().await, Some(1));
    assert!(process.said.last().unwrap().contains("[serve.auth]"), "{:#?}", process.said);
    process.line(&["agent ended"]);
}
