//! Uploads what this node publishes to the origin, in the background: compares the store with what was uploaded, as
//! announcing does. The store is the queue, so nothing is lost by a restart, and nothing grows that the store does not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, timeout_at};

use super::holdings::summary;
use super::trust::Trust;
use crate::artifact::Family;
use crate::digest::ArtifactId;
use crate::origin::{Origin, OriginError};
use crate::store::{Artifact, Role, State, Store};
use crate::telemetry::{Registry, label, labels};
use crate::transfer::{self, Direction, Holder, MayServe};

/// Between attempts at one artifact: at first, then twice as long each time, down to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LAST_PAUSE: Duration = Duration::from_secs(600);

label! {
    enum Outcome {
        Uploaded,
        /// The origin had it already.
        There,
        Failed,
    }
}

labels! {
    struct OutcomeLabel {
        outcome: Outcome,
    }
}

pub(super) struct Uploads {
    origin: Origin,
    store: Store,
    may_serve: MayServe,
    families: Vec<Family>,
    backlog: Backlog,
    metrics: UploadMetrics,
    transfer: transfer::Metrics,
}

/// Of the background.
#[derive(Debug, Clone)]
pub(super) struct UploadMetrics {
    attempts: family::Family<OutcomeLabel, Counter>,
    waiting: Gauge,
}

impl UploadMetrics {
    pub(super) fn register(r: &mut Registry) -> Self {
        Self {
            attempts: r.add("warmd_origin_uploads_total", "Own publications uploaded in the background, by outcome"),
            waiting: r.add("warmd_origin_uploads_waiting", "Own publications that are still to be uploaded"),
        }
    }
}

impl Uploads {
    pub(super) fn new(
        origin: Origin,
        store: Store,
        trust: &Arc<Trust>,
        families: &[Family],
        metrics: UploadMetrics,
        transfer: transfer::Metrics,
    ) -> Self {
        let (may_serve, families, backlog) = (trust.may_serve(&store), families.to_vec(), Backlog::default());
        Self { origin, store, may_serve, families, backlog, metrics, transfer }
    }

    pub(super) async fn run(mut self) {
        if self.families.is_empty() {
            return;
        }
        let mut changes = self.store.subscribe();
        loop {
            changes.borrow_and_update();
            self.backlog.keep(self.wanted());
            self.metrics.waiting.set(i64::try_from(self.backlog.len()).unwrap_or(i64::MAX));
            let due = match self.backlog.next(Instant::now()) {
                Next::Upload(id) => {
                    self.upload(id).await;
                    continue;
                }
                Next::At(due) => Some(due),
                Next::Idle => None,
            };
            let ended = match due {
                Some(due) => timeout_at(due, changes.changed()).await.is_ok_and(|changed| changed.is_err()),
                None => changes.changed().await.is_err(),
            };
            if ended {
                return;
            }
        }
    }

    /// The newest of each subject of what was published here.
    fn wanted(&self) -> HashSet<ArtifactId> {
        let newest = |artifact: &Artifact| {
            let ours =
                |one: &Artifact| one.role() == Role::Published && one.signed().signer() == artifact.signed().signer();
            let latest = self.store.latest(&artifact.identity(), &artifact.manifest().subject, ours);
            latest.is_some_and(|latest| latest.id() == artifact.id())
        };
        let own = |artifact: &Arc<Artifact>| {
            artifact.role() == Role::Published
                && artifact.state() == State::Complete
                && self.families.contains(artifact.manifest().identity.family())
                && (self.may_serve)(&artifact.id())
        };
        let artifacts = self.store.list().into_iter().filter(own);
        artifacts.filter(|artifact| newest(artifact)).map(|artifact| artifact.id()).collect()
    }

