//! Which versions there are, what aliases point at, and what is to be done next. Pure: time comes from the caller, and
//! what it wants done it returns as [`Work`], whose results come back as calls.
//!
//! ```text
//! alias --current--> version: disk -> registering -> ready -> unregistering -> disk
//!       --next-----> version, takes the place of the current one once it is ready
//!                    version that no alias names: leaves the engine when nobody uses it, then its files after the grace
//! ```
//!
//! [`Table::take`] compares what is wanted with what is there, and is right after any sequence of calls: nothing is lost
//! if an event comes twice, late, or not at all.

mod asking;
mod engine;
mod events;
mod orders;
mod room;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

pub(super) use asking::Found;
pub use orders::OrderError;
pub(super) use work::Work;

use super::config::AdaptersConfig;
use super::entry::{Entry, Failure, Kind, Version, Want};
use super::files::Files;
use super::metrics::Metrics;
use super::names::Names;
use super::source::{Offer, Signed};
use super::state::{Eviction, Place, State};
use crate::adapters::{Alias, PreparationId, ServedName};
use crate::digest::ArtifactId;

/// A name in the engine's list that is none of ours any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stray {
    Known { not_before: Instant },
    Unregistering,
}

#[derive(Debug)]
pub(super) struct Table {
    config: AdaptersConfig,
    metrics: Metrics,
    /// Counts changes of what is believed of the engine.
    turn: u64,
    /// Of the engine, while it is ready.
    epoch: Option<u64>,
    entries: BTreeMap<Alias, Entry>,
    versions: BTreeMap<ServedName, Version>,
    files: Files,
    names: Names,
    strays: BTreeMap<ServedName, Stray>,
    /// Records that differ from what is on disk.
    dirty: BTreeSet<Alias>,
    is_saving: bool,
    looks: usize,
    comparisons: usize,
    refresh_at: Instant,
    list_at: Instant,
    is_listing: bool,
    /// The engine may have what we believe it has not, until its list is read that is asked for from now on.
    is_uncertain: bool,
    is_listed: bool,
}

/// A ready version, which one more request uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) name: ServedName,
    pub(super) prepared: PreparationId,
}

impl Table {
    pub(super) fn new(config: AdaptersConfig, metrics: Metrics, now: Instant) -> Self {
        Self {
            names: Names::new(config.max_unknown),
            config,
            metrics,
            turn: 0,
            epoch: None,
            entries: BTreeMap::new(),
            versions: BTreeMap::new(),
            files: Files::default(),
            strays: BTreeMap::new(),
            dirty: BTreeSet::new(),
            is_saving: false,
            looks: 0,
            comparisons: 0,
            refresh_at: now,
            list_at: now,
            is_listing: false,
            is_uncertain: true,
            is_listed: false,
        }
    }

    pub(super) fn config(&self) -> &AdaptersConfig {
        &self.config
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&Alias, &Entry)> {
        self.entries.iter()
    }

    /// Of the version that requests get, or else of what was served last, or else is being loaded.
    pub(super) fn signed(&self, alias: &Alias) -> Option<&Arc<Signed>> {
        let entry = self.entries.get(alias)?;
        self.current(entry).map(|version| &version.signed).or(entry.signed.as_ref()).or(entry.seen.as_ref())
    }

    pub(super) fn signed_as(&self, name: &ServedName) -> Option<Arc<Signed>> {
        self.versions.get(name).map(|version| version.signed.clone())
    }

    /// The newest version that somebody has, as far as is known.
    pub(super) fn offer(&self, alias: &Alias) -> Option<&Offer> {
        self.entries.get(alias)?.offer.as_ref()
    }

    pub(super) fn current(&self, entry: &Entry) -> Option<&Version> {
        self.versions.get(entry.current.as_ref()?)
    }

    fn is_ready(&self, entry: &Entry) -> bool {
        self.current(entry).is_some_and(|version| version.place.is_ready(self.epoch))
    }

    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// A lease has ended; true if there is something to do about it.
    pub(super) fn release(&mut self, name: &ServedName) -> bool {
        let Some(version) = self.versions.get_mut(name) else { return false };
        version.leases = version.leases.saturating_sub(1);
        version.leases == 0 && !self.is_wanted(name)
    }

    fn is_wanted(&self, name: &ServedName) -> bool {
        self.entries.get(name.alias()).is_some_and(|entry| entry.want == Want::Yes && entry.names(name))
    }

    fn is_named(&self, name: &ServedName) -> bool {
        self.entries.get(name.alias()).is_some_and(|entry| entry.names(name))
    }

