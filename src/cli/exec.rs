//! `warmd exec`: the start-up hook.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::pod::Pod;
use super::{aliases, output};
use crate::install::Limits;
use crate::serve::start::Spec;
use crate::serve::{Say, exec};

/// Longer than the slowest cold start that is on record, with weights to download.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, Args)]
pub(super) struct Exec {
    #[command(flatten)]
    pod: Pod,
    /// Time for everything before the engine
    #[arg(long, env = "WARMD_BUDGET", default_value = "30s", value_parser = humantime::parse_duration)]
    budget: Duration,
    /// Bytes of the caches' file system that stay free
    #[arg(long, default_value_t = 1 << 30)]
    reserve_bytes: u64,
    /// URL that answers 200 when the engine is ready; absent: the engine's own /health
    #[arg(long, env = "WARMD_READY_URL", value_name = "URL")]
    ready_url: Option<String>,
    /// An engine that is not ready by then publishes nothing [default: 1h]
    #[arg(long, env = "WARMD_READY_TIMEOUT", value_parser = humantime::parse_duration)]
    ready_timeout: Option<Duration>,
    /// Publish once nothing was written to the caches for this long
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    quiet: Duration,
    /// Install, but publish nothing
    #[arg(long)]
    no_publish: bool,
    /// From SIGTERM until the engine is killed
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Write what came of the start as JSON to this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The engine's command, such as `-- vllm serve MODEL`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    pub(super) async fn run(mut self) -> anyhow::Result<ExitCode> {
        self.pod.caches.take_aliases();
        let report = self.report.clone();
        let say: Say = Arc::new(|line| output::note(format!("warmd: {}", output::plain(line))));
        let ended = exec::run(self.spec(), say.clone()).await?;
        if let (Some(path), Some(proof)) = (report, &ended.proof) {
            let text = serde_json::to_vec_pretty(proof)?;
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(ExitCode::from(ended.exit.shell_code()))
    }

    fn spec(self) -> Spec {
        let publishes = !self.no_publish && !self.pod.caches.is_off();
        Spec {
            trust: self.pod.trust(),
            target: self.pod.target(self.command),
            budget: self.budget,
            limits: Limits { reserve_bytes: self.reserve_bytes, max_bytes: u64::MAX },
            ready_url: aliases::READY_URL.or(self.ready_url),
            ready_timeout: aliases::READY_TIMEOUT.or(self.ready_timeout).unwrap_or(READY_TIMEOUT),
            publish_after: publishes.then_some(self.quiet),
            grace: self.grace,
        }
    }
}
