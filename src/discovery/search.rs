//! One look-up among the other agents: whom to ask next, and what came of it. Pure: time is a parameter.
//!
//! In a small cluster everybody is asked at once. In a larger one the DHT names holders, and those are asked. What nobody is
//! found for is looked for again under the keys that a node with the next larger view of the cluster would use.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::found::Found;
use super::key::{Shards, key};
use crate::digest::IdentityId;
use crate::identity::{NodeId, UnixTime};
use crate::protocol::metadata::{Holdings, Lookup, MAX_IDENTITIES, Offer, Question};

/// Nodes asked and DHT keys walked to in one search; and of the nodes that one node of the DHT names, since it may make them
/// up.
const MAX_ASKED: usize = 128;
const MAX_OF_REPLY: usize = 4;
const MAX_WALKS: usize = 256;

/// Holders of each identity, unless the look-up says otherwise; and how many more nodes are asked, since some are gone.
const WANT: usize = 16;
const SPARE: usize = 16;

/// How long those who were asked directly hold up the DHT, how long walks hold up those of a larger view of the cluster, and
/// how long others are waited for when there is something of everything.
const DIRECT: Duration = Duration::from_millis(500);
const WIDEN: Duration = Duration::from_millis(300);
const GRACE: Duration = Duration::from_millis(100);

/// Nodes that, in each walk, know nobody else: then no others are waited for, as far as there is something of everything.
const REPEATS: usize = 3;

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Ask(Vec<NodeId>),
    Walk(Vec<[u8; 32]>),
    /// Until something comes, or until [`Search::due`].
    Wait,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Begin,
    Direct { ends: Instant },
    Walk { walked: Shards, widens: Instant },
}

#[derive(Debug)]
pub(super) struct Search {
    question: Question,
    want: usize,
    /// With at most so many members, all are asked.
    direct: usize,
    /// Excluded or asked already.
    asked: HashSet<NodeId>,
    waiting: HashSet<NodeId>,
    asks: usize,
    walking: usize,
    walks: usize,
    /// Replies of the DHT that named nobody to ask.
    repeats: usize,
    /// How large the cluster looked last.
    view: Shards,
    phase: Phase,
    ends: Instant,
    grace: Option<Instant>,
    found: Found,
}

impl Search {
    pub(super) fn new(here: NodeId, lookup: &Lookup, loopback: bool, direct: usize, ends: Instant) -> Self {
        let mut identities = lookup.identities.clone();
        identities.sort_unstable();
        identities.dedup();
        identities.truncate(MAX_IDENTITIES);
        let want = lookup.want.map_or(WANT, |want| want as usize).max(1);
        Self {
            found: Found::new(identities.iter().copied(), lookup.near.clone(), loopback),
            question: Question { identities },
            want,
            direct,
            asked: lookup.exclude.iter().copied().chain([here]).collect(),
            waiting: HashSet::new(),
            asks: 0,
            walking: 0,
            walks: 0,
            repeats: 0,
            view: Shards::One,
            phase: Phase::Begin,
            ends,
            grace: None,
        }
    }

    pub(super) fn question(&self) -> &Question {
        &self.question
    }

    pub(super) fn due(&self) -> Instant {
        let phase = match self.phase {
            Phase::Direct { ends } => ends,
            Phase::Walk { walked, widens } if walked < self.view.more() => widens,
            Phase::Begin | Phase::Walk { .. } => self.ends,
        };
        self.ends.min(phase).min(self.grace.unwrap_or(self.ends))
    }

    /// A node of the DHT names these: the ones to ask.
    pub(super) fn named(&mut self, nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
        let identities = &self.question.identities;
        let found: usize = identities.iter().map(|identity| self.found.holders(identity)).sum();
        let enough = self.want * identities.len() + SPARE;
        let ask = self.ask(nodes, MAX_OF_REPLY.min(enough.saturating_sub(found + self.waiting.len())));
        self.repeats += usize::from(ask.is_empty());
        ask
    }

    fn ask(&mut self, nodes: impl IntoIterator<Item = NodeId>, limit: usize) -> Vec<NodeId> {
        let limit = limit.min(MAX_ASKED - self.asks);
        let ask: Vec<NodeId> = nodes.into_iter().filter(|node| !self.asked.contains(node)).take(limit).collect();
        self.asks += ask.len();
        self.asked.extend(&ask);
        self.waiting.extend(&ask);
        ask
    }

    pub(super) fn walk_ended(&mut self) {
        self.walking = self.walking.saturating_sub(1);
    }

    pub(super) fn failed(&mut self, node: &NodeId) {
        self.waiting.remove(node);
    }

    /// What was not asked for is ignored.
    pub(super) fn answered(&mut self, node: NodeId, holdings: &Holdings, now: Instant, date: UnixTime) {
        if !self.waiting.remove(&node) {
            return;
        }
        self.found.add(node, holdings, date);
        if self.grace.is_none() && self.missing().next().is_none() {
            self.grace = Some(now + GRACE);
        }
    }

    /// `members` are the nodes known when it begins, `shards` is how large the cluster looks now.
    pub(super) fn next(&mut self, members: &[NodeId], shards: Shards, now: Instant) -> Step {
        if now >= self.ends || self.grace.is_some_and(|grace| now >= grace) || self.is_satisfied() {
            return Step::Done;
        }
        self.view = shards;
        let idle = self.waiting.is_empty() && self.walking == 0;
        match self.phase {
            Phase::Begin if members.len() <= self.direct => {
                self.phase = Phase::Direct { ends: now + DIRECT };
                match self.ask(members.iter().copied(), MAX_ASKED) {
                    nobody if nobody.is_empty() => self.next(members, shards, now),
                    ask => Step::Ask(ask),
                }
            }
            Phase::Begin => self.walk(0, shards, now),
            Phase::Direct { ends } if idle || now >= ends => self.walk(0, shards, now),
            Phase::Walk { walked, widens } if walked < shards.more() && (idle || now >= widens) => {
                self.walk(walked.count(), walked.more().max(shards), now)
            }
            Phase::Walk { .. } if idle => Step::Done,
            Phase::Direct { .. } | Phase::Walk { .. } => Step::Wait,
        }
    }

    fn walk(&mut self, from: u8, shards: Shards, now: Instant) -> Step {
        let missing: Vec<IdentityId> = self.missing().collect();
        let keys = missing.iter().flat_map(|identity| (from..shards.count()).map(|shard| key(identity, shard)));
        let keys: Vec<_> = keys.take(MAX_WALKS - self.walks).collect();
        self.phase = Phase::Walk { walked: shards, widens: now + WIDEN };
        self.walks += keys.len();
        self.walking += keys.len();
        match keys.is_empty() {
            true if self.waiting.is_empty() => Step::Done,
            true => Step::Wait,
            false => Step::Walk(keys),
        }
    }

    fn missing(&self) -> impl Iterator<Item = IdentityId> + '_ {
        self.question.identities.iter().copied().filter(|identity| self.found.holders(identity) == 0)
    }

    fn is_satisfied(&self) -> bool {
        let is_told = self.walks > 0 && self.repeats >= REPEATS * self.walks && self.waiting.is_empty();
        if is_told && self.missing().next().is_none() {
            return true;
        }
        self.question.identities.iter().all(|identity| self.found.holders(identity) >= self.want)
    }

    pub(super) fn finish(self) -> Vec<Offer> {
        self.found.into_offers(self.want)
    }
}

#[cfg(test)]
mod tests;
