//! What supervision counts.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::{State, Status};
use crate::telemetry::{Label, Registry, label, labels};

label! {
    /// What came of a start.
    pub(super) enum Outcome {
        Ready,
        /// The process ended, or was given up, before it was ready.
        Crashed,
        /// There was no process.
        Failed,
        /// It was told to end before it was ready.
        Stopped,
    }
}

labels! {
    struct OutcomeLabel {
        outcome: Outcome,
    }
}

labels! {
    struct StateLabel {
        state: State,
    }
}

#[derive(Debug, Clone)]
pub struct Metrics {
    epoch: Gauge,
    restarts: Counter,
    state: Family<StateLabel, Gauge>,
    starts: Family<OutcomeLabel, Counter>,
    start: Histogram,
}

impl Metrics {
    pub fn register(r: &mut Registry) -> Self {
        let start = Histogram::new(exponential_buckets(0.5, 2.0, 14));
        let metrics = Self {
            epoch: r.add("warmd_engine_epoch", "Number of the engine's latest start"),
            restarts: r.add("warmd_engine_restarts_total", "Starts that followed a crash"),
            state: r.add("warmd_engine_state", "1 for the state that the engine is in"),
            starts: r.add("warmd_engine_starts_total", "Starts of the engine by what came of them"),
            start: r.insert(
                "warmd_engine_start_seconds",
                "From the start of the engine's process until it was ready",
                start,
            ),
        };
        metrics.entered(State::Stopped);
        metrics
    }

    pub(super) fn tell(&self, status: &Status) {
        self.epoch.set(i64::try_from(status.epoch).unwrap_or(i64::MAX));
        self.restarts.inc_by(status.restarts.saturating_sub(self.restarts.get()));
        self.entered(status.state);
    }

    fn entered(&self, state: State) {
        for other in State::all() {
            self.state.get_or_create(&StateLabel { state: other }).set(i64::from(other == state));
        }
    }

    pub(super) fn started(&self, outcome: Outcome) {
        self.starts.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(super) fn ready(&self, after: Duration) {
        self.started(Outcome::Ready);
        self.start.observe(after.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_state_is_1_and_restarts_are_counted_once() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let status = Status { state: State::Backoff, epoch: 3, restarts: 2, ..Status::default() };
        metrics.tell(&status);
        metrics.tell(&status);
        let text = crate::telemetry::encode(&registry);
        let expected = [
            "warmd_engine_epoch 3",
            "warmd_engine_restarts_total 2",
            "warmd_engine_state{state=\"backoff\"} 1",
            "warmd_engine_state{state=\"stopped\"} 0",
        ];
        assert!(expected.iter().all(|line| text.lines().any(|it| it == *line)), "{text}");
    }
}
