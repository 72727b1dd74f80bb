//! What supervision counts.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::{State, Status};

/// What came of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Outcome {
    Ready,
    /// The process ended, or was given up, before it was ready.
    Crashed,
    /// There was no process.
    Failed,
    /// It was told to end before it was ready.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: State,
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
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            epoch: Gauge::default(),
            restarts: Counter::default(),
            state: Family::default(),
            starts: Family::default(),
            start: Histogram::new(exponential_buckets(0.5, 2.0, 14)),
        };
        let m = metrics.clone();
        registry.register("warmd_engine_epoch", "Number of the engine's latest start", m.epoch);
        registry.register("warmd_engine_restarts", "Starts that followed a crash", m.restarts);
        registry.register("warmd_engine_state", "1 for the state that the engine is in", m.state);
        registry.register("warmd_engine_starts", "Starts of the engine by what came of them", m.starts);
        let help = "From the start of the engine's process until it was ready";
        registry.register_with_unit("warmd_engine_start", help, Unit::Seconds, m.start);
        metrics.entered(State::Stopped);
        metrics
    }

    pub(super) fn tell(&self, status: &Status) {
        self.epoch.set(i64::try_from(status.epoch).unwrap_or(i64::MAX));
        self.restarts.inc_by(status.restarts.saturating_sub(self.restarts.get()));
        self.entered(status.state);
    }

    fn entered(&self, state: State) {
        for other in State::ALL {
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
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let expected = [
            "warmd_engine_epoch 3",
            "warmd_engine_restarts_total 2",
            "warmd_engine_state{state=\"Backoff\"} 1",
            "warmd_engine_state{state=\"Stopped\"} 0",
        ];
        assert!(expected.iter().all(|line| text.lines().any(|it| it == *line)), "{text}");
    }
}
