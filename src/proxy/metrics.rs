//! What the proxy counts. Labels are closed sets: no name that a client or an operator chose is one.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::pace::Pace;
use super::route::Endpoint;
use crate::telemetry::{Bounded, Registry, label, labels};

label! {
    /// What was asked, as far as it was known when the request was answered.
    pub(super) enum Class {
        None,
        Base,
        Adapter,
    }
}

label! {
    /// What a request waits for.
    pub(super) enum State {
        Reading,
        Loading,
        Gate,
        Engine,
        Streaming,
    }
}

impl State {
    /// In the order of their numbers.
    const ALL: [Self; 5] = [Self::Reading, Self::Loading, Self::Gate, Self::Engine, Self::Streaming];
}

label! {
    /// Where the engine's side of a request failed.
    pub(super) enum Phase {
        Connect,
        Request,
        FirstByte,
        Body,
        Idle,
    }
}

label! {
    /// Who ended a request before its answer had.
    pub(super) enum By {
        Client,
        Operator,
    }
}

labels! {
    struct RequestLabels {
        class: Class,
        route: Endpoint,
        /// As engine and proxy answer: a few of the thousand that there can be.
        code: Bounded<u16>,
    }
}

labels! {
    struct StateLabel {
        state: State,
    }
}

labels! {
    struct PhaseLabel {
        phase: Phase,
    }
}

labels! {
    struct ByLabel {
        by: By,
    }
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
    pub(super) pace: Arc<Pace>,
}

impl Metrics {
    pub fn register(r: &mut Registry) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 20));
        let by_state: Family<StateLabel, Gauge> = r.add("warmd_proxy_in_flight", "Requests by what they wait for");
        Self {
            requests: r.add("warmd_proxy_requests_total", "Answered requests by model, route and HTTP status"),
            in_flight: State::ALL.map(|state| by_state.get_or_create_owned(&StateLabel { state })),
            engine_errors: r
                .add("warmd_proxy_engine_errors_total", "Requests whose engine side failed, by how far they were"),
            aborted: r.add("warmd_proxy_aborted_total", "Requests that ended before their answer, by who ended them"),
            first_token: r.insert(
                "warmd_proxy_first_token_seconds",
                "From a streaming request's head to the first piece of its answer",
                seconds(),
            ),
            between_tokens: r.insert("warmd_proxy_between_tokens_seconds", "Between pieces of a stream", seconds()),
            gate_wait: r.insert("warmd_proxy_gate_wait_seconds", "Wait for leave to ask the engine", seconds()),
            retries: r.add("warmd_proxy_retries_total", "Requests sent again on a fresh connection"),
            self_heals: r.add("warmd_proxy_self_heals_total", "Requests that found their adapter gone from the engine"),
            tokens: r.add("warmd_proxy_tokens_total", "Tokens of ended answers, as far as known"),
            pace: Arc::default(),
        }
    }

    pub(super) fn answered(&self, class: Class, route: Endpoint, code: u16) {
        self.requests.get_or_create(&RequestLabels { class, route, code: Bounded(code) }).inc();
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
        self.pace.count(after);
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
