//! The judge that counts: a real vLLM on the CPU, started through `warmd exec` on two nodes.
//!
//! ```text
//! WARMD_TEST_VLLM=/path/to/venv cargo test --release --test real_vllm -- --nocapture
//! ```
//!
//! `README.md` beside this file says how such an environment is made. Without the variable the test says that it is skipped.
//! It takes some minutes and both cores.

#![expect(unreachable_pub, clippy::unwrap_used, reason = "a test binary has no outside, and a test ends by panicking")]
#![expect(clippy::print_stderr, reason = "what each start was like is worth reading")]

#[path = "../integration/harness/cluster.rs"]
#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
mod cluster;
#[path = "../integration/harness/ports.rs"]
#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
mod ports;
mod serving;
mod vllm;

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use serde_json::Value;

use cluster::Cluster;
use vllm::{ALL_PUBLISHED, MODEL_PUBLISHED, READY, Vllm};

/// Tokens in a batch, unlike vLLM's own default: part of what is compiled.
const FEWER: [&str; 2] = ["--max-num-batched-tokens", "1024"];
/// Of `warmd exec`, unless it is told otherwise.
const BUDGET_SECONDS: f64 = 30.0;

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_compiled_is_used_by_another_for_every_variant_and_a_changed_argument_compiles() {
    let Some(vllm) = Vllm::find().await else { return };
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);

    let cold = vllm.start(&cluster, "a", "first", &[], ALL_PUBLISHED).await;
    assert!(cold.log.contains("saved AOT compiled function"), "{}", cold.summary());
    assert!(cold.hook_seconds() <= BUDGET_SECONDS, "{}", cold.summary());
    vllm.start(&cluster, "a", "first", &[], READY).await.assert_warm();
    vllm.start(&cluster, "b", "second/deeper", &[], READY).await.assert_warm();

    // Another argument is another variant: doctor names it, it misses, and is published beside the first.
    let foreseen = vllm.doctor(&cluster, "b", "second/deeper", &FEWER).await;
    assert_eq!(variant_differences(&foreseen), ["--max-num-batched-tokens"], "{foreseen:#}");
    let other = vllm.start(&cluster, "b", "second/deeper", &FEWER, MODEL_PUBLISHED).await;
    assert_eq!(other.family("vllm-aot")["used"], false, "{}", other.summary());
    let third = vllm.start(&cluster, "a", "third", &FEWER, READY).await;
    third.assert_warm();
    assert_eq!(third.family("vllm-aot")["offered"], 2);
    vllm.start(&cluster, "a", "third", &[], READY).await.assert_warm();
    a.stop().await;
    b.stop().await;
}

/// What tells this node's start from the variant that is most like it, by the names of the arguments.
fn variant_differences(examination: &Value) -> Vec<String> {
    let families = examination["families"].as_array().unwrap();
    let aot = families.iter().find(|one| one["family"] == "vllm-aot").unwrap();
    let differences = aot["variants"][0]["differences"].as_array().unwrap_or_else(|| panic!("{aot:#}"));
    differences.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_whose_chunks_are_corrupt_costs_a_retry_and_the_start_is_warm() {
    let Some(vllm) = Vllm::find().await else { return };
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let mut config = cluster.config("c");
    config.metrics.listen = Some(([127, 0, 0, 1], 0).into());
    let c = cluster.agent_with(config).await;
    vllm.start(&cluster, "a", "one", &[], ALL_PUBLISHED).await;
    vllm.start(&cluster, "b", "two", &[], READY).await.assert_warm();
    assert!(corrupt(&cluster.path("b").join("store/chunks")) > 0);
    vllm.start(&cluster, "c", "three", &[], READY).await.assert_warm();
    assert!(bad_chunks(c.agent.metrics_addr().unwrap()) > 0, "nothing was asked of the corrupt holder");
    for agent in [a, b, c] {
        agent.stop().await;
    }
}

/// A bit of each file below it; how many.
fn corrupt(chunks: &Path) -> usize {
    let files = std::fs::read_dir(chunks).unwrap().flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
    files
        .map(|file| {
            let path = file.unwrap().path();
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            let file = std::fs::OpenOptions::new().write(true).read(true).open(path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 0).unwrap();
            file.write_all_at(&[byte[0] ^ 1], 0).unwrap();
        })
        .count()
}

/// Chunks that the agent was sent and refused.
fn bad_chunks(metrics: SocketAddr) -> u64 {
    let mut connection = TcpStream::connect(metrics).unwrap();
    connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix("warmd_transfer_bad_chunks_total "));
    value.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}
