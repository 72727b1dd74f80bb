//! `warmd serve` in this process, an engine behind it, and a fleet that has adapters.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::MutexGuard;
use tokio::time::timeout;
use warmd::adapters::{Address, Release};
use warmd::artifact::Provenance;
use warmd::caches::CacheFamily;
use warmd::digest::{ArtifactId, ContentId, IdentityId};
use warmd::engine::arguments::Adapters;
use warmd::engine::{self, Secret};
use warmd::identity::{TrustClass, TrustConfig};
use warmd::install::Limits;
use warmd::local::{Content, Publication, builder};
use warmd::serve::Target;
use warmd::serve::push::push;
use warmd::serve::serving::{Backend, ServeConfig, Serving};
use warmd::serve::start::Spec;
use warmd::serve::trust::Trust;

pub use super::cluster::until;
use super::cluster::{Cluster, DEADLINE, Node};
use super::engine::alone;
use super::http::{Connection, Reply, Stream};
use super::vllm::program_in;

/// An adapter as somebody trained it, and what is signed of it.
pub struct Adapter {
    alias: String,
    config: Value,
    weights: Vec<u8>,
    base: String,
    owner: Option<Address>,
}

impl Adapter {
    /// A good one of rank 8; `fill` tells versions apart.
    pub fn new(alias: &str, fill: u8) -> Self {
        let layer = "base_model.model.model.layers.0.self_attn.q_proj";
        let tensor =
            |shape: [u64; 2], at: u64| json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 512]});
        let (a, b) = (format!("{layer}.lora_A.weight"), format!("{layer}.lora_B.weight"));
        let header = json!({a: tensor([8, 32], 0), b: tensor([32, 8], 512)}).to_string();
        let mut weights = (header.len() as u64).to_le_bytes().to_vec();
        weights.extend_from_slice(header.as_bytes());
        weights.extend([fill; 1024]);
        let config = json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"],
            "base_model_name_or_path": "base",
        });
        Self { alias: alias.to_owned(), config, weights, base: "base".to_owned(), owner: None }
    }

    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    pub fn with_weights(self, weights: &[u8]) -> Self {
        Self { weights: weights.to_vec(), ..self }
    }

    /// What the adapter itself says and what is signed.
    pub fn for_base(self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self.with("base_model_name_or_path", json!(base)) }
    }

    pub fn owned_by(self, address: &str) -> Self {
        Self { owner: Some(address.parse().unwrap()), ..self }
    }
}

/// A cluster: a node where adapters are published, and the one that serves.
pub struct Fleet {
    pub cluster: Cluster,
    pub trainer: Option<Node>,
    pub agent: Option<Node>,
    /// Of the server.
    pub trust: Trust,
    program: PathBuf,
}

impl Fleet {
    pub async fn start() -> Self {
        let cluster = Cluster::start().await;
        let (trainer, agent) = (Some(cluster.agent("trainer").await), Some(cluster.agent("pod").await));
        let program = program_in(cluster.dir.path());
        let trust = TrustConfig { policy: Some(cluster.policy_path()), ..TrustConfig::default() };
        Self { trust: Trust::file(trust), cluster, trainer, agent, program }
    }

