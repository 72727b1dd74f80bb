//! Prepared directories: how large they are, and since when no engine has had any reason to read them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::adapters::PreparationId;

#[derive(Debug)]
struct Directory {
    bytes: u64,
    idle_since: Instant,
    is_going: bool,
}

#[derive(Debug, Default)]
pub(super) struct Files(BTreeMap<PreparationId, Directory>);

impl Files {
    pub(super) fn put(&mut self, id: PreparationId, bytes: u64, now: Instant) {
        self.0.insert(id, Directory { bytes, idle_since: now, is_going: false });
    }

    /// The engine may have read it until then.
    pub(super) fn touch(&mut self, id: &PreparationId, now: Instant) {
        if let Some(directory) = self.0.get_mut(id) {
            directory.idle_since = directory.idle_since.max(now);
        }
    }

    /// As [`Files::touch`] of every directory.
    pub(super) fn touch_all(&mut self, now: Instant) {
        for directory in self.0.values_mut() {
            directory.idle_since = directory.idle_since.max(now);
        }
    }

    pub(super) fn bytes(&self, id: &PreparationId) -> u64 {
        self.0.get(id).map_or(0, |directory| directory.bytes)
    }

    pub(super) fn grace_is_over(&self, id: &PreparationId, grace: Duration, now: Instant) -> bool {
        self.0.get(id).is_some_and(|directory| directory.idle_since + grace <= now)
    }

    /// Bytes of all that stay.
    pub(super) fn used(&self) -> u64 {
        self.0.values().filter(|directory| !directory.is_going).map(|directory| directory.bytes).sum()
    }

    pub(super) fn is_going(&self, id: &PreparationId) -> bool {
        self.0.get(id).is_some_and(|directory| directory.is_going)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &PreparationId> {
        self.0.keys()
    }

    /// Chooses what nothing holds and whose grace is over. It is going from here on.
    pub(super) fn expire(
        &mut self,
        grace: Duration,
        now: Instant,
        is_held: impl Fn(&PreparationId) -> bool,
    ) -> Vec<PreparationId> {
        let due = |directory: &Directory| !directory.is_going && directory.idle_since + grace <= now;
        let mut going = Vec::new();
        for (id, directory) in &mut self.0 {
            if due(directory) && !is_held(id) {
                directory.is_going = true;
                going.push(*id);
            }
        }
        going
    }

    /// If it could not be removed, it is tried again after another grace.
    pub(super) fn removed(&mut self, id: &PreparationId, is_gone: bool, now: Instant) {
        if is_gone {
            self.0.remove(id);
        } else if let Some(directory) = self.0.get_mut(id) {
            (directory.is_going, directory.idle_since) = (false, now);
        }
    }
}
