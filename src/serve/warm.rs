//! Warms a cache root from the node's agent: one attempt under the pod's lock, within its budget.
//!
//! ```text
//! lock -> marker -> agent finds, fetches -> manifest: verify, admit -> chunks: install while they arrive -> commit
//! ```
//!
//! The agent is trusted with nothing but its time: manifests are admitted by the pod's own policy, chunks and files are
//! checked against them. Whatever fails, the cache root stays whole and the caller starts its engine cold (I6). A failure
//! leaves a negative marker, so that the ranks that come later do not pay for it again (I7).

mod artifact;
mod delivery;
mod install;
mod witness;
mod works;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use tokio::task::JoinSet;
use tonic::Streaming;

pub use self::artifact::ArtifactReport;
pub use self::delivery::{Delivery, DeliveryError, Wanted};
pub use self::witness::{TooLate, Witness};
use self::works::Works;
use crate::artifact::{Admitted, ManifestError, SourceIdentity, Stamp};
use crate::digest::ArtifactId;
use crate::identity::{Policy, UnixTime};
use crate::install::{CacheRoot, InstallError, InstallLock, Installed, Limits, LockError, Marker, NegativeClass};
use crate::local::{Client, ClientError, chain};
use crate::protocol::pb::{WarmEvent, WarmRequest, warm_event};
use crate::serve::audit;
use crate::serve::quarantine::{LeftOut, Quarantine};

/// What to bring where.
#[derive(Debug, Clone)]
pub struct Job {
    pub identity: SourceIdentity,
    /// Only this subject; absent: every subject of the identity.
    pub subject: Option<String>,
    /// The cache root.
    pub into: PathBuf,
    pub policy: Arc<Policy>,
    /// Of the whole attempt, waiting for the lock included.
    pub budget: Duration,
    pub limits: Limits,
    /// Try although an earlier attempt failed a moment ago.
    pub ignore_markers: bool,
    /// What is not installed although the policy admits it.
    pub quarantine: Arc<Quarantine>,
    /// Hears of what is about to become visible.
    pub witness: Arc<dyn Witness>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Verdict {
    Installed,
    /// Another process installed the same identity while this one waited for the lock.
    Shared,
    /// Nothing was installed: the reason, and when to try again.
    Nothing {
        class: NegativeClass,
        detail: String,
    },
}

/// What came of a job.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub verdict: Verdict,
    pub artifacts: Vec<ArtifactReport>,
    /// What the policy admitted of `artifacts`, in their order.
    #[serde(skip)]
    pub admitted: Vec<Admitted>,
    /// What was offered and is in quarantine.
    pub quarantined: Vec<LeftOut>,
    /// The verdict is that of an attempt before.
    #[serde(skip)]
    pub remembered: bool,
    pub lock_seconds: f64,
    pub lookup_seconds: f64,
    pub fetch_seconds: f64,
    /// From the last chunk fetched to the commit.
    pub install_seconds: f64,
    pub total_seconds: f64,
}

/// An artifact and what came of it.
type Brought = (Admitted, ArtifactReport);

/// What to show while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Waiting,
    Looking,
    Fetching { bytes: u64, bytes_total: u64, holders: u32 },
    Installing,
}

/// The cache root cannot be used at all, or there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the install thread panicked")]
    Thread,
}

impl WarmError {
    /// As a marker would remember it; none was written.
    pub fn class(&self) -> NegativeClass {
        match self {
            Self::Install(error) => error.class(),
            Self::Client(_) | Self::Thread => NegativeClass::Transient,
        }
    }
}

/// Why one attempt brought nothing.
struct Failure {
    class: NegativeClass,
    detail: String,
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        Self { class: error.class(), detail: chain(&error) }
    }
}

impl From<TooLate> for Failure {
    fn from(error: TooLate) -> Self {
        Self { class: NegativeClass::Transient, detail: error.to_string() }
    }
}

impl From<ManifestError> for Failure {
    fn from(error: ManifestError) -> Self {
        Self { class: NegativeClass::Untrusted, detail: error.to_string() }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self { class: NegativeClass::Transient, detail: chain(&error) }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self { class: NegativeClass::Transient, detail: status.message().to_owned() }
    }
}

