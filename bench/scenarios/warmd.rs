//! A warmd cluster of real processes. Everything that the scenarios need to know about warmd's commands is in this file.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::{Killed, fresh, process_cpu};

const WARMD: &str = env!("CARGO_BIN_EXE_warmd");
const START: Duration = Duration::from_secs(20);
/// The one identity that every scenario publishes and asks for.
const FACT: &str = "bench=1";

pub(crate) struct Cluster {
    dir: PathBuf,
    metadata: Killed,
    metadata_addr: String,
    agents: BTreeMap<String, Agent>,
}

struct Agent {
    process: Killed,
    socket: PathBuf,
    metrics: String,
}

pub(crate) struct Published {
    pub(crate) seconds: f64,
}

pub(crate) struct Warmed {
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) wire_bytes: u64,
}

impl Cluster {
    /// Keys made on the spot and a running metadata server, all below `dir`.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        fresh(dir)?;
        warmd(["keys", "cluster", "init"], &[dir.join("keys").as_os_str()])?;
        warmd(["keys", "signer"], &[dir.join("keys").as_os_str()])?;
        node_key(dir, "metadata")?;
        let metadata_addr = free_port()?;
        let config = dir.join("metadata.toml");
        let keys = dir.join("keys");
        fs::write(
            &config,
            format!("listen = \"{metadata_addr}\"\nkeys = {keys:?}\nstate = {:?}\n", dir.join("metadata")),
        )?;
        let metadata = daemon("metadata", &config, &dir.join("metadata.log"))?;
        listening(&metadata_addr)?;
        Ok(Self { dir: dir.to_owned(), metadata, metadata_addr, agents: BTreeMap::new() })
    }

    pub(crate) fn metadata_addr(&self) -> &str {
        &self.metadata_addr
    }

    pub(crate) fn metadata_pid(&self) -> u32 {
        self.metadata.pid()
    }

    pub(crate) fn start_agent(&mut self, name: &str) -> Result<()> {
        node_key(&self.dir, name)?;
        let socket = self.dir.join(format!("{name}.sock"));
        let metrics = free_port()?;
        let config = self.dir.join(format!("{name}.toml"));
        let text = format!(
            "name = \"{name}\"\nkeys = {:?}\nstore = {:?}\nsocket = {socket:?}\nmetadata = [\"{}\"]\nmetrics = \"{metrics}\"\npeer = \"127.0.0.1:0\"\n",
            self.dir.join("keys"),
            self.dir.join(name),
            self.metadata_addr,
        );
        fs::write(&config, text)?;
        let process = daemon("agent", &config, &self.dir.join(format!("{name}.log")))?;
        let begin = Instant::now();
        while !socket.exists() {
            ensure!(begin.elapsed() < START, "agent {name} did not open its socket");
            std::thread::sleep(Duration::from_millis(2));
        }
        self.agents.insert(name.to_owned(), Agent { process, socket, metrics });
        Ok(())
    }

    pub(crate) fn publish(&self, agent: &str, from: &Path) -> Result<Published> {
        let begin = Instant::now();
        let socket = &self.agent(agent)?.socket;
        let mut publish = Command::new(WARMD);
        publish.arg("publish").arg(from).arg("--socket").arg(socket).args(["--family", "directory", "--fact", FACT]);
        done(publish.stdin(Stdio::null()).stdout(Stdio::null()))?;
        Ok(Published { seconds: begin.elapsed().as_secs_f64() })
    }

    /// Fetches into the agent's store and installs into `into`.
    pub(crate) fn warm(&self, agent: &str, into: &Path) -> Result<Warmed> {
        self.begin_warm(agent, Some(into))?.finish()
    }

    /// Fetches into the agent's store only.
    pub(crate) fn pull(&self, agent: &str) -> Result<Warmed> {
        self.begin_pull(agent)?.finish()
    }

    pub(crate) fn begin_pull(&self, agent: &str) -> Result<Warming> {
        self.begin_warm(agent, None)
    }

    fn begin_warm(&self, agent: &str, into: Option<&Path>) -> Result<Warming> {
        let mut warm = Command::new(WARMD);
        warm.arg("warm").arg("--socket").arg(&self.agent(agent)?.socket).args(["--fact", FACT, "--json"]);
        match into {
            Some(into) => warm.arg("--into").arg(into),
            None => warm.arg("--fetch-only"),
        };
        let begin = Instant::now();
        let process = Killed::spawn(warm.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        Ok(Warming { process, begin })
    }

    /// The agent's /metrics, by name with labels.
    pub(crate) fn metrics(&self, agent: &str) -> Result<HashMap<String, f64>> {
        let mut http = TcpStream::connect(&self.agent(agent)?.metrics)?;
        http.set_read_timeout(Some(START))?;
        write!(http, "GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut lines = Vec::new();
        for line in BufReader::new(http).lines() {
            lines.push(line?);
        }
        let samples = lines.iter().filter(|line| !line.starts_with('#'));
        let pairs = samples.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Ok(pairs.collect())
    }

    pub(crate) fn pid(&self, agent: &str) -> Result<u32> {
        Ok(self.agent(agent)?.process.pid())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, agent: &str) -> Result<()> {
        self.agents.remove(agent).map(drop).with_context(|| format!("agent {agent}"))
    }

    /// CPU seconds of all agents so far.
    pub(crate) fn cpu(&self) -> f64 {
        self.agents.values().map(|agent| process_cpu(agent.process.pid())).sum()
    }

    fn agent(&self, name: &str) -> Result<&Agent> {
        self.agents.get(name).with_context(|| format!("agent {name}"))
    }
}

pub(crate) struct Warming {
    process: Killed,
    begin: Instant,
}

impl Warming {
    pub(crate) fn finish(self) -> Result<Warmed> {
        let text = self.process.output()?;
        let seconds = self.begin.elapsed().as_secs_f64();
        let last = text.lines().rev().find(|line| line.starts_with('{')).context("a report of warm")?;
        let report: Value = serde_json::from_str(last)?;
        let number = |name: &str| report[name].as_u64().with_context(|| format!("`{name}` in {report}"));
        Ok(Warmed { seconds, bytes: number("bytes")?, wire_bytes: number("wire_bytes")? })
    }
}

fn daemon(role: &str, config: &Path, log: &Path) -> Result<Killed> {
    let log = fs::File::create(log)?;
    let mut command = Command::new(WARMD);
    command.arg(role).arg("--config").arg(config);
    Killed::spawn(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
}

fn node_key(dir: &Path, name: &str) -> Result<()> {
    warmd(["keys", "node"], &[dir.join("keys").as_os_str(), "--name".as_ref(), name.as_ref()])
}

fn warmd<const N: usize>(command: [&str; N], rest: &[&std::ffi::OsStr]) -> Result<()> {
    let mut process = Command::new(WARMD);
    done(process.args(command).args(rest).stdin(Stdio::null()).stdout(Stdio::null()))
}

fn done(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{status}: {command:?}");
    Ok(())
}

fn free_port() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn listening(addr: &str) -> Result<()> {
    let begin = Instant::now();
    while TcpStream::connect(addr).is_err() {
        ensure!(begin.elapsed() < START, "nobody listens at {addr}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
