//! What a fleet is doing, as whole agents and the command line tell it.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use warmd::metadata::Config as ServerConfig;

use crate::harness::cluster::{Cluster, DEADLINE, Node, identity};
use crate::harness::engine::own_proc;
use crate::harness::served::{self, Adapter};
use crate::harness::{gpu, tree};

async fn warmd(socket: &Path, words: &[&str]) -> std::process::Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
    command.args(words).arg("--socket").arg(socket);
    tokio::time::timeout(DEADLINE, command.output()).await.unwrap().unwrap()
}

async fn json(node: &Node, words: &[&str]) -> Value {
    let output = warmd(node.agent.socket(), words).await;
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Asks again until it is so.
async fn until(node: &Node, words: &[&str], reached: impl Fn(&Value) -> bool) -> Value {
    let give_up = Instant::now() + DEADLINE;
    loop {
        let told = json(node, words).await;
        if reached(&told) {
            return told;
        }
        assert!(Instant::now() < give_up, "{told:#}");
    }
}

fn of<'v>(fleet: &'v Value, node: &Node) -> &'v Value {
    let id = node.agent.node().to_string();
    fleet["nodes"].as_array().unwrap().iter().find(|one| one["id"] == *id).unwrap_or(&Value::Null)
}

fn finding<'v>(found: &'v Value, kind: &str) -> &'v Value {
    found["findings"].as_array().unwrap().iter().find(|one| one["kind"] == kind).unwrap_or(&Value::Null)
}

