//! `warmd agent`: the node daemon, and in a pod that is everything in one the engine and its proxy too.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::Args;

use super::page::Page;
use super::pod::{self, Caches};
use super::reload::{self, Load, Reloading};
use super::serve;
use crate::agent::Agent as Daemon;
use crate::config::reload::Reloadable;
use crate::config::surroundings::Scope;
use crate::config::{AgentFile, EngineSection, Loaded, ServedEngine, Setting, surroundings};
use crate::identity::TrustConfig;
use crate::install::Limits;
use crate::lifecycle::Hangups;
use crate::serve::serving::{Backend, ServeConfig, Serving};
use crate::serve::start::Spec;
use crate::telemetry::trace::Exporter;
use crate::{config, lifecycle, telemetry};

#[derive(Debug, Args)]
pub(super) struct Agent {
    #[command(flatten)]
    pub(super) options: Options,
}

/// The file and what overrides it; everything else is set in the file or by `WARMD_SECTION_KEY`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Configuration file (TOML); see `warmd config example agent`
    #[arg(long, env = "WARMD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keys, store and memory of the node (`state_dir`)
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Address that peers reach this node at, over UDP and TCP (`transport.listen`)
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Metadata servers, each `HOST:PORT` or `NODE_ID@HOST:PORT`, with commas or repeated (`metadata.servers`)
    #[arg(long, value_name = "SERVERS", value_delimiter = ',')]
    metadata: Vec<String>,
    /// Who is asked for holders: `server`, `hybrid` or `serverless` (`discovery.mode`)
    #[arg(long, value_name = "MODE")]
    discovery: Option<String>,
    /// Another agent to begin with, `HOST:PORT` (TCP); may be repeated (`discovery.bootstrap`)
    #[arg(long, value_name = "ADDR")]
    bootstrap: Vec<String>,
    /// Unix socket of the local API (`local.socket`)
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Trust policy (`trust.policy`)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Signed root document: the policy comes from metadata servers (`trust.root`)
    #[arg(long, value_name = "FILE")]
    trust_root: Option<PathBuf>,
    /// Private key that signs what this node publishes (`signer`)
    #[arg(long, value_name = "FILE")]
    signer: Option<PathBuf>,
    /// Address of /metrics (`metrics.listen`)
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
    /// Address of the page for people, over plain HTTP (`web.listen`); beyond loopback `web.token_file` has its token
    #[arg(long, value_name = "ADDR")]
    web: Option<String>,
}

impl Options {
    pub(super) fn load(&self) -> anyhow::Result<Loaded<AgentFile>> {
        let settings = config::settings(std::env::vars(), self.settings(), &[]);
        Ok(config::read(self.config.as_deref(), settings)?)
    }

    fn settings(&self) -> Vec<Setting> {
        let text = |flag, name, text: Option<&str>| text.map(|text| Setting::text(flag, name, text));
        let path = |flag, name, path: &Option<PathBuf>| {
            path.as_ref().map(|path| Setting::text(flag, name, &path.display().to_string()))
        };
        let list = |flag, name, texts: &[String]| {
            let quoted: Vec<_> = texts.iter().map(|text| toml::Value::String(text.clone()).to_string()).collect();
            (!quoted.is_empty()).then(|| Setting::flag(flag, name, format!("[{}]", quoted.join(", "))))
        };
        let flags = [
            path("--state-dir", "WARMD_STATE_DIR", &self.state_dir),
            text("--listen", "WARMD_TRANSPORT_LISTEN", self.listen.as_deref()),
            list("--metadata", "WARMD_METADATA_SERVERS", &self.metadata),
            text("--discovery", "WARMD_DISCOVERY_MODE", self.discovery.as_deref()),
            list("--bootstrap", "WARMD_DISCOVERY_BOOTSTRAP", &self.bootstrap),
            path("--socket", "WARMD_LOCAL_SOCKET", &self.socket),
            path("--policy", "WARMD_TRUST_POLICY", &self.policy),
            path("--trust-root", "WARMD_TRUST_ROOT", &self.trust_root),
            path("--signer", "WARMD_SIGNER", &self.signer),
            text("--metrics", "WARMD_METRICS_LISTEN", self.metrics.as_deref()),
            text("--web", "WARMD_WEB_LISTEN", self.web.as_deref()),
        ];
        flags.into_iter().flatten().collect()
    }
}

