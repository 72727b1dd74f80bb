//! One start of a real vLLM in a pod of its own, and what became of it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};

use crate::cluster::Cluster;

/// For one start, cold on a slow machine.
const DEADLINE: Duration = Duration::from_secs(400);

/// A virtual environment with vLLM, and a `vllm` in it that forks instead of importing everything three times.
pub struct Vllm {
    python: PathBuf,
    program: PathBuf,
    model: PathBuf,
    dir: tempfile::TempDir,
    /// Two of them at once would measure each other.
    _turn: MutexGuard<'static, ()>,
}

impl Vllm {
    /// Waits for the other tests' engines to end.
    pub async fn find() -> Option<Self> {
        static TURN: Mutex<()> = Mutex::const_new(());
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
        Some(Self { python, program, model: models.join("base"), dir, _turn: TURN.lock().await })
    }

    /// One start in a pod of its own: HOME, TMPDIR and caches below `pod`. Ended once `until` has come.
    pub async fn start(&self, cluster: &Cluster, agent: &str, pod: &str, more: &[&str], until: Until) -> Start {
        let root = self.pod(pod);
        let report = root.join("report.json");
        let _ = std::fs::remove_file(&report);
        let mut warmd = self.warmd("exec", cluster, agent, &root);
        warmd.args(["--reserve-bytes", "0", "--quiet", "3s", "--report"]).arg(&report);
        self.add_command(&mut warmd, more);
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

    /// What `warmd doctor --json` says of a start in that pod.
    pub async fn doctor(&self, cluster: &Cluster, agent: &str, pod: &str, more: &[&str]) -> Value {
        let mut warmd = self.warmd("doctor", cluster, agent, &self.pod(pod));
        self.add_command(warmd.arg("--json"), more);
        let output = tokio::time::timeout(DEADLINE, warmd.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// `warmd serve` in a pod of its own, once it is ready.
    pub async fn serve(&self, cluster: &Cluster, agent: &str, pod: &str, more: &[&str]) -> Serving {
        let root = self.pod(pod);
        let log = root.join("serve.log");
        let output = std::fs::File::create(&log).unwrap();
        let mut warmd = self.warmd("serve", cluster, agent, &root);
        warmd.args(["--reserve-bytes", "0", "--no-publish"]).stdout(output.try_clone().unwrap()).stderr(output);
        let addr = self.add_command(&mut warmd, more);
        let process = warmd.kill_on_drop(true).spawn().unwrap();
        let admin = root.join("vllm/serve/admin.sock");
        let serving = Serving { process, addr, admin, log };
        let ready = serving.until(|serving| async move { serving.get("/health").await.0 == 200 });
        tokio::time::timeout(DEADLINE, ready).await.unwrap_or_else(|_| panic!("{}", serving.log()));
        serving
    }

    /// A directory that tiny_model.py made.
    pub fn adapter(&self, name: &str) -> PathBuf {
        self.model.with_file_name("adapters").join(name)
    }

    /// Offers an adapter by way of `agent`.
    pub async fn publish(&self, cluster: &Cluster, agent: &str, adapter: &Path, alias: &str) {
        let mut warmd = Command::new(env!("CARGO_BIN_EXE_warmd"));
        warmd.args(["adapter", "publish"]).arg(adapter).args(["--alias", alias]);
        let output = warmd.arg("--socket").arg(cluster.config(agent).local.socket).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Runs a script beside this file with the engine's Python.
    pub async fn script(&self, name: &str, arguments: &[&str]) -> std::process::Output {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_vllm").join(name);
        Command::new(&self.python).arg(here).args(arguments).output().await.unwrap()
    }

    fn pod(&self, name: &str) -> PathBuf {
        let root = self.dir.path().join(name);
        for name in ["home", "tmp"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        root
    }

    fn warmd(&self, subcommand: &str, cluster: &Cluster, agent: &str, root: &Path) -> Command {
        let mut warmd = Command::new(env!("CARGO_BIN_EXE_warmd"));
        warmd.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        warmd.env("HOME", root.join("home")).env("TMPDIR", root.join("tmp")).env("WARMD_CACHE_ROOT", root.join("vllm"));
        warmd.envs([
            ("HF_HUB_OFFLINE", "1"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            ("FASTSERVE_FORK", "1"),
            ("FASTSERVE_FIX_AOT", "1"),
        ]);
        warmd.arg(subcommand).arg("--socket").arg(cluster.config(agent).local.socket);
        warmd.arg("--policy").arg(cluster.policy_path());
        warmd
    }

    /// Returns where it listens.
    fn add_command(&self, warmd: &mut Command, more: &[&str]) -> String {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        warmd.arg("--").arg(&self.program).arg("serve").arg(&self.model);
        warmd.args(["--host", "127.0.0.1", "--port", &port, "--kv-cache-memory-bytes", "67108864"]).args(more);
        format!("127.0.0.1:{port}")
    }
}

/// A running `warmd serve`.
pub struct Serving {
    process: tokio::process::Child,
    pub addr: String,
    admin: PathBuf,
    log: PathBuf,
}

impl Serving {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let stream = TcpStream::connect(&self.addr).await;
        let Ok(stream) = stream else { return (0, String::new()) };
        ask(stream, "GET", path, "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, String) {
        ask(TcpStream::connect(&self.addr).await.unwrap(), "POST", path, &body.to_string()).await
    }

    pub async fn admin(&self, path: &str) -> Value {
        let (status, body) = ask(UnixStream::connect(&self.admin).await.unwrap(), "GET", path, "").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Looks now and then; whoever calls has a deadline.
    pub async fn until<'a, F: Future<Output = bool>>(&'a self, holds: impl Fn(&'a Self) -> F) {
        while !holds(self).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// SIGTERM, and the exit code.
    pub async fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_raw(self.process.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        tokio::time::timeout(DEADLINE, self.process.wait()).await.unwrap().unwrap().code()
    }
}

/// Status and body.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, method: &str, path: &str, body: &str) -> (u16, String) {
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is cut off is an answer, too.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}

/// So many lines with all of these parts.
#[derive(Clone, Copy)]
pub struct Until {
    parts: &'static [&'static str],
    times: usize,
}

pub const READY: Until = Until { parts: &["warmd: ready after"], times: 1 };
pub const MODEL_PUBLISHED: Until = Until { parts: &["warmd: vllm-aot", ": published as generation"], times: 1 };
pub const ALL_PUBLISHED: Until = Until { parts: &["warmd: ", ": published as generation"], times: 3 };

pub struct Start {
    pub log: String,
    report: Value,
}

impl Start {
    pub fn family(&self, name: &str) -> Value {
        let families = self.report["families"].as_array().unwrap();
        families.iter().find(|family| family["family"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    }

    /// Spent by warmd before it started the engine.
    pub fn hook_seconds(&self) -> f64 {
        let told = self.log.lines().find_map(|line| line.strip_prefix("warmd: starting the engine after "));
        told.and_then(|told| told.strip_suffix(" s")?.parse().ok()).unwrap_or_else(|| panic!("{}", self.summary()))
    }

    pub fn summary(&self) -> String {
        self.log.lines().filter(|line| line.starts_with("warmd: ")).collect::<Vec<_>>().join("\n")
    }

    pub fn assert_warm(&self) {
        let aot = self.family("vllm-aot");
        assert_eq!((&aot["used"], &aot["made"]), (&true.into(), &0.into()), "{}", self.summary());
        assert!(self.log.contains("Directly load AOT compilation from path"), "{}", self.summary());
        assert!(!self.log.contains("Compiling model again"), "{}", self.summary());
        for family in ["modelinfos", "inductor-headers"] {
            assert_eq!(self.family(family)["made"], 0, "{family}: {}", self.summary());
        }
    }
}
