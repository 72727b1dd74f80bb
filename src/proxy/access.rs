//! Admission by credentials, limits and gates.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::time::Instant;

use super::admission::{Admission, Asking, Permit};
use super::answer::Answer;
use super::auth::{self, Authenticator, Caller, Denied, Request};
use super::limits::{Limit, Limited, Limits, Place};
use super::models::{BoxFuture, Lease};
use super::pause::{self, Gates};
use crate::identity::UnixTime;
use crate::telemetry::{Registry, labels};

/// When to come again: [`Denied::NoncesFull`] ends as texts expire.
const NONCES: Duration = Duration::from_secs(30);

labels! {
    struct LimitLabel {
        limit: Limit,
    }
}

/// What is counted about who was let in.
#[derive(Debug, Clone)]
pub struct Metrics {
    auth: auth::Metrics,
    limited: Family<LimitLabel, Counter>,
}

impl Metrics {
    pub fn register(r: &mut Registry) -> Self {
        Self {
            auth: auth::Metrics::register(r),
            limited: r.add("warmd_proxy_limited_total", "Requests refused by what there was too much of"),
        }
    }
}

/// Who is let in, how much they may ask for, and whether an adapter's gate is open.
#[derive(Debug)]
pub struct Access {
    authenticator: Arc<Authenticator>,
    limits: Limits,
    gates: Gates,
    /// Longest wait at a gate.
    at_gate: Duration,
    metrics: Metrics,
}

impl Access {
    pub fn new(
        authenticator: Authenticator,
        limits: Limits,
        gates: Gates,
        at_gate: Duration,
        metrics: Metrics,
    ) -> Self {
        Self { authenticator: Arc::new(authenticator), limits, gates, at_gate, metrics }
    }

    pub fn authenticator(&self) -> &Arc<Authenticator> {
        &self.authenticator
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn gates(&self) -> &Gates {
        &self.gates
    }

    fn enter(&self, caller: &Caller, place: Place) -> Result<Lease, Answer> {
        let permit = self.limits.enter(caller.tenant(), place).map_err(|limited| self.limited(limited))?;
        Ok(Box::new(permit))
    }

    async fn through_gate(
        &self,
        caller: &Caller,
        adapter: &str,
        request: &str,
    ) -> Result<(pause::Permit, bool), Answer> {
        let now = Instant::now();
        if let pause::Admission::Admitted(permit) = self.gates.admit(adapter, request, now.into_std()) {
            return Ok((permit, false));
        }
        let _place = self.enter(caller, Place::Waiter)?;
        let admitted = self.gates.admit_by(adapter, request, (now + self.at_gate).into_std()).await;
        let paused = |pause: pause::Pause| {
            let retry_after = pause.until.saturating_duration_since(Instant::now().into_std());
            Answer::Paused { model: adapter.to_owned(), retry_after }
        };
        admitted.map(|permit| (permit, true)).map_err(paused)
    }
}

fn denied(denied: Denied) -> Answer {
    match denied {
        Denied::NoncesFull => Answer::Limited { reason: denied.to_string(), retry_after: NONCES },
        _ => Answer::Unauthorized(denied.to_string()),
    }
}

impl Admission for Access {
    fn authenticate(&self, asking: &Asking<'_>, body: Option<&[u8]>) -> Result<Option<Caller>, Answer> {
        let now = UnixTime::now();
        let result = match body {
            None => self.authenticator.authenticate(asking.authorization, now),
            Some(body) => {
                let request = Request { method: asking.method, path: asking.path, body };
                self.authenticator.authenticate_request(asking.authorization, &request, now)
            }
        };
        if body.is_none() && matches!(result, Err(Denied::NeedsRequest)) {
            return Ok(None);
        }
        self.metrics.auth.observe(&result);
        let caller = result.map_err(denied)?;
        let now = Instant::now().into_std();
        self.limits.admit(caller.tenant(), caller.key(), now).map_err(|limited| self.limited(limited))?;
        Ok(Some(caller))
    }

    fn look_for_unknown(&self, caller: &Caller) -> Result<(), Answer> {
        let now = Instant::now().into_std();
        self.limits.unknown_adapter(caller.tenant(), now).map_err(|limited| self.limited(limited))
    }

    fn limited(&self, limited: Limited) -> Answer {
        self.metrics.limited.get_or_create(&LimitLabel { limit: limited.limit }).inc();
        match limited.limit {
            Limit::ReplicaPlaces | Limit::Callers => Answer::Overloaded { what: "requests" },
            _ => Answer::Limited { reason: limited.to_string(), retry_after: limited.retry_after },
        }
    }

    fn wait(&self, caller: &Caller) -> Result<Lease, Answer> {
        self.enter(caller, Place::Waiter)
    }

    fn admit<'a>(
        &'a self,
        caller: &'a Caller,
        adapter: Option<&'a str>,
        request: &'a str,
    ) -> BoxFuture<'a, Result<Permit, Answer>> {
        Box::pin(async move {
            let Some(adapter) = adapter else {
                if !caller.scopes().permit_inference() {
                    return Err(Answer::Forbidden("these credentials are not for the base model".to_owned()));
                }
                return Ok(Permit { held: Some(self.enter(caller, Place::Request)?), ..Permit::default() });
            };
            let (gate, waited) = self.through_gate(caller, adapter, request).await?;
            let place = self.enter(caller, Place::Request)?;
            let aborted = Some(gate.aborted().clone());
            Ok(Permit { held: Some(Box::new((gate, place))), aborted, waited })
        })
    }

    fn account(&self, caller: &Caller, tokens: u64) {
        self.limits.account(caller.tenant(), caller.key(), tokens, Instant::now().into_std());
    }
}
