//! `warmd agent` with an engine: one process that is agent, engine and proxy, as a user runs it.

use std::net::SocketAddr;
use std::path::PathBuf;

use hyper::Method;
use rustix::process::Signal;
use serde_json::json;
use warmd::config::{self, AgentFile, EngineSection, ServedEngine};
use warmd::digest::IdentityId;
use warmd::local::{Client, FleetPart};

use crate::harness::engine::{is_alive, own_proc};
use crate::harness::http::Connection;
use crate::harness::program::Program;
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

pub(super) fn start(fleet: &Fleet, file: &AgentFile) -> Program {
    start_with(fleet, file, &[("WARMD_LOG_LEVEL", "info")])
}

pub(super) fn start_with(fleet: &Fleet, file: &AgentFile, environment: &[(&str, &str)]) -> Program {
    let path = fleet.cluster.path("warmd.toml");
    std::fs::write(&path, config::render(file)).unwrap();
    Program::start(&["agent", "--config", path.to_str().unwrap()], environment)
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
    let mut process = start(&fleet, &file(&fleet, "--fake-token 0.01"));
    process.says("agent ready").await;
    let addr: SocketAddr = process.says("clients connect to http://").await.parse().unwrap();
    let ask = async |method, path: &str, body: String| {
        Connection::tcp(addr, None).await.unwrap().ask(method, path, &body).await.unwrap()
    };
    until("it is not ready", async || ask(Method::GET, "/health", String::new()).await.status == 200).await;
    let weights = ask(Method::POST, "/v1/completions", waiting("sql").to_string()).await.weights();
    until("its agent does not hold the adapter", async || holders(&fleet, identity).await == 2).await;
    let agent = Client::connect(&fleet.cluster.config("all").local.socket).await.unwrap();
    until("its agent does not tell of the adapter", async || {
        let here = agent.fleet(FleetPart::Here).await.unwrap().nodes.pop();
        here.and_then(|node| node.report?.engine?.adapters) == Some(1)
    })
    .await;
    drop(agent);

    let health = fleet.config().state_dir.unwrap().join("admin.sock");
    let mut operator = Connection::unix(&health, None).await.unwrap();
    let health = operator.ask(Method::GET, "/admin/v1/health", "").await.unwrap().json();
    let leader = health["engine"]["leader"].as_i64().unwrap() as i32;
    let body = json!({"model": "sql", "prompt": "p", "max_tokens": 50, "stream": true}).to_string();
    let mut connection = Connection::tcp(addr, None).await.unwrap();
    let stream = connection.begin(Method::POST, "/v1/completions", &body).await.unwrap();
    process.signal(Signal::TERM);
    let (answer, code) = tokio::join!(stream.whole(), process.end());
    assert_eq!((answer.weights(), answer.digests().len()), (weights, 50), "a request that was admitted is answered");
    assert_eq!(code, Some(0), "{}", process.said());
    assert!(!is_alive(leader));
    let order = [
        process.line(&["SIGTERM: draining"]),
        process.line(&["engine", "state=Stopped"]),
        process.line(&["agent ended"]),
    ];
    assert!(order.is_sorted(), "{}", process.said());
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
    let mut process = start(&fleet, &file);
    assert_eq!(process.end().await, Some(1), "{}", process.said());
    let told = process.lines().last().unwrap();
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
    let mut process = start(&fleet, &file);
    assert_eq!(process.end().await, Some(1));
    let told = process.lines().last().unwrap();
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
    let mut process = start(&fleet, &file);
    assert_eq!(process.end().await, Some(1));
    assert!(process.lines().last().unwrap().contains("[serve.auth]"), "{}", process.said());
    process.line(&["agent ended"]);
}

#[tokio::test]
async fn a_hangup_takes_keys_and_limits_of_what_is_served_and_nothing_at_all_if_one_file_is_no_good() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    let keys = fleet.cluster.path("keys.toml");
    let key_of = |tenant: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
        command.args(["keys", "api", "--id", tenant, "--tenant", tenant]).arg(&keys);
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_owned()
    };
    let first = key_of("first");
    let mut file = file(&fleet, "");
    let serve = |file: &mut AgentFile, toml: &str| {
        let served = file.served.as_mut().unwrap();
        served.serve.limits = toml::from_str(toml).unwrap();
        served.serve.auth = toml::from_str(&format!("[keys]\nfile = {keys:?}")).unwrap();
    };
    serve(&mut file, "");
    let write = |file: &AgentFile| std::fs::write(fleet.cluster.path("warmd.toml"), config::render(file)).unwrap();
    let mut program = start(&fleet, &file);
    let addr: SocketAddr = program.says("clients connect to http://").await.parse().unwrap();
    let ask = async |key: &str| {
        let mut connection = Connection::tcp(addr, Some(key)).await.unwrap();
        let body = json!({"model": "base", "prompt": "p", "max_tokens": 1}).to_string();
        connection.ask(Method::POST, "/v1/completions", &body).await.unwrap().status
    };
    until("it is not ready", async || ask(&first).await == 200).await;
    let client = warmd::local::Client::connect(&file.agent.local.socket).await.unwrap();

    let second = key_of("second");
    assert_eq!(ask(&second).await, 401);
    serve(&mut file, "[default]\nrequests_per_second = 0.0001\nburst_seconds = 10000");
    file.agent.provide.max_rate = Some(1_000_000);
    write(&file);
    let told = program.hang_up().await.unwrap();
    assert!(told.contains("serve.limits.default.requests_per_second") && told.contains("provide.max_rate"), "{told}");
    assert_eq!((ask(&second).await, ask(&second).await), (200, 429));

    // One of the files is no good: what is good in the others is not taken either.
    std::fs::write(&keys, "no keys").unwrap();
    serve(&mut file, "");
    file.agent.provide.max_rate = Some(2_000_000);
    write(&file);
    let refused = program.hang_up().await.unwrap_err();
    assert!(refused.contains("keys.toml"), "{refused}");
    assert!(client.configuration().await.unwrap().contains("max_rate = 1000000"));
    assert_eq!(ask(&second).await, 429, "limits and keys are as before");

    file.served.as_mut().unwrap().serve.proxy.max_requests = 7;
    write(&file);
    let refused = program.hang_up().await.unwrap_err();
    assert!(refused.contains("serve.proxy.max_requests needs a restart"), "{refused}");
}
