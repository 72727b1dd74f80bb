//! What was done on a node can be read there, and that somebody has changed it shows.

use std::path::Path;

use serde_json::Value;
use warmd::agent::Agent;
use warmd::serve::warm::Verdict;

use crate::harness::cluster::{Cluster, identity, reason};
use crate::harness::{served, tree};

/// Standard output of `warmd audit`, or what it says on standard error.
fn audit(state: &Path, words: &[&str]) -> Result<String, String> {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
    let output = command.arg("audit").arg("--state-dir").arg(state).args(words).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn events(state: &Path) -> Vec<Value> {
    audit(state, &["--json"]).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Reads until there is such an event.
async fn until(state: &Path, action: &str) -> Value {
    let mut found = None;
    served::until(&format!("no `{action}` is written"), async || {
        found = events(state).into_iter().find(|event| event["action"] == action);
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_from_whom_by_which_rule_is_written_down_and_a_changed_line_is_found() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    let published = a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    let report = b.warm(cluster.job(identity.clone(), "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");

    let state = cluster.path("b");
    let fetched = until(&state, "fetched").await;
    assert!(fetched["from"].as_str().unwrap().contains(&a.agent.node().short()), "{fetched}");
    let installed = until(&state, "installed").await;
    assert_eq!(installed["artifact"], published.artifact.to_string());
    assert_eq!((&installed["from"], &installed["rule"]), (&"builder".into(), &"policy 1".into()));
    assert_eq!(installed["by"], format!("uid {}", rustix::process::geteuid().as_raw()));

    cluster.write_policy(2, &format!("[revoked]\nartifacts = [\"{}\"]", published.artifact));
    let refused = reason(&b.warm(cluster.job(identity, "other")).await);
    let event = until(&state, "refused").await;
    assert!(event["result"].as_str().is_some_and(|result| refused.contains(result)), "{event}: {refused}");
    b.stop().await;

    let verified = audit(&state, &["--verify"]).unwrap();
    assert!(verified.contains("all in order"), "{verified}");
    let path = state.join("audit/audit.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"builder", "\"somebody else", 1)).unwrap();
    let told = audit(&state, &["--verify"]).unwrap_err();
    assert!(told.contains("were changed, left out or put in"), "{told}");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
    let shown = command.arg("audit").arg("--state-dir").arg(&state).output().unwrap();
    let table = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(shown.status.code(), Some(1), "{table}");
    assert!(table.contains("BROKEN") && table.lines().count() == text.lines().count() + 2, "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_changes_nothing_of_the_first_ones_state_directory() {
    let cluster = Cluster::start().await;
    let config = cluster.config("a");
    let a = cluster.agent_with(config.clone()).await;
    until(&cluster.path("a"), "policy").await;
    let seen = || std::fs::read(cluster.path("a/policy.seen")).unwrap();
    let (lines, before) = (events(&cluster.path("a")).len(), seen());

    let mut second = config.clone();
    // In a file of its own: the first one reads its policy again now and then.
    let text = std::fs::read_to_string(cluster.policy_path()).unwrap();
    std::fs::write(cluster.path("later.toml"), text.replace("version = 1\n", "version = 500\n")).unwrap();
    second.trust.policy = Some(cluster.path("later.toml"));
    // Not even with a store of its own.
    second.store.directory = Some(cluster.path("another-store"));
    second.local.socket = cluster.path("another.sock");
    let refused = Agent::start(second).await.err().expect("a second agent").to_string();
    assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
    assert_eq!((events(&cluster.path("a")).len(), seen()), (lines, before));

    a.stop().await;
    audit(&cluster.path("a"), &["--verify"]).unwrap();
    cluster.agent_with(config).await.stop().await;
}
