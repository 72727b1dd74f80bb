//! What a pod says of a start, checked.

use std::time::Duration;

use super::{Artifacts, Entries, Outcome, Verdict};
use crate::caches::FamilyName;
use crate::digest::{ArtifactId, InvalidDigest, KeyId};
use crate::protocol::agent::{MAX_START_ARTIFACTS, MAX_START_COUNT, MAX_START_SIGNERS};
use crate::protocol::pb;
use crate::protocol::report::{REASON, Text};

const MAX_FAMILIES: usize = 64;
const MAX_TIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A report that cannot be true.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::agent) enum StartError {
    #[error("`outcome` is none that this agent knows")]
    Outcome,
    #[error("`verdict` is none that this agent knows")]
    Verdict,
    #[error("`{0}` is not a time in seconds, at most {max}", max = MAX_TIME.as_secs())]
    Time(&'static str),
    #[error("`{0}` is over {MAX_START_COUNT}")]
    Count(&'static str),
    #[error("more than {MAX_FAMILIES} families")]
    Families,
    #[error(
        "`artifacts` has more than {MAX_START_ARTIFACTS}, or one that is no artifact with at most {MAX_START_SIGNERS} signers"
    )]
    Artifacts,
}

/// One start, checked.
#[derive(Debug, PartialEq)]
pub(in crate::agent) struct Start {
    pub(super) outcome: Outcome,
    /// Where it is known.
    pub(super) ready: Option<Duration>,
    pub(super) hook: Duration,
    pub(super) budget: Duration,
    pub(super) families: Vec<FamilyStart>,
    /// What the fleet has brought that the engine may read, and whose signatures let it in.
    pub(super) artifacts: Vec<(ArtifactId, Vec<KeyId>)>,
}

#[derive(Debug, PartialEq)]
pub(super) struct FamilyStart {
    pub(super) family: FamilyName,
    pub(super) artifacts: [(Artifacts, u32); 2],
    pub(super) entries: [(Entries, u32); 4],
    pub(super) saved: Duration,
    /// Absent where an older warmd has told it.
    pub(super) verdict: Option<Verdict>,
    /// By a negative marker of an attempt before.
    pub(super) remembered: bool,
    /// For people.
    pub(super) reason: Text<REASON>,
}

impl TryFrom<pb::StartReport> for Start {
    type Error = StartError;
    fn try_from(report: pb::StartReport) -> Result<Self, StartError> {
        let outcome = match report.outcome() {
            pb::StartOutcome::Ready => Outcome::Ready,
            pb::StartOutcome::Crashed => Outcome::Crashed,
            pb::StartOutcome::Clean => Outcome::Clean,
            pb::StartOutcome::Unknown => Outcome::Unknown,
            pb::StartOutcome::Unspecified => return Err(StartError::Outcome),
        };
        if report.families.len() > MAX_FAMILIES {
            return Err(StartError::Families);
        }
        let ready = time("ready_seconds", report.ready_seconds)?;
        Ok(Self {
            outcome,
            ready: Some(ready).filter(|ready| !ready.is_zero()),
            hook: time("hook_seconds", report.hook_seconds)?,
            budget: time("budget_seconds", report.budget_seconds)?,
            families: report.families.into_iter().map(FamilyStart::try_from).collect::<Result<_, _>>()?,
            artifacts: artifacts(&report.artifacts)?,
        })
    }
}

fn artifacts(told: &[pb::StartArtifact]) -> Result<Vec<(ArtifactId, Vec<KeyId>)>, StartError> {
    if told.len() > MAX_START_ARTIFACTS || told.iter().any(|one| one.signers.len() > MAX_START_SIGNERS) {
        return Err(StartError::Artifacts);
    }
    let artifact = |one: &pb::StartArtifact| {
        let signers = one.signers.iter().map(|key| KeyId::try_from(&key[..])).collect::<Result<_, _>>()?;
        Ok((ArtifactId::try_from(&one.artifact_id[..])?, signers))
    };
    let artifacts: Result<_, InvalidDigest> = told.iter().map(artifact).collect();
    artifacts.map_err(|_| StartError::Artifacts)
}

impl TryFrom<pb::FamilyStart> for FamilyStart {
    type Error = StartError;
    fn try_from(start: pb::FamilyStart) -> Result<Self, StartError> {
        Ok(Self {
            family: FamilyName::of(&start.family),
            artifacts: [
                (Artifacts::Offered, count("offered", start.offered)?),
                (Artifacts::Quarantined, count("quarantined", start.quarantined)?),
            ],
            entries: [
                (Entries::Installed, count("installed", start.installed)?),
                (Entries::Existing, count("existing", start.existing)?),
                (Entries::Made, count("made", start.made)?),
                (Entries::Used, count("used", start.used)?),
            ],
            saved: time("saved_seconds", start.saved_seconds)?,
            verdict: verdict(start.verdict)?,
            remembered: start.remembered,
            reason: Text::cut(&start.reason),
        })
    }
}

fn verdict(verdict: i32) -> Result<Option<Verdict>, StartError> {
    use pb::StartVerdict as Told;
    Ok(Some(match Told::try_from(verdict).map_err(|_| StartError::Verdict)? {
        Told::Unspecified => return Ok(None),
        Told::Installed => Verdict::Installed,
        Told::Existing => Verdict::Existing,
        Told::NotOffered => Verdict::NotOffered,
        Told::NoneFound => Verdict::NoneFound,
        Told::Transient => Verdict::Transient,
        Told::NoSpace => Verdict::NoSpace,
        Told::Untrusted => Verdict::Untrusted,
        Told::Incompatible => Verdict::Incompatible,
        Told::Quarantined => Verdict::Quarantined,
    }))
}

/// NaN, infinities and negative numbers are no times.
fn time(name: &'static str, seconds: f64) -> Result<Duration, StartError> {
    let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= MAX_TIME);
    time.ok_or(StartError::Time(name))
}

fn count(name: &'static str, count: u32) -> Result<u32, StartError> {
    if count <= MAX_START_COUNT { Ok(count) } else { Err(StartError::Count(name)) }
}
