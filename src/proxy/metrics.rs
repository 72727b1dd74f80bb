//! What the proxy counts. Labels are closed sets: no name that a client or an operator chose is one.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::route::Endpoint;

/// What was asked, as far as it was known when the request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Class {
    None,
    Base,
    Adapter,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum State {
    Reading,
    Loading,
    Gate,
    Engine,
    Streaming,
}

impl State {
    /// In the order of their numbers.
    const ALL: [Self; 5] = [Self::Reading, Self::Loading, Self::Gate, Self::Engine, Self::Streaming];
}

/// Where the engine's side of a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Phase {
    Connect,
    Request,
    FirstByte,
    Body,
    Idle,
}

/// Who ended a request before its answer had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum By {
    Client,
    Operator,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    class: Class,
    route: Endpoint,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLabel {
    by: By,
}

#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    /// By [`State`]; a look at the family for each change would cost more than the change.
    in_flight: [Gauge; State::ALL.len()],
    engine_errors: Family<PhaseLabel, Counter>,
    aborted: Family<ByLabel, Counter>,
    first_token: Histogram,
    between_tokens: Histogram,
    gate_wait: Histogram,
    pub(super) retries: Counter,
    pub(super) self_heals: Counter,
    pub(super) tokens: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 20));
        let by_state = Family::<StateLabel, Gauge>::default();
        let in_flight = State::ALL.map(|state| by_state.get_or_create_owned(&StateLabel { state }));
        let metrics = Self {
            requests: Family::default(),
            in_flight,
            engine_errors: Family::default(),
            aborted: Family::default(),
            first_token: seconds(),
            between_tokens: seconds(),
            gate_wait: seconds(),
            retries: Counter::default(),
            self_heals: Counter::default(),
            tokens: Counter::default(),
        };
        let m = metrics.clone();
        registry.register("warmd_proxy_requests", "Answered requests", m.requests);
        registry.register("warmd_proxy_in_flight", "Requests by what they wait for", by_state);
        registry.register("warmd_proxy_engine_errors", "Requests whose engine side failed", m.engine_errors);
        registry.register("warmd_proxy_aborted", "Requests that ended before their answer", m.aborted);
        registry.register("warmd_proxy_retries", "Requests sent again on a fresh connection", m.retries);
        registry.register("warmd_proxy_self_heals", "Adapters that the engine had lost", m.self_heals);
        registry.register("warmd_proxy_tokens", "Tokens of ended answers, as far as known", m.tokens);
        let unit = || Unit::Seconds;
        let first = "From a streaming request's head to the first piece of its answer";
        registry.register_with_unit("warmd_proxy_first_token", first, unit(), m.first_token);
        registry.register_with_unit(
            "warmd_proxy_between_tokens",
            "Between pieces of a stream",
            unit(),
            m.between_tokens,
        );
        registry.register_with_unit("warmd_proxy_gate_wait", "For leave to ask the engine", unit(), m.gate_wait);
        metrics
    }

    pub(super) fn answered(&self, class: Class, route: Endpoint, code: u16) {
        self.requests.get_or_create(&RequestLabels { class, route, code }).inc();
    }

    pub(super) fn enter(&self, state: State) -> Stage {
        let gauge = self.in_flight[state as usize].clone();
        gauge.inc();
        Stage(gauge)
    }

    pub(super) fn failed(&self, phase: Phase) {
        self.engine_errors.get_or_create(&PhaseLabel { phase }).inc();
    }

    pub(super) fn aborted(&self, by: By) {
        self.aborted.get_or_create(&ByLabel { by }).inc();
    }

    pub(super) fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    pub(super) fn next_token(&self, after: Duration) {
        self.between_tokens.observe(after.as_secs_f64());
    }

    pub(super) fn gate_waited(&self, wait: Duration) {
        self.gate_wait.observe(wait.as_secs_f64());
    }
}

/// A request is in a state for as long as this lives.
#[derive(Debug)]
pub(super) struct Stage(Gauge);

impl Drop for Stage {
    fn drop(&mut self) {
        self.0.dec();
    }
}
