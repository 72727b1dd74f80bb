//! One holder: its standing, its pace, and how much to ask of it.

use std::time::{Duration, Instant};

use crate::identity::NodeId;

use super::rate::Rate;
use super::{Gone, Locality, PlanConfig};

/// Failures in a row after which a holder is given up.
const MAX_FAILURES: u32 = 4;

/// The longest rest after the first failure; doubles with each further one.
const FIRST_REST: Duration = Duration::from_millis(100);

/// A holder may not send us away for longer than this.
pub(super) const MAX_REST: Duration = Duration::from_secs(5);

/// First request to a holder of unknown pace, bytes.
const FIRST_BATCH: u64 = 256 << 10;

/// Splitting further than this costs more in round trips than it shares, bytes.
pub(super) const MIN_BATCH: u64 = 64 << 10;

/// A holder that took more than it had slots for is tried with one more after this time.
const SLOT_RETRY: Duration = Duration::from_secs(1);

/// We may be late by this, seconds, and the pipe still must not run dry.
const HICCUP: f64 = 0.005;

const MAX_HAVE_RETRY: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Holder {
    pub(super) node: NodeId,
    pub(super) locality: Locality,
    pub(super) gone: Option<Gone>,
    /// Not asked for chunks before this.
    pub(super) rest_until: Option<Instant>,
    /// In a row.
    failures: u32,
    pub(super) rate: Rate,
    /// Shortest usual time from request to first byte.
    latency: Option<Duration>,
    /// Bytes and requests in flight.
    pub(super) in_flight: u64,
    /// The part of it that has arrived in chunks that are not complete or not verified yet.
    arriving: u64,
    pub(super) requests: u32,
    /// When bytes last came.
    heard_at: Option<Instant>,
    max_requests: u32,
    busy_at: Option<Instant>,
    /// Times in a row that it sent us away; requests that were in flight together count once.
    pub(super) sent_away: u32,
    pub(super) have: HaveState,
    have_retry: Duration,
    /// When it last had something new.
    pub(super) grew_at: Instant,
    /// It fetches as we do, and nothing of it was heard yet.
    pub(super) begins: bool,
}

/// When to ask what a holder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HaveState {
    Due(Instant),
    Asked(Instant),
    Known(Instant),
    All,
}

impl Holder {
    pub(super) fn new(node: NodeId, locality: Locality, config: &PlanConfig, now: Instant) -> Self {
        Self {
            node,
            locality,
            gone: None,
            rest_until: None,
            failures: 0,
            rate: Rate::new(),
            latency: None,
            in_flight: 0,
            arriving: 0,
            requests: 0,
            heard_at: None,
            max_requests: config.max_streams_per_holder,
            busy_at: None,
            sent_away: 0,
            have: HaveState::Due(now),
            have_retry: config.have_retry,
            grew_at: now,
            begins: false,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.gone.is_none()
    }

    pub(super) fn is_resting(&self, now: Instant) -> bool {
        self.rest_until.is_some_and(|until| now < until)
    }

    /// Back after it was gone; its record is kept.
    pub(super) fn revive(&mut self, now: Instant) {
        self.gone = None;
        self.failures = self.failures.min(MAX_FAILURES - 1);
        self.have = HaveState::Due(now);
        self.grew_at = now;
    }

    /// Failures of requests that were in flight together count once. True if that was one too many. `jitter` is from 0 to 1:
    /// those that lost a holder together must not all connect to it again at the same moment.
    pub(super) fn fail(&mut self, jitter: f64, now: Instant) -> bool {
        if !self.is_resting(now) {
            self.failures += 1;
            let rest = FIRST_REST * (1 << (self.failures.min(MAX_FAILURES) - 1));
            self.rest_until = Some(now + rest.mul_f64(0.5 + jitter / 2.0));
        }
        self.failures >= MAX_FAILURES
    }

    /// `jitter` is from 0 to 1: those that were sent away together must not come back together.
    pub(super) fn busy(&mut self, retry_after: Duration, jitter: f64, now: Instant) {
        self.max_requests = self.requests.max(1);
        self.busy_at = Some(now);
        self.sent_away += u32::from(!self.is_resting(now));
        self.rest_until = Some(now + retry_after.min(MAX_REST).mul_f64(0.75 + jitter / 2.0));
    }

    pub(super) fn succeed(&mut self, config: &PlanConfig, now: Instant) {
        self.failures = 0;
        self.sent_away = 0;
        if self.busy_at.is_some_and(|at| now.saturating_duration_since(at) >= SLOT_RETRY) {
            self.max_requests = (self.max_requests + 1).min(config.max_streams_per_holder);
        }
    }

    pub(super) fn start(&mut self, bytes: u64, now: Instant) {
        self.rate.start(now);
        self.in_flight += bytes;
        self.requests += 1;
    }

    /// `arriving` bytes of the request came for nothing.
    pub(super) fn stop(&mut self, bytes: u64, arriving: u64, now: Instant) {
        self.in_flight -= bytes;
        self.arriving -= arriving;
        self.requests -= 1;
        if self.requests == 0 {
            self.rate.stop(now);
        }
    }

    pub(super) fn arrive(&mut self, bytes: u64, now: Instant) {
        self.arriving += bytes;
        self.rate.add(bytes, now);
        self.heard_at = Some(now);
    }

    pub(super) fn verify(&mut self, bytes: u64) {
        self.arriving -= bytes;
    }

    /// Falls at once and rises slowly, so that the wait behind our own requests hardly counts.
    pub(super) fn first_byte(&mut self, took: Duration, now: Instant) {
        self.rate.begin(now);
        self.heard_at = Some(now);
        self.latency = Some(match self.latency {
            Some(latency) if latency < took => latency + (took - latency) / 64,
            _ => took,
        });
    }

    /// How long nothing has come since `asked`.
    pub(super) fn silent(&self, asked: Instant, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard_at.map_or(asked, |heard| heard.max(asked)))
    }

