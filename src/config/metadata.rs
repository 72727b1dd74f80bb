//! The file of `warmd metadata`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::identity::NodeConfig;
use crate::metadata::registry::Config as Limits;
use crate::metadata::{self, CompatibilityConfig, RedisConfig, Store};
use crate::telemetry::{LogConfig, MetricsSection, TracingConfig};
use crate::web::WebSection;

/// The configuration file of `warmd metadata`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetadataConfig {
    /// Keys and the server's database live here unless told otherwise.
    pub state_dir: PathBuf,
    /// Time from SIGTERM to the end, whatever is still going on.
    #[serde(with = "humantime_serde")]
    pub drain_deadline: Duration,
    pub node: NodeConfig,
    pub server: ServerSection,
    pub redis: RedisConfig,
    pub trust: ServerTrust,
    pub compatibility: CompatibilityConfig,
    pub web: WebSection,
    pub metrics: MetricsSection,
    pub tracing: TracingConfig,
    pub log: LogConfig,
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/warmd-metadata"),
            drain_deadline: Duration::from_secs(10),
            node: NodeConfig::default(),
            server: ServerSection::default(),
            redis: RedisConfig::default(),
            trust: ServerTrust::default(),
            compatibility: CompatibilityConfig::default(),
            web: WebSection::default(),
            metrics: MetricsSection::default(),
            tracing: TracingConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl MetadataConfig {
    pub fn server_config(&self) -> metadata::Config {
        let ServerSection { listen, data, heartbeat, lease, forget, max_nodes, max_connections, max_requests } =
            self.server.clone();
        let registry = Limits { heartbeat, lease, forget, max_nodes, ..Limits::default() };
        let store = match &self.redis.url {
            Some(url) => Store::Shared(url.clone(), self.redis.clone()),
            None => Store::File(data.unwrap_or_else(|| self.state_dir.clone())),
        };
        metadata::Config { store, registry, max_connections, max_requests, ..metadata::Config::new(listen) }
    }
}

/// `[trust]` of a metadata server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerTrust {
    /// Signed root document. With it the server keeps the documents of trust that it can verify, and hands them out.
    pub root: Option<PathBuf>,
}

/// `[server]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSection {
    /// TCP address that agents reach the server at.
    pub listen: SocketAddr,
    /// Directory of the database that bridges a restart. Absent: the state directory. Not used where a store is shared.
    pub data: Option<PathBuf>,
    /// How often nodes renew their leases.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long a node is offered without renewing.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long a node that is gone is remembered.
    #[serde(with = "humantime_serde")]
    pub forget: Duration,
    pub max_nodes: usize,
    pub max_connections: usize,
    /// Requests worked at together; more are told to come again.
    pub max_requests: usize,
}

impl Default for ServerSection {
    fn default() -> Self {
        let limits = Limits::default();
        let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4781));
        let metadata::Config { max_connections, max_requests, .. } = metadata::Config::new(listen);
        let Limits { heartbeat, lease, forget, max_nodes, .. } = limits;
        Self { listen, data: None, heartbeat, lease, forget, max_nodes, max_connections, max_requests }
    }
}
