//! The coldest tier: nodes that never meet share an object store.

use std::path::Path;

use serde_json::Value;
use warmd::agent::AgentConfig;
use warmd::artifact::{Family, SourceIdentity};
use warmd::serve::warm::Verdict;

use crate::harness::cluster::{Cluster, DEADLINE, Node, identity, reason, until};
use crate::harness::tree;

fn with_origin(cluster: &Cluster, name: &str, url: &str, push: &[&str]) -> AgentConfig {
    let mut config = cluster.config(name);
    config.origin.url = Some(url.parse().unwrap());
    config.origin.push = push.iter().map(|family| family.parse().unwrap()).collect();
    config
}

async fn warmd(node: &Node, arguments: &[&str]) -> Result<Value, String> {
    let mut warmd = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
    let output = warmd.args(arguments).args(["--json", "--socket"]).arg(node.agent.socket()).output();
    let output = tokio::time::timeout(DEADLINE, output).await.expect("it does not end").unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn files_below(directory: &Path) -> usize {
    tree::read(directory).len()
}

/// One node pushes and goes; another, which never met it, warms from the origin and serves a third, which has no origin.
async fn two_that_never_meet(url: &str) {
    let cluster = Cluster::start().await;
    let files = tree::sample();
    tree::write(&cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    let a = cluster.agent_with(with_origin(&cluster, "a", url, &[])).await;
    let published = a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    let pushed = warmd(&a, &["origin", "push", &published.artifact.to_string()]).await.unwrap();
    assert_eq!(pushed[0]["written_bytes"], published.wire_bytes);
    let again = warmd(&a, &["origin", "push", "--family", "directory"]).await.unwrap();
    assert_eq!((&again[0]["written_bytes"], &again[0]["skipped_bytes"]), (&0.into(), &published.wire_bytes.into()));
    a.stop().await;

    let b = cluster.agent_with(with_origin(&cluster, "b", url, &[])).await;
    let found = b.client.find(&[identity.id()]).await.unwrap().found;
    assert_eq!(found.iter().map(|one| (one.origin, one.here, one.holders)).collect::<Vec<_>>(), [(true, false, 0)]);
    let report = b.warm(cluster.job(identity.clone(), "cache-b")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    assert_eq!((report.artifacts[0].wire_bytes, report.artifacts[0].holders), (published.wire_bytes, 0));
    tree::assert_same(&tree::read(&cluster.path("cache-b")), &files);
    let other = warmd::digest::ArtifactId::of(b"another");
    let has = async |node: &Node, id| node.client.origin_has(&identity.id(), id).await;
    assert_eq!((has(&b, &published.artifact).await.unwrap(), has(&b, &other).await.unwrap()), (true, false));

    let c = cluster.agent("c").await;
    let report = c.warm(cluster.job(identity, "cache-c")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    assert_eq!(report.artifacts[0].holders, 1, "it came from the second node");
    tree::assert_same(&tree::read(&cluster.path("cache-c")), &files);
    c.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_finds_no_holder_warms_from_the_origin_and_serves_others() {
    let dir = tempfile::tempdir().unwrap();
    two_that_never_meet(&format!("file://{}", dir.path().display())).await;
}

/// With any server that speaks S3, such as Moto's: make a bucket there, set `WARMD_TEST_S3=s3://bucket`, `AWS_ENDPOINT`,
/// `AWS_ALLOW_HTTP` and credentials, and run this test alone.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "why nothing was tested is worth reading")]
async fn an_s3_server_holds_the_same() {
    match std::env::var("WARMD_TEST_S3") {
        Ok(url) => two_that_never_meet(&format!("{url}/{}", std::process::id())).await,
        Err(_) => eprintln!("skipped: WARMD_TEST_S3 names no bucket, such as s3://bucket with AWS_ENDPOINT"),
    }
}

/// What the origin lists, once that is anything.
async fn uploaded(node: &Node) -> Value {
    let mut listed = Value::Null;
    until("nothing is uploaded", async || {
        listed = warmd(node, &["origin", "ls"]).await.unwrap();
        !listed.as_array().unwrap().is_empty()
    })
    .await;
    listed
}

#[tokio::test(flavor = "multi_thread")]
async fn publications_of_the_configured_families_are_uploaded_and_others_are_not() {
    let cluster = Cluster::start().await;
    let origin = cluster.path("origin");
    let url = format!("file://{}", origin.display());
    let a = cluster.agent_with(with_origin(&cluster, "a", &url, &["lora"])).await;
    tree::write(&cluster.path("source"), &tree::sample());
    a.publish(&cluster.path("source"), &identity(&[("n", "1")]), "").await.unwrap();
    a.stop().await;
    assert_eq!(files_below(&origin), 0);

    // What was published before the configuration changed is uploaded too.
    let a = cluster.agent_with(with_origin(&cluster, "a", &url, &["directory"])).await;
    let listed = uploaded(&a).await;
    assert_eq!((&listed[0]["family"], &listed[0]["generation"]), (&"directory".into(), &1.into()));
    assert_eq!(warmd(&a, &["origin", "ls", "--family", "lora"]).await.unwrap(), Value::Array(Vec::new()));
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_or_an_identity_is_pulled_by_its_id() {
    let cluster = Cluster::start().await;
    let url = format!("file://{}", cluster.path("origin").display());
    let a = cluster.agent_with(with_origin(&cluster, "a", &url, &[])).await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("n", "1")]);
    let mut ids = Vec::new();
    for subject in ["one", "two"] {
        ids.push(a.publish(&cluster.path("source"), &identity, subject).await.unwrap().artifact.to_string());
    }
    warmd(&a, &["origin", "push", "--all"]).await.unwrap();
    a.stop().await;

    let b = cluster.agent_with(with_origin(&cluster, "b", &url, &[])).await;
    let one = warmd(&b, &["origin", "pull", &ids[0]]).await.unwrap();
    assert_eq!((one.as_array().unwrap().len(), &one[0]["artifact"]), (1, &Value::from(ids[0].as_str())));
    let both = warmd(&b, &["origin", "pull", &identity.id().to_string()]).await.unwrap();
    assert_eq!(both.as_array().unwrap().len(), 2);
    assert_eq!(b.client.status().await.unwrap().artifacts, 2);
    let none = warmd(&b, &["origin", "pull", &"0".repeat(64)]).await.unwrap_err();
    assert!(none.contains("none-found"), "{none}");
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_does_not_trust_is_not_taken_from_the_origin() {
    let cluster = Cluster::start().await;
    let url = format!("file://{}", cluster.path("origin").display());
    let a = cluster.agent_with(with_origin(&cluster, "a", &url, &[])).await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("n", "1")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    warmd(&a, &["origin", "push", "--all"]).await.unwrap();
    a.stop().await;

    let other = Cluster::start().await;
    let b = other.agent_with(with_origin(&other, "b", &url, &[])).await;
    let refused = reason(&b.warm(other.job(identity, "cache")).await);
    assert!(refused.starts_with("untrusted"), "{refused}");
    assert_eq!(b.client.status().await.unwrap().artifacts, 0);
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_only_the_origin_has_is_found_without_a_metadata_server() {
    let mut cluster = Cluster::start().await;
    let url = format!("file://{}", cluster.path("origin").display());
    let a = cluster.agent_with(with_origin(&cluster, "a", &url, &["lora"])).await;
    let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters/dora");
    let published = warmd(&a, &["publish", adapter.to_str().unwrap(), "--family", "lora", "--fact", "base=b"]).await;
    let published = published.unwrap();
    uploaded(&a).await;
    a.stop().await;
    cluster.stop_server().await;

    let lora: Family = "lora".parse().unwrap();
    let identity = SourceIdentity::new(lora, [("base".to_owned(), "b".to_owned())].into()).unwrap();
    let b = cluster.agent_with(with_origin(&cluster, "b", &url, &[])).await;
    let reply = b.client.find(&[identity.id()]).await.unwrap();
    assert!(reply.found[0].origin && !reply.metadata_failure.is_empty());
    let report = b.warm(cluster.job(identity, "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    assert_eq!(published["artifact"], report.artifacts[0].artifact.to_string());
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_that_are_gone_are_replaced_by_the_origin() {
    let cluster = Cluster::start().await;
    let url = format!("file://{}", cluster.path("origin").display());
    let a = cluster.agent_with(with_origin(&cluster, "a", &url, &[])).await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("n", "1")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    warmd(&a, &["origin", "push", "--all"]).await.unwrap();
    // A newer generation that went with its holder: the one in the origin is next best.
    tree::write(&cluster.path("source"), &[("later".to_owned(), (false, tree::noise(9, 1000)))].into());
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    // Without a word to the server: its lease still runs.
    drop(a);
    let b = cluster.agent_with(with_origin(&cluster, "b", &url, &[])).await;
    let report = b.warm(cluster.job(identity, "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    assert_eq!(report.artifacts[0].generation, 1);
    tree::assert_same(&tree::read(&cluster.path("cache")), &tree::sample());
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_in_the_origin_makes_a_cold_start_and_says_which() {
    let cluster = Cluster::start().await;
    let origin = cluster.path("origin");
    let url = format!("file://{}", origin.display());
    let a = cluster.agent_with(with_origin(&cluster, "a", &url, &[])).await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("n", "1")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    warmd(&a, &["origin", "push", "--all"]).await.unwrap();
    a.stop().await;
    let chunks = tree::read(&origin.join("chunks"));
    let (name, (_, bytes)) = chunks.iter().next().unwrap();
    let mut damaged = bytes.clone();
    damaged[0] ^= 1;
    std::fs::write(origin.join("chunks").join(name), damaged).unwrap();

    let b = cluster.agent_with(with_origin(&cluster, "b", &url, &[])).await;
    let cold = reason(&b.warm(cluster.job(identity.clone(), "cache")).await);
    assert!(cold.starts_with("transient") && cold.contains(name.as_str()), "{cold}");
    assert!(tree::read(&cluster.path("cache")).is_empty());
    std::fs::write(origin.join("chunks").join(name), bytes).unwrap();
    let report = b.warm(cluster.job(identity, "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_origin_the_way_out_is_told() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let refused = warmd(&a, &["origin", "ls"]).await.unwrap_err();
    assert!(refused.contains("`origin.url`"), "{refused}");
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_is_left_out_of_a_push_of_everything_and_told() {
    let cluster = Cluster::start().await;
    let url = format!("file://{}", cluster.path("origin").display());
    let config = with_origin(&cluster, "a", &url, &[]);
    let a = cluster.agent_with(config.clone()).await;
    tree::write(&cluster.path("source"), &tree::sample());
    let mut ids = Vec::new();
    for subject in ["one", "two", "three"] {
        let published = a.publish(&cluster.path("source"), &identity(&[("n", "1")]), subject).await.unwrap();
        ids.push(published.artifact.to_string());
    }
    a.stop().await;
    ids.sort();
    // The first that is pushed.
    cluster.write_policy(2, &format!("[revoked]\nartifacts = [\"{}\"]", ids[0]));
    let a = cluster.agent_with(config).await;
    let told = warmd(&a, &["origin", "push", "--all"]).await.unwrap_err();
    assert!(told.contains("1 artifact left out") && told.contains("is revoked"), "{told}");
    let there = warmd(&a, &["origin", "ls"]).await.unwrap();
    let mut there: Vec<_> = there.as_array().unwrap().iter().map(|one| one["artifact"].as_str().unwrap()).collect();
    there.sort_unstable();
    assert_eq!(there, [&ids[1], &ids[2]]);
    a.stop().await;
}
