//! Names to look up, and names that nobody has. Clients choose them: there are only so many.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use super::entry::remember;
use super::source::Foreign;
use crate::adapters::Alias;
use crate::proxy::Caller;

/// Names in one look-up.
pub(super) const BATCH: usize = 64;

#[derive(Debug)]
enum Name {
    Looking {
        askers: Vec<Caller>,
    },
    /// There is none for our base model; whether there is one for another is being asked.
    Comparing,
    Unknown {
        until: Instant,
    },
    Foreign {
        foreign: Foreign,
        until: Instant,
    },
    Unreachable {
        until: Instant,
    },
}

impl Name {
    /// `None` while somebody is being asked.
    fn until(&self) -> Option<Instant> {
        match self {
            Self::Looking { .. } | Self::Comparing => None,
            Self::Unknown { until } | Self::Foreign { until, .. } | Self::Unreachable { until } => Some(*until),
        }
    }

    fn is_answered(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| now < until)
    }
}

/// What is known of a name that is no adapter of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hearsay {
    Looking,
    Unknown,
    /// There is one for another base model.
    Foreign(Foreign),
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
    /// Those to ask about other base models.
    absent: VecDeque<Alias>,
}

impl Names {
    pub(super) fn new(limit: usize) -> Self {
        Self { names: BTreeMap::new(), limit: limit.max(1), queue: VecDeque::new(), absent: VecDeque::new() }
    }

    pub(super) fn ask(&mut self, alias: &Alias, caller: &Caller, now: Instant) -> Hearsay {
        match self.names.get_mut(alias) {
            Some(Name::Looking { askers }) => {
                remember(askers, caller);
                return Hearsay::Looking;
            }
            Some(Name::Comparing) => return Hearsay::Looking,
            Some(Name::Unknown { until }) if now < *until => return Hearsay::Unknown,
            Some(Name::Foreign { foreign, until }) if now < *until => return Hearsay::Foreign(foreign.clone()),
            Some(Name::Unreachable { until }) if now < *until => return Hearsay::Unreachable,
            _ => {}
        }
        if self.names.len() >= self.limit && !self.make_room(now) {
            return Hearsay::Busy;
        }
        self.names.insert(alias.clone(), Name::Looking { askers: vec![caller.clone()] });
        self.queue.push_front(alias.clone());
        Hearsay::Looking
    }

    /// Whether the answer is there already.
    pub(super) fn knows(&self, alias: &Alias, now: Instant) -> bool {
        self.names.get(alias).is_some_and(|name| name.is_answered(now))
    }

    /// A negative answer that is forgotten costs one look-up.
    fn make_room(&mut self, now: Instant) -> bool {
        self.names.retain(|_, name| name.until().is_none_or(|until| now < until));
        if self.names.len() < self.limit {
            return true;
        }
        let settled = self.names.iter().find(|(_, name)| name.until().is_some()).map(|(alias, _)| alias.clone());
        settled.is_some_and(|alias| self.names.remove(&alias).is_some())
    }

    /// Somebody else cares about it from here on; who has asked for it, if somebody has.
    pub(super) fn take(&mut self, alias: &Alias) -> Option<Vec<Caller>> {
        self.names.remove(alias).map(|name| match name {
            Name::Looking { askers } => askers,
            _ => Vec::new(),
        })
    }

    /// There is none for our base model: others are asked about next.
    pub(super) fn not_found(&mut self, alias: &Alias) {
        if let Some(name @ Name::Looking { .. }) = self.names.get_mut(alias) {
            *name = Name::Comparing;
            self.absent.push_back(alias.clone());
        }
    }

    pub(super) fn not_answered(&mut self, alias: &Alias, until: Instant) {
        if let Some(name @ Name::Looking { .. }) = self.names.get_mut(alias) {
            *name = Name::Unreachable { until };
        }
    }

    /// Whoever may not know that the name was found is told what they would be told if it was not.
    pub(super) fn conceal(&mut self, alias: &Alias, until: Instant, now: Instant) {
        if self.names.contains_key(alias) || self.names.len() < self.limit || self.make_room(now) {
            self.names.insert(alias.clone(), Name::Unknown { until });
        }
    }

    pub(super) fn compared(&mut self, alias: &Alias, foreign: Option<Foreign>, until: Instant) {
        if let Some(name @ Name::Comparing) = self.names.get_mut(alias) {
            *name = foreign.map_or(Name::Unknown { until }, |foreign| Name::Foreign { foreign, until });
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
        next(&mut self.queue)
    }

    /// What to ask about other base models next; empty if there is nothing.
    pub(super) fn absent(&mut self) -> Vec<Alias> {
        next(&mut self.absent)
    }
}

fn next(queue: &mut VecDeque<Alias>) -> Vec<Alias> {
    queue.drain(..queue.len().min(BATCH)).collect()
}
