//! All families of a node at once: one question to the directory, then an install for each family that is offered.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use super::outlook::Prospect;
use super::quarantine::Quarantine;
use super::received::Received;
use super::target::Say;
use super::warm::{self, Job, Report, Verdict, Witness};
use super::worth::{self, Offers};
use crate::artifact::RelPath;
use crate::caches::{Entry, ScanError, Subject, Survey, survey};
use crate::digest::IdentityId;
use crate::identity::Policy;
use crate::install::Limits;
use crate::local::{Client, chain};
use crate::telemetry::trace;

/// Families that are installed at the same time. They get their turn in the order of [`worth`], so that a short budget is
/// spent on what saves most.
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
    /// Those of them that came from the fleet, whoever brought them.
    received: Entries,
}

/// Entries by subject.
pub(super) type Entries = BTreeMap<String, BTreeSet<RelPath>>;

impl Warmed {
    pub(super) fn new(prospect: Prospect, offered: usize) -> Self {
        let (before, received) = (Entries::new(), Entries::new());
        Self { prospect, offered, report: None, trouble: None, before, received }
    }

    /// As it was before the engine added to it.
    pub(super) fn saw(&mut self, looked: Looked) {
        Looked { entries: self.before, received: self.received } = looked;
    }

    /// Entries that are known to be in an artifact already.
    pub(super) fn known(&self) -> Entries {
        let mut known = self.received.clone();
        for artifact in self.report.iter().flat_map(|report| &report.artifacts) {
            known.entry(artifact.subject.clone()).or_default().extend(artifact.entries.iter().cloned());
        }
        known
    }
}

/// What is in a family's root, and which of it came from the fleet.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) entries: Entries,
    pub(super) received: Entries,
}

/// Looks through a family's root. Fails with the reason why nothing is known of it.
pub(super) async fn look(prospect: &Prospect) -> Result<Looked, String> {
    let (family, root, identity) = (prospect.family, prospect.root.clone(), prospect.identity.id());
    let looking = tokio::task::spawn_blocking(move || {
        let survey = survey(&root, family)?;
        let received = Received::read(&root, &identity).unwrap_or_else(|error| {
            tracing::warn!(%error, "what came from other nodes is not known");
            Received::default()
        });
        let received = entries_of(&survey, |subject, entry| received.has(subject, entry));
        Ok(Looked { entries: entries_of(&survey, |_, _| true), received })
    });
    let looked: Result<Looked, ScanError> =
        looking.await.map_err(|_| "the thread that looks at it panicked".to_owned())?;
    looked.map_err(|error| chain(&error))
}

/// Why nothing is known of an agent that does not answer.
pub(super) fn silent(limit: Duration) -> String {
    format!("the agent did not answer within {limit:?}: see its log, or give it more time with --budget")
}

fn entries_of(survey: &Survey, counts: impl Fn(&str, &Entry) -> bool) -> Entries {
    let of = |subject: &Subject| {
        let counted = subject.entries.iter().filter(|entry| counts(&subject.name, entry));
        (subject.name.clone(), counted.map(|entry| entry.path.clone()).collect())
    };
    survey.subjects.iter().map(of).collect()
}

/// By what all families are brought.
pub(super) struct Terms {
    pub(super) policy: Arc<Policy>,
    pub(super) quarantine: Arc<Quarantine>,
    /// Told what is about to become visible.
    pub(super) witness: Arc<dyn Witness>,
    pub(super) limits: Limits,
    /// Of all of them together.
    pub(super) budget: Duration,
    /// Try although an attempt has just failed.
    pub(super) ignore_markers: bool,
}

