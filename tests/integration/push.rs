//! Publishing what the agent does not see.

use std::os::unix::process::CommandExt;
use std::path::Path;

use tokio::time::timeout;
use warmd::digest::IdentityId;
use warmd::serve::warm::Verdict;

use crate::harness::cluster::{Cluster, DEADLINE, Node, Published, identity};
use crate::harness::engine::skipped;
use crate::harness::tree::{self, Tree};

/// `warmd publish` in a working directory of its own: below `/proc/self/cwd`, it and the agent see different things.
async fn publish(node: &Node, cwd: &Path, arguments: &[&str]) -> Result<(Published, String), String> {
    let mut warmd = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
    warmd.arg("publish").args(arguments).args(["--json", "--socket"]).arg(node.agent.socket()).current_dir(cwd);
    let output = timeout(DEADLINE, warmd.output()).await.expect("it does not end").unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    match output.status.success() {
        true => Ok((serde_json::from_slice(&output.stdout).unwrap(), stderr)),
        false => Err(stderr),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_the_agent_does_not_see_is_sent_and_installed_elsewhere() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let files = tree::sample();
    tree::write(&cluster.path("pod/nowhere"), &files);
    let (published, told) = publish(&a, &cluster.path("pod"), &["/proc/self/cwd/nowhere"]).await.unwrap();
    assert!(told.contains("does not see /proc/self/cwd/nowhere"), "{told}");
    assert_eq!((published.generation, published.files as usize, published.warning), (1, files.len(), None));

    let report = b.warm(cluster.job(identity(&[]), "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    tree::assert_same(&tree::read(&cluster.path("cache")), &files);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_directory_of_the_same_path_is_not_published() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    // The agent's own working directory has one, too.
    assert!(Path::new("/proc/self/cwd/src").is_dir());
    let files: Tree = [("only/here".to_owned(), (false, tree::noise(1, 1000)))].into();
    tree::write(&cluster.path("pod/src"), &files);
    let (published, told) = publish(&a, &cluster.path("pod"), &["/proc/self/cwd/src"]).await.unwrap();
    assert!(told.contains("sees another directory as /proc/self/cwd/src"), "{told}");
    assert_eq!(published.files, 1);
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_make_the_same_generations() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let source = cluster.path("source");
    tree::write(&source, &tree::sample());
    let directory = source.to_str().unwrap();
    let seen = publish(&a, &cluster.path(""), &[directory]).await.unwrap().0;
    let sent = publish(&a, &cluster.path(""), &[directory, "--push"]).await.unwrap().0;
    assert!(sent.unchanged && sent.artifact == seen.artifact, "{sent:?}");

    tree::write(&source, &[("later".to_owned(), (false, tree::noise(999, 50_000)))].into());
    let sent = publish(&a, &cluster.path(""), &[directory, "--push"]).await.unwrap().0;
    assert_eq!((sent.generation, sent.new_wire_bytes), (2, 50_000));
    let seen = publish(&a, &cluster.path(""), &[directory]).await.unwrap().0;
    assert!(seen.unchanged && seen.artifact == sent.artifact, "{seen:?}");
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_push_fails_is_told_by_whoever_knows() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config("a");
    config.signer = None;
    let a = cluster.agent_with(config).await;
    tree::write(&cluster.path("source"), &tree::sample());
    std::fs::create_dir(cluster.path("empty")).unwrap();
    let push = async |agent: &Node, name: &str| {
        publish(agent, &cluster.path(""), &[cluster.path(name).to_str().unwrap(), "--push"]).await.unwrap_err()
    };
    assert!(push(&a, "source").await.contains("this agent has no signer key"));
    a.stop().await;

    let mut config = cluster.config("b");
    config.store.max_bytes = Some(1000);
    let b = cluster.agent_with(config).await;
    let full = push(&b, "source").await;
    assert!(full.contains("of at most 1000"), "{full}");
    let empty = push(&b, "empty").await;
    assert!(empty.contains("holds no files"), "{empty}");
    assert_eq!(b.client.status().await.unwrap().artifacts, 0);
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_as_large_as_content_is_refused_before_it_is_read() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let asked = async |count| {
        let identities = vec![IdentityId::from_array([7; 32]); count];
        a.client.find(&identities).await.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(asked(64).await, Ok(()));
    let refusal = asked(65).await.unwrap_err();
    assert!(refusal.contains("`identities` has more than 64"), "{refusal}");
    let refusal = asked(20_000).await.unwrap_err();
    assert!(refusal.contains("too large"), "{refusal}");
    a.stop().await;
}

/// `warmd` as a process of that user.
async fn as_user(uid: u32, node: &Node, arguments: &[&str]) -> Result<String, String> {
    let mut warmd = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
    warmd.args(arguments).arg("--socket").arg(node.agent.socket()).current_dir("/").uid(uid).gid(uid);
    let output = timeout(DEADLINE, warmd.output()).await.expect("it does not end").unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    if output.status.success() { Ok(stderr) } else { Err(stderr) }
}

fn open_to_all(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_publishes_its_own_and_what_it_may_read_and_changes_nothing_of_others() {
    const POD: u32 = 4711;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let program = env!("CARGO_BIN_EXE_warmd");
    let ran = std::process::Command::new(program).arg("--version").current_dir("/").uid(POD).gid(POD).output();
    if !ran.is_ok_and(|ran| ran.status.success()) {
        skipped(&format!("others may not run {program}: its directories are for their owner only"));
        return;
    }
    let cluster = Cluster::start().await;
    let mut config = cluster.config("a");
    config.local.allow_uids = vec![POD, POD + 1];
    config.local.publish_uids = Some(vec![POD]);
    let a = cluster.agent_with(config).await;
    [cluster.path(""), cluster.path("a")].iter().for_each(|path| open_to_all(path, 0o711));
    let source = cluster.path("source");
    tree::write(&source, &[("mine".to_owned(), (false, tree::noise(1, 1000)))].into());
    let publish = ["publish", source.to_str().unwrap(), "--class", "data"];

    std::os::unix::fs::chown(&source, Some(POD), None).unwrap();
    let told = as_user(POD, &a, &publish).await.unwrap();
    assert!(told.contains("mine belongs to uid 0") && told.contains("its files are sent"), "{told}");
    std::os::unix::fs::chown(source.join("mine"), Some(POD), None).unwrap();
    let told = as_user(POD, &a, &publish).await.unwrap();
    assert!(!told.contains("its files are sent") && told.contains("unchanged"), "{told}");

    // What the pod cannot read, the agent does not read for it.
    std::fs::write(source.join("secret"), "secret").unwrap();
    open_to_all(&source.join("secret"), 0o400);
    let told = as_user(POD, &a, &publish).await.unwrap_err();
    assert!(told.contains("secret") && told.contains("Permission denied"), "{told}");
    let state = cluster.path("a");
    let told = as_user(POD, &a, &["publish", state.to_str().unwrap()]).await.unwrap_err();
    assert!(told.contains("the agent's own"), "{told}");
    std::fs::remove_file(source.join("secret")).unwrap();

    let told = as_user(POD, &a, &publish[..2]).await.unwrap_err();
    assert!(told.contains("local.publish_class") && told.contains("--class data"), "{told}");
    let told = as_user(POD + 1, &a, &publish).await.unwrap_err();
    assert!(told.contains("add it to `local.publish_uids`"), "{told}");
    for change in [&["gc"][..], &["verify"], &["evict", &"0".repeat(64)]] {
        let told = as_user(POD, &a, change).await.unwrap_err();
        assert!(told.contains("`local.operator_uids`"), "{change:?}: {told}");
    }
    assert!(as_user(POD, &a, &["status"]).await.is_ok());
    a.stop().await;
}
