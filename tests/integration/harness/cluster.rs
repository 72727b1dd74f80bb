//! The cluster and what tests do with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};
use warmd::agent::{Agent, AgentConfig};
use warmd::artifact::{Family, SourceIdentity};
use warmd::discovery::Mode;
use warmd::identity::{ClusterCa, NodeConfig, Policy, PrivateKey, PublicKey, TrustConfig};
use warmd::install::Limits;
use warmd::local::{Client, SocketConfig};
use warmd::metadata::{Client as Directory, ClientMetrics, Config as ServerConfig, Server, ServerAddr};
use warmd::protocol::metadata::Lookup;
use warmd::serve::warm::{Job, Report, Verdict, warm};
use warmd::telemetry::Registry;
use warmd::transport::TransportConfig;

use super::ports;

pub const DEADLINE: Duration = Duration::from_secs(60);

/// A certificate authority, a signer, a policy, and whatever was started under them.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    ca: ClusterCa,
    pub signer: PublicKey,
    pub server: Option<Server>,
    /// What the server counts.
    pub server_metrics: Arc<Registry>,
    servers: Vec<ServerAddr>,
}

impl Cluster {
    /// With a metadata server. Its port is still free after it has ended.
    pub async fn start() -> Self {
        let mut cluster = Self::without_server();
        cluster.start_server(ports::free()).await;
        cluster
    }

    pub fn without_server() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = PrivateKey::generate().unwrap();
        authority.save_new(&dir.path().join("ca.key")).unwrap();
        let ca = ClusterCa::create("test", &authority).unwrap();
        let signer = PrivateKey::generate().unwrap();
        signer.save_new(&dir.path().join("signer.key")).unwrap();
        let cluster = Self {
            dir,
            ca,
            signer: signer.public(),
            server: None,
            server_metrics: Arc::default(),
            servers: Vec::new(),
        };
        cluster.write_policy(1, "");
        cluster
    }

    pub async fn start_server(&mut self, listen: std::net::SocketAddr) {
        self.start_server_with(ServerConfig::new(listen)).await;
    }

    pub async fn start_server_with(&mut self, config: ServerConfig) {
        let state = self.state_dir("metadata", &["localhost", "127.0.0.1"]);
        let tls = NodeConfig::default().tls(&state).unwrap();
        let mut registry = Registry::of_process();
        let server = Server::bind(config, &tls, &mut registry).await.unwrap();
        // Without a page, as in `warmd metadata`.
        drop(warmd::web::Metrics::register(&mut registry));
        self.server_metrics = Arc::new(registry);
        self.servers = vec![format!("{}@127.0.0.1:{}", tls.node_id(), server.addr().port()).parse().unwrap()];
        self.server = Some(server);
    }

    pub async fn stop_server(&mut self) -> std::net::SocketAddr {
        let server = self.server.take().unwrap();
        let addr = server.addr();
        server.shutdown(Duration::from_secs(5)).await;
        addr
    }

    /// Agents that start from now on ask this server.
    pub fn ask(&mut self, server: ServerAddr) {
        self.servers = vec![server];
    }

    /// A policy that trusts the cluster's signer; `more` is appended to the document.
    pub fn write_policy(&self, version: u64, more: &str) {
        let text = format!(
            "version = {version}\nexpires = \"2050-01-01T00:00:00Z\"\n[[signer]]\nname = \"builder\"\nkey = \"{}\"\n\
             families = [\"*\"]\nclass = \"host-code\"\n{more}\n",
            self.signer
        );
        std::fs::write(self.policy_path(), text).unwrap();
    }

    pub fn policy_path(&self) -> PathBuf {
        self.dir.path().join("policy.toml")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A state directory with a node key that this cluster's authority has certified.
    pub fn state_dir(&self, name: &str, hosts: &[&str]) -> PathBuf {
        let dir = self.path(name);
        if !dir.exists() {
            std::fs::create_dir(&dir).unwrap();
            let key = PrivateKey::generate().unwrap();
            key.save_new(&dir.join("node.key")).unwrap();
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            let pem = self.ca.issue(&key, &hosts, Duration::from_secs(30 * 86_400)).unwrap();
            std::fs::write(dir.join("node.pem"), pem).unwrap();
            std::fs::write(dir.join("ca.pem"), self.ca.certificate_pem()).unwrap();
        }
        dir
    }

    /// Another certificate for the node of that state directory.
    pub fn certify(&self, state_dir: &Path, valid_for: Duration) {
        certify(&self.ca, state_dir, valid_for);
    }

    pub fn authority_pem(&self) -> &str {
        self.ca.certificate_pem()
    }

    pub fn authority_key_pem(&self) -> String {
        std::fs::read_to_string(self.path("ca.key")).unwrap()
    }

    pub fn config(&self, name: &str) -> AgentConfig {
        let state_dir = self.state_dir(name, &[]);
        let mut config = AgentConfig {
            signer: Some(self.path("signer.key")),
            trust: TrustConfig { policy: Some(self.policy_path()), ..Default::default() },
            transport: TransportConfig { listen: ([127, 0, 0, 1], 0).into(), ..Default::default() },
            local: SocketConfig { socket: state_dir.join("agent.sock"), ..Default::default() },
            drain_deadline: Duration::from_secs(5),
            state_dir,
            ..Default::default()
        };
        config.store.reserve_bytes = Some(0);
        config.metrics.listen = Some(([127, 0, 0, 1], 0).into());
        config.discovery.mode = Mode::Server;
        config.metadata.servers = self.servers.clone();
        config.metadata.deadline = Duration::from_secs(20);
        config
    }

    pub async fn agent(&self, name: &str) -> Node {
        self.agent_with(self.config(name)).await
    }

    pub async fn agent_with(&self, config: AgentConfig) -> Node {
        let tls = config.node.tls(&config.state_dir).unwrap();
        let directory = Directory::new(config.metadata.clone(), &tls, ClientMetrics::default()).ok();
        let directory = directory.filter(|_| config.discovery.mode != Mode::Serverless);
        let agent = Agent::start(config).await.unwrap();
        let client = Client::connect(agent.socket()).await.unwrap();
        Node { agent, client, directory }
    }

    pub fn policy(&self) -> Arc<Policy> {
        Arc::new(Policy::parse(&std::fs::read_to_string(self.policy_path()).unwrap()).unwrap())
    }

    /// A job of this cluster's policy, into a directory of that name.
    pub fn job(&self, identity: SourceIdentity, into: &str) -> Job {
        Job {
            identity,
            subject: None,
            into: self.path(into),
            policy: self.policy(),
            budget: DEADLINE,
            limits: Limits { reserve_bytes: 0, max_bytes: u64::MAX },
            ignore_markers: true,
            quarantine: Arc::default(),
            witness: Arc::new(()),
        }
    }
}

