//! What the engine did, and what it says that it has.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::{Place, Stray, Table, Want};
use crate::adapters::{Alias, PreparationId, ServedName};
use crate::digest::ArtifactId;
use crate::serve::adapters::entry::Kind;
use crate::serve::adapters::metrics::Outcome;
use crate::serve::adapters::registry::{Registered, RegistryError};

/// Before the engine is asked again for what it did not do.
const RETRY: Duration = Duration::from_secs(2);

/// So many losses within this time, and an adapter is left alone for a while.
const MAX_LOST: usize = 3;
const LOST_WITHIN: Duration = Duration::from_secs(60);

impl Table {
    pub(in crate::serve::adapters) fn was_registered(
        &mut self,
        epoch: u64,
        name: &ServedName,
        result: Result<(), RegistryError>,
        now: Instant,
    ) {
        let turn = self.next_turn();
        let Some(version) = self.versions.get_mut(name) else { return };
        if version.place != (Place::Registering { epoch }) {
            return;
        }
        let artifact = version.signed.artifact;
        version.place = Place::Disk { since: turn };
        self.files.touch(&version.prepared, now);
        match result {
            Ok(()) => {
                version.place = Place::Ready { epoch, since: turn };
                self.metrics.loaded(Outcome::Ready);
                self.settle(name.alias());
            }
            Err(error) => {
                version.not_before = now + RETRY;
                // A call before this one may have done more than it said.
                self.doubt(now);
                self.not_registered(name, artifact, error, now);
            }
        }
    }

    fn not_registered(&mut self, name: &ServedName, artifact: ArtifactId, error: RegistryError, now: Instant) {
        let (kind, outcome) = match error {
            RegistryError::Unavailable | RegistryError::Unknown => return,
            RegistryError::Refused { .. } => (Kind::Refused, Outcome::Refused),
            RegistryError::MissingFiles => (Kind::Failed, Outcome::Failed),
        };
        if let Some(entry) = self.entries.get_mut(name.alias()) {
            entry.next.take_if(|next| next == name);
            // Whoever loads it again looks at every byte of it.
            entry.current.take_if(|current| current == name && error == RegistryError::MissingFiles);
        }
        self.metrics.loaded(outcome);
        self.fail(name.alias(), artifact, kind, error.to_string(), now);
    }

    /// The engine may have what we believe it has not.
    fn doubt(&mut self, now: Instant) {
        (self.is_uncertain, self.is_listed) = (true, false);
        self.list_at = now;
    }

    pub(in crate::serve::adapters) fn was_unregistered(
        &mut self,
        epoch: u64,
        name: &ServedName,
        result: Result<(), RegistryError>,
        now: Instant,
    ) {
        if self.epoch != Some(epoch) {
            return;
        }
        if let Some(stray) = self.strays.get_mut(name) {
            *stray = Stray::Known { not_before: now + RETRY };
            if result.is_ok() {
                self.strays.remove(name);
                let ids: Vec<PreparationId> = self.files.ids().filter(|id| name.serves(id)).copied().collect();
                ids.iter().for_each(|id| self.files.touch(id, now));
            }
            return;
        }
        let turn = self.next_turn();
        let Some(version) = self.versions.get_mut(name) else { return };
        if version.place != (Place::Unregistering { epoch }) {
            return;
        }
        self.files.touch(&version.prepared, now);
        match result {
            Ok(()) => version.place = Place::Disk { since: turn },
            Err(error) => {
                tracing::warn!(%name, %error, "an adapter was not unloaded");
                version.place = Place::Ready { epoch, since: turn };
                version.not_before = now + RETRY;
                self.doubt(now);
            }
        }
    }

    /// The engine has begun another life, or is not ready: what it had is gone.
    pub(in crate::serve::adapters) fn engine(&mut self, epoch: Option<u64>, now: Instant) {
        if self.epoch == epoch {
            return;
        }
        self.epoch = epoch;
        let turn = self.next_turn();
        for version in self.versions.values_mut() {
            if !matches!(version.place, Place::Disk { .. }) {
                version.place = Place::Disk { since: turn };
            }
            version.not_before = now;
            version.lost.clear();
        }
        // The last one may have had more than was known, and may still be ending.
        self.files.touch_all(now);
        self.strays.clear();
        self.is_listing = false;
        self.doubt(now);
        self.keep_recent();
    }