/// Brings what is offered. Families that nobody offers have no part in the answer.
pub(super) async fn all(client: &Client, prospects: &[Prospect], terms: &Terms, say: &Say) -> Vec<Warmed> {
    let ends = Instant::now() + terms.budget;
    let offers = match offers(client, prospects, terms.budget, say).await {
        Ok(offers) => offers,
        Err(reason) => {
            say(&format!("cold start: {reason}"));
            return Vec::new();
        }
    };
    let turns = Arc::new(Semaphore::new(SIDE_BY_SIDE));
    let mut running = JoinSet::new();
    let offered = |prospect: &Prospect| Some((prospect.clone(), *offers.get(&prospect.identity.id())?));
    let mut offered: Vec<(Prospect, Offers)> = prospects.iter().filter_map(offered).collect();
    worth::sort(&mut offered, |(prospect, offers)| (prospect.family.worth, *offers));
    for (prospect, offers) in offered {
        // Awaited here: turns are given in this order.
        let Ok(turn) = turns.clone().acquire_owned().await else { break };
        let job = Job {
            identity: prospect.identity.clone(),
            subject: None,
            into: prospect.root.clone(),
            policy: terms.policy.clone(),
            budget: ends.saturating_duration_since(Instant::now()),
            limits: terms.limits,
            ignore_markers: terms.ignore_markers,
            quarantine: terms.quarantine.clone(),
            witness: terms.witness.clone(),
        };
        let (client, say) = (client.clone(), say.clone());
        let (family, identity) = (prospect.family.name, prospect.identity.id());
        let span = tracing::debug_span!(target: trace::OPERATIONS, "family", family, %identity);
        let bringing = async move {
            let _turn = turn;
            let warmed = bring(&client, Warmed::new(prospect, offers.artifacts), job).await;
            say(&line(&warmed));
            warmed
        };
        running.spawn(bringing.instrument(span));
    }
    let mut warmed = Vec::new();
    while let Some(ended) = running.join_next().await {
        warmed.extend(ended);
    }
    warmed.sort_by(|a, b| b.prospect.family.worth.total_cmp(&a.prospect.family.worth));
    warmed
}

async fn bring(client: &Client, mut warmed: Warmed, job: Job) -> Warmed {
    let warming = async {
        parents(&job.into).await?;
        warm::warm(client, job, &|_| ()).await.map_err(|error| chain(&error))
    };
    match warming.await {
        Ok(report) => warmed.report = Some(report),
        Err(reason) => warmed.trouble = Some(reason),
    }
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

/// What there is of each identity.
async fn offers(
    client: &Client,
    prospects: &[Prospect],
    left: Duration,
    say: &Say,
) -> Result<BTreeMap<IdentityId, Offers>, String> {
    let identities: Vec<IdentityId> = prospects.iter().map(|prospect| prospect.identity.id()).collect();
    let asked = timeout(left, client.find(&identities)).await;
    let reply = asked.map_err(|_| silent(left))?.map_err(|error| chain(&error))?;
    if !reply.metadata_failure.is_empty() {
        say(&format!("only what this node has: {}", reply.metadata_failure));
    }
    let mut offers: BTreeMap<IdentityId, Offers> = BTreeMap::new();
    for found in &reply.found {
        if let Ok(identity) = IdentityId::try_from(&found.identity[..]) {
            let measured = Duration::from_millis(found.compile_ms.into());
            offers.entry(identity).or_default().add(found.wire_size, measured);
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
            let blocked = report.artifacts.iter().flat_map(|artifact| &artifact.in_the_way);
            let blocked: String = blocked.map(|path| format!("; something else is in the way of {path}")).collect();
            let left_out: String = report.quarantined.iter().map(|reason| format!("; left out: {reason}")).collect();
            format!(
                "{name}: warm: {} entries installed into {root}, {} there before ({} files, {:.1} MB; {:.1} MB over the wire) in {:.2} s{left_out}{blocked}",
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
    use std::time::SystemTime;

    use super::*;
    use crate::artifact::SourceIdentity;
    use crate::caches::CacheFamily;

    #[tokio::test]
    async fn what_another_process_has_installed_is_not_new_to_the_fleet() {
        let root = tempfile::tempdir().unwrap();
        let family = CacheFamily::by_name("modelinfos").unwrap();
        let identity = SourceIdentity::new("modelinfos".parse().unwrap(), BTreeMap::new()).unwrap();
        std::fs::write(root.path().join("a.json"), "{}").unwrap();
        let mut warmed = Warmed::new(Prospect { family, root: root.path().to_owned(), identity }, 1);
        warmed.saw(look(&warmed.prospect).await.unwrap());
        assert_eq!(warmed.before[""].len(), 1);
        assert_eq!(warmed.known(), Entries::from([(String::new(), BTreeSet::new())]), "what nobody brought is new");
        let (identity, entry) = (warmed.prospect.identity.id(), RelPath::new("a.json").unwrap());
        Received::add(root.path(), identity, "", &[entry], SystemTime::now()).unwrap();
        warmed.saw(look(&warmed.prospect).await.unwrap());
        assert_eq!(warmed.known(), warmed.before);
    }
}
