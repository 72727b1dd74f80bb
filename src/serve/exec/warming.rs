//! All families of a node at once: one question to the directory, then an install for each family that is offered.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Say;
use super::starts::History;
use crate::artifact::RelPath;
use crate::caches::{Entry, survey};
use crate::digest::IdentityId;
use crate::identity::Policy;
use crate::install::Limits;
use crate::local::{Client, chain};
use crate::serve::outlook::Prospect;
use crate::serve::warm::{self, Job, Report, Verdict};

/// Families that are installed at the same time. They get their turn in the order of their worth, so that a short budget
/// is spent on what saves most.
const SIDE_BY_SIDE: usize = 4;

/// What became of one family.
pub(super) struct Warmed {
    pub(super) prospect: Prospect,
    /// Artifacts that there are.
    pub(super) offered: usize,
    pub(super) report: Option<Report>,
    /// Why there is no report.
    pub(super) trouble: Option<String>,
    /// Entries that were in the root when the engine started, by subject.
    pub(super) before: Entries,
}

/// Entries by subject.
pub(super) type Entries = BTreeMap<String, BTreeSet<RelPath>>;

impl Warmed {
    pub(super) fn new(prospect: Prospect, offered: usize) -> Self {
        Self { prospect, offered, report: None, trouble: None, before: Entries::new() }
    }

    /// Entries that are known to be in an artifact already.
    pub(super) fn known(&self) -> Entries {
        if self.report.as_ref().is_some_and(|report| matches!(report.verdict, Verdict::Shared)) {
            // What the other process installed; it knows of which artifacts, we do not.
            return self.before.clone();
        }
        let mut known = Entries::new();
        for artifact in self.report.iter().flat_map(|report| &report.artifacts) {
            known.entry(artifact.subject.clone()).or_default().extend(artifact.entries.iter().cloned());
        }
        known
    }
}

/// What is in a family's root.
pub(super) async fn entries(prospect: &Prospect) -> Result<Entries, String> {
    let (family, root) = (prospect.family, prospect.root.clone());
    let looked = tokio::task::spawn_blocking(move || survey(&root, family)).await;
    let survey = looked.map_err(|_| "the thread that looks at it panicked".to_owned())?;
    let subjects = survey.map_err(|error| chain(&error))?.subjects.into_iter();
    let paths = |entries: Vec<Entry>| entries.into_iter().map(|entry| entry.path).collect();
    Ok(subjects.map(|subject| (subject.name, paths(subject.entries))).collect())
}

/// Why nothing is known of an agent that does not answer.
pub(super) fn silent(limit: Duration) -> String {
    format!("the agent did not answer within {limit:?}: see its log, or give it more time with --budget")
}

/// Brings what is offered. Families that nobody offers have no part in the answer.
pub(super) async fn all(
    client: &Client,
    prospects: &[Prospect],
    policy: &Arc<Policy>,
    history: &History,
    limits: Limits,
    budget: Duration,
    say: &Say,
) -> Vec<Warmed> {
    let ends = Instant::now() + budget;
    let offers = match offers(client, prospects, budget, say).await {
        Ok(offers) => offers,
        Err(reason) => {
            say(&format!("cold start: {reason}"));
            return Vec::new();
        }
    };
    let turns = Arc::new(Semaphore::new(SIDE_BY_SIDE));
    let mut running = JoinSet::new();
    for prospect in prospects {
        let Some(offered) = offers.get(&prospect.identity.id()).copied() else { continue };
        let (client, turns) = (client.clone(), turns.clone());
        let (policy, quarantine, witness) = (policy.clone(), history.quarantine.clone(), history.witness());
        let mut warmed = Warmed::new(prospect.clone(), offered);
        // Turns are given in the order in which they are asked for.
        let turn = turns.acquire_owned();
        running.spawn(async move {
            let _turn = turn.await;
            let job = Job {
                identity: warmed.prospect.identity.clone(),
                subject: None,
                into: warmed.prospect.root.clone(),
                policy,
                budget: ends.saturating_duration_since(Instant::now()),
                limits,
                ignore_markers: false,
                quarantine,
                witness,
            };
            let warming = async {
                parents(&job.into).await?;
                warm::warm(&client, job, &|_| ()).await.map_err(|error| chain(&error))
            };
            match warming.await {
                Ok(report) => warmed.report = Some(report),
                Err(reason) => warmed.trouble = Some(reason),
            }
            warmed
        });
    }
    let mut warmed = Vec::new();
    while let Some(ended) = running.join_next().await {
        if let Ok(one) = ended {
            say(&line(&one));
            warmed.push(one);
        }
    }
    warmed.sort_by(|a, b| b.prospect.family.worth.total_cmp(&a.prospect.family.worth));
    warmed
}

