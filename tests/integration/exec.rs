//! `warmd exec` as a user runs it: in front of an engine, with agents of a cluster behind it.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use warmd::caches::{Fact, Facts, Known};

use super::harness::cluster::{Cluster, DEADLINE};
use super::harness::engine::{Entry, FakeEngine, Step, own_proc};

pub(super) const KEY: &str = "59af47c66413a5910b866cce6084d50ccc284a7a076b121273f1cdc02e764963";

/// A Python that answers the probe: every fact has a value, but for what `more` says.
pub(super) fn python(dir: &Path, more: &[(Fact, Known)]) -> PathBuf {
    let mut facts = Facts::default();
    let not_probed = [Fact::Model, Fact::Revision, Fact::CacheRoot, Fact::Launch];
    for fact in Fact::ALL.iter().filter(|fact| !not_probed.contains(fact)) {
        facts.set(*fact, Known::Value(format!("some {fact}")));
    }
    more.iter().for_each(|(fact, known)| facts.set(*fact, known.clone()));
    let watch = serde_json::json!({ "files": ["/none"], "sites": [], "trees": [] });
    let answer = serde_json::json!({ "facts": facts, "watch": watch });
    program(&dir.join("python3"), &format!("cat <<'END'\n{answer}\nEND"))
}

pub(super) fn program(path: &Path, script: &str) -> PathBuf {
    program_of(path, &format!("#!/bin/sh\n{script}\n"))
}

pub(super) fn program_of(path: &Path, text: &str) -> PathBuf {
    // Written by another process: a file that this one has open for writing may not be run.
    let mut tee = std::process::Command::new("/bin/sh");
    tee.args(["-c", "printf %s \"$1\" >\"$2\"", "sh", text]).arg(path);
    assert!(tee.status().unwrap().success());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_owned()
}

/// An engine that compiles one model and looks at one class, then serves.
pub(super) fn engine() -> FakeEngine {
    let aot = Entry::Aot { key: KEY.to_owned(), rank: "rank_0_0".to_owned() };
    let info = Entry::ModelInfo { class: "LlamaForCausalLM".to_owned() };
    let root = "$VLLM_CACHE_ROOT".to_owned();
    let caches = [aot, info].map(|entry| Step::Cache { root: root.clone(), entry });
    FakeEngine::new(caches.into_iter().chain([Step::Serve { unavailable: 1 }]).collect())
}

/// How one run of `warmd exec` ended.
pub(super) struct Ran {
    pub(super) code: Option<i32>,
    pub(super) stderr: String,
    pub(super) report: Option<Value>,
}

pub(super) struct Pod {
    pub(super) dir: tempfile::TempDir,
    options: Vec<String>,
    /// A program, and its arguments, that runs what follows.
    pub(super) within: Vec<String>,
}

impl Pod {
    pub(super) fn new(cluster: &Cluster, agent: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pod = Self { dir, options: Vec::new(), within: Vec::new() };
        let python = python(pod.dir.path(), &[]);
        let socket = cluster.config(agent).local.socket;
        pod.with("--socket", socket.to_str().unwrap())
            .with("--policy", cluster.policy_path().to_str().unwrap())
            .with("--python", python.to_str().unwrap())
            .with("--reserve-bytes", "0")
            .with("--quiet", "0s")
    }

    /// The last of several wins.
    pub(super) fn with(mut self, option: &str, value: &str) -> Self {
        if let Some(at) = self.options.iter().position(|set| set == option) {
            self.options.drain(at..at + 2);
        }
        self.options.extend([option.to_owned(), value.to_owned()]);
        self
    }

    /// Runs the engine, and ends it by SIGTERM once `until` is in a line on standard error.
    async fn exec(&self, command: &[impl AsRef<OsStr>], until: &str) -> Ran {
        let terminate = |line: &str, pid| {
            if line.contains(until) {
                kill_process(pid, Signal::TERM).unwrap();
            }
        };
        self.follow(command, terminate).await
    }

    /// Runs the engine; `heard` gets the lines on standard error, and warmd's process.
    pub(super) async fn follow(&self, command: &[impl AsRef<OsStr>], mut heard: impl FnMut(&str, Pid)) -> Ran {
        let mut child = self.start(command);
        let pid = Pid::from_raw(child.id().unwrap() as i32).unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut stderr = String::new();
        let running = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                stderr.push_str(&line);
                stderr.push('\n');
                heard(&line, pid);
            }
            child.wait().await.unwrap().code()
        };
        let code = tokio::time::timeout(DEADLINE, running).await.expect("`warmd exec` does not end");
        let report = std::fs::read(self.report()).ok().map(|text| serde_json::from_slice(&text).unwrap());
        Ran { code, stderr, report }
    }

    pub(super) fn start(&self, command: &[impl AsRef<OsStr>]) -> Child {
        let words: Vec<&str> = self.within.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_warmd")]).collect();
        let mut warmd = tokio::process::Command::new(words[0]);
        warmd.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.dir.path());
        warmd.current_dir(self.dir.path());
        warmd.args(&words[1..]).arg("exec").args(&self.options).arg("--report").arg(self.report());
        warmd.arg("--").args(command).stdout(Stdio::null()).stderr(Stdio::piped());
        warmd.kill_on_drop(true).spawn().unwrap()
    }

    fn report(&self) -> PathBuf {
        self.dir.path().join("report.json")
    }

    pub(super) async fn run(&self, engine: &FakeEngine, until: &str) -> Ran {
        self.exec(&served(engine), until).await
    }
}

