//! What to tell a metadata server, and when. Pure: time and randomness are parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::{Rng, RngExt};
use tokio::time::Instant;

use super::{AnnounceConfig, AnnouncedNode, TooManyArtifacts};
use crate::digest::ArtifactId;
use crate::metadata::client::Refusal;
use crate::protocol::metadata::{
    AnnounceReply, Announcement, Held, Load, MAX_HELD, NodeState, ServerEpoch, Withdrawal,
};

/// Artifacts and bytes (roughly) of one announcement; more follow in the next.
const PART: usize = 4_000;
const PART_BYTES: usize = 2 * 1024 * 1024;

/// From so many withdrawals on, one full announcement is less work.
const MANY_DROPPED: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    Announce(Announcement),
    Withdraw(Withdrawal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Announced(AnnounceReply),
    Withdrawn(ServerEpoch),
}

impl From<AnnounceReply> for Answer {
    fn from(reply: AnnounceReply) -> Self {
        Self::Announced(reply)
    }
}

/// What the message that is under way says, for the case that it fails.
#[derive(Debug)]
struct Sent {
    state: NodeState,
    changed: BTreeSet<ArtifactId>,
    dropped: Option<ArtifactId>,
    full: bool,
}

#[derive(Debug)]
pub(super) struct Plan {
    config: AnnounceConfig,
    node: AnnouncedNode,
    state: NodeState,
    load: Load,
    held: BTreeMap<ArtifactId, Held>,
    /// Not yet told.
    changed: BTreeSet<ArtifactId>,
    dropped: BTreeSet<ArtifactId>,
    told_state: Option<NodeState>,
    server_epoch: Option<ServerEpoch>,
    sequence: u64,
    heartbeat: Duration,
    heartbeat_due: Instant,
    /// When a server last answered; at first, when this life began.
    heard: Instant,
    /// When to announce in full, if that is wanted.
    full_due: Option<Instant>,
    /// Nothing is sent before: spacing after a success, backoff after a failure.
    earliest: Instant,
    /// No artifacts are told before.
    artifacts_from: Instant,
    failures: u32,
    sent: Option<Sent>,
}

impl Plan {
    pub(super) fn new(node: AnnouncedNode, config: AnnounceConfig, now: Instant) -> Self {
        Self {
            heartbeat: config.heartbeat,
            config,
            node,
            state: NodeState::Initializing,
            load: Load::default(),
            held: BTreeMap::new(),
            changed: BTreeSet::new(),
            dropped: BTreeSet::new(),
            told_state: None,
            server_epoch: None,
            sequence: 0,
            heartbeat_due: now,
            heard: now,
            full_due: Some(now),
            earliest: now,
            artifacts_from: now,
            failures: 0,
            sent: None,
        }
    }

    pub(super) fn hold(&mut self, held: Held) -> Result<(), TooManyArtifacts> {
        let id = held.artifact.artifact;
        if self.held.get(&id) == Some(&held) {
            return Ok(());
        }
        if !self.held.contains_key(&id) && self.held.len() >= MAX_HELD {
            return Err(TooManyArtifacts(MAX_HELD));
        }
        self.held.insert(id, held);
        self.dropped.remove(&id);
        self.changed.insert(id);
        Ok(())
    }

    pub(super) fn drop_artifact(&mut self, artifact: ArtifactId) {
        if self.held.remove(&artifact).is_some() {
            self.changed.remove(&artifact);
            self.dropped.insert(artifact);
        }
    }

    pub(super) fn set_state(&mut self, state: NodeState, now: Instant) {
        if self.state != state && self.state.may_become(state) {
            self.state = state;
            // Worth a try even while we back off.
            self.earliest = self.earliest.min(now);
        }
    }

    pub(super) fn set_load(&mut self, load: Load) {
        self.load = load;
    }

    pub(super) fn is_settled(&self) -> bool {
        self.sent.is_none()
            && self.told_state == Some(self.state)
            && (self.state == NodeState::Stale
                || (self.changed.is_empty() && self.dropped.is_empty() && self.full_due.is_none()))
    }

    pub(super) fn is_ended(&self) -> bool {
        self.told_state == Some(NodeState::Stale)
    }