    async fn upload(&mut self, id: ArtifactId) {
        let outcome = match self.attempt(id).await {
            Ok(outcome) => {
                tracing::info!(artifact = %id, ?outcome, "in the origin");
                self.backlog.done(id);
                outcome
            }
            Err(error) => {
                let pause = self.backlog.failed(id, Instant::now());
                tracing::warn!(artifact = %id, %error, again_in = ?pause, "not uploaded to the origin");
                Outcome::Failed
            }
        };
        self.metrics.attempts.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    async fn attempt(&self, id: ArtifactId) -> Result<Outcome, OriginError> {
        let artifact = self.store.get(&id);
        if let Some(artifact) = &artifact
            && self.origin.has(&summary(artifact)).await?
        {
            return Ok(Outcome::There);
        }
        let pushed = self.origin.push(&self.store, id, &|_| ()).await?;
        if let Some(artifact) = artifact {
            let family = artifact.manifest().identity.family();
            self.transfer.bytes(family, Direction::Sent, Holder::Origin).inc_by(pushed.written_bytes);
        }
        Ok(Outcome::Uploaded)
    }
}

/// What is still to be uploaded, and from when on.
#[derive(Debug, Default)]
struct Backlog {
    done: HashSet<ArtifactId>,
    waiting: HashMap<ArtifactId, Waiting>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Waiting {
    failures: u32,
    /// `None` before the first attempt.
    due: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Upload(ArtifactId),
    At(Instant),
    Idle,
}

impl Backlog {
    /// Forgets everything that is not wanted any more.
    fn keep(&mut self, wanted: HashSet<ArtifactId>) {
        self.done.retain(|id| wanted.contains(id));
        self.waiting.retain(|id, _| wanted.contains(id));
        for id in wanted {
            if !self.done.contains(&id) {
                self.waiting.entry(id).or_default();
            }
        }
    }

    fn next(&self, now: Instant) -> Next {
        match self.waiting.iter().min_by_key(|(_, waiting)| waiting.due) {
            None => Next::Idle,
            Some((_, Waiting { due: Some(due), .. })) if *due > now => Next::At(*due),
            Some((id, _)) => Next::Upload(*id),
        }
    }

    fn done(&mut self, id: ArtifactId) {
        self.waiting.remove(&id);
        self.done.insert(id);
    }

    /// How long it waits now.
    fn failed(&mut self, id: ArtifactId, now: Instant) -> Duration {
        let waiting = self.waiting.entry(id).or_default();
        let pause = FIRST_PAUSE.saturating_mul(1 << waiting.failures.min(16)).min(LAST_PAUSE);
        *waiting = Waiting { failures: waiting.failures.saturating_add(1), due: Some(now + pause) };
        pause
    }

    fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ArtifactId {
        ArtifactId::of(&[n])
    }

    #[test]
    fn each_is_uploaded_once_and_what_goes_away_is_forgotten() {
        let (mut backlog, now) = (Backlog::default(), Instant::now());
        assert_eq!(backlog.next(now), Next::Idle);
        backlog.keep([id(1)].into());
        assert_eq!(backlog.next(now), Next::Upload(id(1)));
        backlog.done(id(1));
        backlog.keep([id(1)].into());
        assert_eq!(backlog.next(now), Next::Idle);
        backlog.keep([id(2)].into());
        backlog.failed(id(2), now);
        backlog.keep([].into());
        assert_eq!((backlog.next(now), backlog.done.len(), backlog.len()), (Next::Idle, 0, 0));
    }

    #[test]
    fn a_failure_waits_longer_each_time_and_does_not_hold_up_others() {
        let (mut backlog, now) = (Backlog::default(), Instant::now());
        backlog.keep([id(1)].into());
        let pauses: Vec<u64> = (0..12).map(|_| backlog.failed(id(1), now).as_secs()).collect();
        assert_eq!(pauses[..4], [2, 4, 8, 16]);
        assert_eq!(pauses[11], LAST_PAUSE.as_secs());
        assert_eq!(backlog.next(now), Next::At(now + LAST_PAUSE));
        backlog.keep([id(1), id(2)].into());
        assert_eq!(backlog.next(now), Next::Upload(id(2)));
        backlog.done(id(2));
        assert_eq!(backlog.next(now + LAST_PAUSE), Next::Upload(id(1)));
    }
}
