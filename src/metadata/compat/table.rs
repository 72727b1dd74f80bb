//! Who has which weights: a pure state machine. `now` is the time since 1970 by a clock that never goes back; no I/O.
//!
//! ```text
//! INITIALIZING <-> READY <-> STALE -> forgotten        as the worker says; silent for `lease`, it is STALE all the same
//! ```
//!
//! STALE is not the end, unlike in warmd's own directory: a worker whose network failed says STALE, and READY once it works
//! again. What is forgotten is: its heartbeats are refused, upon which a worker registers itself anew. A full table is an
//! error for whoever comes last; nobody is forgotten early for another's sake.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::protocol::model_express::{
    Known, Listed, MAX_LISTED, Publication, Query, Registration, SourceId, SourceStatus, StatusUpdate, WorkerId,
};

/// About what a worker costs besides what it says.
const ROW: usize = 512;
/// Bytes of one answer.
const MAX_PAGE: usize = 4 * 1024 * 1024;

/// Times and bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limits {
    /// How long a silent worker is believed.
    pub(super) lease: Duration,
    /// How long one that is STALE is remembered.
    pub(super) forget: Duration,
    pub(super) max_workers: usize,
    pub(super) max_bytes: usize,
}

/// Why something was not taken. Nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TableError {
    #[error("no room: at most {limit} {what}")]
    Full { what: &'static str, limit: usize },
    #[error("source '{source_id}' has no worker '{worker}' of rank {rank}: publish again", source_id = .key.source, worker = .key.worker)]
    Unknown { key: Registration, rank: u32 },
}

#[derive(Debug)]
struct Worker {
    told: Publication,
    load: Option<f32>,
    renewed: Duration,
}

impl Worker {
    fn status(&self, limits: &Limits, now: Duration) -> SourceStatus {
        if now.saturating_sub(self.renewed) > limits.lease { SourceStatus::Stale } else { self.told.status }
    }

    /// When it is forgotten, unless it says something before.
    fn end(&self, limits: &Limits) -> Duration {
        let believed = if self.told.status == SourceStatus::Stale { Duration::ZERO } else { limits.lease };
        self.renewed + believed + limits.forget
    }

    /// Unix milliseconds.
    fn updated_at(&self) -> i64 {
        i64::try_from(self.renewed.as_millis()).unwrap_or(i64::MAX)
    }

    fn listed(&self) -> Listed {
        let told = &self.told;
        Listed {
            key: told.key.clone(),
            model: told.identity.model().to_owned(),
            rank: told.rank,
            accelerator: told.accelerator.clone(),
            updated_at: self.updated_at(),
            step: told.identity.training_step(),
            layout: told.identity.layout_signature().map(str::to_owned),
            topology: told.topology.clone(),
            load: self.load,
        }
    }

    fn matches(&self, query: &Query, limits: &Limits, now: Duration) -> bool {
        let told = &self.told;
        query.status.is_none_or(|status| self.status(limits, now) == status)
            && query.model.as_ref().is_none_or(|model| told.identity.model() == model)
            && query.rank.is_none_or(|rank| told.rank == rank)
            && query.min_step.is_none_or(|min| told.identity.training_step().is_some_and(|step| step >= min))
            && query.min_updated_at.is_none_or(|min| self.updated_at() >= min)
    }
}

fn size(told: &Publication) -> usize {
    let topology: usize = told.topology.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
    ROW + told.metadata.len() + told.identity.encoded_len() + told.accelerator.len() + topology
}

/// Workers by status, and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) initializing: usize,
    pub(super) ready: usize,
    pub(super) stale: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) struct Table {
    limits: Limits,
    sources: BTreeMap<SourceId, BTreeMap<WorkerId, Worker>>,
    /// When each worker is forgotten.
    ends: BTreeSet<(Duration, Registration)>,
    bytes: usize,
}

