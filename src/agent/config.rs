//! What the file of `warmd agent` says.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::discovery::DiscoveryConfig;
use crate::identity::{NodeConfig, TrustConfig};
use crate::local::SocketConfig;
use crate::metadata::ClientConfig;
use crate::origin::OriginConfig;
use crate::protocol::metadata::Locality;
use crate::telemetry::{LogConfig, MetricsSection, TracingConfig};
use crate::transfer::ProvideConfig;
use crate::transport::TransportConfig;
use crate::web::WebSection;

/// The configuration file of `warmd agent`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Keys, the store and what the node remembers live here unless told otherwise.
    pub state_dir: PathBuf,
    /// Key that signs what this node publishes. Absent: the node publishes nothing.
    pub signer: Option<PathBuf>,
    /// Addresses under which peers reach this node. Absent: the address of the route to the metadata server,
    /// or to a bootstrap agent.
    pub advertise: Vec<SocketAddr>,
    /// Time from SIGTERM to the end, whatever is still going on.
    #[serde(with = "humantime_serde")]
    pub drain_deadline: Duration,
    /// A fetch that takes longer is given up; what arrived is kept.
    #[serde(with = "humantime_serde")]
    pub fetch_deadline: Duration,
    pub node: NodeConfig,
    pub trust: TrustConfig,
    pub store: StoreSection,
    pub transport: TransportConfig,
    pub provide: ProvideConfig,
    pub metadata: ClientConfig,
    pub discovery: DiscoveryConfig,
    pub locality: Locality,
    pub origin: OriginConfig,
    pub local: SocketConfig,
    pub gpu: GpuSection,
    pub web: WebSection,
    pub metrics: MetricsSection,
    pub tracing: TracingConfig,
    pub log: LogConfig,
}

/// `[store]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Absent: `store` in the state directory.
    pub directory: Option<PathBuf>,
    /// Most bytes of chunks. Absent: only the disk bounds it.
    pub max_bytes: Option<u64>,
    /// Bytes that stay free on the file system. Absent: 5 GiB or 5 % of it, whichever is smaller.
    pub reserve_bytes: Option<u64>,
}

/// `[gpu]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuSection {
    /// Whether it is told what the node's GPUs do. True.
    pub enabled: bool,
    /// The program that tells. Absent: `nvidia-smi`, where it is in `PATH`.
    pub program: Option<PathBuf>,
}

impl Default for GpuSection {
    fn default() -> Self {
        Self { enabled: true, program: None }
    }
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/warmd"),
            signer: None,
            advertise: Vec::new(),
            drain_deadline: Duration::from_secs(20),
            fetch_deadline: Duration::from_secs(600),
            node: NodeConfig::default(),
            trust: TrustConfig::default(),
            store: StoreSection::default(),
            transport: TransportConfig::default(),
            provide: ProvideConfig::default(),
            metadata: ClientConfig::default(),
            discovery: DiscoveryConfig::default(),
            locality: Locality::default(),
            origin: OriginConfig::default(),
            local: SocketConfig::default(),
            gpu: GpuSection::default(),
            web: WebSection::default(),
            metrics: MetricsSection::default(),
            tracing: TracingConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl AgentConfig {
    /// What the agent publishes for nobody: where its keys and its store are.
    pub(super) fn private(&self) -> Vec<PathBuf> {
        let key = self.node.key.clone().into_iter();
        [self.state_dir.clone(), self.store_directory()].into_iter().chain(self.signer.clone()).chain(key).collect()
    }

    fn store_directory(&self) -> PathBuf {
        self.store.directory.clone().unwrap_or_else(|| self.state_dir.join("store"))
    }

    pub(super) fn store_config(&self) -> crate::store::Config {
        crate::store::Config {
            max_bytes: self.store.max_bytes,
            reserve_bytes: self.store.reserve_bytes,
            ..crate::store::Config::new(self.store_directory())
        }
    }
}