    /// Returns once the node that serves hears of it, by what everybody asks for it.
    pub async fn publish(&self, adapter: Adapter) -> IdentityId {
        let Adapter { alias, config, weights, base, owner } = adapter;
        let directory = self.cluster.path(&format!("{alias}-trained"));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("adapter_config.json"), config.to_string()).unwrap();
        std::fs::write(directory.join("adapter_model.safetensors"), weights).unwrap();
        let release = Release {
            alias: alias.parse().unwrap(),
            base: base.parse().unwrap(),
            content: ContentId::try_from(&[0; 32][..]).unwrap(),
            rank: 8,
            dora: config["use_dora"] == true,
            owner,
            provenance: None,
        };
        let identity = release.identity().unwrap();
        let publication = Publication {
            directory,
            identity: identity.clone(),
            class: TrustClass::Data,
            subject: alias,
            attributes: release.attributes(),
            provenance: Provenance { builder: builder(), ..Provenance::default() },
            content: Content::Family { family: CacheFamily::by_name("lora").unwrap(), settled_by: None },
            expires: None,
        };
        let published = push(&self.trainer.as_ref().unwrap().client, publication, |_| ()).await.unwrap();
        let artifact = ArtifactId::try_from(&published.artifact_id[..]).unwrap();
        let ids = [identity.id()];
        until("the adapter is not offered", async || {
            let found = self.agent.as_ref().unwrap().client.find(&ids).await.unwrap().found;
            found.iter().any(|one| one.artifact_id[..] == artifact.as_bytes()[..])
        })
        .await;
        identity.id()
    }

    /// Nothing can be fetched or looked up any more.
    pub async fn end_agents(&mut self) {
        for node in [self.trainer.take(), self.agent.take()].into_iter().flatten() {
            node.stop().await;
        }
    }

    /// Listens anywhere on loopback; nothing waits for long.
    pub fn config(&self) -> ServeConfig {
        let mut config = ServeConfig {
            listen: Some(([127, 0, 0, 1], 0).into()),
            state_dir: Some(self.cluster.path("serve")),
            drain_deadline: DEADLINE,
            ..ServeConfig::default()
        };
        config.proxy.notice = Duration::ZERO;
        config.supervision.backoff_first = Duration::from_millis(1);
        config.supervision.backoff_most = Duration::from_millis(10);
        let adapters = &mut config.adapters;
        (adapters.refresh, adapters.unknown_for) = (Duration::from_millis(50), Duration::from_millis(50));
        (adapters.grace, adapters.patience) = (Duration::from_millis(50), DEADLINE);
        config
    }

    fn socket(&self) -> PathBuf {
        self.cluster.config("pod").local.socket
    }

    /// `vllm serve base --enable-lora` and `more`, separated by spaces.
    pub async fn serve(&self, config: ServeConfig, more: &str) -> Served {
        let alone = alone().await;
        let spec = self.spec(more, config.supervision.grace);
        Served::start(config, Backend::Own(spec), Some(alone)).await
    }

    /// Why it does not start.
    pub async fn refused(&self, config: ServeConfig) -> String {
        let backend = Backend::Own(self.spec("", config.supervision.grace));
        Serving::start(config, backend, false, Arc::new(|_| ())).await.err().unwrap().to_string()
    }

    /// `vllm serve base --enable-lora` and `more`, as words.
    pub fn command(&self, more: &str) -> Vec<String> {
        let line = format!("serve base --enable-lora --fake-lifetime 600 {more}");
        let program = self.program.display().to_string();
        std::iter::once(program).chain(line.split_whitespace().map(str::to_owned)).collect()
    }

    fn spec(&self, more: &str, grace: Duration) -> Spec {
        let target = Target {
            command: self.command(more),
            python: None,
            root: Some(self.cluster.path("caches")),
            socket: self.socket(),
            facts_cache: None,
            image: None,
            changes: Vec::new(),
        };
        Spec {
            target,
            trust: self.trust.clone(),
            budget: DEADLINE,
            limits: Limits { reserve_bytes: 0, max_bytes: u64::MAX },
            ready_url: None,
            ready_timeout: DEADLINE,
            publish_after: None,
            grace,
        }
    }

    /// In front of an engine at `address`, whose key is `engine-key`.
    pub async fn attach(&self, mut config: ServeConfig, address: engine::Address) -> Served {
        config.engine.adapters = Some(Adapters::default());
        let (key, trust) = (Some(Secret::new("engine-key").unwrap()), self.trust.clone());
        let limits = Limits { reserve_bytes: 0, max_bytes: u64::MAX };
        Served::start(config, Backend::Attached { address, key, socket: self.socket(), trust, limits }, None).await
    }
}

/// A running server. What is asked is asked over sockets.
pub struct Served {
    pub serving: Serving,
    pub addr: SocketAddr,
    pub state: PathBuf,
    _alone: Option<MutexGuard<'static, ()>>,
}

impl Served {
    async fn start(config: ServeConfig, backend: Backend, alone: Option<MutexGuard<'static, ()>>) -> Self {
        let state = config.state_dir.clone().unwrap();
        let serving = Serving::start(config, backend, false, Arc::new(|_| ())).await.unwrap();
        Self { addr: serving.addr(), serving, state, _alone: alone }
    }

