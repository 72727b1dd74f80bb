//! `warmd warm -- COMMAND` and `warmd publish -- COMMAND`: before and after an engine that somebody else starts.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::process::{Child, Command};

use super::exec::{KEY, Pod, engine, python};
use super::harness::cluster::{Cluster, DEADLINE, Node, identity};
use super::harness::engine::{Entry, FakeEngine, Step, eventually, own_proc};
use super::harness::tree;

/// A pod in which the engine is a process beside warmd's.
struct Beside {
    home: tempfile::TempDir,
    socket: PathBuf,
    policy: PathBuf,
    python: PathBuf,
    /// Directory variables, as `warmd warm` tells them.
    environment: Vec<(String, String)>,
}

impl Beside {
    fn new(cluster: &Cluster, agent: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let python = python(home.path(), &[]);
        let socket = cluster.config(agent).local.socket;
        Self { home, socket, policy: cluster.policy_path(), python, environment: Vec::new() }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path());
        command.envs(self.environment.iter().cloned()).kill_on_drop(true);
        command
    }

    async fn warmd(&self, arguments: &[&str], engine: &FakeEngine) -> Output {
        let mut command = self.command(Path::new(env!("CARGO_BIN_EXE_warmd")));
        command.args(arguments).arg("--socket").arg(&self.socket).arg("--python").arg(&self.python);
        command.arg("--").args(words(engine));
        tokio::time::timeout(DEADLINE, command.output()).await.expect("it does not end").unwrap()
    }

    async fn warm(&mut self, engine: &FakeEngine) -> Value {
        let policy = self.policy.to_str().unwrap().to_owned();
        let output = self.warmd(&["warm", "--json", "--reserve-bytes", "0", "--policy", &policy], engine).await;
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let environment = told["environment"].as_object().unwrap().clone();
        let text = |value: Value| value.as_str().unwrap().to_owned();
        self.environment = environment.into_iter().map(|(name, value)| (name, text(value))).collect();
        told
    }

    /// Standard output.
    async fn publish(&self, engine: &FakeEngine) -> String {
        self.publish_with(&[], engine).await.0
    }

    /// Standard output and standard error.
    async fn publish_with(&self, more: &[&str], engine: &FakeEngine) -> (String, String) {
        let arguments = [&["publish", "--wait-ready", "--quiet", "0s", "--require"], more].concat();
        let output = self.warmd(&arguments, engine).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        (String::from_utf8(output.stdout).unwrap(), said)
    }

    fn start(&self, engine: &FakeEngine) -> Child {
        let words = words(engine);
        let mut command = self.command(Path::new(&words[0]));
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

fn words(engine: &FakeEngine) -> Vec<String> {
    let (program, socket) = (engine.program(), engine.socket());
    [program.to_str().unwrap(), "serve", "model", "--uds", socket.to_str().unwrap()].map(str::to_owned).into()
}

/// The engine of the other tests, and one more model.
fn engine_with_more(key: &str) -> FakeEngine {
    let entry = |key: &str| Entry::Aot { key: key.to_owned(), rank: "rank_0_0".to_owned() };
    let cache = |key: &str| Step::Cache { root: "$VLLM_CACHE_ROOT".to_owned(), entry: entry(key) };
    FakeEngine::new(vec![cache(KEY), cache(key), Step::Serve { unavailable: 1 }])
}

/// What an engine at the first node has added is warm in a pod at the second; and what `warmd warm` told there.
async fn warmed() -> (Cluster, [Node; 2], Beside, Value) {
    let cluster = Cluster::start().await;
    let nodes = [cluster.agent("a").await, cluster.agent("b").await];
    Pod::new(&cluster, "a").run(&engine(), "vllm-aot 59af47c66413: published").await;
    let mut pod = Beside::new(&cluster, "b");
    let told = pod.warm(&engine()).await;
    (cluster, nodes, pod, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_between_two_hooks_is_warm_and_only_what_it_made_itself_is_published() {
    if !own_proc() {
        return;
    }
    let (_cluster, [a, b], pod, told) = warmed().await;
    let same = engine();
    assert_eq!(told["cold"], Value::Null, "{told}");
    let families = told["families"].as_array().unwrap();
    let installed = |name: &str| {
        let family = families.iter().find(|family| family["family"] == name);
        family.unwrap_or_else(|| panic!("no {name} in {told}"))["report"]["artifacts"][0]["installed"].clone()
    };
    assert_eq!((installed("vllm-aot"), installed("modelinfos")), (1.into(), 1.into()), "{told}");

    let held = b.client.status().await.unwrap().artifacts;
    let running = pod.start(&same);
    assert_eq!(pod.publish(&same).await, "published: 0 artifacts\n");
    assert_eq!(b.client.status().await.unwrap().artifacts, held, "nothing was signed");
    drop(running);

    let other = KEY.replace('5', "6");
    let more = engine_with_more(&other);
    let _running = pod.start(&more);
    assert_eq!(pod.publish(&more).await, "published: 1 artifact\n");
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_revoked_while_an_engine_uses_it_is_not_signed_anew() {
    if !own_proc() {
        return;
    }
    let (cluster, [a, b], pod, told) = warmed().await;
    let aot = told["families"].as_array().unwrap().iter().find(|family| family["family"] == "vllm-aot").unwrap();
    let artifact = aot["report"]["artifacts"][0]["artifact"].as_str().unwrap();

    // The engine adds another rank to what came.
    let entry = |rank: &str| Entry::Aot { key: KEY.to_owned(), rank: rank.to_owned() };
    let cache = |rank: &str| Step::Cache { root: "$VLLM_CACHE_ROOT".to_owned(), entry: entry(rank) };
    let more = FakeEngine::new(vec![cache("rank_0_0"), cache("rank_1_0"), Step::Serve { unavailable: 1 }]);
    let _running = pod.start(&more);
    cluster.write_policy(2, &format!("[revoked]\nartifacts = [\"{artifact}\"]"));
    let policy = pod.policy.to_str().unwrap();
    let (told, said) = pod.publish_with(&["--policy", policy], &more).await;
    assert!(told == "published: 0 artifacts\n" && said.contains("is not trusted any more"), "{told}{said}");
    let (told, said) = pod.publish_with(&["--policy", "nowhere.toml"], &more).await;
    assert!(told == "published: 0 artifacts\n" && said.contains("not published anew: trust policy: "), "{told}{said}");
    cluster.write_policy(3, "");
    let (told, said) = pod.publish_with(&["--policy", policy], &more).await;
    assert_eq!(told, "published: 1 artifact\n", "{said}");
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_in_the_background_returns_at_once_and_publishes_when_the_engine_is_ready() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let mut pod = Beside::new(&cluster, "a");
    let engine = engine();
    let told = pod.warm(&engine).await;
    assert_eq!(told["families"], Value::Array(Vec::new()), "{told}");

    let arguments = ["publish", "--wait-ready", "--quiet", "0s", "--detach"];
    let begun = pod.warmd(&arguments, &engine).await;
    let said = String::from_utf8(begun.stderr).unwrap();
    assert!(begun.status.success() && said.contains("publishing goes on as process"), "{said}");
    let _running = pod.start(&engine);
    let log = pod.home.path().join(".cache/vllm/.warmd/publish.log");
    eventually("nothing was published", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("published: 2 artifacts"))
    })
    .await;
    assert_eq!(a.client.status().await.unwrap().artifacts, 2);
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_can_publish_nothing_says_why_and_fails_only_if_it_is_told_to() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let mut pod = Beside::new(&cluster, "a");
    let never = FakeEngine::new(Vec::new());
    let late = ["publish", "--wait-ready", "--ready-timeout", "50ms"];
    let output = pod.warmd(&late, &never).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("not ready within 50ms"), "{said}");
    let output = pod.warmd(&[&late[..], &["--require"]].concat(), &never).await;
    assert_eq!(output.status.code(), Some(1));
    pod.environment = vec![("MX_ARTIFACT_TRANSFER".to_owned(), "0".to_owned())];
    let output = pod.warmd(&late, &never).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("MX_ARTIFACT_TRANSFER is taken as --transfer") && said.contains("switched off"), "{said}");
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_publisher_has_measured_is_known_before_any_manifest_comes() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    tree::write(&cluster.path("source"), &[("k/kernel".to_owned(), (false, tree::noise(1, 1000)))].into());
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmd"));
    command.arg("publish").arg(cluster.path("source")).arg("--socket").arg(a.agent.socket());
    command.args(["--fact", "torch=2.13.0", "--attribute", "compile_seconds=12.5"]).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.expect("it does not end").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let identity = identity(&[("torch", "2.13.0")]);
    let reply = b.client.find(&[identity.id()]).await.unwrap();
    assert_eq!(reply.found.iter().map(|found| found.compile_ms).collect::<Vec<_>>(), [12_500]);
    a.stop().await;
    b.stop().await;
}
