//! What is to be done: the difference between what is wanted and what is there.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::{Eviction, Place, Stray, Table, Want};
use crate::adapters::{Alias, PreparationId, ServedName};
use crate::digest::ArtifactId;
use crate::serve::adapters::entry::{Attempt, Job};
use crate::serve::adapters::state::State;

/// Look-ups at a time: one that takes its time does not hold up the others.
const MAX_LOOKS: usize = 4;

/// Questions about other base models at a time.
const MAX_COMPARISONS: usize = 2;

/// How often it is asked again whether somebody else has an idle adapter.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// To be done by somebody who can wait. Each ends with the call of the table that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve::adapters) enum Work {
    /// [`Table::looked`].
    Look(Vec<Alias>),
    /// [`Table::compared`].
    Compare(Vec<Alias>),
    /// [`Table::loaded`] or [`Table::failed`].
    Load { alias: Alias, job: Job },
    /// [`Table::was_registered`].
    Register { epoch: u64, name: ServedName, directory: PathBuf },
    /// [`Table::was_unregistered`].
    Unregister { epoch: u64, name: ServedName },
    /// [`Table::listed`].
    List { epoch: u64, begun: u64 },
    /// [`Table::elsewhere`].
    AskElsewhere { alias: Alias, artifact: ArtifactId },
    /// [`Table::deleted`].
    Delete(PreparationId),
    /// [`Table::saved`].
    Save(Vec<Alias>),
}

impl Table {
    /// Everything that is to be done now. It counts as begun.
    pub(in crate::serve::adapters) fn take(&mut self, now: Instant) -> Vec<Work> {
        let mut work = Vec::new();
        self.ask_elsewhere(now, &mut work);
        self.let_go();
        self.start_loads(now, &mut work);
        self.move_versions(now, &mut work);
        self.unload_strays(now, &mut work);
        self.delete_files(now, &mut work);
        self.look_up(now, &mut work);
        if let Some(epoch) = self.epoch.filter(|_| !self.is_listing && self.list_at <= now) {
            (self.is_listing, self.is_uncertain) = (true, false);
            work.push(Work::List { epoch, begun: self.next_turn() });
        }
        if !self.is_saving && !self.dirty.is_empty() {
            self.is_saving = true;
            work.push(Work::Save(std::mem::take(&mut self.dirty).into_iter().collect()));
        }
        work
    }

    /// For the metrics.
    pub(in crate::serve::adapters) fn observe(&self, now: Instant) {
        self.metrics.count(self.entries.values().map(|entry| self.state(entry, now)));
    }

    fn ask_elsewhere(&mut self, now: Instant, work: &mut Vec<Work>) {
        let idle_for = self.config.offload_after;
        if idle_for.is_zero() {
            return;
        }
        for (alias, entry) in &mut self.entries {
            let Some(version) = entry.current.as_ref().and_then(|name| self.versions.get(name)) else { continue };
            let is_idle = entry.used + idle_for <= now && version.leases == 0 && entry.leaving.is_none();
            if is_idle && !entry.is_pinned() && entry.attempt.is_none() && entry.ask_at <= now {
                entry.ask_at = now + ASK_EVERY;
                work.push(Work::AskElsewhere { alias: alias.clone(), artifact: version.signed.artifact });
            }
        }
    }

    /// Forgets the files of adapters that leave, once the engine has let go of them.
    fn let_go(&mut self) {
        for entry in self.entries.values_mut() {
            let version = entry.current.as_ref().and_then(|name| self.versions.get(name));
            let is_out =
                version.is_none_or(|version| matches!(version.place, Place::Disk { .. }) && version.leases == 0);
            if let Some(reason) = entry.leaving.take_if(|_| is_out) {
                (entry.current, entry.next, entry.shelved) = (None, None, None);
                self.metrics.evicted(reason);
            }
        }
    }

