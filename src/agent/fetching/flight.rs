//! One artifact on its way into the store: from its holders, or from the origin if none is left.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tracing::Instrument;
use tracing::field::Empty;

use super::super::audit::of_agent;
use super::meter::Meter;
use super::{Failed, Fetching, WANT, source};
use crate::artifact::{Admitted, Family};
use crate::digest::{ArtifactId, IdentityId};
use crate::local::chain;
use crate::protocol::metadata::Lookup;
use crate::protocol::report::{Transfer, TransferHolder};
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

pub(super) type Flights = Arc<Mutex<HashMap<ArtifactId, Aloft>>>;

/// A fetch in progress.
pub(super) struct Aloft {
    family: Family,
    flight: watch::Receiver<Flight>,
    meter: Meter,
}

impl Aloft {
    /// `None` once it has ended.
    fn transfer(&mut self, id: ArtifactId, now: Instant) -> Option<Transfer> {
        let Flight::Running(Progress { bytes, bytes_total, from, .. }) = &*self.flight.borrow() else { return None };
        let rate = self.meter.rate(*bytes, now);
        let holders = from.iter().map(|(node, bytes)| TransferHolder { node: *node, bytes: *bytes }).collect();
        Some(Transfer { holders, ..Transfer::new(id, self.family.clone(), *bytes, *bytes_total, rate) })
    }
}

impl Fetching {
    /// Fetches in progress, in the order of their ids: what, how far, and how fast.
    pub(in crate::agent) fn transfers(&self, now: Instant) -> Vec<Transfer> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let mut transfers: Vec<Transfer> =
            flights.iter_mut().filter_map(|(id, aloft)| aloft.transfer(*id, now)).collect();
        transfers.sort_unstable_by_key(|transfer| transfer.artifact);
        transfers
    }

    /// Told when a fetch begins or ends; for one who waits.
    pub(in crate::agent) fn news(&self) -> Arc<Notify> {
        self.news.clone()
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
        if let Some(aloft) = flights.get(&id) {
            return aloft.flight.clone();
        }
        let (tell, flight) = watch::channel(Flight::Running(Progress::default()));
        let family = admitted.manifest().identity.family().clone();
        flights.insert(id, Aloft { family, flight: flight.clone(), meter: Meter::new(Instant::now()) });
        drop(flights);
        self.news.notify_one();
        let (fetching, admitted) = (self.clone(), admitted.clone());
        let family = admitted.manifest().identity.family().to_string();
        let span = tracing::info_span!("fetch", artifact = %id.short(), family, trace = Empty);
        // By its name, the logs of all nodes that take part are found, whether anybody records the trace or not.
        let context = trace::of(&span).unwrap_or_else(TraceParent::unrecorded);
        span.record("trace", context.trace_id());
        let work = async move {
            let _landed = Landing { flights: fetching.flights.clone(), news: fetching.news.clone(), id };
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
                    let now = changes.borrow_and_update().clone();
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
    news: Arc<Notify>,
    id: ArtifactId,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.news.notify_one();
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
