//! The two halves of [`super::exec`] for an engine that somebody else starts: warm before it, publish after it.
//!
//! ```text
//! init container: facts -> identities -> find -> warm        engine        beside it: ready -> at rest -> publish
//! ```
//!
//! Between them nothing is remembered but what lies in the cache roots: `.warmd` there tells which entries came from the
//! fleet.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::{timeout, timeout_at};

use super::publishing::{Publishing, Unpublished};
use super::quarantine::Quarantine;
use super::records::{Records, RecordsError};
use super::target::{Say, Site, Target};
use super::trust::{self, Trust};
use super::warm::{Report, Verdict};
use super::warming::{self, Terms, Warmed};
use crate::caches::{Directories, DirectoriesError, Environment};
use crate::digest::IdentityId;
use crate::engine::{self, ProbeError, Readiness, StartLog};
use crate::install::Limits;
use crate::local::{Client, ClientError};

/// For the interpreter, once the engine is up: it may be busy.
const FACTS: Duration = Duration::from_secs(60);

const LOG: &str = "publish.log";

/// All families that an engine's start can use.
#[derive(Debug, Clone)]
pub struct Warm {
    pub target: Target,
    pub trust: Trust,
    /// Of the whole attempt.
    pub budget: Duration,
    pub limits: Limits,
    /// Try although an attempt has just failed.
    pub ignore_markers: bool,
}

/// What came.
#[derive(Debug, Serialize)]
pub struct Warming {
    /// Why nothing was asked for; families tell for themselves.
    pub cold: Option<String>,
    /// Variables to start the engine with, or it will look elsewhere. Those that are set already are not among them.
    pub environment: BTreeMap<String, String>,
    /// Those that are offered.
    pub families: Vec<FamilyWarming>,
    pub seconds: f64,
}

#[derive(Debug, Serialize)]
pub struct FamilyWarming {
    pub family: &'static str,
    pub identity: IdentityId,
    pub root: PathBuf,
    /// Artifacts that there are.
    pub offered: usize,
    pub report: Option<Report>,
    /// Why there is no report.
    pub trouble: Option<String>,
}

impl Warming {
    /// Whether anything is in place.
    pub fn is_warm(&self) -> bool {
        let verdicts = self.families.iter().filter_map(|family| Some(&family.report.as_ref()?.verdict));
        verdicts.into_iter().any(|verdict| matches!(verdict, Verdict::Installed | Verdict::Shared))
    }
}

/// Brings what there is, as [`super::exec::run`] does before the engine. Never fails: a cold start has its reason.
pub async fn warm(job: Warm, say: &Say) -> Warming {
    let begun = Instant::now();
    let mut site = Site::of(&job.target, say);
    let brought = bring(&job, &mut site, begun, say).await;
    let (cold, warmed) = match brought {
        Ok(warmed) => (None, warmed),
        Err(reason) => {
            // A cold start may find what an earlier one has brought.
            job.trust.withdraw_all(&trust::roots(&site.environment), None, say).await;
            (Some(reason), Vec::new())
        }
    };
    let families = warmed.into_iter().map(|one| FamilyWarming {
        family: one.prospect.family.name,
        identity: one.prospect.identity.id(),
        root: one.prospect.root,
        offered: one.offered,
        report: one.report,
        trouble: one.trouble,
    });
    Warming { cold, environment: site.changes, families: families.collect(), seconds: begun.elapsed().as_secs_f64() }
}

async fn bring(job: &Warm, site: &mut Site, begun: Instant, say: &Say) -> Result<Vec<Warmed>, String> {
    let left = || job.budget.saturating_sub(begun.elapsed());
    let over = |_| format!("the budget of {:?} is over", job.budget);
    if let Some(reason) = job.trust.refusal() {
        return Err(reason);
    }
    site.identify(&job.target, left(), say).await?;
    let client = timeout(left(), Client::connect(&job.target.socket)).await.map_err(over)?;
    let client = client.map_err(|error| error.to_string())?;
    if let Err(reason) = job.trust.ask(&client, left()).await {
        say(&format!("no news of the trust policy: {reason}"));
    }
    let roots = trust::roots(&site.environment);
    job.trust.withdraw_all(&roots, Some(&client), say).await;
    let terms = Terms {
        policy: job.trust.policy()?,
        quarantine: Arc::new(timeout(left(), quarantine(site.root.clone(), say)).await.map_err(over)?),
        witness: Arc::new(()),
        limits: job.limits,
        budget: left(),
        ignore_markers: job.ignore_markers,
    };
    // Each family keeps the time itself; this is for a file system that hangs.
    let last = left() + Duration::from_secs(1);
    timeout(last, warming::all(&client, &site.outlook.prospects, &terms, say)).await.map_err(over)
}

