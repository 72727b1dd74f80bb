//! Finds and fetches the artifacts of an identity. A fetch belongs to the node, not to who asked: several pods that want
//! the same artifact share one, and it goes on in the background when a pod's budget is over.

mod cold;
mod flight;
mod judging;
mod meter;
mod metrics;
mod nearby;
mod wanted;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tracing::Instrument;

pub(super) use self::cold::Cold;
pub(super) use self::flight::Flight;
use self::flight::{Flights, failed};
use self::metrics::Refusal;
pub(super) use self::metrics::{FetchingMetrics, Outcome};
pub(super) use self::nearby::{Near, Wish};
pub(super) use self::wanted::Wanted;
use self::wanted::by_subject;
use super::AgentConfig;
use super::audit::Audit;
use super::directory::Directory;
use super::trust::Trust;
use crate::artifact::Admitted;
use crate::digest::{ArtifactId, IdentityId};
use crate::identity::NodeId;
use crate::lifecycle::Tasks;
use crate::local::chain;
use crate::protocol::metadata::{Closeness, HolderInfo, Locality, Lookup, Offer, Summary};
use crate::store::{Artifact, State, Store};
use crate::telemetry::trace;
use crate::transfer::{self, Fetched, Fetcher, Holds, Source};

/// Holders asked for, of each artifact.
const WANT: u32 = 16;

/// Candidates of one subject that are tried.
const MAX_CANDIDATES: usize = 8;

/// Why nothing came, and how long the one who asked should remember it.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) class: &'static str,
    pub(super) detail: String,
}

impl Failed {
    fn new(class: &'static str, detail: impl Into<String>) -> Self {
        Self { class, detail: detail.into() }
    }
}

/// An artifact that was admitted and is here or on its way.
pub(super) struct Coming {
    pub(super) admitted: Admitted,
    pub(super) flight: watch::Receiver<Flight>,
}

pub(super) struct Fetching {
    fetcher: Fetcher,
    store: Store,
    directory: Arc<Directory>,
    trust: Arc<Trust>,
    audit: Audit,
    metrics: FetchingMetrics,
    node: NodeId,
    locality: Locality,
    deadline: Duration,
    cold: Option<Cold>,
    flights: Flights,
    /// A fetch has begun or ended.
    news: Arc<Notify>,
    tasks: Arc<Tasks>,
}

/// What there is of some identities, each artifact once.
pub(super) struct Offers {
    /// Here or with other nodes.
    pub(super) held: Vec<Offer>,
    /// Of identities of which nobody holds anything.
    pub(super) in_origin: Vec<Offer>,
    /// Why the directory could not be asked.
    pub(super) failure: Option<String>,
}

impl Fetching {
    #[expect(clippy::too_many_arguments, reason = "the wiring of the agent, called once")]
    pub(super) fn new(
        fetcher: Fetcher,
        store: Store,
        directory: Arc<Directory>,
        cold: Option<Cold>,
        trust: Arc<Trust>,
        audit: Audit,
        metrics: FetchingMetrics,
        node: NodeId,
        config: &AgentConfig,
        tasks: Arc<Tasks>,
    ) -> Arc<Self> {
        let (locality, deadline) = (config.locality.clone(), config.fetch_deadline);
        let (flights, news) = (Flights::default(), Arc::default());
        Arc::new(Self {
            fetcher,
            store,
            directory,
            trust,
            audit,
            metrics,
            node,
            locality,
            deadline,
            cold,
            flights,
            news,
            tasks,
        })
    }

