//! `warmd warm`: the one-shot hook. It never makes a start fail: when nothing could be had it says why and exits 0.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::output;
use super::pod::Pod;
use super::publish::Identity;
use crate::artifact::SourceIdentity;
use crate::durable;
use crate::install::{Limits, NegativeClass};
use crate::local::{Client, ClientError};
use crate::serve::Say;
use crate::serve::hook;
use crate::serve::warm::{self, Job, Report, Step, Verdict, WarmError};

#[derive(Debug, Args)]
pub(super) struct Warm {
    #[command(flatten)]
    identity: Identity,
    /// Only this subject; absent: every subject of the identity
    #[arg(long)]
    subject: Option<String>,
    /// Cache root to install one identity into
    #[arg(long, value_name = "DIR", required_unless_present = "command")]
    into: Option<PathBuf>,
    #[command(flatten)]
    pod: Pod,
    /// Time for the whole attempt
    #[arg(long, env = "WARMD_BUDGET", default_value = "30s", value_parser = humantime::parse_duration)]
    budget: Duration,
    /// Bytes of the cache root's file system that stay free
    #[arg(long, default_value_t = 1 << 30)]
    reserve_bytes: u64,
    /// Try although an attempt has just failed
    #[arg(long)]
    retry: bool,
    /// Exit with 1 if nothing was installed
    #[arg(long)]
    require: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write what the engine's shell has to `export` to find its caches to this file
    #[arg(long, value_name = "FILE", conflicts_with = "into")]
    env_file: Option<PathBuf>,
    /// All families that this start of an engine can use, such as `-- vllm serve MODEL`, in place of --into
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["into", "family", "facts", "subject"])]
    command: Vec<String>,
}