/// Runs the job. Errors are those of the place; that nothing was found or could be had is a [`Verdict`].
pub async fn warm(client: &Client, job: Job, tell: &(dyn Fn(Step) + Sync)) -> Result<Report, WarmError> {
    let begun = Instant::now();
    let deadline = begun + job.budget;
    let (into, identity) = (job.into.clone(), job.identity.id());
    let (root, marked) = blocking(move || {
        let root = CacheRoot::open(&into)?;
        let marked = root.marker_written(&identity);
        root.clean()?;
        Ok((Arc::new(root), marked))
    })
    .await?;
    tell(Step::Waiting);
    let locking = root.clone();
    let lock = tokio::task::spawn_blocking(move || locking.lock(deadline)).await.map_err(|_| WarmError::Thread)?;
    let locked = Instant::now();
    let (fetched, quarantined) = (None, Vec::new());
    let mut attempt = Attempt { client, job: &job, root, marked, begun, deadline, tell, locked, fetched, quarantined };
    let mut report = match lock {
        Ok(lock) => attempt.run(Arc::new(lock)).await?,
        Err(LockError::TimedOut { .. }) => attempt.report(Verdict::Nothing {
            class: NegativeClass::Transient,
            detail: "another process is still installing into this cache root".to_owned(),
        }),
        Err(error @ LockError::Io { .. }) => {
            attempt.report(Verdict::Nothing { class: NegativeClass::Transient, detail: chain(&error) })
        }
    };
    report.total_seconds = begun.elapsed().as_secs_f64();
    audit::tell(client, audit::of_report(&report, &job)).await;
    Ok(report)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, InstallError> + Send + 'static,
) -> Result<T, WarmError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| WarmError::Thread)??)
}

struct Attempt<'a> {
    client: &'a Client,
    job: &'a Job,
    root: Arc<CacheRoot>,
    /// The identity's marker as it was before the lock was waited for.
    marked: Option<Stamp>,
    begun: Instant,
    deadline: Instant,
    tell: &'a (dyn Fn(Step) + Sync),
    locked: Instant,
    fetched: Option<Instant>,
    quarantined: Vec<LeftOut>,
}

