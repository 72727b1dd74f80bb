//! The fake vLLM as a process: this test binary, started again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use warmd::engine::lora::{Client, Deadlines};
use warmd::engine::{Address, Secret};

use super::engine::DEADLINE;
use super::lines::Lines;

#[path = "../../fake_vllm/program.rs"]
mod program;

const ENTRY: &str = "harness::vllm::as_a_fake_vllm";

/// The command line, one argument a line.
const ARGUMENTS: &str = "WARMD_FAKE_VLLM_ARGUMENTS";

#[test]
#[ignore = "the program that other tests run as vLLM"]
fn as_a_fake_vllm() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    std::process::exit(program::main(arguments.lines().map(str::to_owned).collect(), own()));
}

/// A program `vllm` in that directory, which takes the real one's command line.
pub fn program_in(dir: &Path) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let script = format!(
        "IFS='\n'\nexport {ARGUMENTS}=\"$*\"\nexec '{}' --exact {ENTRY} --ignored --nocapture --test-threads=1",
        own.display()
    );
    crate::exec::program(&dir.join("vllm"), &script)
}

fn own() -> Command {
    let mut own = Command::new(std::env::current_exe().unwrap());
    own.args(["--exact", ENTRY, "--ignored", "--nocapture", "--test-threads=1"]);
    own
}

/// Ended when dropped, and its core with it.
pub struct FakeVllm {
    /// Absent once its end was awaited.
    leader: Option<Child>,
    core: i32,
    output: Lines,
    dir: tempfile::TempDir,
}

impl FakeVllm {
    /// Serves `base` behind a socket, and asks for `engine-key`. `more` is separated by spaces; adapters are on unless it
    /// says `--no-enable-lora`.
    pub fn start(more: &str) -> Self {
        Self::start_with(more, |line, socket| {
            let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            words.extend(["--uds".to_owned(), socket.display().to_string()]);
            let mut set = vec![("VLLM_API_KEY".to_owned(), "engine-key".to_owned())];
            if !words.iter().any(|word| word == "--no-enable-lora") {
                words.push("--enable-lora".to_owned());
                set.push(("VLLM_ALLOW_RUNTIME_LORA_UPDATING".to_owned(), "1".to_owned()));
            }
            (words, set)
        })
    }

    /// Of `vllm serve base` and `more`, and of the path of a socket, `made` makes the command and its variables.
    pub fn start_with(more: &str, made: impl FnOnce(&str, &Path) -> (Vec<String>, Vec<(String, String)>)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let line = format!("vllm serve base --fake-lifetime 300 {more}");
        let (words, set) = made(&line, &dir.path().join("engine.sock"));
        let mut command = own();
        command.env(ARGUMENTS, words[1..].join("\n")).env_remove("VLLM_PORT").envs(set);
        let mut leader = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = Lines::of(leader.stdout.take().unwrap());
        let mut fake = Self { leader: Some(leader), core: 0, output, dir };
        fake.core = fake.line("engine core pid ").trim().parse().unwrap();
        fake.line("Application startup complete.");
        fake
    }

    /// The process id of the engine core.
    pub fn core(&self) -> i32 {
        self.core
    }

    /// Reads on until a line holds `text`; what follows it there.
    pub fn line(&mut self, text: &str) -> String {
        self.output.after(text)
    }

    pub fn address(&self) -> Address {
        Address::Uds(self.dir.path().join("engine.sock"))
    }

    pub async fn client(&self) -> Client {
        self.client_with("engine-key", Deadlines::default()).await
    }

    pub async fn client_with(&self, key: &str, deadlines: Deadlines) -> Client {
        Client::open(self.address(), Some(Secret::new(key).unwrap()), deadlines).await.unwrap()
    }

    /// A directory with an adapter of that rank, and its digest in answers.
    pub fn adapter(&self, name: &str, rank: u32) -> (PathBuf, String) {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("adapter_config.json"), format!("{{\"r\": {rank}}}")).unwrap();
        std::fs::write(path.join("adapter_model.safetensors"), name).unwrap();
        (path, blake3::hash(name.as_bytes()).to_hex()[..16].to_owned())
    }

    /// Status and body of a completion of two words.
    pub async fn complete(&self, model: &str) -> (u16, String) {
        let body = serde_json::json!({"model": model, "prompt": "p", "max_tokens": 2}).to_string();
        self.post("/v1/completions", &body).await
    }

    /// As a client that knows nothing of warmd.
    pub async fn post(&self, path: &str, body: &str) -> (u16, String) {
        let mut stream = self.begin(path, body).await;
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    /// Sends a request. Its answer comes over the stream, whose end ends the request.
    pub async fn begin(&self, path: &str, body: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.dir.path().join("engine.sock")).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer engine-key\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let leader = self.leader.as_ref().map(|leader| Pid::from_raw(leader.id() as i32).unwrap());
        kill_process(leader.unwrap(), Signal::TERM).unwrap();
    }

    /// The leader's exit code, once it has ended.
    pub async fn exit(&mut self) -> Option<i32> {
        let mut leader = self.leader.take().unwrap();
        let ended = tokio::task::spawn_blocking(move || leader.wait().unwrap().code());
        tokio::time::timeout(DEADLINE, ended).await.unwrap().unwrap()
    }
}

impl Drop for FakeVllm {
    fn drop(&mut self) {
        if let Some(mut leader) = self.leader.take() {
            // SIGTERM takes the core along; that it has ended already is as good.
            let _ = kill_process(Pid::from_raw(leader.id() as i32).unwrap(), Signal::TERM);
            let _ = leader.wait();
        }
    }
}
