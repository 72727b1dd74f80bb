//! The trust policy as it goes through a cluster: made by operators at a command line, handed out by a metadata server,
//! taken by agents and pods, and withdrawn.

use std::path::PathBuf;
use std::time::Duration;

use warmd::agent::AgentConfig;
use warmd::identity::PrivateKey;
use warmd::identity::trust::{Known, read_document, read_root};
use warmd::metadata::Config as ServerConfig;
use warmd::serve::trust::Trust;
use warmd::serve::warm::{Job, Verdict};

use crate::exec::{Pod, engine, family};
use crate::harness::cluster::{Cluster, DEADLINE, Node, identity, reason, until};
use crate::harness::engine::own_proc;
use crate::harness::tree;

/// A cluster whose operators have two root keys, of which both sign, and one for policies.
struct Fleet {
    cluster: Cluster,
}

impl Fleet {
    async fn start(more: &[&str]) -> Self {
        let mut fleet = Self { cluster: Cluster::without_server() };
        for name in ["r1", "r2", "p1", "p2", "f1"] {
            PrivateKey::generate().unwrap().save_new(&fleet.path(name)).unwrap();
        }
        let (r1, r2, p1) = (fleet.public("r1"), fleet.public("r2"), fleet.public("p1"));
        let roles = ["--root", &r1, "--root", &r2, "--root-threshold", "2", "--policy", &p1];
        let init = fleet.policy(&[&["root", "init", "root.json", "--key", "r1"], &roles[..], more].concat());
        assert!(init.contains("NOT YET VALID: 1 of the 2"), "{init}");
        let signed = fleet.policy(&["root", "sign", "root.json", "--key", "r2"]);
        assert!(signed.contains("signed by enough"), "{signed}");
        let mut config = ServerConfig::new("127.0.0.1:0".parse().unwrap());
        config.registry.heartbeat = Duration::from_millis(100);
        config.trust = Some(read_root(&fleet.path("root.json")).unwrap());
        fleet.cluster.start_server_with(config).await;
        fleet.cluster.state_dir("operator", &[]);
        fleet
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cluster.path(name)
    }

    fn public(&self, name: &str) -> String {
        PrivateKey::load(&self.path(name)).unwrap().public().to_string()
    }

    /// Standard output of `warmd policy`, run among the operators' files.
    fn policy(&self, words: &[&str]) -> String {
        self.try_policy(words).unwrap_or_else(|stderr| panic!("{words:?}: {stderr}"))
    }

    fn try_policy(&self, words: &[&str]) -> Result<String, String> {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
        let output = command.current_dir(self.cluster.dir.path()).arg("policy").args(words).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }

    /// To the metadata server, as an operator.
    fn hand_in(&self, words: &[&str]) -> Result<String, String> {
        let server = self.cluster.config("operator").metadata.servers[0].to_string();
        self.try_policy(&[words, &["--metadata", &server, "--state-dir", "operator"]].concat())
    }

    /// Signs a policy with `key` and hands it in.
    fn publish(&self, version: u64, more: &str, key: &str) -> Result<String, String> {
        self.cluster.write_policy(version, more);
        self.policy(&["sign", "policy.toml", "--key", key, "--out", "policy.json"]);
        self.hand_in(&["publish", "policy.json"])
    }

    fn config(&self, name: &str) -> AgentConfig {
        let mut config = self.cluster.config(name);
        config.trust.policy = None;
        config.trust.root = Some(self.path("root.json"));
        config
    }

    async fn agent(&self, name: &str) -> Node {
        self.cluster.agent_with(self.config(name)).await
    }

    fn pod(&self) -> Trust {
        Trust::documents(&self.path("root.json"), None).unwrap()
    }

    /// A job of a pod that asks this node's agent whom to trust.
    async fn job(&self, node: &Node, facts: &str, into: &str) -> Job {
        let trust = self.pod();
        trust.ask(&node.client, DEADLINE).await.unwrap();
        Job { policy: trust.policy().unwrap(), ..self.cluster.job(identity(&[("torch", facts)]), into) }
    }
}

/// Asks until this agent has that version of the policy.
async fn until_version(node: &Node, version: u64) {
    until("the policy does not arrive", async || node.client.status().await.unwrap().policy_version == version).await;
}

