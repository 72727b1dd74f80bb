//! The judge that counts: a real vLLM on the CPU, started through `warmd exec` on two nodes.
//!
//! ```text
//! WARMD_TEST_VLLM=/path/to/venv cargo test --release --test real_vllm -- --nocapture
//! ```
//!
//! `README.md` beside this file says how such an environment is made. Without the variable the test says that it is skipped.
//! It takes some minutes and both cores.

#![expect(unreachable_pub, clippy::unwrap_used, reason = "a test binary has no outside, and a test ends by panicking")]
#![expect(clippy::print_stderr, reason = "what each start was like is worth reading")]

#[path = "../integration/harness/cluster.rs"]
#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
mod cluster;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use cluster::Cluster;

/// For one start, cold on a slow machine.
const DEADLINE: Duration = Duration::from_secs(400);

/// A virtual environment with vLLM, and a `vllm` in it that forks instead of importing everything three times.
struct Vllm {
    program: PathBuf,
    model: PathBuf,
    dir: tempfile::TempDir,
}

impl Vllm {
    fn find() -> Option<Self> {
        let Some(venv) = std::env::var_os("WARMD_TEST_VLLM").map(PathBuf::from) else {
            eprintln!("skipped: WARMD_TEST_VLLM does not name a virtual environment with vLLM");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_vllm");
        let python = venv.join("bin/python");
        let serve = std::fs::read_to_string(here.join("vllm_fastserve.py")).unwrap();
        let program = dir.path().join("vllm");
        std::fs::write(&program, format!("#!{}\n{serve}", python.display())).unwrap();
        let made = std::process::Command::new("chmod").arg("755").arg(&program).status().unwrap();
        assert!(made.success());
        let models = dir.path().join("models");
        let made = std::process::Command::new(&python).arg(here.join("tiny_model.py")).arg(&models).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Some(Self { program, model: models.join("base"), dir })
    }

    /// One start in a pod of its own: HOME, TMPDIR and caches below `pod`. Ended once `until` has come.
    async fn start(&self, cluster: &Cluster, agent: &str, pod: &str, more: &[&str], until: Until) -> Start {
        let root = self.dir.path().join(pod);
        for name in ["home", "tmp"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        let report = root.join("report.json");
        let _ = std::fs::remove_file(&report);
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let mut warmd = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
        warmd.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        warmd.env("HOME", root.join("home")).env("TMPDIR", root.join("tmp")).env("WARMD_CACHE_ROOT", root.join("vllm"));
        warmd.envs([
            ("HF_HUB_OFFLINE", "1"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            ("FASTSERVE_FORK", "1"),
            ("FASTSERVE_FIX_AOT", "1"),
        ]);
        let socket = cluster.config(agent).local.socket;
        warmd.args(["exec", "--reserve-bytes", "0", "--quiet", "3s", "--socket"]).arg(socket);
        warmd.arg("--policy").arg(cluster.policy_path()).arg("--report").arg(&report);
        warmd.arg("--").arg(&self.program).arg("serve").arg(&self.model);
        warmd.args(["--host", "127.0.0.1", "--port", &port, "--kv-cache-memory-bytes", "67108864"]).args(more);
        let mut child = warmd.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut log, mut seen) = (String::new(), 0);
        let running = async {
            loop {
                let line = tokio::select! {
                    Ok(Some(line)) = out.next_line() => line,
                    Ok(Some(line)) = err.next_line() => line,
                    else => break,
                };
                seen += usize::from(until.parts.iter().all(|part| line.contains(part)));
                if seen == until.times {
                    seen += 1;
                    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                }
                log.push_str(&line);
                log.push('\n');
            }
            child.wait().await.unwrap();
        };
        tokio::time::timeout(DEADLINE, running).await.unwrap_or_else(|_| panic!("no {:?}", until.parts));
        let report = std::fs::read(&report).unwrap_or_else(|_| panic!("not ready: {log}"));
        let start = Start { log, report: serde_json::from_slice(&report).unwrap() };
        eprintln!("{pod}: {}", start.summary());
        start
    }
}

/// So many lines with all of these parts.
#[derive(Clone, Copy)]
struct Until {
    parts: &'static [&'static str],
    times: usize,
}

const READY: Until = Until { parts: &["warmd: ready after"], times: 1 };
const MODEL_PUBLISHED: Until = Until { parts: &["warmd: vllm-aot", ": published as generation"], times: 1 };
const ALL_PUBLISHED: Until = Until { parts: &["warmd: ", ": published as generation"], times: 3 };

struct Start {
    log: String,
    report: Value,
}

impl Start {
    fn family(&self, name: &str) -> Value {
        let families = self.report["families"].as_array().unwrap();
        families.iter().find(|family| family["family"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    }

    fn summary(&self) -> String {
        self.log.lines().filter(|line| line.starts_with("warmd: ")).collect::<Vec<_>>().join("\n")
    }

    fn assert_warm(&self) {
        let aot = self.family("vllm-aot");
        assert_eq!((&aot["used"], &aot["made"]), (&true.into(), &0.into()), "{}", self.summary());
        assert!(self.log.contains("Directly load AOT compilation from path"), "{}", self.summary());
        assert!(!self.log.contains("Compiling model again"), "{}", self.summary());
        for family in ["modelinfos", "inductor-headers"] {
            assert_eq!(self.family(family)["made"], 0, "{family}: {}", self.summary());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_compiled_is_used_by_another_for_every_variant_and_a_changed_argument_compiles() {
    let Some(vllm) = Vllm::find() else { return };
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let fewer = ["--max-num-batched-tokens", "1024"];

    let cold = vllm.start(&cluster, "a", "first", &[], ALL_PUBLISHED).await;
    assert!(cold.log.contains("saved AOT compiled function"), "{}", cold.summary());
    vllm.start(&cluster, "a", "first", &[], READY).await.assert_warm();
    vllm.start(&cluster, "b", "second/deeper", &[], READY).await.assert_warm();

    // Another argument is another variant: it misses, and is published beside the first.
    let other = vllm.start(&cluster, "b", "second/deeper", &fewer, MODEL_PUBLISHED).await;
    assert_eq!(other.family("vllm-aot")["used"], false, "{}", other.summary());
    let third = vllm.start(&cluster, "a", "third", &fewer, READY).await;
    third.assert_warm();
    assert_eq!(third.family("vllm-aot")["offered"], 2);
    vllm.start(&cluster, "a", "third", &[], READY).await.assert_warm();
    a.stop().await;
    b.stop().await;
}