/// `vllm serve model --uds <socket>`
pub(super) fn served(engine: &FakeEngine) -> [String; 5] {
    let socket = engine.socket();
    // As vLLM does itself before it listens.
    let _ = std::fs::remove_file(&socket);
    [engine.program().to_str().unwrap(), "serve", "model", "--uds", socket.to_str().unwrap()].map(str::to_owned)
}

pub(super) fn family<'r>(ran: &'r Ran, name: &str) -> &'r Value {
    let report = ran.report.as_ref().unwrap_or_else(|| panic!("no report: {}", ran.stderr));
    let families = report["families"].as_array().unwrap();
    families.iter().find(|family| family["family"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_engine_of_one_pod_compiled_is_loaded_by_that_of_another_on_another_node() {
    if !own_proc() {
        return;
    }
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let engine = engine();

    let cold = Pod::new(&cluster, "a").run(&engine, "vllm-aot 59af47c66413: published").await;
    assert_eq!(cold.code, Some(0), "{}", cold.stderr);
    assert!(cold.stderr.contains("cold start: nobody has any"), "{}", cold.stderr);
    assert_eq!(family(&cold, "vllm-aot")["made"], 1);
    assert_eq!(family(&cold, "vllm-aot")["used"], false);

    let pod = Pod::new(&cluster, "b");
    let warm = pod.run(&engine, "warmd: ready after").await;
    assert_eq!(warm.code, Some(0), "{}", warm.stderr);
    let aot = family(&warm, "vllm-aot");
    assert_eq!((&aot["used"], &aot["made"], &aot["installed"]), (&true.into(), &0.into(), &1.into()));
    assert_eq!(family(&warm, "modelinfos")["made"], 0);

    // Its own pod finds it in place.
    let again = pod.run(&engine, "warmd: ready after").await;
    let aot = family(&again, "vllm-aot");
    assert_eq!((&aot["used"], &aot["existing"], &aot["installed"]), (&true.into(), &1.into(), &0.into()));
    assert!(!again.stderr.contains("published"), "{}", again.stderr);
    a.stop().await;
    b.stop().await;
}

/// A path that leads to another directory in each process, as that of a pod's own volume does in each mount namespace.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_compiled_is_published_from_where_no_agent_sees_it() {
    if !own_proc() {
        return;
    }
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let engine = engine();
    let pod = |agent: &str| {
        let pod = Pod::new(&cluster, agent).with("--cache-root", "/proc/self/cwd/caches");
        std::fs::create_dir(pod.dir.path().join("caches")).unwrap();
        pod
    };
    assert!(!Path::new("/proc/self/cwd/caches").exists());

    let cold = pod("a").run(&engine, "vllm-aot 59af47c66413: published as generation 1").await;
    assert_eq!(cold.code, Some(0), "{}", cold.stderr);
    let warm = pod("b").run(&engine, "warmd: ready after").await;
    let aot = family(&warm, "vllm-aot");
    assert_eq!((&aot["used"], &aot["made"], &aot["installed"]), (&true.into(), &0.into(), &1.into()));
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_missing_the_engine_starts_cold_and_the_reason_is_told() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let engine = FakeEngine::new(vec![Step::Exit(7)]);
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| program(&dir.path().join(name), text).to_str().unwrap().to_owned();
    let hangs = script("hangs", "exec sleep 1000");
    let fails = script("fails", "echo no module >&2; exit 1");
    let garbage = script("garbage", "echo hello");
    let pod = || Pod::new(&cluster, "a");
    for (pod, reason) in [
        (pod().with("--socket", "/nowhere/agent.sock"), "no agent answers on /nowhere/agent.sock"),
        (pod().with("--policy", "/nowhere/policy.toml"), "/nowhere/policy.toml"),
        (pod().with("--python", "/nowhere/python3"), "pass --python"),
        (pod().with("--python", &fails), "no module"),
        (pod().with("--python", &garbage), "did not print facts but `hello`"),
        (pod().with("--python", &hangs).with("--budget", "300ms"), "cold start: "),
        (pod(), "cold start: nobody has any"),
    ] {
        let ran = pod.run(&engine, "\0").await;
        assert_eq!(ran.code, Some(7), "the engine's own exit code, for `{reason}`: {}", ran.stderr);
        assert!(ran.stderr.contains(reason), "`{reason}` in {}", ran.stderr);
    }
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fact_that_cannot_be_read_leaves_its_families_out_and_no_others() {
    if !own_proc() {
        return;
    }
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let pod = Pod::new(&cluster, "a");
    let failed = [(Fact::Tilelang, Known::Failed("its metadata is damaged".to_owned()))];
    let python = python(pod.dir.path(), &failed);
    let pod = pod.with("--python", python.to_str().unwrap());
    let ran = pod.run(&engine(), "vllm-aot 59af47c66413: published").await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("left out: tilelang: tilelang could not be read: its metadata is damaged"));
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_does_not_exist_is_the_one_thing_that_fails() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let ran = Pod::new(&cluster, "a").exec(&["no-such-engine", "serve", "m"], "\0").await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("`no-such-engine` was not found in PATH"), "{}", ran.stderr);
    let ran = Pod::new(&cluster, "a").exec(&[""; 0], "\0").await;
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("COMMAND"), "{}", ran.stderr);
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_crashes_before_it_is_ready_publishes_nothing() {
    if !own_proc() {
        return;
    }
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let entry = Entry::Aot { key: KEY.to_owned(), rank: "rank_0_0".to_owned() };
    let root = "$VLLM_CACHE_ROOT".to_owned();
    let engine = FakeEngine::new(vec![Step::Cache { root, entry }, Step::Raise(6)]);
    let ran = Pod::new(&cluster, "a").run(&engine, "\0").await;
    assert_eq!(ran.code, Some(128 + 6), "{}", ran.stderr);
    assert!(ran.report.is_none() && !ran.stderr.contains("published"), "{}", ran.stderr);
    assert_eq!(a.client.status().await.unwrap().artifacts, 0);
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_crashes_with_twice_and_starts_without_is_quarantined() {
    if !own_proc() {
        return;
    }
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let (good, bad) = (engine(), FakeEngine::new(vec![Step::Raise(6)]));
    Pod::new(&cluster, "a").run(&good, "vllm-aot 59af47c66413: published").await;

    let pod = Pod::new(&cluster, "b").with("--quiet", "1h");
    for _ in 0..2 {
        let crashed = pod.run(&bad, "\0").await;
        assert_eq!(crashed.code, Some(128 + 6), "{}", crashed.stderr);
    }
    let clean = pod.run(&good, "warmd: ready after").await;
    assert!(clean.stderr.contains("clean") && clean.stderr.contains("quarantined"), "{}", clean.stderr);
    assert_eq!(family(&clean, "vllm-aot")["made"], 1, "{}", clean.stderr);
    let quarantined = |ran: &Ran| ran.report.as_ref().unwrap()["quarantined"].as_array().unwrap().clone();
    let families = quarantined(&clean).iter().map(|one| one["family"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert!(families.contains(&"vllm-aot".to_owned()), "{families:?}");

    let after = pod.run(&good, "warmd: ready after").await;
    assert_eq!(after.code, Some(0), "{}", after.stderr);
    assert!(after.stderr.contains("quarantined on this node"), "{}", after.stderr);
    assert_eq!(quarantined(&after).len(), families.len(), "{}", after.stderr);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_starts_were_like_is_on_the_metrics_of_their_node() {
    if !own_proc() {
        return;
    }
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let pod = Pod::new(&cluster, "a");
    pod.run(&engine(), "vllm-aot 59af47c66413: published").await;
    pod.run(&engine(), "warmd: ready after").await;
    pod.run(&FakeEngine::new(vec![Step::Exit(7)]), "\0").await;
    let metrics = a.scrape().await;
    for line in [
        r#"warmd_starts_total{outcome="ready"} 2"#,
        r#"warmd_starts_total{outcome="crashed"} 1"#,
        "warmd_start_ready_seconds_count 2",
        "warmd_start_hook_seconds_count 3",
        r#"warmd_start_entries_total{family="vllm-aot",result="made"} 1"#,
        r#"warmd_start_entries_total{family="vllm-aot",result="existing"} 2"#,
        r#"warmd_start_entries_total{family="vllm-aot",result="used"} 1"#,
        r#"warmd_start_artifacts_total{family="vllm-aot",result="offered"} 2"#,
        r#"warmd_start_families_total{family="vllm-aot",result="miss",reason="not_offered"} 1"#,
        r#"warmd_start_families_total{family="vllm-aot",result="hit",reason="existing"} 2"#,
    ] {
        assert!(metrics.contains(line), "no `{line}` in {metrics}");
    }
    a.stop().await;
}