async fn until_nobody_offers(node: &Node, facts: &str) {
    let ids = [identity(&[("torch", facts)]).id()];
    until("a revoked artifact is offered all the time", async || {
        node.client.find(&ids).await.unwrap().found.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_reaches_every_agent_and_what_it_revokes_is_hidden_and_refused_everywhere() {
    let fleet = Fleet::start(&[]).await;
    let (a, b, c) = (fleet.agent("a").await, fleet.agent("b").await, fleet.agent("c").await);
    assert!(fleet.pod().policy().is_err(), "nothing is installed before a policy has come");
    fleet.publish(1, "", "p1").unwrap();
    for node in [&a, &b, &c] {
        until_version(node, 1).await;
    }
    tree::write(&fleet.path("source"), &tree::sample());
    let published = a.publish(&fleet.path("source"), &identity(&[("torch", "1")]), "").await.unwrap();
    let report = b.warm(fleet.job(&b, "1", "first").await).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");

    fleet.publish(2, &format!("[revoked]\nartifacts = [\"{}\"]", published.artifact), "p1").unwrap();
    until_version(&a, 2).await;
    until_version(&b, 2).await;
    until_nobody_offers(&c, "1").await;
    let refused = reason(&a.warm(fleet.job(&a, "1", "second").await).await);
    assert!(refused.contains("revoked"), "{refused}");
    assert!(tree::read(&fleet.path("second")).is_empty());

    // An agent that starts now has nothing of the time before.
    let d = fleet.agent("d").await;
    until_version(&d, 2).await;
    let status = fleet.policy(&["status", "--socket", d.agent.socket().to_str().unwrap(), "--trust-root", "root.json"]);
    assert!(status.contains("root version 1, policy version 2") && status.contains("in force"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_policy_key_ends_with_the_next_root_and_an_old_policy_does_not_come_back() {
    let fleet = Fleet::start(&[]).await;
    let a = fleet.agent("a").await;
    fleet.publish(1, "", "p1").unwrap();
    until_version(&a, 1).await;
    assert!(fleet.publish(1, "# changed", "p1").unwrap_err().contains("other content"));
    assert!(fleet.publish(2, "", "r1").unwrap_err().contains("0 valid signatures of the 1"));
    assert!(fleet.publish(5_000, "", "p1").unwrap_err().contains("more than 1000 after"));
    // What a thief can do.
    fleet.publish(1_001, "", "p1").unwrap();
    until_version(&a, 1_001).await;
    let p2 = fleet.public("p2");
    let rotate = ["root", "rotate", "root.json", "--out", "root2.json", "--key", "r1", "--policy", &p2, "--least", "2"];
    assert!(fleet.policy(&rotate).contains("NOT YET VALID"));
    assert!(fleet.hand_in(&["publish", "root2.json"]).unwrap_err().contains("1 valid signatures of the 2"));
    fleet.policy(&["root", "sign", "root2.json", "--key", "r2"]);
    fleet.hand_in(&["publish", "root2.json"]).unwrap();
    until_version(&a, 0).await;
    assert!(fleet.publish(1_002, "", "p1").is_err());
    assert!(fleet.publish(1, "", "p2").unwrap_err().contains("older than version 2"));
    fleet.publish(2, "", "p2").unwrap();
    until_version(&a, 2).await;

    a.stop().await;
    let again = fleet.agent("a").await;
    assert_eq!(again.client.status().await.unwrap().policy_version, 2, "remembered over a restart");
    let pod = fleet.pod();
    pod.ask(&again.client, DEADLINE).await.unwrap();
    assert_eq!(pod.policy().unwrap().version, 2, "the pod has walked from the first root");
    let fetch = fleet.hand_in(&["fetch", "--trust-root", "root.json", "--out", "newest.json"]).unwrap();
    assert!(fetch.contains("root 2, policy 2"), "{fetch}");
    assert!(read_document(&fleet.path("newest.json")).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_freshness_is_asked_for_nothing_is_installed_until_somebody_vouches() {
    let mut fleet = Fleet::start(&[]).await;
    let f1 = fleet.public("f1");
    let a = fleet.agent("a").await;
    let rotate =
        ["root", "rotate", "root.json", "--out", "root2.json", "--key", "r1", "--key", "r2", "--freshness", &f1];
    fleet.policy(&rotate);
    fleet.hand_in(&["publish", "root2.json"]).unwrap();
    fleet.publish(1, "", "p1").unwrap();
    until_version(&a, 1).await;
    let pod = fleet.pod();
    pod.ask(&a.client, DEADLINE).await.unwrap();
    let refused = pod.policy().unwrap_err();
    assert!(refused.contains("nobody has confirmed"), "{refused}");
    assert_eq!(a.client.status().await.unwrap().policy_state, "unconfirmed");

    let vouch = ["vouch", "policy.json", "--trust-root", "root2.json", "--key", "f1", "--once"];
    fleet.hand_in(&vouch).unwrap();
    let confirmed = async {
        while pod.policy().is_err() {
            pod.ask(&a.client, DEADLINE).await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, confirmed).await.expect("the statement does not arrive");
    assert_eq!(a.client.status().await.unwrap().policy_state, "ok");

    // A server that lost everything is given it back, and an agent that is away from it hands on what it has.
    fleet.cluster.stop_server().await;
    assert!(a.client.trust(Known::default()).await.unwrap().freshness.is_some());
    let other = fleet.pod();
    other.ask(&a.client, DEADLINE).await.unwrap();
    assert_eq!(other.policy().unwrap().version, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_does_not_start_with_what_a_revoked_key_has_signed() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start(&[]).await;
    let (a, b) = (fleet.agent("a").await, fleet.agent("b").await);
    fleet.publish(1, "", "p1").unwrap();
    until_version(&a, 1).await;
    until_version(&b, 1).await;
    let engine = engine();
    let root = fleet.path("root.json");
    let pod = |agent: &str| Pod::new(&fleet.cluster, agent).with("--trust-root", root.to_str().unwrap());
    let cold = pod("a").run(&engine, "vllm-aot 59af47c66413: published").await;
    assert_eq!(cold.code, Some(0), "{}", cold.stderr);
    let caches = fleet.path("caches");
    let pod = pod("b").with("--cache-root", caches.to_str().unwrap());
    let warm = pod.run(&engine, "warmd: ready after").await;
    assert_eq!(family(&warm, "vllm-aot")["used"], true, "{}", warm.stderr);

    let key = fleet.cluster.signer.id();
    fleet.publish(2, &format!("[revoked]\nkeys = [\"{key}\"]"), "p1").unwrap();
    until_version(&b, 2).await;
    let after = pod.run(&engine, "warmd: ready after").await;
    assert!(after.stderr.contains("taken away from"), "{}", after.stderr);
    let aot = family(&after, "vllm-aot");
    assert_eq!((&aot["used"], &aot["made"]), (&false.into(), &1.into()), "{}", after.stderr);
    let remembered = Trust::documents(&root, Some(&caches)).unwrap();
    assert_eq!(remembered.policy().unwrap().version, 2, "no agent can take it back");
}
