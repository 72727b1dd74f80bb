//! The coldest tier: what is asked of the origin when no node offers something.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{timeout, timeout_at};

use super::Failed;
use crate::artifact::Admitted;
use crate::digest::{ArtifactId, IdentityId};
use crate::local::chain;
use crate::origin::{Origin, OriginError};
use crate::protocol::metadata::{Offer, Summary};
use crate::store::Store;
use crate::transfer::{self, Direction, Fetched, Holder, Progress};

/// How long it is remembered that the origin has nothing of an identity, or did not answer.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Identities that are remembered; with more, all are forgotten.
const MAX_REMEMBERED: usize = 4096;

/// An origin, and what it did not have.
pub(in crate::agent) struct Cold {
    origin: Origin,
    find_deadline: Duration,
    metrics: transfer::Metrics,
    absent: Mutex<Absent>,
}

impl Cold {
    pub(in crate::agent) fn new(origin: Origin, find_deadline: Duration, metrics: transfer::Metrics) -> Self {
        Self { origin, find_deadline, metrics, absent: Mutex::default() }
    }

    /// What the origin has of some identities, side by side; nothing of those that it has just not had.
    pub(super) async fn find(&self, identities: impl IntoIterator<Item = IdentityId>) -> Vec<Offer> {
        let found = join_all(identities.into_iter().map(|identity| self.find_one(identity))).await;
        found.into_iter().flatten().collect()
    }

    async fn find_one(&self, identity: IdentityId) -> Vec<Offer> {
        if self.absent().has(&identity, Instant::now()) {
            return Vec::new();
        }
        let found = match timeout(self.find_deadline, self.origin.find(identity)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the origin could not be asked");
                Vec::new()
            }
            Err(_) => {
                tracing::warn!(deadline = ?self.find_deadline, "the origin did not answer in time");
                Vec::new()
            }
        };
        if found.is_empty() {
            self.absent().add(identity, Instant::now());
        }
        found.into_iter().map(offer).collect()
    }

    /// As [`Cold::find`], but asked by somebody who wants to know why not.
    pub(super) async fn ask(&self, identity: IdentityId) -> Result<Vec<Offer>, Failed> {
        let found = self.origin.find(identity).await.map_err(|error| failed(&error))?;
        Ok(found.into_iter().map(offer).collect())
    }

    pub(super) async fn envelope(&self, id: &ArtifactId) -> Result<Bytes, Failed> {
        self.origin.envelope(id).await.map_err(|error| failed(&error))
    }

    pub(super) async fn fetch(
        &self,
        store: &Store,
        admitted: Admitted,
        deadline: Instant,
        tell: &(dyn Fn(Progress) + Sync),
    ) -> Result<Fetched, Failed> {
        let tell = |now: crate::origin::Progress| {
            tell(Progress { bytes: now.bytes, bytes_total: now.bytes_total, ..Progress::default() });
        };
        let family = admitted.manifest().identity.family().clone();
        match timeout_at(deadline.into(), self.origin.pull(store, admitted, &tell)).await {
            Ok(Ok(pulled)) => {
                let received = |holder| self.metrics.bytes(&family, Direction::Received, holder);
                received(Holder::Origin).inc_by(pulled.read_bytes);
                received(Holder::Local).inc_by(pulled.reused_bytes);
                Ok(Fetched { wire_bytes: pulled.read_bytes, reused_bytes: pulled.reused_bytes, holders: 0 })
            }
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(Failed::new("transient", "the time for the fetch from the origin is over")),
        }
    }

    fn absent(&self) -> std::sync::MutexGuard<'_, Absent> {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody holds it: there is only the origin.
pub(super) fn offer(summary: Summary) -> Offer {
    Offer { artifact: Arc::new(summary), holders: Vec::new(), holder_count: 0 }
}

fn failed(error: &OriginError) -> Failed {
    let class = match error {
        OriginError::Missing(_) => "none-found",
        OriginError::Store(error) if error.is_no_space() => "no-space",
        _ => "transient",
    };
    Failed::new(class, chain(error))
}

/// Identities, and until when they count as absent.
#[derive(Debug, Default)]
struct Absent(HashMap<IdentityId, Instant>);

impl Absent {
    fn has(&self, identity: &IdentityId, now: Instant) -> bool {
        self.0.get(identity).is_some_and(|until| now < *until)
    }

    fn add(&mut self, identity: IdentityId, now: Instant) {
        if self.0.len() >= MAX_REMEMBERED {
            self.0.retain(|_, until| now < *until);
        }
        if self.0.len() >= MAX_REMEMBERED {
            self.0.clear();
        }
        self.0.insert(identity, now + REMEMBERED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Registry;

    #[test]
    fn an_absence_is_remembered_for_a_while_and_never_too_many() {
        let mut absent = Absent::default();
        let (now, id) = (Instant::now(), IdentityId::of(b"a"));
        assert!(!absent.has(&id, now));
        absent.add(id, now);
        assert!(absent.has(&id, now + REMEMBERED / 2) && !absent.has(&id, now + REMEMBERED));
        for n in 0..2 * MAX_REMEMBERED {
            absent.add(IdentityId::of(&n.to_le_bytes()), now);
            assert!(absent.0.len() <= MAX_REMEMBERED);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_that_cannot_be_asked_costs_no_more_than_its_deadline_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::origin::OriginConfig {
            url: Some(format!("file://{}", dir.path().display()).parse().unwrap()),
            ..Default::default()
        };
        let origin = Origin::open(&config, crate::origin::Metrics::default()).unwrap().unwrap();
        // A deadline that is over before anything can be answered.
        let cold = Cold::new(origin, Duration::ZERO, transfer::Metrics::register(&mut Registry::default()));
        let id = IdentityId::of(b"a");
        assert!(cold.find([id]).await.is_empty());
        assert!(cold.absent().has(&id, Instant::now()));
    }
}
