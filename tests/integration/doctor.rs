//! What `warmd doctor` says, with whole agents.

use std::collections::BTreeMap;
use std::time::Duration;

use warmd::artifact::SourceIdentity;
use warmd::caches::CacheFamily;
use warmd::serve::difference::in_words;
use warmd::serve::doctor::{Answers, Finding, Rules, ask, diagnose};
use warmd::serve::outlook::{Outlook, Prospect};

use crate::harness::cluster::{Cluster, Node, identity};
use crate::harness::tree;

fn outlook(identity: SourceIdentity) -> Outlook {
    let family = CacheFamily::by_name("directory").unwrap();
    let prospect = Prospect { family, root: "/nowhere".into(), identity };
    Outlook { prospects: vec![prospect], ..Outlook::default() }
}

async fn finding(cluster: &Cluster, node: &Node, identity: SourceIdentity) -> (Finding, Vec<String>) {
    let (outlook, mut problems) = (outlook(identity), Vec::new());
    let answers: Answers = ask(&node.client, &outlook, &mut problems).await.unwrap();
    let policy = cluster.policy();
    let rules = Rules { policy: Some(&policy), quarantine: None };
    let mut found = diagnose(&outlook, &BTreeMap::new(), Some(&answers), rules);
    (found.remove(0).finding, problems)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fact_that_differs_is_named_and_the_same_facts_hit() {
    let mut cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    tree::write(&cluster.path("source"), &tree::sample());
    let there = identity(&[("torch", "2.13.1"), ("model", "./m")]);
    a.publish(&cluster.path("source"), &there, "").await.unwrap();
    let (hit, problems) = finding(&cluster, &b, there).await;
    assert!(matches!(hit, Finding::Hit { artifacts: 1, holders: 1, .. }), "{hit:?}");
    assert_eq!(problems, Vec::<String>::new());

    let here = identity(&[("torch", "2.14.0"), ("model", "./m")]);
    for node in [&a, &b] {
        let (near, _) = finding(&cluster, node, here.clone()).await;
        let Finding::NearMiss { near } = near else { panic!("{near:?}") };
        let differing = near[0].differences.as_deref().map(in_words);
        assert_eq!(differing.as_deref(), Some("torch 2.14.0 here, 2.13.1 there"));
        assert_eq!((near.len(), near[0].holders, &near[0].signers[..]), (1, 1, &["builder".to_owned()][..]));
    }

    cluster.stop_server().await;
    let (nobody, problems) = finding(&cluster, &b, here.clone()).await;
    assert_eq!(nobody, Finding::NobodyHasAny);
    assert!(problems.iter().any(|problem| problem.contains("metadata server")), "{problems:?}");
    let (own, _) = finding(&cluster, &a, here).await;
    assert!(matches!(own, Finding::NearMiss { .. }), "what this node has is known without a directory: {own:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_facts_of_a_manifest_that_the_policy_refuses_are_not_told() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    tree::write(&cluster.path("source"), &tree::sample());
    a.publish(&cluster.path("source"), &identity(&[("torch", "2.13.1")]), "").await.unwrap();
    let narrow = "facts = { torch = \"9.*\" }";
    cluster.write_policy(2, narrow);
    let b = cluster.agent("b").await;
    let (near, _) = finding(&cluster, &b, identity(&[("torch", "2.14.0")])).await;
    let Finding::NearMiss { near } = near else { panic!("{near:?}") };
    assert_eq!(near[0].differences, None);
    assert!(near[0].unknown.as_deref().is_some_and(|why| why.contains("`builder` may sign only where torch")));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_agent_policy_and_interpreter_the_page_tells_all_three() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
    command.args(["doctor", "--json", "--socket"]).arg(dir.path().join("none")).arg("--cache-root").arg(dir.path());
    command.args(["--", "no-such-engine-anywhere", "serve"]);
    for variable in ["WARMD_TRUST_POLICY", "WARMD_PYTHON", "WARMD_IMAGE_DIGEST"] {
        command.env_remove(variable);
    }
    let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let page: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems: Vec<&str> = page["problems"].as_array().unwrap().iter().filter_map(|one| one.as_str()).collect();
    for expected in ["--python", "no agent answers", "--policy"] {
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
    }
}