impl Attempt<'_> {
    async fn run(&mut self, lock: Arc<InstallLock>) -> Result<Report, WarmError> {
        self.locked = Instant::now();
        if let Some(verdict) = self.remembered().await? {
            let remembered = matches!(verdict, Verdict::Nothing { .. });
            return Ok(Report { remembered, ..self.report(verdict) });
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        let mut found = None;
        let brought = tokio::time::timeout(left, self.bring(&lock, &mut found)).await;
        let brought = brought.unwrap_or_else(|_| {
            Err(Failure { class: NegativeClass::Transient, detail: format!("not done within {:?}", self.job.budget) })
        });
        let ended = Instant::now();
        let mut report = match brought {
            Ok(brought) => {
                let (admitted, artifacts) = brought.into_iter().unzip();
                Report { artifacts, admitted, ..self.report(Verdict::Installed) }
            }
            Err(failure) => {
                self.remember(&failure).await;
                self.report(Verdict::Nothing { class: failure.class, detail: failure.detail })
            }
        };
        let found = found.unwrap_or(ended);
        let fetched = self.fetched.unwrap_or(ended);
        report.lookup_seconds = (found - self.locked).as_secs_f64();
        report.fetch_seconds = fetched.saturating_duration_since(found).as_secs_f64();
        report.install_seconds = ended.saturating_duration_since(fetched).as_secs_f64();
        Ok(report)
    }

    /// What an earlier attempt left that makes this one needless.
    async fn remembered(&self) -> Result<Option<Verdict>, WarmError> {
        if self.job.ignore_markers {
            return Ok(None);
        }
        let (root, identity) = (self.root.clone(), self.job.identity.id());
        let (marker, marked) = blocking(move || Ok((root.marker(&identity)?, root.marker_written(&identity)))).await?;
        Ok(match marker {
            Some(Marker::Installed(_)) if marked != self.marked => Some(Verdict::Shared),
            Some(Marker::Negative(negative)) if negative.holds(UnixTime::now(), self.job.policy.version) => {
                let detail = format!("remembered from an attempt before: {}", negative.detail);
                Some(Verdict::Nothing { class: negative.class, detail })
            }
            _ => None,
        })
    }

    async fn remember(&self, failure: &Failure) {
        let (root, identity) = (self.root.clone(), self.job.identity.id());
        let (class, detail, version) = (failure.class, failure.detail.clone(), self.job.policy.version);
        let written =
            blocking(move || root.write_negative(&identity, class, &detail, UnixTime::now(), version).map(drop)).await;
        if let Err(error) = written {
            tracing::warn!(error = %chain(&error), "write negative marker");
        }
    }

    async fn bring(&mut self, lock: &Arc<InstallLock>, found: &mut Option<Instant>) -> Result<Vec<Brought>, Failure> {
        (self.tell)(Step::Looking);
        let request = WarmRequest {
            identity: Bytes::copy_from_slice(self.job.identity.id().as_bytes()),
            family: self.job.identity.family().to_string(),
            subject: self.job.subject.clone().unwrap_or_default(),
            any_subject: self.job.subject.is_none(),
            budget_ms: u64::try_from(self.deadline.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(0),
            manifest_only: false,
        };
        let mut events = self.client.warm(request).await?;
        let mut work = Works {
            attempt: self,
            lock,
            running: JoinSet::new(),
            ends: HashMap::new(),
            reports: Vec::new(),
            failure: None,
            quarantined: Vec::new(),
        };
        while let Some(event) = next(&mut events).await? {
            match event {
                warm_event::Event::Offer(_) => *found = Some(Instant::now()),
                warm_event::Event::Manifest(manifest) => work.start(manifest.envelope),
                warm_event::Event::Progress(progress) => (work.attempt.tell)(Step::Fetching {
                    bytes: progress.bytes,
                    bytes_total: progress.bytes_total,
                    holders: progress.holders,
                }),
                warm_event::Event::Done(done) => work.done(done)?,
            }
        }
        let Works { running, reports, failure, quarantined, .. } = work;
        self.quarantined = quarantined;
        self.fetched = Some(Instant::now());
        (self.tell)(Step::Installing);
        self.finish(running, reports, failure).await
    }

    /// Waits for the installs; the fetch is over.
    async fn finish(
        &self,
        mut running: JoinSet<Result<(ArtifactId, Installed), Failure>>,
        mut reports: Vec<Brought>,
        mut failure: Option<Failure>,
    ) -> Result<Vec<Brought>, Failure> {
        let mut installed = Vec::new();
        while let Some(ended) = running.join_next().await {
            match ended {
                Ok(Ok(one)) => installed.push(one),
                Ok(Err(error)) => failure = failure.or(Some(error)),
                Err(_) => {
                    let detail = "the install's task panicked".to_owned();
                    failure = failure.or(Some(Failure { class: NegativeClass::Transient, detail }));
                }
            }
        }
        for (id, done) in &installed {
            if let Some(report) = reports.iter_mut().find(|(admitted, _)| admitted.id() == *id) {
                let report = &mut report.1;
                report.installed = done.installed.len();
                report.added.clone_from(&done.installed);
                report.existing = done.existing.len();
                report.in_the_way.clone_from(&done.in_the_way);
                report.files = done.files;
                report.bytes = done.bytes;
            }
        }
        reports.retain(|(admitted, _)| installed.iter().any(|(id, _)| *id == admitted.id()));
        match failure {
            Some(failure) if reports.is_empty() => Err(failure),
            Some(failure) => {
                tracing::warn!(detail = failure.detail, "not every artifact was installed");
                Ok(reports)
            }
            None if reports.is_empty() => {
                Err(Failure { class: NegativeClass::NoneFound, detail: "nobody has it".to_owned() })
            }
            None => Ok(reports),
        }
    }

    fn report(&self, verdict: Verdict) -> Report {
        Report {
            verdict,
            artifacts: Vec::new(),
            admitted: Vec::new(),
            quarantined: self.quarantined.clone(),
            remembered: false,
            lock_seconds: (self.locked - self.begun).as_secs_f64(),
            lookup_seconds: 0.0,
            fetch_seconds: 0.0,
            install_seconds: 0.0,
            total_seconds: self.begun.elapsed().as_secs_f64(),
        }
    }
}

async fn next(events: &mut Streaming<WarmEvent>) -> Result<Option<warm_event::Event>, tonic::Status> {
    Ok(events.message().await?.and_then(|event| event.event))
}
