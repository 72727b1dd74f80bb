//! Whatever fails, the answer comes within the budget, says why, and leaves the cache root whole.

use std::time::Duration;

use tokio::net::TcpListener;
use warmd::serve::warm::Verdict;

use crate::harness::cluster::{Cluster, identity, reason, until};
use crate::harness::tree;

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_server_that_never_answers_costs_its_deadline() {
    let mut cluster = Cluster::without_server();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    cluster.ask(format!("127.0.0.1:{}", silent.local_addr().unwrap().port()).parse().unwrap());
    let mut config = cluster.config("b");
    config.metadata.deadline = Duration::from_secs(2);
    let b = cluster.agent_with(config).await;
    let cold = reason(&b.warm(cluster.job(identity(&[("torch", "2")]), "cache")).await);
    assert!(cold.starts_with("transient: metadata server"), "{cold}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_ends_an_attempt() {
    let mut cluster = Cluster::without_server();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    cluster.ask(format!("127.0.0.1:{}", silent.local_addr().unwrap().port()).parse().unwrap());
    let b = cluster.agent("b").await;
    let mut job = cluster.job(identity(&[("torch", "2")]), "cache");
    job.budget = Duration::from_millis(50);
    let cold = reason(&b.warm(job).await);
    assert!(cold.contains("not done within 50ms"), "{cold}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_server_that_restarts_empty_is_told_everything_again() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    let addr = cluster.stop_server().await;
    cluster.start_server(addr).await;
    let b = cluster.agent("b").await;
    // The publisher announces anew with its next heartbeat or retry; until then nobody has it.
    until("the directory was never refilled", async || {
        let report = b.warm(cluster.job(identity.clone(), "cache")).await;
        matches!(report.verdict, Verdict::Installed)
    })
    .await;
    tree::assert_same(&tree::read(&cluster.path("cache")), &tree::sample());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_has_can_be_installed_without_any_server() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    cluster.stop_server().await;
    let report = a.warm(cluster.job(identity, "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    tree::assert_same(&tree::read(&cluster.path("cache")), &tree::sample());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_is_gone_is_reported_and_the_cache_root_stays_empty() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    // Without a word to the server: its lease still runs.
    drop(a);
    let cold = reason(&b.warm(cluster.job(identity, "cache")).await);
    assert!(cold.starts_with("none-found") || cold.starts_with("transient"), "{cold}");
    assert!(tree::read(&cluster.path("cache")).is_empty());
    assert_eq!(std::fs::read_dir(cluster.path("cache/.warmd/staging")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_root_that_cannot_be_trusted_is_refused_with_the_mend() {
    let cluster = Cluster::start().await;
    let b = cluster.agent("b").await;
    let job = cluster.job(identity(&[("torch", "2")]), "cache");
    std::fs::create_dir(cluster.path("real")).unwrap();
    std::os::unix::fs::symlink(cluster.path("real"), cluster.path("cache")).unwrap();
    let error = warmd::serve::warm::warm(&b.client, job, &|_| ()).await.unwrap_err().to_string();
    assert!(error.contains("symbolic link") || error.contains("link"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_drains_tells_the_directory_before_it_goes() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    a.stop().await;
    let cold = reason(&b.warm(cluster.job(identity, "cache")).await);
    assert!(cold.contains("no node has published"), "{cold}");
}
