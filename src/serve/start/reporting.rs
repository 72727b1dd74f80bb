//! What a start was like, told once to the node's agent, which has it on its `/metrics`: nobody scrapes a pod's warmd.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::trial::Kind;
use super::{FamilyProof, Proof};
use crate::digest::KeyId;
use crate::install::NegativeClass;
use crate::local::{Client, chain};
use crate::protocol::agent::{MAX_START_ARTIFACTS, MAX_START_COUNT, MAX_START_SIGNERS};
use crate::protocol::pb::{FamilyStart, StartArtifact, StartOutcome, StartReport, StartVerdict};
use crate::serve::admissions::Used;
use crate::serve::warm::Verdict;
use crate::serve::warming::Warmed;

/// For the agent to take it.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Reporting {
    client: Option<Client>,
    start: Kind,
    hook: Duration,
    budget: Duration,
    used: Vec<Used>,
    is_ready: AtomicBool,
    is_told: AtomicBool,
}

impl Reporting {
    /// `hook` is what warmd took before the engine, `used` what the fleet has brought that it may read.
    pub(super) fn new(client: Option<Client>, start: Kind, hook: Duration, budget: Duration, used: Vec<Used>) -> Self {
        Self { client, start, hook, budget, used, is_ready: AtomicBool::new(false), is_told: AtomicBool::new(false) }
    }

    /// Whatever comes now, the start has succeeded.
    pub(super) fn ready(&self) {
        self.is_ready.store(true, Ordering::Relaxed);
    }

    /// Only the first time. An agent that does not take it costs the metrics, nothing else.
    pub(super) async fn tell(&self, outcome: StartOutcome, warmed: &[Warmed], proof: Option<&Proof>) {
        let Some(client) = &self.client else { return };
        if self.is_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let outcome = match (self.is_ready.load(Ordering::Relaxed), self.start) {
            (false, _) => outcome,
            (true, Kind::Warm) => StartOutcome::Ready,
            (true, Kind::Clean) => StartOutcome::Clean,
        };
        let report = StartReport {
            outcome: outcome.into(),
            ready_seconds: proof.map_or(0.0, |proof| proof.ready_seconds),
            hook_seconds: self.hook.as_secs_f64(),
            budget_seconds: self.budget.as_secs_f64(),
            families: families(warmed, proof),
            artifacts: self.used.iter().rev().take(MAX_START_ARTIFACTS).map(artifact).collect(),
        };
        match timeout(PATIENCE, client.report_start(report)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %chain(&error), "the agent did not take the report of this start"),
            Err(_) => tracing::warn!("the agent did not take the report of this start in time"),
        }
    }
}

fn artifact((id, signers): &Used) -> StartArtifact {
    let bytes = |key: &KeyId| Bytes::copy_from_slice(key.as_bytes());
    let signers = signers.iter().take(MAX_START_SIGNERS).map(bytes).collect();
    StartArtifact { artifact_id: Bytes::copy_from_slice(id.as_bytes()), signers }
}

/// Those with anything to tell.
fn families(warmed: &[Warmed], proof: Option<&Proof>) -> Vec<FamilyStart> {
    let proven = |name: &str| proof?.families.iter().find(|family| family.family == name);
    let families = warmed.iter().map(|one| family(one, proven(one.prospect.family.name)));
    families.filter(|family| family.offered + family.existing + family.made > 0).collect()
}

fn family(warmed: &Warmed, proof: Option<&FamilyProof>) -> FamilyStart {
    let report = warmed.report.as_ref();
    let installed: usize = report.iter().flat_map(|report| &report.artifacts).map(|one| one.installed).sum();
    let there: usize = warmed.before.values().map(std::collections::BTreeSet::len).sum();
    let uses_it = proof.and_then(|proof| proof.used) == Some(true);
    FamilyStart {
        family: warmed.prospect.family.name.to_owned(),
        offered: count(warmed.offered),
        quarantined: count(report.map_or(0, |report| report.quarantined.len())),
        installed: count(installed),
        existing: count(there.saturating_sub(installed)),
        made: count(proof.map_or(0, |proof| proof.made)),
        used: if uses_it { count(there) } else { 0 },
        saved_seconds: proof.and_then(|proof| proof.saved_seconds).unwrap_or(0.0),
        verdict: verdict(report.map(|report| &report.verdict), warmed.offered, installed, there).into(),
        remembered: report.is_some_and(|report| report.remembered),
        reason: proof.and_then(|proof| proof.reason.clone()).or_else(|| warmed.trouble.clone()).unwrap_or_default(),
    }
}

/// `there` are the entries before the engine began, whoever brought them; `installed` those that this start did.
fn verdict(report: Option<&Verdict>, offered: usize, installed: usize, there: usize) -> StartVerdict {
    match report {
        Some(Verdict::Shared) => StartVerdict::Installed,
        Some(Verdict::Installed) if installed > 0 => StartVerdict::Installed,
        Some(Verdict::Installed) => StartVerdict::Existing,
        _ if there > 0 => StartVerdict::Existing,
        Some(Verdict::Nothing { class, .. }) => match class {
            NegativeClass::NoneFound => StartVerdict::NoneFound,
            NegativeClass::Transient => StartVerdict::Transient,
            NegativeClass::NoSpace => StartVerdict::NoSpace,
            NegativeClass::Untrusted => StartVerdict::Untrusted,
            NegativeClass::Incompatible => StartVerdict::Incompatible,
            NegativeClass::Quarantined => StartVerdict::Quarantined,
        },
        None if offered > 0 => StartVerdict::Transient,
        None => StartVerdict::NotOffered,
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).map_or(MAX_START_COUNT, |count| count.min(MAX_START_COUNT))
}
