//! The configuration file of `warmd serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::adapters::{BaseModel, Policy};
use crate::engine::{SupervisionConfig, arguments};
use crate::proxy;
use crate::proxy::auth::AuthConfig;
use crate::proxy::limits::LimitsConfig;
use crate::serve::adapters::AdaptersConfig;
use crate::telemetry::{LogConfig, MetricsSection, TracingConfig};

/// What `warmd serve` can be told beside the engine's own command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServeConfig {
    /// TCP address that clients connect to. Absent: `--host` and `--port` of the engine's command, as vLLM reads them.
    pub listen: Option<SocketAddr>,
    /// Adapters, revocations and the record of the engine's processes. Absent: `serve` beside the caches.
    pub state_dir: Option<PathBuf>,
    /// Unix socket of the admin API. Absent: `admin.sock` in the state directory.
    pub admin: Option<PathBuf>,
    /// From SIGTERM to the end, whatever is still going on.
    #[serde(with = "humantime_serde")]
    pub drain_deadline: Duration,
    pub engine: arguments::Config,
    pub supervision: SupervisionConfig,
    pub adapters: AdaptersConfig,
    pub preparation: Preparation,
    pub proxy: proxy::Config,
    pub auth: AuthConfig,
    pub limits: LimitsConfig,
    pub metrics: MetricsSection,
    pub tracing: TracingConfig,
    pub log: LogConfig,
}

/// `[preparation]`: what is made of adapters before the engine sees them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preparation {
    /// Other names of the served base model, as adapters may say them. The engine's own are known.
    pub base: Vec<BaseModel>,
    /// Directory with the base model's weights. Absent: the engine's `--model`, if it is a directory.
    pub weights: Option<PathBuf>,
    pub policy: Policy,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: None,
            state_dir: None,
            admin: None,
            drain_deadline: Duration::from_secs(60),
            engine: arguments::Config::default(),
            supervision: SupervisionConfig::default(),
            adapters: AdaptersConfig::default(),
            preparation: Preparation::default(),
            proxy: proxy::Config::default(),
            auth: AuthConfig::default(),
            limits: LimitsConfig::default(),
            metrics: MetricsSection::default(),
            tracing: TracingConfig::default(),
            log: LogConfig::default(),
        }
    }
}