    /// Why nothing is being done about an adapter that is wanted.
    pub(super) fn failure<'t>(&'t self, entry: &'t Entry, now: Instant) -> Option<&'t Failure> {
        let blocked = |version: &Version| entry.is_blocked(&version.signed.artifact, now);
        let has_hope = entry.attempt.is_some() || entry.next.is_some() || entry.candidate(now).is_some();
        if has_hope || self.is_ready(entry) || self.current(entry).is_some_and(|version| !blocked(version)) {
            return None;
        }
        entry.failures.iter().filter(|failure| now < failure.until).max_by_key(|failure| failure.until)
    }

    pub(super) fn state(&self, entry: &Entry, now: Instant) -> State {
        let is_wanted = entry.want == Want::Yes;
        let place = self.current(entry).map(|version| version.place);
        match (&entry.attempt, place) {
            (_, Some(place)) if is_wanted && place.is_ready(self.epoch) => State::Ready,
            (Some(attempt), _) => attempt.stage,
            _ if self.failure(entry, now).is_some() => State::Failed,
            (None, Some(Place::Disk { .. })) if !is_wanted => State::Prepared,
            (None, Some(_)) if is_wanted => State::Registering,
            (None, Some(_)) => State::Draining,
            (None, None) if entry.is_asked_for() && entry.candidate(now).is_some() => State::Queued,
            (None, None) if entry.shelved.is_some_and(|id| self.files.bytes(&id) > 0) => State::Prepared,
            (None, None) if entry.signed.is_some() => State::Offloaded,
            (None, None) => State::Absent,
        }
    }

    /// Adapters that the engine has, also those that it is about to lose.
    pub(super) fn registered(&self) -> usize {
        self.versions.values().filter(|version| !matches!(version.place, Place::Disk { .. })).count()
    }

    /// Of every version: its name, the requests that use it, and its bytes.
    pub(super) fn sizes(&self) -> impl Iterator<Item = (&ServedName, usize, u64)> {
        self.versions.iter().map(|(name, version)| (name, version.leases, self.files.bytes(&version.prepared)))
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.files.used()
    }

    fn fail(&mut self, alias: &Alias, artifact: ArtifactId, kind: Kind, reason: String, now: Instant) {
        /// Versions of one alias that are remembered as failed.
        const MOST: usize = 4;
        let pause = match kind {
            Kind::Refused => self.config.refused_for,
            Kind::Failed => self.config.failed_for,
        };
        let is_ready = self.entries.get(alias).is_some_and(|entry| self.is_ready(entry));
        let Some(entry) = self.entries.get_mut(alias) else { return };
        tracing::warn!(%alias, %artifact, reason, "an adapter was not loaded");
        entry.failures.retain(|failure| failure.artifact != artifact && now < failure.until);
        if entry.failures.len() == MOST {
            entry.failures.remove(0);
        }
        entry.failures.push(Failure { artifact, kind, reason, until: now + pause });
        entry.askers.clear();
        if !is_ready && !entry.is_pinned() && entry.want == Want::Yes {
            // The next request tries again, and nobody else.
            entry.want = Want::No;
        }
    }

    /// Lets the newest version take over as soon as it is ready.
    fn settle(&mut self, alias: &Alias) {
        let Some(entry) = self.entries.get_mut(alias) else { return };
        let next = entry.next.as_ref().and_then(|name| self.versions.get(name));
        let Some(version) = next.filter(|version| version.place.is_ready(self.epoch)) else { return };
        entry.signed = Some(version.signed.clone());
        if entry.current.is_some() {
            self.metrics.evicted(Eviction::Superseded);
        }
        entry.current = entry.next.take();
        tracing::info!(%alias, generation = version.signed.generation, "an adapter is ready");
        self.dirty.insert(alias.clone());
    }

    /// The entry of an alias, made if there is room.
    fn entry(&mut self, alias: &Alias, now: Instant) -> Option<&mut Entry> {
        if !self.entries.contains_key(alias) {
            if self.entries.len() >= self.config.max_adapters {
                let spare = |entry: &Entry| entry.is_bare() && !entry.is_pinned() && entry.wish.is_none();
                let oldest = self.entries.iter().filter(|(_, entry)| spare(entry)).min_by_key(|(_, entry)| entry.used);
                let oldest = oldest.map(|(alias, _)| alias.clone())?;
                self.entries.remove(&oldest);
                self.dirty.insert(oldest);
            }
            self.names.take(alias);
            self.entries.insert(alias.clone(), Entry::new(now));
        }
        self.entries.get_mut(alias)
    }
}

#[cfg(test)]
mod tests;