    fn start_loads(&mut self, now: Instant, work: &mut Vec<Work>) {
        for (alias, entry) in &mut self.entries {
            entry.failures.retain(|failure| now < failure.until);
            if !entry.is_asked_for() || entry.attempt.is_some() || entry.next.is_some() {
                continue;
            }
            if let Some(job) = entry.candidate(now) {
                let artifact = job.artifact;
                let stage = State::Queued;
                entry.attempt = Some(Attempt { artifact, stage, claim: None, reserved: 0, progress: None });
                work.push(Work::Load { alias: alias.clone(), job });
            }
        }
    }

    fn move_versions(&mut self, now: Instant, work: &mut Vec<Work>) {
        for name in self.by_rank() {
            let (is_named, is_wanted) = (self.is_named(&name), self.is_wanted(&name));
            let Some(version) = self.versions.get_mut(&name) else { continue };
            let artifact = version.signed.artifact;
            let is_due = version.not_before <= now;
            match (version.place, self.epoch) {
                (Place::Disk { .. }, _) if !is_named && version.leases == 0 => {
                    self.versions.remove(&name);
                }
                (Place::Disk { .. }, Some(epoch)) if is_wanted && is_due && !self.strays.contains_key(&name) => {
                    if self.entries.get(name.alias()).is_none_or(|entry| entry.is_blocked(&artifact, now)) {
                        continue;
                    }
                    version.place = Place::Registering { epoch };
                    let directory = version.directory.clone();
                    work.push(Work::Register { epoch, name, directory });
                }
                (Place::Ready { epoch, .. }, _) if !is_wanted && is_due && version.leases == 0 => {
                    version.place = Place::Unregistering { epoch };
                    work.push(Work::Unregister { epoch, name });
                }
                _ => {}
            }
        }
    }

    /// All versions, those first that the engine is to get first.
    fn by_rank(&self) -> Vec<ServedName> {
        let mut names: Vec<ServedName> = self.versions.keys().cloned().collect();
        names.sort_by_cached_key(|name| {
            let entry = self.entries.get(name.alias());
            entry.map(|entry| (!entry.is_pinned(), std::cmp::Reverse(entry.used)))
        });
        names
    }

    fn unload_strays(&mut self, now: Instant, work: &mut Vec<Work>) {
        let Some(epoch) = self.epoch else { return };
        for (name, stray) in &mut self.strays {
            if matches!(stray, Stray::Known { not_before } if *not_before <= now) {
                *stray = Stray::Unregistering;
                work.push(Work::Unregister { epoch, name: name.clone() });
            }
        }
    }

    /// Only while it is certain what the engine has: it dies of files that it misses.
    fn delete_files(&mut self, now: Instant, work: &mut Vec<Work>) {
        if self.epoch.is_none() || !self.is_listed {
            return;
        }
        let mut held: HashSet<PreparationId> = self.versions.values().map(|version| version.prepared).collect();
        for entry in self.entries.values() {
            held.extend(entry.shelved);
            held.extend(entry.attempt.as_ref().and_then(|attempt| attempt.claim));
        }
        let strays = &self.strays;
        let is_held = |id: &PreparationId| held.contains(id) || strays.keys().any(|name| name.serves(id));
        let going = self.files.expire(self.config.grace, now, is_held);
        work.extend(going.into_iter().map(Work::Delete));
    }

    fn look_up(&mut self, now: Instant, work: &mut Vec<Work>) {
        if self.refresh_at <= now && self.names.is_idle() && self.looks == 0 {
            self.refresh_at = now + self.config.refresh;
            self.names.refresh(self.entries.keys().cloned());
        }
        while self.looks < MAX_LOOKS {
            let batch = self.names.batch();
            if batch.is_empty() {
                break;
            }
            self.looks += 1;
            work.push(Work::Look(batch));
        }
        while self.comparisons < MAX_COMPARISONS {
            let batch = self.names.absent();
            if batch.is_empty() {
                break;
            }
            self.comparisons += 1;
            work.push(Work::Compare(batch));
        }
    }

    /// Its files go as soon as the engine has let go of it, unless somebody asks for it before.
    pub(super) fn leave(&mut self, alias: &Alias, reason: Eviction) {
        if let Some(entry) = self.entries.get_mut(alias) {
            entry.leaving = Some(reason);
            if entry.want == Want::Yes {
                entry.want = Want::No;
            }
        }
    }
}
