//! What to do, and when. Pure: time and randomness are parameters.
//!
//! ```text
//! Stopped -> Warming -> Starting -> Ready -> Draining -> Stopping -> Stopped
//!               ^                      a crash -> Stopping -> Backoff -> Warming
//! ```

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::config::SupervisionConfig;
use super::crashes::Crashes;
use super::{Order, State};

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Order(Order),
    /// Everything has to be over by then; no order counts any more.
    Shutdown(Instant),
    /// All is ready for the process to be started.
    Prepared,
    /// There is no process: the preparation failed, or it could not be started.
    Failed(String),
    Ready,
    /// The leader has ended.
    Exited(String),
    /// It lives, and is of no use: it will never be ready, or does not answer any more.
    Lost(String),
    /// No request is under way at the engine.
    Drained,
    /// A deadline is over, perhaps.
    Elapsed,
    /// The engine has ended, and all that follows its end was done. What could not be killed, if anything.
    Gone(Option<String>),
}

/// What to do. At most one thing is under way: each of these takes the place of the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Prepare,
    /// Leave off preparing.
    Cancel,
    /// Start the process and wait until it is ready.
    Launch,
    /// Look after it.
    Serve,
    /// End what there is of it; SIGKILL from `kill_at` on.
    Stop {
        kill_at: Instant,
        asked: bool,
    },
    /// As `Stop`, which is under way already.
    Hasten {
        kill_at: Instant,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Stopped,
    Warming {
        until: Instant,
    },
    Starting {
        until: Instant,
    },
    Ready {
        since: Instant,
    },
    Draining {
        until: Instant,
    },
    /// `crashed`: the next start waits.
    Stopping {
        crashed: bool,
    },
    Backoff {
        until: Instant,
    },
}

#[derive(Debug)]
pub(super) struct Machine {
    config: SupervisionConfig,
    phase: Phase,
    /// Whether there should be an engine.
    wanted: bool,
    shutdown: Option<Instant>,
    epoch: u64,
    restarts: u64,
    crashes: Crashes,
    reason: Option<String>,
    /// Why it crashed last, if that made a crash loop.
    crash_loop: Option<String>,
}

impl Machine {
    pub(super) fn new(config: SupervisionConfig) -> Self {
        Self {
            config,
            phase: Phase::Stopped,
            wanted: false,
            shutdown: None,
            epoch: 0,
            restarts: 0,
            crashes: Crashes::default(),
            reason: None,
            crash_loop: None,
        }
    }

    pub(super) fn state(&self) -> State {
        match self.phase {
            Phase::Stopped => State::Stopped,
            Phase::Warming { .. } => State::Warming,
            Phase::Starting { .. } => State::Starting,
            Phase::Ready { .. } => State::Ready,
            Phase::Draining { .. } => State::Draining,
            Phase::Stopping { .. } => State::Stopping,
            Phase::Backoff { .. } => State::Backoff,
        }
    }

    /// Of the latest start; 0 before the first.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Starts that followed a crash.
    pub(super) fn restarts(&self) -> u64 {
        self.restarts
    }

    /// What went wrong last; `None` once an engine is ready.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// While a crash loop is waited off: why it crashed last.
    pub(super) fn crash_loop(&self) -> Option<&str> {
        self.crash_loop.as_deref().filter(|_| matches!(self.phase, Phase::Backoff { .. }))
    }

    /// Nothing will ever be done again.
    pub(super) fn is_over(&self) -> bool {
        self.shutdown.is_some() && self.phase == Phase::Stopped
    }