    pub async fn shutdown(self) {
        timeout(DEADLINE * 2, self.serving.shutdown()).await.expect("it does not end");
    }

    pub async fn connect(&self, bearer: Option<&str>) -> Connection {
        Connection::tcp(self.addr, bearer).await.unwrap()
    }

    pub async fn get(&self, bearer: Option<&str>, path: &str) -> Reply {
        self.connect(bearer).await.ask(Method::GET, path, "").await.unwrap()
    }

    pub async fn complete_as(&self, bearer: Option<&str>, body: &Value) -> Reply {
        let mut connection = self.connect(bearer).await;
        connection.ask(Method::POST, "/v1/completions", &body.to_string()).await.unwrap()
    }

    /// Waits for the model.
    pub async fn complete(&self, model: &str) -> Reply {
        self.complete_as(None, &waiting(model)).await
    }

    pub async fn complete_once_ready(&self, model: &str) -> Reply {
        self.ready().await;
        self.complete(model).await
    }

    /// A stream of so many words that has begun.
    pub async fn stream(&self, model: &str, words: u64) -> Stream {
        let body = json!({"model": model, "prompt": "p", "max_tokens": words, "stream": true, "wait_for_model": true});
        let mut connection = self.connect(None).await;
        let mut stream = connection.begin(Method::POST, "/v1/completions", &body.to_string()).await.unwrap();
        assert!(stream.status == 200 && stream.piece().await.unwrap().unwrap().contains("kv="));
        stream.on(connection)
    }

    pub async fn admin(&self, method: Method, path: &str, body: &str) -> Reply {
        let mut connection = Connection::unix(&self.state.join("admin.sock"), None).await.unwrap();
        connection.ask(method, path, body).await.unwrap()
    }

    pub async fn health(&self) -> Value {
        self.admin(Method::GET, "/admin/v1/health", "").await.json()
    }

    /// Requests that the engine works on, and requests that wait.
    pub async fn requests(&self) -> (u64, u64) {
        let requests = &self.health().await["requests"];
        (requests["in_flight"].as_u64().unwrap(), requests["waiting"].as_u64().unwrap())
    }

    pub async fn ready(&self) {
        until("the engine does not become ready", async || self.get(None, "/health").await.status == 200).await;
    }

    /// The engine's process id, and the life it is in.
    pub async fn leader(&self) -> (i32, u64) {
        self.leader_if_any().await.unwrap()
    }

    pub async fn leader_if_any(&self) -> Option<(i32, u64)> {
        let engine = &self.health().await["engine"];
        Some((engine["leader"].as_i64()? as i32, engine["epoch"].as_u64()?))
    }

    /// The key of the engine, as its own process knows it.
    pub async fn engine_key(&self) -> String {
        let environment = std::fs::read(format!("/proc/{}/environ", self.leader().await.0)).unwrap();
        let variables = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let mut keys = variables.filter_map(|variable| Some(variable.strip_prefix("VLLM_API_KEY=")?.to_owned()));
        keys.next().unwrap()
    }

    /// Past the proxy.
    pub async fn engine(&self, path: &str) -> Value {
        ask_engine(&self.state.join("engine.sock"), &self.engine_key().await, path).await
    }
}

/// A request of a few words that waits for its model.
pub fn waiting(model: &str) -> Value {
    json!({"model": model, "prompt": "p", "max_tokens": 4, "wait_for_model": true})
}

pub async fn ask_engine(socket: &Path, key: &str, path: &str) -> Value {
    let mut connection = Connection::unix(socket, Some(key)).await.unwrap();
    connection.ask(Method::GET, path, "").await.unwrap().json()
}

/// Names and directories of the adapters in the engine's list.
pub fn registered(models: &Value) -> Vec<(String, PathBuf)> {
    let text = |card: &Value, key: &str| card[key].as_str().unwrap_or_default().to_owned();
    let cards = models["data"].as_array().unwrap().iter().filter(|card| card["parent"].is_string());
    cards.map(|card| (text(card, "id"), text(card, "root").into())).collect()
}

/// Every path below a directory in which others write: what has gone meanwhile is left out.
pub fn paths(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        let entries = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.unwrap(),
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}