    pub(super) fn latency(&self) -> f64 {
        self.latency.map_or(0.001, |latency| latency.as_secs_f64())
    }

    /// What one request should ask for at a pace, bytes.
    pub(super) fn batch(config: &PlanConfig, rate: Option<f64>) -> u64 {
        let bytes = rate.map_or(FIRST_BATCH, |rate| ((rate * config.batch.as_secs_f64()) as u64).max(MIN_BATCH));
        bytes.min(config.max_request_bytes)
    }

    /// Whether one more request keeps the pipe full: what is asked for lasts one batch, or a hiccup of ours, and the delay
    /// of the next request. Asking no earlier leaves the choice of chunks to a time at which more is known about the
    /// others. A holder of unknown pace gets one request.
    pub(super) fn has_room(&self, batch: u64, config: &PlanConfig, rate: Option<f64>) -> bool {
        if self.requests >= self.max_requests.min(config.max_streams_per_holder) {
            return false;
        }
        let Some(rate) = rate else { return self.requests == 0 };
        let ahead = self.in_flight.saturating_sub(self.arriving) as f64;
        let lasts = |time: f64| rate * (time + 2.0 * self.latency());
        let enough = (batch as f64 + lasts(0.0)).max(lasts(HICCUP)).min(lasts(config.batch.as_secs_f64()));
        self.requests == 0 || ahead <= enough
    }

    /// Expected time for `bytes` more, weighted by where it is and how it behaved; lower is better.
    pub(super) fn score(&self, bytes: u64, rate: f64) -> f64 {
        let distance = match self.locality {
            Locality::SameRack => 1.0,
            Locality::SameZone => 1.25,
            Locality::SameRegion => 2.0,
            Locality::Other => 4.0,
        };
        (self.in_flight + bytes) as f64 / rate * distance * f64::from(1 + self.failures)
    }

    /// When it should be asked for its bitmap; `None` while that is not useful.
    pub(super) fn have_due(&self, offers: bool, age: Duration) -> Option<Instant> {
        match self.have {
            _ if !self.is_live() => None,
            HaveState::Due(at) => Some(at),
            HaveState::Known(at) if offers => Some(at + age),
            HaveState::Known(at) => Some(at + self.have_retry.min(age)),
            HaveState::Asked(_) | HaveState::All => None,
        }
    }

    pub(super) fn have_known(&mut self, grew: bool, config: &PlanConfig, now: Instant) {
        self.have = HaveState::Known(now);
        self.begins &= !grew;
        self.have_retry = match grew {
            true => config.have_retry,
            false => (self.have_retry * 2).min(MAX_HAVE_RETRY),
        };
        if grew {
            self.grew_at = now;
        }
    }
}