/// The library would make the directories above its own too.
async fn parents(root: &Path) -> Result<(), String> {
    let Some(parent) = root.parent().map(Path::to_owned) else { return Ok(()) };
    let made = tokio::task::spawn_blocking(move || {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&parent);
        made.map_err(|error| format!("make {}: {error}; mount it writable, or set WARMD_CACHE_ROOT", parent.display()))
    });
    made.await.map_err(|_| "the thread that makes directories panicked".to_owned())?
}

/// How many artifacts there are of each identity.
async fn offers(
    client: &Client,
    prospects: &[Prospect],
    left: Duration,
    say: &Say,
) -> Result<BTreeMap<IdentityId, usize>, String> {
    let identities: Vec<IdentityId> = prospects.iter().map(|prospect| prospect.identity.id()).collect();
    let asked = timeout(left, client.find(&identities)).await;
    let reply = asked.map_err(|_| silent(left))?.map_err(|error| chain(&error))?;
    if !reply.metadata_failure.is_empty() {
        say(&format!("only what this node has: {}", reply.metadata_failure));
    }
    let mut offers = BTreeMap::new();
    for found in &reply.found {
        if let Ok(identity) = IdentityId::try_from(&found.identity[..]) {
            *offers.entry(identity).or_insert(0) += 1;
        }
    }
    if offers.is_empty() {
        say(&format!("cold start: nobody has any of the {} families that this node can use", prospects.len()));
    }
    Ok(offers)
}

/// Families of which nothing was offered: what the engine writes into them is new to the fleet.
pub(super) fn add_unoffered(warmed: &mut Vec<Warmed>, prospects: &[Prospect]) {
    for prospect in prospects {
        if !warmed.iter().any(|one| one.prospect.family.name == prospect.family.name) {
            warmed.push(Warmed::new(prospect.clone(), 0));
        }
    }
}

fn line(warmed: &Warmed) -> String {
    let name = warmed.prospect.family.name;
    let root = warmed.prospect.root.display();
    let Some(report) = &warmed.report else {
        return format!("{name}: cold: {root}: {}", warmed.trouble.as_deref().unwrap_or("unknown"));
    };
    match &report.verdict {
        Verdict::Nothing { class, detail } => format!("{name}: cold: {class}: {detail}"),
        Verdict::Shared => format!("{name}: warm: another process has just installed it into {root}"),
        Verdict::Installed => {
            let sum = |of: fn(&warm::ArtifactReport) -> u64| report.artifacts.iter().map(of).sum::<u64>();
            let left_out: String = report.quarantined.iter().map(|reason| format!("; left out: {reason}")).collect();
            format!(
                "{name}: warm: {} entries installed into {root}, {} there before ({} files, {:.1} MB; {:.1} MB over the wire) in {:.2} s{left_out}",
                sum(|artifact| artifact.installed as u64),
                sum(|artifact| artifact.existing as u64),
                sum(|artifact| artifact.files),
                sum(|artifact| artifact.bytes) as f64 / 1e6,
                sum(|artifact| artifact.wire_bytes) as f64 / 1e6,
                report.total_seconds,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::SourceIdentity;
    use crate::caches::CacheFamily;

    #[test]
    fn what_another_process_has_just_installed_is_not_new_to_the_fleet() {
        let family = CacheFamily::by_name("modelinfos").unwrap();
        let identity = SourceIdentity::new("modelinfos".parse().unwrap(), BTreeMap::new()).unwrap();
        let mut warmed = Warmed::new(Prospect { family, root: "/r".into(), identity }, 1);
        warmed.before.entry(String::new()).or_default().insert(RelPath::new("a.json").unwrap());
        assert!(warmed.known().is_empty(), "what nobody offered is new");
        warmed.report = Some(Report {
            verdict: Verdict::Shared,
            artifacts: Vec::new(),
            quarantined: Vec::new(),
            lock_seconds: 1.0,
            lookup_seconds: 0.0,
            fetch_seconds: 0.0,
            install_seconds: 0.0,
            total_seconds: 1.0,
        });
        assert_eq!(warmed.known(), warmed.before);
    }
}