/// Leases that run out while a test waits, and not because somebody is slow.
async fn cluster() -> Cluster {
    let mut config = ServerConfig::new("127.0.0.1:0".parse().unwrap());
    config.registry.heartbeat = Duration::from_millis(100);
    config.registry.lease = Duration::from_secs(5);
    let mut cluster = Cluster::without_server();
    cluster.start_server_with(config).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_transfer_is_seen_with_its_rate_and_what_is_left_and_a_dead_node_is_stale() {
    let cluster = cluster().await;
    let mut slow = cluster.config("a");
    slow.provide.max_rate = Some(4 << 20);
    let (a, b) = (cluster.agent_with(slow).await, cluster.agent("b").await);
    let content = [("model".to_owned(), (false, tree::noise(1, 64 << 20)))].into();
    tree::write(&cluster.path("source"), &content);
    let what = identity(&[("torch", "2.13.1")]);
    a.publish(&cluster.path("source"), &what, "").await.unwrap();
    let job = cluster.job(what, "into");
    let client = b.client.clone();
    let warming = async { warmd::serve::warm::warm(&client, job, &|_| ()).await.map(drop) };
    let watching = async {
        let moving = |fleet: &Value| {
            let transfer = &of(fleet, &b)["transfers"][0];
            let moves = transfer["holders"][0]["bytes"].as_u64() > Some(0) && transfer["rate"].as_u64() > Some(0);
            moves && fleet["server"]["ready"] == 2 && of(fleet, &a)["state"] == "ready"
        };
        let fleet = until(&a, &["top", "--json"], moving).await;
        let transfer = &of(&fleet, &b)["transfers"][0];
        assert_eq!(transfer["family"], "directory");
        assert_eq!(transfer["holders"][0]["node"], *a.agent.node().to_string());
        assert!(transfer["eta_s"].as_f64() > Some(0.0), "{transfer}");
        assert!(transfer["done"].as_u64() < transfer["total"].as_u64(), "{transfer}");
        let text = warmd(b.agent.socket(), &["status"]).await;
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains("fetching  directory") && text.contains(" left"), "{text}");
        fleet
    };
    let fleet = tokio::select! {
        fleet = watching => fleet,
        warmed = warming => panic!("it was to take longer: {warmed:?}"),
    };
    assert_eq!(fleet["identities"][0]["artifacts"][0]["holders"][0], *a.agent.node().to_string());

    let dead = b.agent.node().to_string();
    drop(b);
    let stale = |fleet: &Value| {
        fleet["nodes"].as_array().unwrap().iter().any(|node| node["id"] == *dead && node["state"] == "stale")
    };
    until(&a, &["status", "--fleet", "--json"], stale).await;
    let page = String::from_utf8(warmd(a.agent.socket(), &["top"]).await.stdout).unwrap();
    assert!(page.lines().all(|line| line.chars().count() <= 80) && page.contains("stale"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_nodes_gpus_do_is_told_by_its_status_and_its_metrics() {
    let cluster = cluster().await;
    let mut config = cluster.config("a");
    config.gpu.program = Some(gpu::program_in(cluster.dir.path()));
    let node = cluster.agent_with(config).await;
    let both = |status: &Value| status["here"]["gpus"].as_array().is_some_and(|gpus| gpus.len() == 2);
    let status = until(&node, &["status", "--json"], both).await;
    let gpus = &status["here"]["gpus"];
    assert_eq!((&gpus[0]["utilization"], &gpus[0]["memory"]["used"]), (&35.into(), &(62_464_u64 << 20).into()));
    assert_eq!((&gpus[1]["index"], &gpus[1]["memory"]), (&1.into(), &Value::Null));
    let text = String::from_utf8(warmd(node.agent.socket(), &["status"]).await.stdout).unwrap();
    assert!(text.contains("gpu 0     NVIDIA H100 80GB HBM3: 35 % used, 61.00 GiB of 79.65 GiB"), "{text}");
    assert!(node.scrape().await.contains("warmd_gpu_temperature_celsius{gpu=\"1\"} 40"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_serves_is_told_of_with_its_adapters_although_nobody_asks_it() {
    if !own_proc() {
        return;
    }
    let mut fleet = served::Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let served = fleet.serve(fleet.config(), "").await;
    let node = fleet.agent.as_ref().unwrap();
    let adapters = |count: u32| move |status: &Value| status["here"]["engine"]["adapters"] == count;
    let idle = until(node, &["status", "--json"], adapters(0)).await;
    assert_eq!(idle["here"]["engine"]["state"], "serving");
    assert_eq!(served.complete_once_ready("sql").await.status, 200);
    until(node, &["status", "--json"], adapters(1)).await;
    served.shutdown().await;
    fleet.end_agents().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_of_the_fleet_names_the_one_fact_that_keeps_caches_apart() {
    let cluster = cluster().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    tree::write(&cluster.path("source"), &tree::sample());
    a.publish(&cluster.path("source"), &identity(&[("torch", "2.13.1"), ("model", "m")]), "").await.unwrap();
    b.publish(&cluster.path("source"), &identity(&[("torch", "2.14.0"), ("model", "m")]), "").await.unwrap();
    let reported = |fleet: &Value| [&a, &b].iter().all(|node| of(fleet, node)["clock"].is_u64());
    until(&a, &["status", "--fleet", "--json"], reported).await;
    let words = ["doctor", "--fleet", "--json"];
    let near = |found: &Value| finding(found, "near-miss")["what"].as_str().map(str::to_owned);
    // Both agents are on this host, which is told as well.
    let is_told = |found: &Value| near(found).is_some() && finding(found, "names").is_object();
    let what = near(&until(&a, &words, is_told).await).unwrap();
    assert!(what.starts_with("directory fits but for `torch`: 2.13.1 on "), "{what}");
    assert_eq!(warmd(a.agent.socket(), &words).await.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_server_the_doctor_of_the_fleet_says_that_it_sees_one_node_and_what_to_do() {
    let cluster = Cluster::without_server();
    let mut config = cluster.config("a");
    config.discovery.mode = warmd::discovery::Mode::Serverless;
    let a = cluster.agent_with(config).await;
    let page = String::from_utf8(warmd(a.agent.socket(), &["doctor", "--fleet"]).await.stdout).unwrap();
    let told = page.lines().next().unwrap();
    assert!(told.contains("this is this node alone") && told.contains("`metadata.servers`"), "{page}");
    let found = json(&a, &["doctor", "--fleet", "--json"]).await;
    assert_eq!(found["nodes"], 1, "{found:#}");
    assert!(found["limited"].as_str().unwrap().contains("Ask on each of them"), "{found:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_a_node_tells_of_itself_and_says_that_it_is_alone() {
    let mut cluster = cluster().await;
    let a = cluster.agent("a").await;
    cluster.stop_server().await;
    let fleet = json(&a, &["status", "--fleet", "--json"]).await;
    assert!(fleet["limited"].as_str().unwrap().contains("itself alone"), "{fleet:#}");
    assert_eq!((fleet["nodes"].as_array().unwrap().len(), of(&fleet, &a)["state"].as_str()), (1, Some("ready")));
    // Two answers of the agent are in one status: the first may be from before the loss.
    let is_lost = |status: &Value| {
        status["here"]["problems"][0]["kind"] == "no-directory" && status["metadata_connected"] == false
    };
    until(&a, &["status", "--json"], is_lost).await;
    let page = warmd(a.agent.socket(), &["status"]).await;
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.starts_with("problem: no metadata server"), "what is wrong comes first: {page}");
}
