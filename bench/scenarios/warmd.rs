//! A warmd cluster of real processes. Everything that the scenarios need to know about warmd's commands is in this file.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use warmd::artifact::{Family, SourceIdentity};
use warmd::identity::{ClusterCa, NodeTls};
use warmd::metadata::ServerAddr;

use crate::harness::{Killed, free_port, fresh, process_cpu};
use crate::{http, local, metadata};

const WARMD: &str = env!("CARGO_BIN_EXE_warmd");
const START: Duration = Duration::from_secs(20);
const BUDGET: Duration = Duration::from_secs(600);
/// The one identity that every scenario publishes and asks for.
const FACT: (&str, &str) = ("bench", "1");

pub(crate) struct Cluster {
    dir: PathBuf,
    metadata_addr: String,
    agents: BTreeMap<String, Agent>,
    metadata: Killed,
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
    /// Encoded bytes that crossed the network.
    pub(crate) wire_bytes: u64,
}

impl Cluster {
    /// Keys made on the spot, a policy that trusts one signer, and a running metadata server, all below `dir`.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &[], &[])
    }

    /// With more flags and more of the environment for the metadata server.
    pub(crate) fn start_with(dir: &Path, flags: &[&str], settings: &[(&str, &str)]) -> Result<Self> {
        fresh(dir)?;
        let at = |name: &str| dir.join(name);
        warmd(&["keys", "cluster"], &[at("keys").as_os_str()])?;
        let signer = warmd(&["keys", "signer"], &[at("signer.key").as_os_str()])?;
        let trusted = format!("bench={}", signer.trim());
        warmd(&["policy", "init"], &[at("policy.toml").as_os_str(), "--signer".as_ref(), trusted.as_ref()])?;
        node_key(dir, "metadata")?;
        let metadata_addr = free_port()?;
        let mut server = Command::new(WARMD);
        server.arg("metadata").arg("--state-dir").arg(at("metadata")).args(["--listen", &metadata_addr]);
        server.args(flags).envs(settings.iter().copied());
        let metadata = daemon(&mut server, &at("metadata.log"))?;
        listening(&metadata_addr).with_context(|| fs::read_to_string(at("metadata.log")).unwrap_or_default())?;
        Ok(Self { dir: dir.to_owned(), metadata_addr, agents: BTreeMap::new(), metadata })
    }

    pub(crate) fn start_agent(&mut self, name: &str) -> Result<()> {
        self.start_agent_with(name, &[])
    }

    /// With more of the environment.
    pub(crate) fn start_agent_with(&mut self, name: &str, settings: &[(&str, &str)]) -> Result<()> {
        node_key(&self.dir, name)?;
        let state = self.dir.join(name);
        let (socket, metrics) = (state.join("agent.sock"), free_port()?);
        let port = self.metadata_addr.rsplit(':').next().context("a port")?;
        let mut agent = Command::new(WARMD);
        agent.arg("agent").arg("--state-dir").arg(&state).arg("--socket").arg(&socket);
        agent.arg("--policy").arg(self.dir.join("policy.toml")).arg("--signer").arg(self.dir.join("signer.key"));
        agent.args(["--listen", "127.0.0.1:0", "--metrics", &metrics, "--metadata", &format!("localhost:{port}")]);
        agent.args(["--discovery", "server"]);
        // What is stored here is gone at the end: it needs no room beside it.
        agent.env("WARMD_STORE_RESERVE_BYTES", "0").envs(settings.iter().copied());
        let process = daemon(&mut agent, &self.dir.join(format!("{name}.log")))?;
        let begin = Instant::now();
        while !socket.exists() {
            ensure!(begin.elapsed() < START, "agent {name} did not open its socket; see its log");
            std::thread::sleep(Duration::from_millis(2));
        }
        listening(&metrics)?;
        self.agents.insert(name.to_owned(), Agent { process, socket, metrics });
        Ok(())
    }

    pub(crate) fn publish(&self, agent: &str, from: &Path) -> Result<Published> {
        self.publish_as(agent, from, FACT.1)
    }

    /// Under an identity of that value.
    pub(crate) fn publish_as(&self, agent: &str, from: &Path, value: &str) -> Result<Published> {
        let begin = Instant::now();
        let fact = format!("{}={value}", FACT.0);
        let socket = self.agent(agent)?.socket.as_os_str();
        let rest: [&OsStr; 6] =
            [from.as_os_str(), "--fact".as_ref(), fact.as_ref(), "--json".as_ref(), "--socket".as_ref(), socket];
        warmd(&["publish"], &rest)?;
        Ok(Published { seconds: begin.elapsed().as_secs_f64() })
    }

    /// Fetches into the agent's store and installs into `into`. The announcement of what was published a moment ago may still be
    /// on its way: tries again until it is found.
    pub(crate) fn warm(&self, agent: &str, into: &Path) -> Result<Warmed> {
        let begin = Instant::now();
        loop {
            let report = self.try_warm(agent, into)?;
            if report["state"] == "installed" {
                let artifacts = report["artifacts"].as_array().context("`artifacts` in the report of warm")?;
                let wire_bytes = artifacts.iter().filter_map(|artifact| artifact["wire_bytes"].as_u64()).sum();
                return Ok(Warmed { seconds: begin.elapsed().as_secs_f64(), wire_bytes });
            }
            if begin.elapsed() > START || report["class"] != "none-found" {
                bail!("nothing was installed: {report}");
            }
        }
    }

    /// `warmd exec` without a command.
    pub(crate) fn exec(&self, agent: &str) -> Result<Command> {
        let mut exec = Command::new(WARMD);
        exec.arg("exec").arg("--socket").arg(&self.agent(agent)?.socket);
        exec.arg("--policy").arg(self.dir.join("policy.toml")).args(["--reserve-bytes", "0"]);
        Ok(exec)
    }

    /// `warmd serve` in front of an engine at `upstream`; `keyed`, only who has its key is let in, and there are adapters.
    pub(crate) fn serve(
        &self,
        agent: &str,
        dir: &Path,
        upstream: &str,
        listen: SocketAddr,
        keyed: bool,
    ) -> Result<(Killed, Option<String>)> {
        let mut serve = self.serve_command(agent, dir, upstream, listen)?;
        let mut key = None;
        if keyed {
            let (config, keys) = (dir.join("serve.toml"), dir.join("keys.toml"));
            let made = warmd(&["keys", "api", "--id", "bench", "--tenant", "bench"], &[keys.as_os_str()])?;
            key = Some(made.trim().to_owned());
            fs::write(&config, format!("[auth.keys]\nfile = {keys:?}\n\n[engine.adapters]\n"))?;
            serve.arg("--config").arg(config);
        } else {
            serve.arg("--anonymous");
        }
        Ok((serving(&mut serve, dir, listen)?, key))
    }

    /// As [`Self::serve`] for everybody, with adapters and /metrics; nothing is looked for but what somebody asks for.
    pub(crate) fn serve_adapters(
        &self,
        agent: &str,
        dir: &Path,
        upstream: &str,
        listen: SocketAddr,
        metrics: &str,
    ) -> Result<Killed> {
        let config = dir.join("serve.toml");
        fs::write(&config, "[engine.adapters]\n\n[adapters]\nrefresh = \"1day\"\n")?;
        let mut serve = self.serve_command(agent, dir, upstream, listen)?;
        serve.arg("--config").arg(config).args(["--anonymous", "--reserve-bytes", "0", "--metrics", metrics]);
        let process = serving(&mut serve, dir, listen)?;
        listening(metrics)?;
        Ok(process)
    }

    fn serve_command(&self, agent: &str, dir: &Path, upstream: &str, listen: SocketAddr) -> Result<Command> {
        let state = dir.join(format!("serve-{}", listen.port()));
        let mut serve = Command::new(WARMD);
        serve.arg("serve").args(["--attach", upstream]).args(["--listen", &listen.to_string()]);
        serve.arg("--state-dir").arg(&state).arg("--socket").arg(&self.agent(agent)?.socket);
        serve.arg("--policy").arg(self.dir.join("policy.toml"));
        Ok(serve)
    }

    pub(crate) fn publish_adapter(&self, agent: &str, directory: &Path, alias: &str) -> Result<()> {
        let socket = self.agent(agent)?.socket.as_os_str();
        let rest: [&OsStr; 5] =
            [directory.as_os_str(), "--alias".as_ref(), alias.as_ref(), "--socket".as_ref(), socket];
        warmd(&["adapter", "publish"], &rest).map(drop)
    }

    fn try_warm(&self, agent: &str, into: &Path) -> Result<Value> {
        let mut warm = Command::new(WARMD);
        warm.arg("warm").arg("--into").arg(into).arg("--socket").arg(&self.agent(agent)?.socket);
        warm.arg("--policy").arg(self.dir.join("policy.toml")).args(["--budget", "10min", "--reserve-bytes", "0"]);
        warm.args(["--retry", "--json", "--fact", &format!("{}={}", FACT.0, FACT.1)]);
        Ok(serde_json::from_str(&output(&mut warm)?)?)
    }

    /// Fetches into the agent's store only. The clock of a pull does not wait for announcements: see [`Self::settle`].
    pub(crate) fn pull(&self, agent: &str) -> Result<Warmed> {
        self.begin_pull(agent)?.finish()
    }

    pub(crate) fn begin_pull(&self, agent: &str) -> Result<Pull> {
        let socket = self.agent(agent)?.socket.clone();
        let facts = [(FACT.0.to_owned(), FACT.1.to_owned())].into();
        let identity = SourceIdentity::new(Family::directory(), facts)?.id();
        let begin = Instant::now();
        let thread = std::thread::spawn(move || {
            let wire_bytes = local::fetch(&socket, identity, BUDGET)?;
            Ok(Warmed { seconds: begin.elapsed().as_secs_f64(), wire_bytes })
        });
        Ok(Pull(thread))
    }

    /// Lets announcements reach the metadata server before a clock starts, and QUIC statistics, which agents read once a second,
    /// reach /metrics.
    pub(crate) fn settle() {
        std::thread::sleep(Duration::from_millis(1_500));
    }

    /// The agent's /metrics, by name with labels.
    pub(crate) fn metrics(&self, agent: &str) -> Result<HashMap<String, f64>> {
        scrape(&self.agent(agent)?.metrics)
    }

    /// One counter of the agent, 0 while it has not counted.
    pub(crate) fn counter(&self, agent: &str, counter: Counter) -> Result<f64> {
        let (name, labels) = counter.series();
        let counts = |series: &str| {
            series.strip_prefix(name).is_some_and(|rest| {
                (rest.is_empty() || rest.starts_with('{')) && labels.iter().any(|label| rest.contains(label))
            })
        };
        Ok(self.metrics(agent)?.iter().filter(|(series, _)| counts(series)).map(|(_, value)| value).sum())
    }

    pub(crate) fn metrics_addr(&self, agent: &str) -> Result<String> {
        Ok(self.agent(agent)?.metrics.clone())
    }

    pub(crate) fn metadata_pid(&self) -> u32 {
        self.metadata.pid()
    }

    pub(crate) fn metadata(&self) -> Result<ServerAddr> {
        let port = self.metadata_addr.rsplit(':').next().context("a port")?;
        Ok(format!("localhost:{port}").parse()?)
    }

    /// More nodes of this cluster, for clients of the library.
    pub(crate) fn identities(&self, count: usize) -> Result<Vec<NodeTls>> {
        let keys = self.dir.join("keys");
        let ca = ClusterCa::load(&keys.join("ca.pem"), &keys.join("ca.key"))?;
        (0..count).map(|_| metadata::node(&keys, &ca)).collect()
    }

    /// Seconds of `warmd status --fleet`.
    pub(crate) fn fleet_status(&self, agent: &str) -> Result<f64> {
        let begin = Instant::now();
        let socket = self.agent(agent)?.socket.as_os_str();
        warmd(&["status", "--fleet", "--json"], &["--socket".as_ref(), socket])?;
        Ok(begin.elapsed().as_secs_f64())
    }

    pub(crate) fn pid(&self, agent: &str) -> Result<u32> {
        Ok(self.agent(agent)?.process.pid())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, agent: &str) -> Result<()> {
        self.agents.remove(agent).map(drop).with_context(|| format!("agent {agent}"))
    }

    /// CPU seconds of all living agents so far.
    pub(crate) fn cpu(&self) -> f64 {
        self.agents.values().map(|agent| process_cpu(agent.process.pid())).sum()
    }

    fn agent(&self, name: &str) -> Result<&Agent> {
        self.agents.get(name).with_context(|| format!("agent {name}"))
    }
}

