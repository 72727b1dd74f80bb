//! `warmd metadata`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use futures_util::future::OptionFuture;
use prometheus_client::registry::Registry;

use super::agent::quoted;
use crate::config::{self, MetadataConfig};
use crate::identity::trust;
use crate::lifecycle;
use crate::metadata::{self, Compatibility, Server};
use crate::telemetry::{self, MetricsServer};

#[derive(Debug, Args)]
pub(super) struct Metadata {
    /// Configuration file (TOML); see `warmd config example metadata`
    #[arg(long, env = "WARMD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keys of the server and its database (`state_dir`)
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// TCP address to serve on (`server.listen`)
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Store that several servers share, `redis://HOST:PORT` or `unix:///PATH` (`redis.url`)
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// What to do where this server's settings differ from the cluster's: warn, abort or adopt (`redis.drift`)
    #[arg(long, value_name = "WHAT")]
    drift: Option<String>,
    /// Signed root document: documents of trust that it verifies are kept and handed out (`trust.root`)
    #[arg(long, value_name = "FILE")]
    trust_root: Option<PathBuf>,
    /// Serve ModelExpress's P2pService to weight clients at this TCP address, in plaintext and without authentication
    /// (`compatibility.model_express`, `compatibility.listen`)
    #[arg(long, value_name = "ADDR")]
    model_express: Option<String>,
    /// Address of /metrics (`metrics.listen`)
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
}

impl Metadata {
    fn load(&self) -> anyhow::Result<MetadataConfig> {
        let flags = [
            ("WARMD_STATE_DIR", self.state_dir.as_ref().map(|path| quoted(&path.display().to_string()))),
            ("WARMD_SERVER_LISTEN", self.listen.as_deref().map(quoted)),
            ("WARMD_REDIS_URL", self.redis.as_deref().map(quoted)),
            ("WARMD_REDIS_DRIFT", self.drift.as_deref().map(quoted)),
            ("WARMD_TRUST_ROOT", self.trust_root.as_ref().map(|path| quoted(&path.display().to_string()))),
            ("WARMD_COMPATIBILITY_MODEL_EXPRESS", self.model_express.as_ref().map(|_| true.to_string())),
            ("WARMD_COMPATIBILITY_LISTEN", self.model_express.as_deref().map(quoted)),
            ("WARMD_METRICS_LISTEN", self.metrics.as_deref().map(quoted)),
        ];
        let flags = flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Ok(config::load(self.config.as_deref(), config::overridden(std::env::vars(), flags))?)
    }

    pub(super) fn run(self, level: Option<String>) -> anyhow::Result<ExitCode> {
        let mut config = self.load()?;
        if let Some(level) = level {
            config.log.level = level;
        }
        telemetry::init(&config.log).context("log.level")?;
        super::runtime()?.block_on(serve(config))
    }
}

async fn serve(config: MetadataConfig) -> anyhow::Result<ExitCode> {
    let mut registry = Registry::default();
    let tls = config.node.tls(&config.state_dir)?;
    let trust = config.trust.root.as_deref().map(trust::read_root).transpose()?;
    let server_config = metadata::Config { trust, ..config.server_config() };
    let server = Server::bind(server_config, &tls, &mut registry).await?;
    let compatibility = match config.compatibility.model_express {
        true => Some(Compatibility::bind(&config.compatibility, &mut registry).await?),
        false => None,
    };
    let metrics = match config.metrics.listen {
        Some(addr) => Some(
            MetricsServer::bind(addr, Arc::new(registry)).await.with_context(|| format!("serve metrics on {addr}"))?,
        ),
        None => None,
    };
    let terminated = lifecycle::termination().context("wait for signals")?;
    let tell = |ready| metrics.iter().for_each(|metrics| metrics.set_ready(ready));
    tell(true);
    tracing::info!(addr = %server.addr(), "metadata server ready");
    terminated.await;
    tell(false);
    let ended = compatibility.map(|compatibility| compatibility.shutdown(config.drain_deadline));
    tokio::join!(server.shutdown(config.drain_deadline), OptionFuture::from(ended));
    if let Some(metrics) = metrics {
        metrics.shutdown(std::time::Duration::from_millis(100)).await;
    }
    Ok(ExitCode::SUCCESS)
}