impl Table {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, sources: BTreeMap::new(), ends: BTreeSet::new(), bytes: 0 }
    }

    /// A worker that is there already is replaced.
    pub(super) fn publish(&mut self, told: Publication, now: Duration) -> Result<(), TableError> {
        self.expire(now);
        let Limits { max_workers, max_bytes, .. } = self.limits;
        let before = self.worker(&told.key);
        if before.is_none() && self.ends.len() >= max_workers {
            return Err(TableError::Full { what: "workers", limit: max_workers });
        }
        let others = self.bytes - before.map_or(0, |worker| size(&worker.told));
        if others + size(&told) > max_bytes {
            return Err(TableError::Full { what: "bytes of what workers say of themselves", limit: max_bytes });
        }
        let key = told.key.clone();
        self.remove(&key);
        self.bytes += size(&told);
        let worker = Worker { told, load: None, renewed: now };
        self.ends.insert((worker.end(&self.limits), key.clone()));
        self.sources.entry(key.source).or_default().insert(key.worker, worker);
        Ok(())
    }

    /// A heartbeat, or another change of status.
    pub(super) fn update(&mut self, update: StatusUpdate, now: Duration) -> Result<(), TableError> {
        self.expire(now);
        let StatusUpdate { key, rank, status, load } = update;
        let found = self.sources.get_mut(&key.source).and_then(|workers| workers.get_mut(&key.worker));
        let Some(worker) = found.filter(|worker| worker.told.rank == rank) else {
            return Err(TableError::Unknown { key, rank });
        };
        let before = worker.end(&self.limits);
        (worker.told.status, worker.load, worker.renewed) = (status, load, now);
        let end = worker.end(&self.limits);
        self.ends.remove(&(before, key.clone()));
        self.ends.insert((end, key));
        Ok(())
    }

    pub(super) fn get(&self, key: &Registration, now: Duration) -> Option<Known> {
        let worker = self.worker(key).filter(|worker| now < worker.end(&self.limits))?;
        Some(Known {
            identity: worker.told.identity.clone(),
            metadata: worker.told.metadata.clone(),
            status: worker.status(&self.limits, now),
            updated_at: worker.updated_at(),
        })
    }

    /// Newest heartbeat first. What does not fit in one answer is left out.
    pub(super) fn list(&self, query: &Query, now: Duration) -> Vec<Listed> {
        let matches = |worker: &&Worker| now < worker.end(&self.limits) && worker.matches(query, &self.limits, now);
        let mut found: Vec<&Worker> = match query.source {
            Some(source) => self.sources.get(&source).into_iter().flat_map(BTreeMap::values).filter(matches).collect(),
            None => self.workers().filter(matches).collect(),
        };
        found.sort_by_key(|worker| (Reverse(worker.renewed), &worker.told.key));
        found.truncate(query.limit.unwrap_or(MAX_LISTED));
        let mut bytes = 0;
        let fits = |worker: &&Worker| {
            bytes += size(&worker.told) - worker.told.metadata.len();
            bytes <= MAX_PAGE
        };
        found.into_iter().take_while(fits).map(Worker::listed).collect()
    }

    /// Forgets who has been STALE for long enough.
    pub(super) fn expire(&mut self, now: Duration) {
        while self.ends.first().is_some_and(|(end, _)| *end <= now) {
            if let Some((_, key)) = self.ends.pop_first() {
                self.remove(&key);
            }
        }
    }

    /// Walks all workers: for gauges, not for requests.
    pub(super) fn counts(&self, now: Duration) -> Counts {
        let mut counts = Counts { bytes: self.bytes, ..Counts::default() };
        for worker in self.workers() {
            *match worker.status(&self.limits, now) {
                SourceStatus::Initializing => &mut counts.initializing,
                SourceStatus::Ready => &mut counts.ready,
                SourceStatus::Stale => &mut counts.stale,
            } += 1;
        }
        counts
    }

    fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.sources.values().flat_map(BTreeMap::values)
    }

    fn worker(&self, key: &Registration) -> Option<&Worker> {
        self.sources.get(&key.source)?.get(&key.worker)
    }

    fn remove(&mut self, key: &Registration) {
        let Some(workers) = self.sources.get_mut(&key.source) else { return };
        if let Some(worker) = workers.remove(&key.worker) {
            self.bytes -= size(&worker.told);
            self.ends.remove(&(worker.end(&self.limits), key.clone()));
        }
        if workers.is_empty() {
            self.sources.remove(&key.source);
        }
    }
}

#[cfg(test)]
mod tests;
