//! Nothing unsigned, out of scope or revoked ever becomes visible.

use std::sync::Arc;
use std::time::Duration;

use warmd::identity::{PrivateKey, UnixTime};
use warmd::serve::quarantine::{Quarantined, Release};
use warmd::serve::warm::{Job, Verdict};

use crate::harness::cluster::{Cluster, DEADLINE, Node, identity, reason, until};
use crate::harness::tree;

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_signer_is_refused_by_the_agent_and_by_the_pod() {
    let cluster = Cluster::start().await;
    PrivateKey::generate().unwrap().save_new(&cluster.path("stranger.key")).unwrap();
    let mut config = cluster.config("a");
    config.signer = Some(cluster.path("stranger.key"));
    let (a, b) = (cluster.agent_with(config).await, cluster.agent("b").await);
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    let published = a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    assert!(published.warning.unwrap().contains("would refuse"), "the publisher is told");
    let refused = reason(&b.warm(cluster.job(identity.clone(), "cache")).await);
    assert!(refused.starts_with("untrusted") && refused.contains("does not know"), "{refused}");
    // The publisher's own agent hands it out, the pod refuses it all the same.
    let refused = reason(&a.warm(cluster.job(identity, "own")).await);
    assert!(refused.starts_with("untrusted"), "{refused}");
    assert!(tree::read(&cluster.path("cache")).is_empty() && tree::read(&cluster.path("own")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_artifact_is_neither_installed_nor_served() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    let published = a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    a.stop().await;
    cluster.write_policy(2, &format!("[revoked]\nartifacts = [\"{}\"]", published.artifact));
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let refused = reason(&b.warm(cluster.job(identity.clone(), "cache")).await);
    assert!(!cluster.path("cache/model").exists(), "{refused}");
    let refused = reason(&a.warm(cluster.job(identity, "own")).await);
    assert!(refused.contains("revoked"), "{refused}");
}

/// Standard output and standard error of `warmd`, asking that node.
async fn warmd(node: &Node, words: &[&str]) -> (String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
    let output = command.args(words).arg("--socket").arg(node.agent.socket()).output();
    let output = tokio::time::timeout(DEADLINE, output).await.expect("it does not end").unwrap();
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_is_marked_and_goes_from_caches_and_store() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    let bad = a.publish(&cluster.path("source"), &identity, "").await.unwrap().artifact.to_string();
    let (cache, policy) = (cluster.path("cache"), cluster.policy_path());
    let words = ["warm", "--fact", "torch=2.13.0", "--retry", "--into", cache.to_str().unwrap()];
    let warm = [&words[..], &["--policy", policy.to_str().unwrap()]].concat();
    let (told, error) = warmd(&a, &warm).await;
    assert!(told.starts_with("warm: ") && !tree::read(&cache).is_empty(), "{told}{error}");

    cluster.write_policy(2, &format!("[revoked]\nartifacts = [\"{bad}\"]"));
    let (told, error) = warmd(&a, &warm).await;
    assert!(told.contains("cold: untrusted") && error.contains("taken away from"), "{told}{error}");
    assert!(tree::read(&cache).is_empty());

    until("`ls` does not mark it", async || warmd(&a, &["ls"]).await.0.contains("all, REVOKED")).await;
    let (swept, error) = warmd(&a, &["gc"]).await;
    assert!(swept.contains("1 revoked"), "{swept}{error}");
    assert!(!warmd(&a, &["ls"]).await.0.contains(&bad));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_policy_does_not_start_an_agent() {
    let cluster = Cluster::start().await;
    cluster.write_policy(5, "");
    cluster.agent("a").await.stop().await;
    cluster.write_policy(4, "");
    let error = warmd::agent::Agent::start(cluster.config("a")).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("older than version 5"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_another_cluster_are_refused_by_everybody() {
    let (here, there) = (Cluster::start().await, Cluster::start().await);
    let a = here.agent("a").await;
    tree::write(&here.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&here.path("source"), &identity, "").await.unwrap();
    let mut config = there.config("intruder");
    config.metadata.servers = here.config("x").metadata.servers;
    config.metadata.deadline = Duration::from_secs(2);
    let intruder = there.agent_with(config).await;
    let refused = reason(&intruder.warm(there.job(identity, "cache")).await);
    assert!(refused.starts_with("transient: metadata server"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_artifact_is_not_installed_and_the_next_generation_of_its_signer_is() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    let report = b.warm(cluster.job(identity.clone(), "first")).await;
    let bad = &report.artifacts[0];
    let release = Release {
        artifact: bad.artifact,
        family: identity.family().to_string(),
        identity: identity.id(),
        subject: bad.subject.clone(),
        generation: bad.generation,
        signers: bad.signers.clone(),
    };
    let quarantined = Quarantined { release, since: UnixTime::now(), reason: "it crashed".to_owned() };
    let quarantine = Arc::new([quarantined].into_iter().collect());
    let job = || Job { quarantine: Arc::clone(&quarantine), ..cluster.job(identity.clone(), "second") };
    let report = b.warm(job()).await;
    let refused = reason(&report);
    assert!(refused.starts_with("quarantined") && refused.contains("warmd quarantine clear"), "{refused}");
    assert_eq!(report.quarantined.len(), 1);
    assert!(tree::read(&cluster.path("second")).is_empty());

    tree::write(&cluster.path("source"), &[("later/k".to_owned(), (false, tree::noise(9, 1000)))].into());
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    let report = b.warm(job()).await;
    assert!(matches!(report.verdict, Verdict::Installed) && report.quarantined.is_empty(), "{report:?}");
    assert_eq!(report.artifacts[0].generation, bad.generation + 1);
}
