//! What beginnings, endings, failures and deadlines do to holders and requests.

use std::time::{Duration, Instant};

use rand::RngExt;

use crate::identity::NodeId;

use super::holder::{HaveState, MAX_REST};
use super::request::Request;
use super::{Action, Failure, Gone, Plan, RequestId};

/// What was given to others and did not come to light for so long may be lost.
const GIVEN_FOR: Duration = Duration::from_secs(5);

/// Bitmaps of a holder that are asked for in the time that is left.
const HAVES_LEFT: f64 = 16.0;

const SHORTEST_HAVE_AGE: Duration = Duration::from_millis(5);

impl Plan {
    pub(super) fn slot(&self, node: NodeId) -> Option<usize> {
        self.holders.iter().position(|holder| holder.node == node)
    }

    pub(super) fn holder_deadline(&self, slot: usize) -> Option<Instant> {
        let holder = &self.holders[slot];
        let asked = match holder.have {
            HaveState::Asked(at) if holder.is_live() => Some(at + self.config.first_byte),
            _ => None,
        };
        let due = holder.have_due(self.chunks.offered(slot) > 0, self.have_age);
        let rest = holder.rest_until.filter(|_| holder.is_live());
        asked.into_iter().chain(due).chain(rest).min()
    }

    /// Ends rests and waits that are over.
    pub(super) fn expire(&mut self, now: Instant) {
        self.have_age = self.have_age_at(now);
        if self.given_at.is_some_and(|at| now >= at + GIVEN_FOR) {
            self.given_at = None;
            self.chunks.forget_given();
        }
        for slot in 0..self.holders.len() {
            let holder = &mut self.holders[slot];
            holder.rest_until = holder.rest_until.filter(|until| now < *until);
            if let HaveState::Asked(at) = holder.have
                && holder.is_live()
                && now >= at + self.config.first_byte
            {
                self.have_failed(slot, Failure::TimedOut, now);
            }
        }
        if self.late_at.is_none_or(|at| now < at) {
            return;
        }
        let late = |request: &Request| now >= request.deadline(&self.config);
        let late: Vec<RequestId> = self.requests.iter().filter(|(_, open)| late(open)).map(|(id, _)| *id).collect();
        for request in late {
            if let Some(closed) = self.cancel(request, now)
                && !closed.left.is_empty()
            {
                self.fail(closed.slot, Failure::TimedOut, now);
            }
        }
        self.late_at = self.requests.values().map(|request| request.deadline(&self.config)).min();
    }

    /// What is asked for early comes from whoever had it then: how old a bitmap may be is a part of the time that is left.
    fn have_age_at(&self, now: Instant) -> Duration {
        let Some(pace) = self.pace.at(now) else { return self.config.have_age };
        let left = (self.chunks.bytes() - self.chunks.bytes_done()) as f64 / pace.max(1.0);
        let age = Duration::try_from_secs_f64(left / HAVES_LEFT).unwrap_or(self.config.have_age);
        age.clamp(SHORTEST_HAVE_AGE, self.config.have_age)
    }

    pub(super) fn have_failed(&mut self, slot: usize, failure: Failure, now: Instant) {
        let again = match failure {
            Failure::NotFound if self.holders[slot].begins => {
                return self.holders[slot].have_known(false, &self.config, now);
            }
            // It may be too busy to tell and still serve.
            Failure::Busy { retry_after } => now + retry_after.clamp(self.config.have_retry, MAX_REST),
            _ => {
                self.fail(slot, failure, now);
                self.holders[slot].rest_until.unwrap_or(now + self.config.have_age)
            }
        };
        self.holders[slot].have = HaveState::Due(again);
    }

    pub(super) fn fail(&mut self, slot: usize, failure: Failure, now: Instant) {
        let (holder, jitter) = (&mut self.holders[slot], self.rng.random_range(0.0..1.0));
        match failure {
            Failure::Busy { retry_after } => holder.busy(retry_after, jitter, now),
            Failure::Given => {}
            Failure::NotFound => self.lose(slot, Gone::NotFound, now),
            Failure::Draining => self.lose(slot, Gone::Draining, now),
            Failure::Forbidden => self.lose(slot, Gone::Forbidden, now),
            Failure::Reset | Failure::Disconnected | Failure::TimedOut => {
                if holder.fail(jitter, now) {
                    self.lose(slot, Gone::Unreachable, now);
                }
            }
        }
    }

    /// Requests of a liar are stopped; those of the others may still end well.
    pub(super) fn lose(&mut self, slot: usize, gone: Gone, now: Instant) {
        let holder = &mut self.holders[slot];
        if matches!(holder.gone, Some(Gone::Bad | Gone::Forbidden)) {
            return;
        }
        holder.gone = Some(gone);
        if matches!(gone, Gone::Bad | Gone::Forbidden) {
            self.banned.insert(holder.node);
        }
        self.chunks.set_none(slot);
        if gone == Gone::Bad {
            let of_slot = |(id, open): (&RequestId, &Request)| (open.slot == slot).then_some(*id);
            let requests: Vec<RequestId> = self.requests.iter().filter_map(of_slot).collect();
            requests.into_iter().for_each(|request| drop(self.cancel(request, now)));
        }
    }

    pub(super) fn open(&mut self, slot: usize, indices: Vec<u32>, fresh: bool, now: Instant) -> Action {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        let bytes = indices.iter().map(|index| u64::from(self.chunks.len_of(*index))).sum();
        self.in_flight += bytes;
        let late_at = now + self.config.first_byte.min(self.config.progress).min(self.config.total);
        self.late_at = Some(self.late_at.map_or(late_at, |at| at.min(late_at)));
        self.holders[slot].start(bytes, now);
        self.pace.start(now);
        self.requests.insert(request, Request::new(slot, indices.clone(), bytes, now));
        Action::Request { request, node: self.holders[slot].node, indices, fresh }
    }

    /// Takes the request out of the plan; chunks that are in no other request are wanted again.
    pub(super) fn close(&mut self, request: RequestId, now: Instant) -> Option<Request> {
        let closed = self.requests.remove(&request)?;
        self.in_flight -= closed.bytes_left;
        self.holders[closed.slot].stop(closed.bytes_left, closed.arriving(), now);
        closed.left.iter().for_each(|index| self.chunks.release(*index));
        self.steal_at = None;
        Some(closed)
    }

    pub(super) fn cancel(&mut self, request: RequestId, now: Instant) -> Option<Request> {
        let closed = self.close(request, now)?;
        let node = self.holders[closed.slot].node;
        self.cancelled.insert(request, node);
        self.to_cancel.push_back((request, node));
        Some(closed)
    }

    /// The request need not bring the chunk any more.
    pub(super) fn unload(&mut self, request: RequestId, index: u32) {
        let len = self.chunks.len_of(index);
        if let Some(open) = self.requests.get_mut(&request)
            && open.remove(index, len)
        {
            self.in_flight -= u64::from(len);
            self.holders[open.slot].in_flight -= u64::from(len);
            self.chunks.release(index);
        }
    }

    /// Other requests for a chunk that arrived; those that have nothing else to bring are stopped.
    pub(super) fn drop_losers(&mut self, index: u32, now: Instant) {
        let losers: Vec<RequestId> =
            self.requests.iter().filter(|(_, open)| open.left.contains(&index)).map(|(id, _)| *id).collect();
        for request in losers {
            self.unload(request, index);
            if self.requests.get(&request).is_some_and(|open| open.left.is_empty()) {
                self.cancel(request, now);
            }
        }
    }
}
