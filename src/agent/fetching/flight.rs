//! One artifact on its way into the store: from its holders, or from the origin if none is left.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::FutureExt;
use tokio::sync::watch;
use tracing::Instrument;
use tracing::field::Empty;

use super::super::audit::of_agent;
use super::{Failed, Fetching, WANT, source};
use crate::artifact::Admitted;
use crate::digest::{ArtifactId, IdentityId};
use crate::local::chain;
use crate::protocol::metadata::Lookup;
use crate::telemetry::audit::{Action, Event};
use crate::telemetry::trace::{self, TraceParent};
use crate::transfer::{FetchError, Fetched, Find, Progress, Source};

/// How an artifact's fetch stands.
#[derive(Debug, Clone)]
pub(in crate::agent) enum Flight {
    Running(Progress),
    Landed(Fetched),
    Failed(Failed),
}

pub(super) type Flights = Arc<Mutex<HashMap<ArtifactId, watch::Receiver<Flight>>>>;

impl Fetching {
    /// Fetches in progress: what, and how far.
    pub(in crate::agent) fn flights(&self) -> Vec<(ArtifactId, Progress)> {
        let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let running = flights.iter().filter_map(|(id, flight)| match &*flight.borrow() {
            Flight::Running(progress) => Some((*id, *progress)),
            Flight::Landed(_) | Flight::Failed(_) => None,
        });
        running.collect()
    }

    /// Waits until the store knows the artifact, so that its chunks can be asked for, or until its fetch has failed.
    pub(in crate::agent) async fn wait_until_begun(&self, id: &ArtifactId, flight: &mut watch::Receiver<Flight>) {
        let begun = |flight: &Flight| self.store.get(id).is_some() || !matches!(flight, Flight::Running(_));
        // The fetch tells of its progress as soon as the store has begun; if it has ended, there is nothing to wait for.
        let _ = flight.wait_for(begun).await;
    }

