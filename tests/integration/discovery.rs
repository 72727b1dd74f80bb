//! Warm with the help of other agents: without a metadata server, and while it is silent.

use std::sync::Arc;

use warmd::agent::AgentConfig;
use warmd::digest::{ArtifactId, ContentId, KeyId};
use warmd::discovery::{Discovery, DiscoveryConfig, LocalNode, Metrics, Mode};
use warmd::identity::{NodeConfig, UnixTime};
use warmd::lifecycle::Tasks;
use warmd::protocol::metadata::{Held, NodeState, Summary};
use warmd::serve::warm::Verdict;

use crate::harness::cluster::{Cluster, DEADLINE, Node, identity, reason, until};
use crate::harness::ports;
use crate::harness::tree;

fn config(cluster: &Cluster, name: &str, mode: Mode, bootstrap: &[&Node]) -> AgentConfig {
    let mut config = cluster.config(name);
    config.discovery = DiscoveryConfig {
        mode,
        listen: Some("127.0.0.1:0".parse().unwrap()),
        bootstrap: bootstrap.iter().map(|node| node.agent.discovery_addr().unwrap().into()).collect(),
        ..DiscoveryConfig::default()
    };
    config
}

/// Warms until something is installed: who has just started may not have met the others yet.
async fn warm_until_installed(cluster: &Cluster, node: &Node, identity: &warmd::artifact::SourceIdentity, into: &str) {
    let warm =
        async { while let Verdict::Nothing { .. } = node.warm(cluster.job(identity.clone(), into)).await.verdict {} };
    tokio::time::timeout(DEADLINE, warm).await.expect("installed in time");
    tree::assert_same(&tree::read(&cluster.path(into)), &tree::sample());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_agent_publishes_another_installs_without_any_server() {
    let cluster = Cluster::without_server();
    let first = cluster.agent_with(config(&cluster, "first", Mode::Serverless, &[])).await;
    let a = cluster.agent_with(config(&cluster, "a", Mode::Serverless, &[&first])).await;
    let b = cluster.agent_with(config(&cluster, "b", Mode::Serverless, &[&first])).await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    warm_until_installed(&cluster, &b, &identity, "cache").await;
    // What nobody has is not found, which is no failure.
    let cold = reason(&b.warm(cluster.job(crate::harness::cluster::identity(&[("torch", "3")]), "other")).await);
    assert!(cold.starts_with("none-found"), "{cold}");
    for node in [a, b, first] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_dies_and_installs_go_on_and_it_is_told_everything_when_it_returns() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent_with(config(&cluster, "a", Mode::Hybrid, &[])).await;
    let b = cluster.agent_with(config(&cluster, "b", Mode::Hybrid, &[&a])).await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    let addr = cluster.stop_server().await;
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    warm_until_installed(&cluster, &b, &identity, "cache").await;

    cluster.start_server(addr).await;
    let c = cluster.agent_with(cluster.config("c")).await;
    warm_until_installed(&cluster, &c, &identity, "later").await;
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_know_nobody_are_introduced_by_the_server() {
    let mut cluster = Cluster::start().await;
    let mut agents = Vec::new();
    for name in ["a", "b"] {
        let mut config = config(&cluster, name, Mode::Hybrid, &[]);
        config.transport.listen = ports::free();
        // They find each other on the port beside it.
        config.discovery.listen = None;
        agents.push(cluster.agent_with(config).await);
    }
    let [a, b] = &agents[..] else { panic!("two agents") };
    tree::write(&cluster.path("source"), &tree::sample());
    let (before, after) = (identity(&[("torch", "2.13.0")]), identity(&[("torch", "2.14.0")]));
    a.publish(&cluster.path("source"), &before, "").await.unwrap();
    warm_until_installed(&cluster, b, &before, "before").await;
    until("the holder is not met", async || b.client.status().await.unwrap().connected_agents > 0).await;
    cluster.stop_server().await;
    a.publish(&cluster.path("source"), &after, "").await.unwrap();
    warm_until_installed(&cluster, b, &after, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_cluster_finds_nothing_here() {
    let (cluster, elsewhere) = (Cluster::without_server(), Cluster::without_server());
    let a = cluster.agent_with(config(&cluster, "a", Mode::Serverless, &[])).await;
    let b = cluster.agent_with(config(&cluster, "b", Mode::Serverless, &[&a])).await;
    let stranger = elsewhere.agent_with(config(&elsewhere, "stranger", Mode::Serverless, &[&a, &b])).await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    // By the time that a member has it, the stranger has had as much time.
    warm_until_installed(&cluster, &b, &identity, "cache").await;
    let cold = reason(&stranger.warm(elsewhere.job(identity, "cache")).await);
    assert!(cold.starts_with("transient") && cold.contains("no other agent is connected"), "{cold}");
}

/// A member of the cluster that says that it has newer artifacts of the same identity, which nobody ever signed.
async fn liar(cluster: &Cluster, of: &warmd::artifact::SourceIdentity, bootstrap: &Node, tasks: &Tasks) -> Discovery {
    let tls = NodeConfig::default().tls(&cluster.state_dir("liar", &[])).unwrap();
    let config = DiscoveryConfig {
        bootstrap: vec![bootstrap.agent.discovery_addr().unwrap().into()],
        ..DiscoveryConfig::default()
    };
    let local = LocalNode {
        listen: "127.0.0.1:0".parse().unwrap(),
        endpoints: Arc::from(["127.0.0.1:9".parse().unwrap()]),
        locality: Arc::default(),
        memory: None,
    };
    let liar = Discovery::start(&config, local, &tls, Metrics::default(), tasks).await.unwrap();
    liar.set_state(NodeState::Ready);
    for n in 0..100u8 {
        let artifact = Summary {
            artifact: ArtifactId::of(&[n]),
            identity: of.id(),
            content: ContentId::of(&[n]),
            family: of.family().clone(),
            subject: "".into(),
            generation: 1_000,
            created: UnixTime::now(),
            size: 1,
            wire_size: 1,
            files: 1,
            chunks: 1,
            signer: KeyId::of(b"nobody"),
            compile_ms: 0,
        };
        liar.hold(Held { artifact: Arc::new(artifact), chunks_held: 1 });
    }
    liar
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lies_costs_time_only() {
    let cluster = Cluster::without_server();
    let a = cluster.agent_with(config(&cluster, "a", Mode::Serverless, &[])).await;
    let b = cluster.agent_with(config(&cluster, "b", Mode::Serverless, &[&a])).await;
    let identity = identity(&[("torch", "2.13.0")]);
    let tasks = Tasks::new();
    let liar = liar(&cluster, &identity, &b, &tasks).await;
    assert!(liar.met(1, DEADLINE).await);
    tree::write(&cluster.path("source"), &tree::sample());
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    warm_until_installed(&cluster, &b, &identity, "cache").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_is_gone_without_a_word_is_not_waited_for() {
    let cluster = Cluster::without_server();
    let first = cluster.agent_with(config(&cluster, "first", Mode::Serverless, &[])).await;
    let a = cluster.agent_with(config(&cluster, "a", Mode::Serverless, &[&first])).await;
    let c = cluster.agent_with(config(&cluster, "c", Mode::Serverless, &[&first])).await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    warm_until_installed(&cluster, &c, &identity, "c-cache").await;
    drop(c);
    let b = cluster.agent_with(config(&cluster, "b", Mode::Serverless, &[&first])).await;
    warm_until_installed(&cluster, &b, &identity, "cache").await;
}
