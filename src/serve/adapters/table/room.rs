//! What a load asks on its way: whether it may go on, and whether there is room.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Eviction, Place, Table, Want};
use crate::adapters::{Alias, PreparationId};
use crate::serve::adapters::entry::{Attempt, Entry};
use crate::serve::adapters::source::{Progress, Signed};
use crate::serve::adapters::state::State;

impl Table {
    fn attempt(&mut self, alias: &Alias) -> Option<&mut Attempt> {
        self.entries.get_mut(alias)?.attempt.as_mut()
    }

    pub(in crate::serve::adapters) fn stage(&mut self, alias: &Alias, stage: State) {
        if let Some(attempt) = self.attempt(alias) {
            attempt.stage = stage;
        }
    }

    pub(in crate::serve::adapters) fn show(&mut self, alias: &Alias, progress: watch::Receiver<Progress>) {
        if let Some(attempt) = self.attempt(alias) {
            attempt.progress = Some(progress);
        }
    }

    /// Whether what turned out to be signed is what is wanted under this alias.
    pub(in crate::serve::adapters) fn accepts(&self, alias: &Alias, signed: &Arc<Signed>) -> Result<(), String> {
        if signed.release.alias != *alias {
            return Err(format!("it is `{}`", signed.release.alias));
        }
        self.entries.get(alias).map_or(Ok(()), |entry| entry.accepts(signed))
    }

    /// Keeps the files of `id` from being deleted while `alias` is loaded; false while they are just going.
    pub(in crate::serve::adapters) fn claim(&mut self, alias: &Alias, id: PreparationId) -> bool {
        if self.files.is_going(&id) {
            return false;
        }
        if let Some(attempt) = self.attempt(alias) {
            attempt.claim = Some(id);
        }
        true
    }

    /// Room for `bytes` more. What nobody uses makes way, least recently used first; what is registered is asked to leave,
    /// for a later try.
    pub(in crate::serve::adapters) fn reserve(
        &mut self,
        alias: &Alias,
        bytes: u64,
        now: Instant,
    ) -> Result<(), String> {
        let quota = self.config.quota_bytes;
        let reserved: u64 = self.entries.values().filter_map(|entry| Some(entry.attempt.as_ref()?.reserved)).sum();
        let needed = self.files.used().saturating_add(reserved).saturating_add(bytes);
        let mut missing = needed.saturating_sub(quota);
        if bytes > quota {
            return Err(format!("it has {bytes} bytes, the quota of the disk is {quota}"));
        }
        self.evict(alias, &mut missing, now);
        if missing > 0 {
            self.ask_to_leave(alias, missing);
            return Err(format!("{missing} bytes of the disk's quota are missing: what can go is going"));
        }
        if let Some(attempt) = self.attempt(alias) {
            attempt.reserved = bytes;
        }
        Ok(())
    }

    /// Aliases but `except` with files here that may go, least recently used first.
    fn spare(&self, except: &Alias, fits: impl Fn(&Entry, Place) -> bool) -> Vec<(Alias, PreparationId)> {
        let mut spare: Vec<_> = self
            .entries
            .iter()
            .filter(|(alias, entry)| *alias != except && !entry.is_pinned() && entry.attempt.is_none())
            .filter_map(|(alias, entry)| {
                let (id, place) = match self.current(entry) {
                    Some(version) if version.leases > 0 => return None,
                    Some(version) => (version.prepared, version.place),
                    None => (entry.shelved?, Place::Disk { since: 0 }),
                };
                fits(entry, place).then(|| (entry.used, alias.clone(), id))
            })
            .collect();
        spare.sort_by_key(|(used, ..)| *used);
        spare.into_iter().map(|(_, alias, id)| (alias, id)).collect()
    }

    fn evict(&mut self, except: &Alias, missing: &mut u64, now: Instant) {
        let is_out = |entry: &Entry, place| entry.want != Want::Yes && matches!(place, Place::Disk { .. });
        for (alias, id) in self.spare(except, is_out) {
            if *missing == 0 {
                return;
            }
            let mut users = self.versions.iter().filter(|(_, version)| version.prepared == id);
            if users.all(|(name, _)| *name.alias() == alias) && self.files.grace_is_over(&id, self.config.grace, now) {
                *missing = missing.saturating_sub(self.files.bytes(&id));
                self.leave(&alias, Eviction::Quota);
            }
        }
    }

    fn ask_to_leave(&mut self, except: &Alias, mut missing: u64) {
        for (alias, id) in self.spare(except, |_, place| matches!(place, Place::Ready { .. })) {
            if missing == 0 {
                return;
            }
            missing = missing.saturating_sub(self.files.bytes(&id));
            self.leave(&alias, Eviction::Quota);
        }
    }
}