    /// What the directory and this node's own store have of an identity, by subject; if nothing, what the origin has.
    pub(super) async fn look(&self, identity: IdentityId, subject: Option<&str>) -> Result<Vec<Wanted>, Failed> {
        let lookup = self.lookup(vec![identity]);
        let (offers, failure) = match self.directory.lookup(&lookup).await {
            Ok(offers) => (offers, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let held = self.local_offers(identity).into_iter().chain(offers);
        let mut wanted = by_subject(held, identity, subject);
        if wanted.is_empty() {
            wanted = by_subject(self.in_origin([identity]).await, identity, subject);
        }
        match failure {
            Some(error) if wanted.is_empty() => return Err(Failed::new("transient", chain(&error))),
            // What is here can be installed without anybody's help.
            Some(error) => tracing::warn!(%error, "nobody could be asked: going on with what this node can have"),
            None => {}
        }
        Ok(wanted)
    }

    pub(super) async fn offers(&self, identities: Vec<IdentityId>) -> Offers {
        let local = identities.iter().flat_map(|identity| self.local_offers(*identity));
        let mut held: HashMap<ArtifactId, Offer> = local.map(|offer| (offer.artifact.artifact, offer)).collect();
        let failure = match self.directory.lookup(&self.lookup(identities.clone())).await {
            Ok(offers) => {
                for offer in offers {
                    let count = offer.holder_count;
                    let one = held.entry(offer.artifact.artifact).or_insert(offer);
                    one.holder_count = one.holder_count.max(count);
                }
                None
            }
            Err(error) => Some(chain(&error)),
        };
        let offered: HashSet<IdentityId> = held.values().map(|offer| offer.artifact.identity).collect();
        let unoffered = identities.into_iter().filter(|identity| !offered.contains(identity));
        let in_origin = self.in_origin(unoffered.collect::<HashSet<_>>()).await;
        Offers { held: held.into_values().collect(), in_origin, failure }
    }

    fn lookup(&self, identities: Vec<IdentityId>) -> Lookup {
        Lookup { identities, want: Some(WANT), near: self.locality.clone(), exclude: vec![self.node] }
    }

    async fn in_origin(&self, identities: impl IntoIterator<Item = IdentityId>) -> Vec<Offer> {
        match &self.cold {
            Some(cold) => cold.find(identities).await,
            None => Vec::new(),
        }
    }

    /// What the origin has under an id: that artifact, or the newest of an identity, by subject.
    pub(super) async fn look_in_origin(&self, id: ArtifactId) -> Result<Vec<Wanted>, Failed> {
        let Some(cold) = &self.cold else { return Err(Failed::new("none-found", "this agent has no origin")) };
        match cold.envelope(&id).await {
            Ok(envelope) => {
                let admitted = self.admit_as(id, envelope).await?;
                let summary = Summary::of(&admitted, admitted.manifest().content_id());
                Ok(vec![Wanted::new(vec![cold::offer(summary)])])
            }
            Err(failed) if failed.class == "none-found" => {
                let identity = IdentityId::from_array(*id.as_bytes());
                Ok(by_subject(cold.ask(identity).await?, identity, None))
            }
            Err(failed) => Err(failed),
        }
    }

    fn local_offers(&self, identity: IdentityId) -> Vec<Offer> {
        let here = self.store.list().into_iter();
        here.filter(|artifact| artifact.identity() == identity && artifact.state() == State::Complete)
            .map(|artifact| Offer {
                artifact: Arc::new(super::holdings::summary(&artifact)),
                holders: Vec::new(),
                holder_count: 1,
            })
            .collect()
    }

    /// What [`Fetching::admit`] takes is fetched unless it is here or already on its way.
    pub(super) async fn bring(self: &Arc<Self>, wanted: Wanted) -> Result<Coming, Failed> {
        let (admitted, sources) = self.admit(wanted).await?;
        let is_here = self.store.get(&admitted.id()).is_some_and(|artifact| is_whole(&artifact));
        let flight = match is_here {
            true => {
                let all = Fetched { wire_bytes: 0, reused_bytes: admitted.manifest().wire_size(), holders: 0 };
                watch::channel(Flight::Landed(all)).1
            }
            false => self.fly(&admitted, sources),
        };
        Ok(Coming { admitted, flight })
    }

    /// Takes the first candidate that the policy admits, and says whom to ask for its chunks. When none of them can be had,
    /// the origin may know another one.
    pub(super) async fn admit(&self, wanted: Wanted) -> Result<(Admitted, Vec<Source>), Failed> {
        let first = wanted.candidates.first().map(|offer| offer.artifact.clone());
        let tried: HashSet<ArtifactId> = wanted.candidates.iter().map(|offer| offer.artifact.artifact).collect();
        let failed = match self.admit_any(wanted.candidates).await {
            Ok(admitted) => return Ok(admitted),
            Err(failed) => failed,
        };
        let Some(first) = first else { return Err(failed) };
        let others = by_subject(self.in_origin([first.identity]).await, first.identity, Some(&first.subject));
        let mut others = others.into_iter().flat_map(|wanted| wanted.candidates).collect::<Vec<_>>();
        others.retain(|offer| !tried.contains(&offer.artifact.artifact));
        if others.is_empty() { Err(failed) } else { self.admit_any(others).await }
    }

    async fn admit_any(&self, candidates: Vec<Offer>) -> Result<(Admitted, Vec<Source>), Failed> {
        let mut failed = Failed::new("none-found", "nobody has it");
        for offer in candidates.into_iter().take(MAX_CANDIDATES) {
            match self.admit_one(&offer).await {
                Ok(admitted) => return Ok(admitted),
                Err(reason) => {
                    tracing::info!(artifact = %offer.artifact.artifact, detail = reason.detail, "candidate not taken");
                    failed = reason;
                }
            }
        }
        Err(failed)
    }

    async fn admit_one(&self, offer: &Offer) -> Result<(Admitted, Vec<Source>), Failed> {
        let id = offer.artifact.artifact;
        let sources = self.sources(&offer.holders, offer.artifact.chunks);
        let (admitted, sources) = match self.store.get(&id) {
            Some(artifact) => (self.readmit(&artifact).await?, sources),
            None => self.manifest(id, sources).await?,
        };
        let (manifest, announced) = (admitted.manifest(), &offer.artifact);
        if manifest.identity.id() != announced.identity || *manifest.subject != *announced.subject {
            self.metrics.refuse(Refusal::OtherIdentity);
            let detail = format!("artifact {} is of another identity or subject than announced", id.short());
            return Err(Failed::new("untrusted", detail));
        }
        Ok((admitted, sources))
    }

    /// From a holder, or else from the origin; and whom to ask for chunks: holders that did not answer this are not.
    async fn manifest(&self, id: ArtifactId, sources: Vec<Source>) -> Result<(Admitted, Vec<Source>), Failed> {
        let failed = match self.manifest_from_holders(id, &sources).await {
            Ok(admitted) => return Ok((admitted, sources)),
            Err(failed) => failed,
        };
        let Some(cold) = self.cold.as_ref().filter(|_| failed.class != "untrusted") else { return Err(failed) };
        match cold.envelope(&id).await {
            Ok(envelope) => Ok((self.admit_as(id, envelope).await?, Vec::new())),
            // That there were holders says more.
            Err(missing) if missing.class == "none-found" && !sources.is_empty() => Err(failed),
            Err(failed) => Err(failed),
        }
    }

    async fn manifest_from_holders(&self, id: ArtifactId, sources: &[Source]) -> Result<Admitted, Failed> {
        let verdict = Mutex::new(None);
        let accept = |envelope| -> BoxFuture<'_, bool> {
            let verdict = &verdict;
            Box::pin(async move {
                let admitted = self.admit_as(id, envelope).await;
                let good = admitted.is_ok();
                *verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(admitted);
                good
            })
        };
        let span = tracing::debug_span!(target: trace::OPERATIONS, "manifest", artifact = %id);
        let asked = async { self.fetcher.manifest(id, sources, trace::to_tell(), &accept).await };
        let asked = asked.instrument(span).await;
        match (verdict.into_inner().unwrap_or_else(PoisonError::into_inner), asked) {
            (Some(verdict), _) => verdict,
            (None, Err(error)) => Err(failed(&error)),
            (None, Ok(())) => Err(Failed::new("transient", "no manifest came")),
        }
    }

    fn sources(&self, holders: &[HolderInfo], chunks: u32) -> Vec<Source> {
        holders.iter().map(|holder| source(holder, &self.locality, chunks)).collect()
    }
}

fn is_whole(artifact: &Artifact) -> bool {
    artifact.state() == State::Complete && artifact.has_all()
}

fn source(holder: &HolderInfo, here: &Locality, chunks: u32) -> Source {
    Source {
        node: holder.node,
        addrs: holder.endpoints.iter().map(|endpoint| endpoint.addr()).collect(),
        locality: match here.closeness(&holder.locality) {
            Closeness::SameRack => transfer::Locality::SameRack,
            Closeness::SameZone => transfer::Locality::SameZone,
            Closeness::SameRegion => transfer::Locality::SameRegion,
            Closeness::Other => transfer::Locality::Other,
        },
        holds: Holds::of(holder.chunks_held, chunks),
    }
}