    /// Of those that are not pinned, as many as the engine keeps in memory are registered again; the others when somebody
    /// asks for them.
    pub(super) fn keep_recent(&mut self) {
        let optional = self.entries.values_mut().filter(|entry| entry.want == Want::Yes && !entry.is_pinned());
        let mut optional: Vec<_> = optional.filter(|entry| entry.attempt.is_none()).collect();
        optional.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        for entry in optional.into_iter().skip(self.config.max_cpu_loras) {
            entry.want = Want::No;
        }
    }

    /// What the engine has, read since `begun`. What changed since then is not judged by it.
    pub(in crate::serve::adapters) fn listed(
        &mut self,
        epoch: u64,
        begun: u64,
        found: Result<Vec<Registered>, RegistryError>,
        now: Instant,
    ) {
        if self.epoch != Some(epoch) {
            return;
        }
        self.is_listing = false;
        let lines = match found {
            Ok(lines) => lines,
            Err(error) => {
                tracing::warn!(%error, "the engine's adapters were not listed");
                self.list_at = now + RETRY;
                return;
            }
        };
        // What became uncertain while the list was read needs another one.
        self.is_listed = !self.is_uncertain;
        self.list_at = if self.is_listed { now + self.config.reconcile } else { now };
        self.compare(epoch, begun, lines, now);
    }

    fn compare(&mut self, epoch: u64, begun: u64, lines: Vec<Registered>, now: Instant) {
        let turn = self.next_turn();
        let ours = lines.into_iter().filter_map(|line| Some((line.name.parse().ok()?, line.directory)));
        let mut ours: BTreeMap<ServedName, PathBuf> = ours.collect();
        let (mut lost, mut is_clear) = (Vec::new(), true);
        for (name, version) in &mut self.versions {
            let directory = ours.remove(name);
            match (version.place, directory) {
                (Place::Ready { since, .. }, None) if since < begun => lost.push(name.clone()),
                (Place::Disk { since }, Some(_)) if since >= begun => is_clear = false,
                (Place::Disk { .. }, Some(_)) if self.strays.contains_key(name) => {}
                (Place::Disk { .. }, Some(directory)) if directory == version.directory => {
                    version.place = Place::Ready { epoch, since: turn };
                }
                (Place::Disk { .. }, Some(_)) => {
                    self.strays.insert(name.clone(), Stray::Known { not_before: now });
                }
                _ => {}
            }
        }
        for name in ours.into_keys() {
            self.strays.entry(name).or_insert(Stray::Known { not_before: now });
        }
        if !is_clear {
            self.doubt(now);
        }
        lost.iter().for_each(|name| self.lost(name, epoch, now));
        let aliases: Vec<Alias> = self.versions.keys().map(|name| name.alias().clone()).collect();
        aliases.iter().for_each(|alias| self.settle(alias));
    }

    /// The engine does not know what it had been given. It is given again, but not for ever.
    pub(in crate::serve::adapters) fn lost(&mut self, name: &ServedName, epoch: u64, now: Instant) {
        let turn = self.next_turn();
        let Some(version) = self.versions.get_mut(name) else { return };
        if !matches!(version.place, Place::Ready { epoch: ours, .. } if ours == epoch) {
            return;
        }
        version.place = Place::Disk { since: turn };
        self.files.touch(&version.prepared, now);
        self.metrics.self_heals.inc();
        version.lost.retain(|at| *at + LOST_WITHIN > now);
        version.lost.push(now);
        if version.lost.len() >= MAX_LOST {
            version.lost.clear();
            let artifact = version.signed.artifact;
            self.fail(name.alias(), artifact, Kind::Failed, "the engine keeps losing it".to_owned(), now);
        }
    }
}