    /// Two heartbeats were missed.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) > self.heartbeat * 2
    }

    /// When there is something to send; `None` after the last word.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.is_ended() {
            return None;
        }
        if self.told_state != Some(self.state) {
            return Some(self.earliest);
        }
        let mut due = self.heartbeat_due;
        if let Some(full) = self.full_due {
            due = due.min(full.max(self.artifacts_from));
        } else if !self.changed.is_empty() {
            due = due.min(self.artifacts_from);
        }
        if !self.dropped.is_empty() && self.full_due.is_none() {
            due = self.earliest;
        }
        Some(due.max(self.earliest))
    }

    /// The message that is due, if one is. It must be [`Plan::answered`] or [`Plan::failed`] before the next.
    pub(super) fn message(&mut self, now: Instant) -> Option<Message> {
        if self.sent.is_some() || self.due()? > now {
            return None;
        }
        self.sequence += 1;
        if self.state == NodeState::Stale {
            return Some(self.announce(Vec::new(), BTreeSet::new(), false));
        }
        let may_tell = now >= self.artifacts_from;
        let overdue = self.heartbeat_due <= now || self.told_state != Some(self.state);
        let mut full = may_tell && self.full_due.is_some_and(|full| full <= now);
        if self.full_due.is_none() && !self.dropped.is_empty() && !overdue {
            if self.dropped.len() < MANY_DROPPED || !may_tell {
                return self.withdraw();
            }
            full = true;
        }
        if full {
            self.changed = self.held.keys().copied().collect();
            self.dropped.clear();
            self.full_due = None;
        }
        let tell = may_tell && self.full_due.is_none();
        let part = if tell { self.take_part() } else { Vec::new() };
        let told = part.iter().map(|held| held.artifact.artifact).collect();
        Some(self.announce(part, told, full))
    }

    pub(super) fn answered<R: Rng + ?Sized>(&mut self, answer: Answer, now: Instant, rng: &mut R) {
        let Some(sent) = self.sent.take() else { return };
        self.heard = now;
        let (server_epoch, asked) = match answer {
            Answer::Announced(reply) => {
                self.told_state = Some(sent.state);
                self.heartbeat = reply.heartbeat;
                // A little spread keeps nodes that started together from speaking together.
                self.heartbeat_due = now + reply.heartbeat.mul_f64(rng.random_range(0.9..=1.0));
                self.earliest = now + self.config.spacing;
                (reply.server_epoch, reply.announce_in_full)
            }
            Answer::Withdrawn(server_epoch) => (server_epoch, false),
        };
        let known = self.server_epoch.replace(server_epoch);
        let lost = known.is_some_and(|known| known != server_epoch) && !sent.full;
        if (lost || asked) && self.full_due.is_none() {
            self.full_due = Some(now + self.heartbeat.mul_f64(rng.random()));
        }
        self.failures = 0;
    }

    pub(super) fn failed<R: Rng + ?Sized>(&mut self, refusal: Option<Refusal>, now: Instant, rng: &mut R) {
        let Some(sent) = self.sent.take() else { return };
        if refusal.is_some() {
            self.heard = now;
        }
        let still_held = sent.changed.into_iter().filter(|artifact| self.held.contains_key(artifact));
        let told_artifacts = sent.full || sent.dropped.is_none();
        self.changed.extend(still_held);
        self.dropped.extend(sent.dropped.filter(|artifact| !self.held.contains_key(artifact)));
        if sent.full {
            self.full_due = Some(now);
        }
        self.failures = self.failures.saturating_add(1);
        let doubled = self.config.retry.saturating_mul(1 << (self.failures - 1).min(16));
        let longest = doubled.min(self.config.max_retry);
        self.earliest = now + longest.mul_f64(rng.random_range(0.5..=1.0));
        match refusal {
            // Without the artifacts the lease at least can be renewed.
            Some(Refusal::Full | Refusal::Invalid) if told_artifacts => {
                self.artifacts_from = now + self.config.hold_back;
            }
            // Only an operator can help.
            Some(Refusal::Ended | Refusal::Forbidden) => self.earliest = now + self.config.max_retry,
            Some(Refusal::Full | Refusal::Invalid | Refusal::Overtaken) | None => {}
        }
    }

    fn take_part(&mut self) -> Vec<Held> {
        let mut bytes = 0;
        let mut part = Vec::new();
        while let Some(id) = self.changed.first().copied() {
            let Some(held) = self.held.get(&id) else {
                self.changed.remove(&id);
                continue;
            };
            bytes += 300 + held.artifact.subject.len();
            if part.len() >= PART || (bytes > PART_BYTES && !part.is_empty()) {
                break;
            }
            part.push(held.clone());
            self.changed.remove(&id);
        }
        part
    }

    fn announce(&mut self, held: Vec<Held>, changed: BTreeSet<ArtifactId>, full: bool) -> Message {
        self.sent = Some(Sent { state: self.state, changed, dropped: None, full });
        Message::Announce(Announcement {
            node: self.node.node,
            epoch: self.node.epoch,
            sequence: self.sequence,
            state: self.state,
            endpoints: self.node.endpoints.clone(),
            load: self.load,
            locality: self.node.locality.clone(),
            held,
            full,
            server_epoch: self.server_epoch,
        })
    }

    fn withdraw(&mut self) -> Option<Message> {
        let artifact = self.dropped.pop_first()?;
        self.sent = Some(Sent { state: self.state, changed: BTreeSet::new(), dropped: Some(artifact), full: false });
        let AnnouncedNode { node, epoch, .. } = self.node;
        Some(Message::Withdraw(Withdrawal { node, epoch, sequence: self.sequence, artifact }))
    }
}

#[cfg(test)]
mod tests;