    /// When [`Event::Elapsed`] is wanted.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Warming { until }
            | Phase::Starting { until }
            | Phase::Draining { until }
            | Phase::Backoff { until } => Some(until),
            Phase::Stopped | Phase::Ready { .. } | Phase::Stopping { .. } => None,
        }
    }

    pub(super) fn on(&mut self, event: Event, now: Instant, rng: &mut impl Rng) -> Option<Action> {
        match event {
            Event::Order(order) => self.order(order, now),
            Event::Shutdown(by) => {
                self.wanted = false;
                self.shutdown = Some(self.shutdown.map_or(by, |earlier| earlier.min(by)));
                self.leave(now)
            }
            Event::Prepared => self.prepared(now),
            Event::Ready => self.ready(now),
            Event::Failed(reason) | Event::Exited(reason) | Event::Lost(reason) => self.fail(reason, now, rng),
            Event::Drained => match self.phase {
                Phase::Draining { .. } => Some(self.stop(false, now)),
                _ => None,
            },
            Event::Elapsed => self.elapsed(now, rng),
            Event::Gone(left) => self.gone(left, now, rng),
        }
    }

    fn order(&mut self, order: Order, now: Instant) -> Option<Action> {
        if self.shutdown.is_some() {
            return None;
        }
        self.wanted = order != Order::Stop;
        match (order, self.phase) {
            (Order::Run | Order::Restart, Phase::Stopped) | (Order::Restart, Phase::Backoff { .. }) => {
                Some(self.prepare(now))
            }
            (Order::Run, _) => None,
            (Order::Restart, Phase::Warming { .. }) => Some(self.prepare(now)),
            (Order::Stop | Order::Restart, _) => self.leave(now),
        }
    }

    /// Towards the end of the engine there is now.
    fn leave(&mut self, now: Instant) -> Option<Action> {
        match self.phase {
            Phase::Stopped => None,
            Phase::Warming { .. } | Phase::Backoff { .. } => {
                self.phase = Phase::Stopped;
                Some(Action::Cancel)
            }
            Phase::Starting { .. } => Some(self.stop(false, now)),
            Phase::Ready { .. } => {
                self.phase = Phase::Draining { until: later(now, self.drain(now)) };
                None
            }
            Phase::Draining { until } => {
                self.phase = Phase::Draining { until: until.min(later(now, self.drain(now))) };
                None
            }
            Phase::Stopping { .. } => {
                self.phase = Phase::Stopping { crashed: false };
                self.shutdown.map(|_| Action::Hasten { kill_at: self.kill_at(now) })
            }
        }
    }

    /// At least half of what is left before a shutdown is for the engine, or all of its grace.
    fn drain(&self, now: Instant) -> Duration {
        let Some(by) = self.shutdown else { return self.config.drain };
        let left = by.saturating_duration_since(now);
        self.config.drain.min(left.saturating_sub(self.config.grace).max(left / 2))
    }

    fn kill_at(&self, now: Instant) -> Instant {
        self.shutdown.map_or_else(|| later(now, self.config.grace), |by| by.max(now))
    }

    fn prepare(&mut self, now: Instant) -> Action {
        self.epoch += 1;
        self.phase = Phase::Warming { until: later(now, self.config.prepare_timeout) };
        Action::Prepare
    }

    fn stop(&mut self, crashed: bool, now: Instant) -> Action {
        self.phase = Phase::Stopping { crashed };
        Action::Stop { kill_at: self.kill_at(now), asked: !crashed }
    }

    fn prepared(&mut self, now: Instant) -> Option<Action> {
        let Phase::Warming { .. } = self.phase else { return None };
        self.phase = Phase::Starting { until: later(now, self.config.ready_timeout) };
        Some(Action::Launch)
    }

    fn ready(&mut self, now: Instant) -> Option<Action> {
        let Phase::Starting { .. } = self.phase else { return None };
        self.phase = Phase::Ready { since: now };
        self.reason = None;
        Some(Action::Serve)
    }

    /// An end that nobody asked for is a crash, whatever the exit code says.
    fn fail(&mut self, reason: String, now: Instant, rng: &mut impl Rng) -> Option<Action> {
        let ready_since = match self.phase {
            Phase::Stopped | Phase::Stopping { .. } | Phase::Backoff { .. } => return None,
            Phase::Draining { .. } => return Some(self.stop(false, now)),
            Phase::Ready { since } => Some(since),
            Phase::Warming { .. } | Phase::Starting { .. } => None,
        };
        self.crashes.add(ready_since, now, &self.config);
        self.reason = Some(reason);
        if let Phase::Warming { .. } = self.phase {
            self.back_off(now, rng);
            return Some(Action::Cancel);
        }
        Some(self.stop(true, now))
    }

    fn back_off(&mut self, now: Instant, rng: &mut impl Rng) {
        let wait = self.crashes.wait(now, &self.config, rng);
        self.crash_loop = None;
        if self.crashes.is_loop(now, &self.config) {
            let last = self.reason.take().unwrap_or_default();
            self.crash_loop = Some(last.clone());
            let SupervisionConfig { crash_loop_crashes, crash_loop_within, .. } = self.config;
            self.reason = Some(format!(
                "crash loop: {crash_loop_crashes} crashes within {}; the next start is in {} unless it is restarted. The last one: {last}",
                humantime::format_duration(crash_loop_within),
                humantime::format_duration(wait),
            ));
        }
        self.phase = Phase::Backoff { until: later(now, wait) };
    }

    fn elapsed(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Action> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        let within = |what, limit| format!("{what} within {}", humantime::format_duration(limit));
        match self.phase {
            Phase::Warming { .. } => self.fail(within("not prepared", self.config.prepare_timeout), now, rng),
            Phase::Starting { .. } => self.fail(within("not ready", self.config.ready_timeout), now, rng),
            Phase::Draining { .. } => Some(self.stop(false, now)),
            Phase::Backoff { .. } => {
                self.restarts += 1;
                Some(self.prepare(now))
            }
            Phase::Stopped | Phase::Ready { .. } | Phase::Stopping { .. } => None,
        }
    }

    fn gone(&mut self, left: Option<String>, now: Instant, rng: &mut impl Rng) -> Option<Action> {
        let Phase::Stopping { crashed } = self.phase else { return None };
        if left.is_some() {
            self.reason = left;
        }
        match (self.wanted, crashed) {
            (false, _) => {
                self.phase = Phase::Stopped;
                None
            }
            (true, true) => {
                self.back_off(now, rng);
                None
            }
            (true, false) => Some(self.prepare(now)),
        }
    }
}

/// `wait` comes from a configuration, and may be more than a clock can tell.
fn later(now: Instant, wait: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    now + wait.min(YEAR)
}

#[cfg(test)]
mod tests;