    /// Joins the fetch that runs, or starts one. Without sources only the origin is asked, if there is one.
    pub(super) fn fly(self: &Arc<Self>, admitted: &Admitted, sources: Vec<Source>) -> watch::Receiver<Flight> {
        let id = admitted.id();
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&id) {
            return flight.clone();
        }
        let (tell, flight) = watch::channel(Flight::Running(Progress::default()));
        flights.insert(id, flight.clone());
        drop(flights);
        let (fetching, admitted) = (self.clone(), admitted.clone());
        let family = admitted.manifest().identity.family().to_string();
        let span = tracing::info_span!("fetch", artifact = %id.short(), family, trace = Empty);
        // By its name, the logs of all nodes that take part are found, whether anybody records the trace or not.
        let context = trace::of(&span).unwrap_or_else(TraceParent::unrecorded);
        span.record("trace", context.trace_id());
        let work = async move {
            let _landed = Landing { flights: fetching.flights.clone(), id };
            let told = fetching.told(&admitted, &sources);
            let result = fetching.fetch(admitted, sources, context, &tell).await;
            fetching.audit.tell(landed(told, &result));
            match &result {
                Ok(fetched) => tracing::info!(
                    artifact = %id,
                    wire_bytes = fetched.wire_bytes,
                    reused_bytes = fetched.reused_bytes,
                    holders = fetched.holders,
                    "fetched"
                ),
                Err(failed) => tracing::warn!(artifact = %id, error = failed.detail, "fetch failed"),
            }
            tell.send_replace(result.map_or_else(Flight::Failed, Flight::Landed));
        };
        self.tasks.spawn("fetch", work.instrument(span));
        flight
    }

    /// What the audit log is told of a fetch that begins.
    fn told(&self, admitted: &Admitted, sources: &[Source]) -> Event {
        let manifest = admitted.manifest();
        let holders = sources.iter().map(|source| source.node.short());
        let from = admitted.signers().iter().cloned().chain(holders).collect::<Vec<_>>().join(", ");
        let version = self.trust.policy().map(|policy| policy.version);
        Event {
            artifact: admitted.id().to_string(),
            family: manifest.identity.family().to_string(),
            subject: manifest.subject.clone(),
            from,
            ..of_agent(Action::Fetched, version, "")
        }
    }

    async fn fetch(
        &self,
        admitted: Admitted,
        sources: Vec<Source>,
        context: TraceParent,
        tell: &watch::Sender<Flight>,
    ) -> Result<Fetched, Failed> {
        let deadline = Instant::now() + self.deadline;
        let Some(cold) = &self.cold else {
            let fetched = self.fetch_from_holders(admitted, sources, deadline, context, tell).await;
            return fetched.map_err(|error| failed(&error));
        };
        let gone = match sources.is_empty() {
            true => None,
            false => match self.fetch_from_holders(admitted.clone(), sources, deadline, context, tell).await {
                Err(error @ FetchError::NoHolder(_)) => Some(failed(&error)),
                fetched => return fetched.map_err(|error| failed(&error)),
            },
        };
        let tell = |progress| {
            tell.send_replace(Flight::Running(progress));
        };
        let fetched = cold.fetch(&self.store, admitted, deadline, &tell).await;
        // That there were holders says more.
        fetched.map_err(|failed| gone.filter(|_| failed.class == "none-found").unwrap_or(failed))
    }

    async fn fetch_from_holders(
        &self,
        admitted: Admitted,
        sources: Vec<Source>,
        deadline: Instant,
        context: TraceParent,
        tell: &watch::Sender<Flight>,
    ) -> Result<Fetched, FetchError> {
        let (progress, mut changes) = watch::channel(Progress::default());
        let find = self.find(admitted.id(), admitted.manifest().identity.id(), admitted.manifest().chunks.len());
        let fetch = self.fetcher.fetch(admitted, sources, find, deadline, context, &progress);
        let mut fetch = std::pin::pin!(fetch);
        loop {
            tokio::select! {
                result = &mut fetch => return result,
                _ = changes.changed() => {
                    let now = *changes.borrow_and_update();
                    tell.send_replace(Flight::Running(now));
                }
            }
        }
    }

    /// For a fetch that looks for more holders.
    fn find(&self, id: ArtifactId, identity: IdentityId, chunks: usize) -> Find {
        let (directory, near, node) = (self.directory.clone(), self.locality.clone(), self.node);
        let chunks = u32::try_from(chunks).unwrap_or(u32::MAX);
        Arc::new(move || {
            let (directory, near) = (directory.clone(), near.clone());
            async move {
                let lookup =
                    Lookup { identities: vec![identity], want: Some(WANT), near: near.clone(), exclude: vec![node] };
                let offers = directory.lookup(&lookup).await.unwrap_or_default();
                let holders = offers.into_iter().filter(|offer| offer.artifact.artifact == id).flat_map(|o| o.holders);
                holders.map(|holder| source(&holder, &near, chunks)).collect()
            }
            .boxed()
        })
    }
}

fn landed(told: Event, result: &Result<Fetched, Failed>) -> Event {
    let result = match result {
        Ok(Fetched { wire_bytes, holders: 1, .. }) => format!("{wire_bytes} bytes from 1 holder"),
        Ok(Fetched { wire_bytes, holders, .. }) => format!("{wire_bytes} bytes from {holders} holders"),
        Err(failed) => format!("failed: {}", failed.detail),
    };
    Event { result, ..told }
}

/// Takes a fetch off the list however it ends.
struct Landing {
    flights: Flights,
    id: ArtifactId,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

pub(super) fn failed(error: &FetchError) -> Failed {
    let class = match error {
        FetchError::NoHolder(_) => "none-found",
        FetchError::Store(error) if error.is_no_space() => "no-space",
        FetchError::Store(_) | FetchError::Thread(_) | FetchError::Deadline { .. } => "transient",
    };
    Failed::new(class, chain(error))
}
