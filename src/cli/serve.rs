//! `warmd serve`: an engine that is kept warm and running, behind a proxy that brings adapters on demand.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgGroup, Args};

use super::exec::READY_TIMEOUT;
use super::pod::Pod;
use super::reload::{self, Load, Reloading};
use super::{aliases, output};
use crate::config::reload::Reloadable;
use crate::config::surroundings::Scope;
use crate::config::{Setting, surroundings};
use crate::engine::{Address, Secret};
use crate::install::Limits;
use crate::lifecycle::Hangups;
use crate::serve::Say;
use crate::serve::serving::{Backend, ServeConfig, Serving};
use crate::serve::start::Spec;
use crate::telemetry::trace::Exporter;
use crate::{config, lifecycle, telemetry};

/// Of an engine that somebody else runs; on the command line everybody could read it.
const ENGINE_KEY: &str = "VLLM_API_KEY";

/// Flags of this command that look like keys of a configuration file.
pub(super) const FLAGS: [&str; 3] = ["WARMD_TRUST_POLICY", "WARMD_TRUST_ROOT", "WARMD_LOG_LEVEL"];

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("engine").args(["attach", "command"]).required(true))]
pub(super) struct Serve {
    #[command(flatten)]
    pod: Pod,
    /// Configuration file (TOML); see `warmd config example serve`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// TCP address that clients connect to; absent: --host and --port of the engine's command, or port 8000 everywhere
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Adapters and what else outlives this process; absent: `serve` beside the caches
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Address of /metrics
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// Let everybody in who reaches the address
    #[arg(long)]
    anonymous: bool,
    /// Serve an engine that somebody else runs, at http://HOST:PORT or unix:PATH; its key, if it has one, is in VLLM_API_KEY
    #[arg(long, value_name = "URL")]
    attach: Option<String>,
    /// Time for everything before the engine
    #[arg(long, env = "WARMD_BUDGET", default_value = "30s", value_parser = humantime::parse_duration)]
    budget: Duration,
    /// Bytes that stay free on the file systems of caches and adapters
    #[arg(long, default_value_t = 1 << 30)]
    reserve_bytes: u64,
    /// An engine that is not ready by then is started again [default: 1h]
    #[arg(long, env = "WARMD_READY_TIMEOUT", value_parser = humantime::parse_duration)]
    ready_timeout: Option<Duration>,
    /// Publish once nothing was written to the caches for this long
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    quiet: Duration,
    /// Install, but publish nothing
    #[arg(long)]
    no_publish: bool,
    /// The engine's command, such as `-- vllm serve MODEL --enable-lora`
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Serve {
    pub(super) fn run(mut self, level: Option<String>) -> anyhow::Result<ExitCode> {
        self.pod.caches.take_aliases();
        let (file, flags) = (self.config.clone(), self.settings());
        let load: Load<ServeConfig> = Arc::new(move || {
            let settings = config::settings(std::env::vars(), flags.clone(), &FLAGS);
            let mut config: ServeConfig = config::load(file.as_deref(), settings)?;
            if let Some(level) = &level {
                config.log.level.clone_from(level);
            }
            Ok(config)
        });
        let config = load()?;
        let exporter = telemetry::init(&config.log, &config.tracing, "warmd-serve")?;
        surroundings::require(surroundings::serve(&config, Scope::Start))?;
        self.pod.check_policy()?;
        let anonymous = self.anonymous;
        let backend = self.backend(&config)?;
        super::runtime()?.block_on(async {
            let exporting = exporter.map(Exporter::run);
            let ended = serve(config, backend, anonymous, load).await;
            if let Some(exporting) = exporting {
                exporting.shutdown(super::LAST_EXPORT).await;
            }
            ended.map(|()| ExitCode::SUCCESS)
        })
    }

    fn settings(&self) -> Vec<Setting> {
        let state_dir = self.state_dir.as_ref().map(|path| path.display().to_string());
        let flags = [
            ("--listen", "WARMD_LISTEN", self.listen.map(|addr| addr.to_string())),
            ("--state-dir", "WARMD_STATE_DIR", state_dir),
            ("--metrics", "WARMD_METRICS_LISTEN", self.metrics.map(|addr| addr.to_string())),
        ];
        flags.into_iter().filter_map(|(flag, name, text)| Some(Setting::text(flag, name, &text?))).collect()
    }

    fn backend(self, config: &ServeConfig) -> anyhow::Result<Backend> {
        let (trust, socket) = (self.pod.trust(), self.pod.socket().to_owned());
        let limits = Limits { reserve_bytes: self.reserve_bytes, max_bytes: u64::MAX };
        if let Some(url) = &self.attach {
            let key = std::env::var(ENGINE_KEY).ok().filter(|key| !key.is_empty());
            let key = key.map(|key| Secret::new(&key)).transpose().context(ENGINE_KEY)?;
            return Ok(Backend::Attached { address: address(url)?, key, socket, trust, limits });
        }
        let publishes = !self.no_publish && !self.pod.caches.is_off();
        let ready_timeout = aliases::READY_TIMEOUT.or(self.ready_timeout).unwrap_or(READY_TIMEOUT);
        Ok(Backend::Own(Spec {
            target: self.pod.target(self.command),
            trust,
            budget: self.budget,
            limits,
            ready_url: None,
            ready_timeout: ready_timeout.min(config.supervision.ready_timeout),
            publish_after: publishes.then_some(self.quiet),
            grace: config.supervision.grace,
        }))
    }
}

async fn serve(config: ServeConfig, backend: Backend, anonymous: bool, load: Load<ServeConfig>) -> anyhow::Result<()> {
    let terminated = lifecycle::termination().context("wait for signals")?;
    let hangups = Hangups::listen().context("wait for signals")?;
    let serving = start(config.clone(), backend, anonymous).await?;
    let reloading = Reloading { hangups, load, current: config, reloadable: Reloadable::SERVE };
    let reloading = reloading.follow(async |config: &ServeConfig| {
        serving.take(serving.read_again().await?, config);
        reload::take_telemetry(&config.log, &config.tracing)
    });
    tokio::select! {
        () = terminated => {}
        () = reloading => {}
    }
    serving.shutdown().await;
    Ok(())
}

/// Starts what is served, and tells the user what there is to tell.
pub(super) async fn start(config: ServeConfig, backend: Backend, anonymous: bool) -> anyhow::Result<Serving> {
    let say: Say = Arc::new(|line| output::note(format!("warmd: {}", output::plain(line))));
    Ok(Serving::start(config, backend, anonymous, say).await?)
}

fn address(url: &str) -> anyhow::Result<Address> {
    if let Some(path) = url.strip_prefix("unix:") {
        return Ok(Address::Uds(PathBuf::from(path)));
    }
    let rest = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let resolved = rest.to_socket_addrs().ok().and_then(|mut all| all.next());
    resolved.map(Address::Tcp).with_context(|| format!("--attach {url}: expected http://HOST:PORT or unix:PATH"))
}
