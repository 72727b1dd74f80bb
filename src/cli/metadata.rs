//! `warmd metadata`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use futures_util::future::OptionFuture;

use super::page::Page;
use super::reload::{self, Load, Reloading};
use crate::config::reload::Reloadable;
use crate::config::surroundings::Scope;
use crate::config::{self, Loaded, MetadataConfig, Setting, surroundings};
use crate::identity::trust;
use crate::lifecycle::{self, Hangups};
use crate::metadata::{self, Compatibility, Server};
use crate::telemetry::trace::Exporter;
use crate::telemetry::{self, MetricsServer, Registry};
use crate::web;

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
    /// Address of the page for people, over plain HTTP (`web.listen`); beyond loopback `web.token_file` has its token
    #[arg(long, value_name = "ADDR")]
    web: Option<String>,
}

impl Metadata {
    pub(super) fn load(&self) -> anyhow::Result<Loaded<MetadataConfig>> {
        let text = |flag, name, text: Option<&str>| text.map(|text| Setting::text(flag, name, text));
        let path = |flag, name, path: &Option<PathBuf>| {
            path.as_ref().map(|path| Setting::text(flag, name, &path.display().to_string()))
        };
        let (compatible, serves) = ("WARMD_COMPATIBILITY_LISTEN", "WARMD_COMPATIBILITY_MODEL_EXPRESS");
        let flags = [
            path("--state-dir", "WARMD_STATE_DIR", &self.state_dir),
            text("--listen", "WARMD_SERVER_LISTEN", self.listen.as_deref()),
            text("--redis", "WARMD_REDIS_URL", self.redis.as_deref()),
            text("--drift", "WARMD_REDIS_DRIFT", self.drift.as_deref()),
            path("--trust-root", "WARMD_TRUST_ROOT", &self.trust_root),
            self.model_express.as_ref().map(|_| Setting::flag("--model-express", serves, true.to_string())),
            text("--model-express", compatible, self.model_express.as_deref()),
            text("--metrics", "WARMD_METRICS_LISTEN", self.metrics.as_deref()),
            text("--web", "WARMD_WEB_LISTEN", self.web.as_deref()),
        ];
        let settings = config::settings(std::env::vars(), flags.into_iter().flatten(), &[]);
        Ok(config::read(self.config.as_deref(), settings)?)
    }

    pub(super) fn run(self, level: Option<String>) -> anyhow::Result<ExitCode> {
        let load: Load<MetadataConfig> = Arc::new(move || {
            let mut config = self.load()?.config;
            if let Some(level) = &level {
                config.log.level.clone_from(level);
            }
            Ok(config)
        });
        let config = load()?;
        let exporter = telemetry::init(&config.log, &config.tracing, "warmd-metadata")?;
        surroundings::require(surroundings::metadata(&config, Scope::Start))?;
        super::runtime()?.block_on(async {
            let exporting = exporter.map(Exporter::run);
            let ended = serve(config, load).await;
            if let Some(exporting) = exporting {
                exporting.shutdown(super::LAST_EXPORT).await;
            }
            ended
        })
    }
}

async fn serve(config: MetadataConfig, load: Load<MetadataConfig>) -> anyhow::Result<ExitCode> {
    let mut registry = Registry::of_process();
    let page_metrics = web::Metrics::register(&mut registry);
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
    let page = Page::of_fleet(&config.web, server.fleet(), page_metrics).await?;
    let tell_config = |config: &MetadataConfig| page.iter().for_each(|page| page.configured(config));
    tell_config(&config);
    let terminated = lifecycle::termination().context("wait for signals")?;
    let hangups = Hangups::listen().context("wait for signals")?;
    let tell = |ready| metrics.iter().for_each(|metrics| metrics.set_ready(ready));
    tell(true);
    tracing::info!(addr = %server.addr(), "metadata server ready");
    let reloading = Reloading { hangups, load, current: config.clone(), reloadable: Reloadable::METADATA };
    let reloading = reloading.follow(async |config: &MetadataConfig| {
        tls.take(tls.read_again(&config.node, &config.state_dir)?);
        tell_config(config);
        reload::take_telemetry(&config.log, &config.tracing)
    });
    tokio::select! {
        () = terminated => {}
        () = reloading => {}
    }
    tell(false);
    let ended = compatibility.map(|compatibility| compatibility.shutdown(config.drain_deadline));
    tokio::join!(server.shutdown(config.drain_deadline), OptionFuture::from(ended));
    if let Some(page) = page {
        page.shutdown().await;
    }
    if let Some(metrics) = metrics {
        metrics.shutdown(std::time::Duration::from_millis(100)).await;
    }
    Ok(ExitCode::SUCCESS)
}
