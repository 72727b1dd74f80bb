//! `warmd warm`: the one-shot hook. It never makes a start fail: when nothing could be had it says why and exits 0.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::publish::Identity;
use super::{Socket, output};
use crate::identity::{PublicKey, TrustConfig};
use crate::install::Limits;
use crate::local::Client;
use crate::serve::warm::{self, Job, Report, Step, Verdict};

#[derive(Debug, Args)]
pub(super) struct Warm {
    #[command(flatten)]
    identity: Identity,
    /// Only this subject; absent: every subject of the identity
    #[arg(long)]
    subject: Option<String>,
    /// Cache root to install into
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// Trust policy of this pod
    #[arg(long, env = "WARMD_TRUST_POLICY", value_name = "FILE")]
    policy: PathBuf,
    /// Public key that must have signed the policy; may be repeated
    #[arg(long = "policy-root", value_name = "KEY")]
    roots: Vec<PublicKey>,
    /// Time for the whole attempt
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
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
    #[command(flatten)]
    socket: Socket,
}

impl Warm {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        // A mistake in the identity is the caller's; everything else is a cold start with a reason.
        self.identity.check()?;
        match self.attempt().await {
            Ok(report) => {
                if self.json {
                    output::json(&report)?;
                } else {
                    show(&report)?;
                }
                let cold = matches!(report.verdict, Verdict::Nothing { .. });
                Ok(if cold && self.require { ExitCode::FAILURE } else { ExitCode::SUCCESS })
            }
            Err(error) if self.require => Err(error),
            Err(error) => {
                let detail = super::sentence(&error);
                if self.json {
                    output::json(
                        &serde_json::json!({ "state": "nothing", "class": "incompatible", "detail": detail }),
                    )?;
                } else {
                    output::line(format!("cold: incompatible: {detail}"))?;
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    async fn attempt(&self) -> anyhow::Result<Report> {
        let trust = TrustConfig { policy: Some(self.policy.clone()), roots: self.roots.clone(), threshold: 1 };
        let policy = trust.load(None).context("trust policy")?.context("no policy file was named")?;
        let job = Job {
            identity: self.identity.check()?,
            subject: self.subject.clone(),
            into: self.into.clone(),
            policy: Arc::new(policy),
            budget: self.budget,
            limits: Limits { reserve_bytes: self.reserve_bytes, max_bytes: u64::MAX },
            ignore_markers: self.retry,
            quarantine: Arc::default(),
            witness: Arc::new(()),
        };
        let client = self.socket.connect().await?;
        run(&client, job).await
    }
}

/// Runs a job with a progress bar.
pub(super) async fn run(client: &Client, job: Job) -> anyhow::Result<Report> {
    let bar = output::Progress::new("waiting for the cache root's lock");
    let tell = |step: Step| match step {
        Step::Waiting => bar.step("waiting for the cache root's lock"),
        Step::Looking => bar.step("looking for holders"),
        Step::Fetching { bytes, bytes_total, holders } => {
            bar.bytes(&format!("fetching from {}", output::count(holders, "holder")), bytes, bytes_total);
        }
        Step::Installing => bar.step("installing"),
    };
    Ok(warm::warm(client, job, &tell).await?)
}

pub(super) fn show(report: &Report) -> anyhow::Result<()> {
    match &report.verdict {
        Verdict::Nothing { class, detail } => output::line(format!("cold: {class}: {detail}"))?,
        Verdict::Shared => output::line("warm: another process has just installed it")?,
        Verdict::Installed => {
            for artifact in &report.artifacts {
                if artifact.installed == 0 {
                    output::line("warm: everything was there already")?;
                    continue;
                }
                output::line(format!(
                    "warm: {} entries installed, {} there before: {}, {} ({} over the wire from {}), signed by {}",
                    artifact.installed,
                    artifact.existing,
                    output::count(artifact.files, "file"),
                    output::bytes(artifact.bytes),
                    output::bytes(artifact.wire_bytes),
                    output::count(artifact.holders, "holder"),
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
