//! Names to look up, and names that nobody has. Clients choose them: there are only so many.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use crate::adapters::Alias;

/// Names in one look-up.
pub(super) const BATCH: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Looking,
    Unknown { until: Instant },
    Unreachable { until: Instant },
}

/// What is known of a name that is no adapter of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hearsay {
    Looking,
    Unknown,
    /// Whoever would know does not answer.
    Unreachable,
    /// So many names are being looked up that this one is not.
    Busy,
}

#[derive(Debug)]
pub(super) struct Names {
    names: BTreeMap<Alias, Name>,
    limit: usize,
    /// New names first.
    queue: VecDeque<Alias>,
}

impl Names {
    pub(super) fn new(limit: usize) -> Self {
        Self { names: BTreeMap::new(), limit: limit.max(1), queue: VecDeque::new() }
    }

    pub(super) fn ask(&mut self, alias: &Alias, now: Instant) -> Hearsay {
        match self.names.get(alias) {
            Some(Name::Looking) => return Hearsay::Looking,
            Some(Name::Unknown { until }) if now < *until => return Hearsay::Unknown,
            Some(Name::Unreachable { until }) if now < *until => return Hearsay::Unreachable,
            _ => {}
        }
        if self.names.len() >= self.limit && !self.make_room(now) {
            return Hearsay::Busy;
        }
        self.names.insert(alias.clone(), Name::Looking);
        self.queue.push_front(alias.clone());
        Hearsay::Looking
    }

    /// Whether the answer is there already.
    pub(super) fn knows(&self, alias: &Alias, now: Instant) -> bool {
        match self.names.get(alias) {
            Some(Name::Unknown { until } | Name::Unreachable { until }) => now < *until,
            Some(Name::Looking) | None => false,
        }
    }

    /// A negative answer that is forgotten costs one look-up.
    fn make_room(&mut self, now: Instant) -> bool {
        self.names.retain(|_, name| match name {
            Name::Looking => true,
            Name::Unknown { until } | Name::Unreachable { until } => now < *until,
        });
        if self.names.len() < self.limit {
            return true;
        }
        let settled =
            self.names.iter().find(|(_, name)| !matches!(name, Name::Looking)).map(|(alias, _)| alias.clone());
        settled.is_some_and(|alias| self.names.remove(&alias).is_some())
    }

    /// Somebody else cares about it from here on; true if it was asked for.
    pub(super) fn take(&mut self, alias: &Alias) -> bool {
        self.names.remove(alias).is_some()
    }

    pub(super) fn not_found(&mut self, alias: &Alias, until: Instant) {
        if let Some(name) = self.names.get_mut(alias) {
            *name = Name::Unknown { until };
        }
    }

    pub(super) fn not_answered(&mut self, alias: &Alias, until: Instant) {
        if let Some(name) = self.names.get_mut(alias) {
            *name = Name::Unreachable { until };
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn refresh(&mut self, aliases: impl Iterator<Item = Alias>) {
        self.queue.extend(aliases);
    }

    /// What to look up next; empty if there is nothing.
    pub(super) fn batch(&mut self) -> Vec<Alias> {
        self.queue.drain(..self.queue.len().min(BATCH)).collect()
    }
}