/// Nothing came of an attempt, and no report either.
#[derive(Debug, thiserror::Error)]
enum NotTried {
    #[error(transparent)]
    Agent(#[from] ClientError),
    #[error("{0}")]
    Untrusted(String),
    #[error(transparent)]
    Warm(#[from] WarmError),
}

impl NotTried {
    fn class(&self) -> NegativeClass {
        match self {
            Self::Agent(_) => NegativeClass::Transient,
            Self::Untrusted(_) => NegativeClass::Untrusted,
            Self::Warm(error) => error.class(),
        }
    }
}

impl Warm {
    pub(super) async fn run(mut self) -> anyhow::Result<ExitCode> {
        // A mistake in the identity is the caller's; everything else is a cold start with a reason.
        let identity = self.identity.check()?;
        self.pod.caches.take_aliases();
        let Some(into) = self.into.clone() else { return self.all().await };
        match self.attempt(identity, into).await {
            Ok(report) => {
                if self.json {
                    output::json(&report)?;
                } else {
                    show(&report)?;
                }
                let cold = matches!(report.verdict, Verdict::Nothing { .. });
                Ok(if cold && self.require { ExitCode::FAILURE } else { ExitCode::SUCCESS })
            }
            Err(error) if self.require => Err(error.into()),
            Err(error) => {
                let (class, detail) = (error.class(), super::sentence(&error.into()));
                if self.json {
                    output::json(&serde_json::json!({ "state": "nothing", "class": class, "detail": detail }))?;
                } else {
                    output::line(format!("cold: {class}: {detail}"))?;
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    fn limits(&self) -> Limits {
        Limits { reserve_bytes: self.reserve_bytes, max_bytes: u64::MAX }
    }

    async fn attempt(&self, identity: SourceIdentity, into: PathBuf) -> Result<Report, NotTried> {
        let (client, trust) = (Client::connect(self.pod.socket()).await, self.pod.trust());
        let say: Say = Arc::new(|line| output::note(format!("warmd: {line}")));
        if let Ok(client) = &client
            && let Err(reason) = trust.ask(client, self.budget).await
        {
            say(&format!("no news of the trust policy: {reason}"));
        }
        // Whatever comes of the rest: an engine may be started after it.
        trust.withdraw_all(std::slice::from_ref(&into), client.as_ref().ok(), &say).await;
        let client = client?;
        let job = Job {
            identity,
            subject: self.subject.clone(),
            into,
            policy: trust.policy().map_err(NotTried::Untrusted)?,
            budget: self.budget,
            limits: self.limits(),
            ignore_markers: self.retry,
            quarantine: Arc::default(),
            witness: Arc::new(()),
        };
        Ok(run(&client, job).await?)
    }

    /// Every family of an engine's start.
    async fn all(self) -> anyhow::Result<ExitCode> {
        let job = hook::Warm {
            trust: self.pod.trust(),
            limits: self.limits(),
            budget: self.budget,
            ignore_markers: self.retry,
            target: self.pod.target(self.command),
        };
        let say: Say = Arc::new(|line| output::note(format!("warmd: {line}")));
        let warming = hook::warm(job, &say).await;
        match self.env_file.as_deref().map(|path| write_exports(path, &warming.environment)) {
            Some(Err(error)) if self.require => return Err(error),
            Some(Err(error)) => say(&super::sentence(&error)),
            Some(Ok(())) | None => {}
        }
        if self.json {
            output::json(&warming)?;
        } else if let Some(reason) = &warming.cold {
            output::line(format!("cold: {reason}"))?;
        }
        Ok(if self.require && !warming.is_warm() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// For a POSIX shell: `. FILE`.
fn write_exports(path: &Path, variables: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let line = |(name, value): (&String, &String)| format!("export {name}='{}'\n", value.replace('\'', r"'\''"));
    let text: String = variables.iter().map(line).collect();
    durable::replace(path, text.as_bytes(), 0o644).with_context(|| format!("write {}", path.display()))
}

/// Runs a job with a progress bar.
pub(super) async fn run(client: &Client, job: Job) -> Result<Report, WarmError> {
    let bar = output::Progress::new("waiting for the cache root's lock");
    let tell = |step: Step| match step {
        Step::Waiting => bar.step("waiting for the cache root's lock"),
        Step::Looking => bar.step("looking for holders"),
        Step::Fetching { bytes, bytes_total, holders } => {
            bar.bytes(&format!("fetching from {}", output::count(holders, "holder")), bytes, bytes_total);
        }
        Step::Installing => bar.step("installing"),
    };
    warm::warm(client, job, &tell).await
}

pub(super) fn show(report: &Report) -> anyhow::Result<()> {
    match &report.verdict {
        Verdict::Nothing { class, detail } => output::line(format!("cold: {class}: {detail}"))?,
        Verdict::Shared => output::line("warm: another process has just installed it")?,
        Verdict::Installed => {
            for artifact in &report.artifacts {
                for path in &artifact.in_the_way {
                    output::line(format!("IN THE WAY: something else is in the place of {path}: move it away"))?;
                }
                if artifact.installed == 0 {
                    let all = if artifact.in_the_way.is_empty() { "everything" } else { "the rest" };
                    output::line(format!("warm: {all} was there already"))?;
                    continue;
                }
                output::line(format!(
                    "warm: {} entries installed, {} there before: {}, {} ({} over the wire from {}), signed by {}",
                    artifact.installed,
                    artifact.existing,
                    output::count(artifact.files, "file"),
                    output::bytes(artifact.bytes),
                    output::bytes(artifact.wire_bytes),
                    match artifact.wire_bytes {
                        0 => output::count(artifact.holders, "holder"),
                        _ => output::holders(artifact.holders),
                    },
                    artifact.signers.join(", "),
                ))?;
            }
        }
    }
    output::note(format!(
        "{} in all: lock {}, lookup {}, fetch {}, install {}",
        output::seconds(report.total_seconds),
        output::seconds(report.lock_seconds),
        output::seconds(report.lookup_seconds),
        output::seconds(report.fetch_seconds),
        output::seconds(report.install_seconds),
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_exported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        let value = r#"/c a'c"h$e/`x`"#;
        write_exports(&path, &BTreeMap::from([("TRITON_CACHE_DIR".to_owned(), value.to_owned())])).unwrap();
        let script = r#". "$1" && printf %s "$TRITON_CACHE_DIR""#;
        let read = std::process::Command::new("/bin/sh").args(["-c", script, "sh"]).arg(path).output().unwrap();
        assert_eq!(String::from_utf8(read.stdout).unwrap(), value);
    }
}