/// Asks again and again, and fails with `what` if it never holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let asking = async {
        let mut tick = interval(Duration::from_millis(10));
        while !holds().await {
            tick.tick().await;
        }
    };
    timeout(DEADLINE, asking).await.expect(what);
}

/// Has `ca` make a certificate for the node of that state directory.
pub fn certify(ca: &ClusterCa, state_dir: &Path, valid_for: Duration) {
    let key = PrivateKey::load(&state_dir.join("node.key")).unwrap();
    let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    std::fs::write(state_dir.join("node.pem"), ca.issue(&key, &hosts, valid_for).unwrap()).unwrap();
}

/// An agent and a client of its local API.
pub struct Node {
    pub agent: Agent,
    pub client: Client,
    /// Asks its metadata servers; absent if it has none.
    directory: Option<Directory>,
}

impl Node {
    /// Returns once a metadata server offers it, where one answers: the command does not wait for long.
    pub async fn publish(
        &self,
        directory: &Path,
        identity: &SourceIdentity,
        subject: &str,
    ) -> anyhow::Result<Published> {
        let published = publish(self.agent.socket(), directory, identity, subject).await?;
        let Some(directory) = &self.directory else { return Ok(published) };
        let lookup = Lookup { identities: vec![identity.id()], ..Lookup::default() };
        until("the artifact is not offered", async || match directory.lookup(&lookup).await {
            Ok(found) => found.offers.iter().any(|offer| offer.artifact.artifact == published.artifact),
            Err(_) => true,
        })
        .await;
        Ok(published)
    }

    pub async fn warm(&self, job: Job) -> Report {
        warm(&self.client, job, &|_| ()).await.unwrap()
    }

    /// The text of `/metrics`.
    pub async fn scrape(&self) -> String {
        let mut stream = TcpStream::connect(self.agent.metrics_addr().unwrap()).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    pub async fn stop(self) {
        self.agent.shutdown().await;
    }
}

/// By the command line, at the agent that listens there.
pub async fn publish(
    socket: &Path,
    directory: &Path,
    identity: &SourceIdentity,
    subject: &str,
) -> anyhow::Result<Published> {
    let facts: Vec<String> = identity.facts().iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut command = vec!["publish".to_owned(), directory.to_str().unwrap().to_owned()];
    command.extend(["--subject".to_owned(), subject.to_owned(), "--json".to_owned()]);
    command.extend(["--socket".to_owned(), socket.to_str().unwrap().to_owned()]);
    command.extend(facts.into_iter().flat_map(|fact| ["--fact".to_owned(), fact]));
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd")).args(command).output();
    let output = timeout(DEADLINE, output).await.expect("`warmd publish` does not end")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What `warmd publish --json` prints.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Published {
    pub artifact: warmd::digest::ArtifactId,
    pub content: String,
    pub generation: u64,
    pub unchanged: bool,
    pub files: u32,
    pub wire_bytes: u64,
    pub new_wire_bytes: u64,
    pub warning: Option<String>,
}

pub fn identity(facts: &[(&str, &str)]) -> SourceIdentity {
    let facts: BTreeMap<String, String> = facts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    SourceIdentity::new(Family::directory(), facts).unwrap()
}

/// Why nothing was installed.
pub fn reason(report: &Report) -> String {
    match &report.verdict {
        Verdict::Nothing { class, detail } => format!("{class}: {detail}"),
        other => panic!("installed: {other:?}"),
    }
}