async fn quarantine(root: Option<PathBuf>, say: &Say) -> Quarantine {
    let Some(root) = root else { return Quarantine::default() };
    match tokio::task::spawn_blocking(move || Quarantine::load(&root)).await {
        Ok(Ok(quarantine)) => quarantine,
        Ok(Err(error)) => {
            say(&format!("the quarantine is not known: {error}"));
            Quarantine::default()
        }
        Err(_) => Quarantine::default(),
    }
}

/// What an engine has added to its caches.
#[derive(Debug, Clone)]
pub struct Publish {
    pub target: Target,
    /// Absent: what came from others is not looked at again.
    pub trust: Option<Trust>,
    /// Absent: now, whether the engine is ready or not.
    pub wait: Option<Wait>,
    /// The caches are at rest once nothing was written for this long.
    pub quiet: Duration,
    /// For them to come to rest and for the agent to take them.
    pub publish_timeout: Duration,
    /// Goes on as new entries appear.
    pub follow: bool,
}

/// Until an engine is ready.
#[derive(Debug, Clone)]
pub struct Wait {
    /// Asked instead of the address that the command line tells.
    pub url: Option<String>,
    pub deadline: Duration,
}

/// Not everything was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("not ready within {deadline:?} at {probe}{last}; see --wait-ready, --ready-timeout")]
    NotReady { probe: engine::Probe, deadline: Duration, last: String },
    #[error("nothing is known of this node: {0}")]
    NoFacts(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Unpublished(#[from] Unpublished),
}

/// Publishes what did not come from the fleet; how many artifacts. With `follow` it ends only when the agent will never
/// take anything.
pub async fn publish(job: Publish, say: &Say) -> Result<usize, PublishError> {
    let mut site = Site::of(&job.target, say);
    if let Some(wait) = &job.wait {
        let probe = site.readiness(wait.url.as_deref())?;
        ready(probe, wait.deadline, say).await?;
    }
    site.identify(&job.target, FACTS, say).await.map_err(PublishError::NoFacts)?;
    let ends = tokio::time::Instant::now() + job.publish_timeout;
    let client = timeout_at(ends, Client::connect(&job.target.socket)).await.map_err(|_| Unpublished::Busy)??;
    if let Some(trust) = &job.trust {
        let asked = trust.ask(&client, FACTS).await;
        if let Err(reason) = trust.known() {
            let reason = asked.err().unwrap_or(reason);
            say(&format!("what came from other nodes is not published anew: {reason}"));
        }
    }
    let mut warmed = Vec::new();
    for prospect in &site.outlook.prospects {
        let mut one = Warmed::new(prospect.clone(), 0);
        match timeout_at(ends, warming::look(prospect)).await.map_err(|_| Unpublished::Busy)? {
            Ok(looked) => {
                one.saw(looked);
                warmed.push(one);
            }
            Err(trouble) => say(&format!("{}: {trouble}; nothing of it is published", prospect.family.name)),
        }
    }
    // Nobody has read the engine's log here: nothing is measured.
    let log = Mutex::new(StartLog::default());
    let launch = site.canonical();
    let image = job.target.image.clone();
    let mut publishing = Publishing::new(client, &warmed, &log, image, &launch, job.quiet, job.trust);
    let once = timeout_at(ends, publishing.once(ends, say)).await;
    match once.unwrap_or(Err(Unpublished::Busy)) {
        Ok(artifacts) if !job.follow => return Ok(artifacts),
        Ok(_) => {}
        Err(Unpublished::Busy) if job.follow => {}
        Err(error) => return Err(error.into()),
    }
    Err(publishing.run(say).await.into())
}

async fn ready(probe: engine::Probe, deadline: Duration, say: &Say) -> Result<(), PublishError> {
    // Somebody else owns the engine: that it has ended shows as an address that does not answer.
    match engine::wait(&probe, deadline, std::future::pending()).await {
        Readiness::Ready { after } => {
            say(&format!("the engine is ready at {probe} after {:.1} s", after.as_secs_f64()));
            Ok(())
        }
        Readiness::Deadline(last) => {
            let last = last.map(|failure| format!(": {failure}")).unwrap_or_default();
            Err(PublishError::NotReady { probe, deadline, last })
        }
        Readiness::Exited(_) => Ok(()),
    }
}

/// There is no place for a log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Directories(#[from] DirectoriesError),
    #[error(transparent)]
    Records(#[from] RecordsError),
}

/// Where a publishing process in the background writes to, below the target's cache root. Blocking.
pub fn log(target: &Target) -> Result<(PathBuf, File), LogError> {
    let directories = Directories::choose(target.root.as_deref(), &Environment::of_this_process())?;
    Ok(Records::make(directories.root())?.log(LOG)?)
}
