//! `warmd agent`: the node daemon, and in a pod that is everything in one the engine and its proxy too.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Args;

use super::page;
use super::pod::{self, Caches};
use super::serve;
use crate::agent::Agent as Daemon;
use crate::config::{AgentFile, EngineSection, ServedEngine};
use crate::identity::TrustConfig;
use crate::install::Limits;
use crate::serve::serving::{Backend, ServeConfig};
use crate::serve::start::Spec;
use crate::web::LiveBoard;
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
    pub(super) fn load(&self) -> anyhow::Result<AgentFile> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| quoted(&path.display().to_string()));
        let list = |texts: &[String]| {
            let quoted: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
            (!quoted.is_empty()).then(|| format!("[{}]", quoted.join(", ")))
        };
        let flags = [
            ("WARMD_STATE_DIR", path(&self.state_dir)),
            ("WARMD_TRANSPORT_LISTEN", self.listen.as_deref().map(quoted)),
            ("WARMD_METADATA_SERVERS", list(&self.metadata)),
            ("WARMD_DISCOVERY_MODE", self.discovery.as_deref().map(quoted)),
            ("WARMD_DISCOVERY_BOOTSTRAP", list(&self.bootstrap)),
            ("WARMD_LOCAL_SOCKET", path(&self.socket)),
            ("WARMD_TRUST_POLICY", path(&self.policy)),
            ("WARMD_TRUST_ROOT", path(&self.trust_root)),
            ("WARMD_SIGNER", path(&self.signer)),
            ("WARMD_METRICS_LISTEN", self.metrics.as_deref().map(quoted)),
            ("WARMD_WEB_LISTEN", self.web.as_deref().map(quoted)),
        ];
        let flags = flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Ok(config::load(self.config.as_deref(), config::overridden(std::env::vars(), flags))?)
    }
}

/// As a TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Agent {
    pub(super) fn run(self, level: Option<String>) -> anyhow::Result<ExitCode> {
        let AgentFile { agent: mut config, served, web } = self.options.load()?;
        if let Some(level) = level {
            config.log.level = level;
        }
        telemetry::init(&config.log).context("log.level")?;
        super::runtime()?.block_on(async {
            let trust = config.trust.clone();
            let terminated = lifecycle::termination().context("wait for signals")?;
            // Without an agent there is nothing to start an engine warm with.
            let page = page::serve(&web, &LiveBoard::default()).await?;
            let agent = Daemon::start(config).await?;
            let ended = match served {
                Some(served) => run_engine(served, agent.socket(), &trust, terminated).await,
                None => {
                    terminated.await;
                    Ok(())
                }
            };
            agent.shutdown().await;
            drop(page);
            ended.map(|()| ExitCode::SUCCESS)
        })
    }
}

/// Until this process is told to end, or the engine cannot be kept running. It has ended then, and peers may still ask the
/// agent.
async fn run_engine(
    served: ServedEngine,
    agent: &Path,
    trust: &TrustConfig,
    terminated: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let ServedEngine { engine, serve: config } = served;
    let backend = Backend::Own(spec(engine, agent, trust, &config));
    let serving = serve::start(config, backend, false).await?;
    let ended = tokio::select! {
        () = terminated => Ok(()),
        last = serving.crash_loop() => Err(anyhow!("the engine is in a crash loop, and this process ends with it: {last}")),
    };
    serving.shutdown().await;
    ended
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