/// What the scenarios read from /metrics.
#[derive(Clone, Copy)]
pub(crate) enum Counter {
    ChunkBytesSent,
    ChunkBytesReceived,
    ChunksReceivedTwice,
    Datagrams,
    DatagramBytes,
}

impl Counter {
    /// The name of the series that it is the sum of, and what their labels contain one of.
    fn series(self) -> (&'static str, &'static [&'static str]) {
        const RECEIVED: &str = r#"{direction="received"}"#;
        match self {
            Self::ChunkBytesSent => (
                "warmd_transfer_bytes_total",
                &[r#"direction="sent",holder="peer""#, r#"direction="sent",holder="partial""#],
            ),
            Self::ChunkBytesReceived => (
                "warmd_transfer_bytes_total",
                &[r#"direction="received",holder="peer""#, r#"direction="received",holder="partial""#],
            ),
            Self::ChunksReceivedTwice => ("warmd_transfer_duplicate_chunks_total", &[""]),
            Self::Datagrams => ("warmd_quic_datagrams_total", &[RECEIVED]),
            Self::DatagramBytes => ("warmd_quic_datagram_bytes_total", &[RECEIVED]),
        }
    }
}

/// A pull in progress.
pub(crate) struct Pull(std::thread::JoinHandle<Result<Warmed>>);

impl Pull {
    pub(crate) fn finish(self) -> Result<Warmed> {
        self.0.join().map_err(|_| anyhow::anyhow!("the pulling thread panicked"))?
    }
}

/// What /metrics has at that address, by name with labels.
pub(crate) fn scrape(addr: &str) -> Result<HashMap<String, f64>> {
    let text = http::ask(addr, "GET", "/metrics", "")?.text;
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = samples.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    Ok(pairs.collect())
}

fn serving(serve: &mut Command, dir: &Path, listen: SocketAddr) -> Result<Killed> {
    let process = daemon(serve, &dir.join(format!("serve-{}.log", listen.port())))?;
    listening(&listen.to_string())?;
    Ok(process)
}

fn daemon(command: &mut Command, log: &Path) -> Result<Killed> {
    let log = fs::File::create(log)?;
    // No name that begins like ours is anything but configuration.
    command.env_remove(crate::engine::VENV);
    Killed::spawn(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
}

fn node_key(dir: &Path, name: &str) -> Result<()> {
    let (state, keys) = (dir.join(name), dir.join("keys"));
    let rest: [&OsStr; 5] =
        [state.as_os_str(), "--cluster".as_ref(), keys.as_os_str(), "--name".as_ref(), "localhost".as_ref()];
    warmd(&["keys", "node"], &rest).map(drop)
}

fn warmd(command: &[&str], rest: &[&OsStr]) -> Result<String> {
    output(Command::new(WARMD).args(command).args(rest))
}

/// Its stdout. Remarks on stderr are shown only when it fails.
fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    ensure!(done.status.success(), "{}: {command:?}: {}", done.status, String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

fn listening(addr: &str) -> Result<()> {
    let begin = Instant::now();
    while TcpStream::connect(addr).is_err() {
        ensure!(begin.elapsed() < START, "nobody listens at {addr}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