impl Agent {
    pub(super) fn run(self, level: Option<String>) -> anyhow::Result<ExitCode> {
        let load: Load<AgentFile> = Arc::new(move || {
            let mut file = self.options.load()?.config;
            if let Some(level) = &level {
                file.agent.log.level.clone_from(level);
            }
            Ok(file)
        });
        let file = load()?;
        let exporter = telemetry::init(&file.agent.log, &file.agent.tracing, "warmd-agent")?;
        surroundings::require(surroundings::agent(&file, Scope::Start))?;
        super::runtime()?.block_on(async {
            let exporting = exporter.map(Exporter::run);
            let ended = run(file, load).await;
            if let Some(exporting) = exporting {
                exporting.shutdown(super::LAST_EXPORT).await;
            }
            ended.map(|()| ExitCode::SUCCESS)
        })
    }
}

async fn run(file: AgentFile, load: Load<AgentFile>) -> anyhow::Result<()> {
    let terminated = lifecycle::termination().context("wait for signals")?;
    let hangups = Hangups::listen().context("wait for signals")?;
    let AgentFile { agent: config, served } = file.clone();
    let trust = config.trust.clone();
    // Without an agent there is nothing to start an engine warm with.
    let agent = Daemon::start(config).await?;
    let page = Page::of_node(&file.agent.web, agent.view(), agent.page_metrics()).await?;
    let ended = match serve_engine(served, agent.socket(), &trust).await {
        Ok(serving) => {
            let reloading = Reloading { hangups, load, current: file, reloadable: Reloadable::AGENT };
            let reloading = reloading.follow(async |file: &AgentFile| take(&agent, serving.as_ref(), file).await);
            let ended = tokio::select! {
                () = terminated => Ok(()),
                last = crash_loop(serving.as_ref()) => {
                    Err(anyhow!("the engine is in a crash loop, and this process ends with it: {last}"))
                }
                () = reloading => Ok(()),
            };
            // Peers may still ask the agent when the engine has ended.
            if let Some(serving) = serving {
                serving.shutdown().await;
            }
            ended
        }
        Err(error) => Err(error),
    };
    if let Some(page) = page {
        page.shutdown().await;
    }
    agent.shutdown().await;
    ended
}

/// All that the file names is read before anything of it is in force.
async fn take(agent: &Daemon, serving: Option<&Serving>, file: &AgentFile) -> anyhow::Result<()> {
    let served = serving.zip(file.served.as_ref());
    let keys = match served {
        Some((serving, _)) => Some(serving.read_again().await?),
        None => None,
    };
    agent.take(agent.read_again(&file.agent).await?);
    if let Some((keys, (serving, served))) = keys.zip(served) {
        serving.take(keys, &served.serve);
    }
    reload::take_telemetry(&file.agent.log, &file.agent.tracing)
}

/// In a pod that is everything in one.
async fn serve_engine(
    served: Option<ServedEngine>,
    agent: &Path,
    trust: &TrustConfig,
) -> anyhow::Result<Option<Serving>> {
    let Some(ServedEngine { engine, serve: config }) = served else { return Ok(None) };
    let backend = Backend::Own(spec(engine, agent, trust, &config));
    serve::start(config, backend, false).await.map(Some)
}

/// Completes with the reason when the engine cannot be kept running.
async fn crash_loop(serving: Option<&Serving>) -> String {
    match serving {
        Some(serving) => serving.crash_loop().await,
        None => std::future::pending().await,
    }
}

fn spec(engine: EngineSection, agent: &Path, trust: &TrustConfig, config: &ServeConfig) -> Spec {
    let EngineSection { command, cache_root, python, image_digest, budget, reserve_bytes, publish, quiet } = engine;
    Spec {
        trust: pod::trust(trust, cache_root.as_deref()),
        target: Caches::new(cache_root, python).target(agent.to_owned(), image_digest, command),
        budget,
        limits: Limits { reserve_bytes, max_bytes: u64::MAX },
        ready_url: None,
        ready_timeout: config.supervision.ready_timeout,
        publish_after: publish.then_some(quiet),
        grace: config.supervision.grace,
    }
}
