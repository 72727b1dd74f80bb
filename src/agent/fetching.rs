//! Finds and fetches the artifacts of an identity. A fetch belongs to the node, not to who asked: several pods that want
//! the same artifact share one, and it goes on in the background when a pod's budget is over.

mod nearby;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::watch;
use tracing::Instrument;

pub(super) use self::nearby::{Near, Wish};
use super::AgentConfig;
use super::trust::Trust;
use crate::artifact::{Admitted, ManifestError, SignedManifest};
use crate::digest::{ArtifactId, IdentityId};
use crate::identity::{NodeId, Policy, UnixTime};
use crate::lifecycle::Tasks;
use crate::metadata::{Client, ClientError};
use crate::protocol::metadata::{Closeness, HolderInfo, Locality, Lookup, Offer};
use crate::store::{Artifact, State, Store};
use crate::transfer::{self, Fetched, Fetcher, Find, Progress, Source};

/// Holders asked for, of each artifact.
const WANT: u32 = 16;

/// Subjects of one identity that are fetched, and candidates of each that are tried.
const MAX_SUBJECTS: usize = 64;
const MAX_CANDIDATES: usize = 8;

/// How an artifact's fetch stands.
#[derive(Debug, Clone)]
pub(super) enum Flight {
    Running(Progress),
    Landed(Fetched),
    Failed(Failed),
}

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

/// One of the artifacts to bring: the candidates of one subject, best first.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) candidates: Vec<Offer>,
}

/// An artifact that was admitted and is here or on its way.
pub(super) struct Coming {
    pub(super) admitted: Admitted,
    pub(super) flight: watch::Receiver<Flight>,
}

pub(super) struct Fetching {
    fetcher: Fetcher,
    store: Store,
    client: Client,
    trust: Arc<Trust>,
    node: NodeId,
    locality: Locality,
    deadline: Duration,
    flights: Arc<Mutex<HashMap<ArtifactId, watch::Receiver<Flight>>>>,
    tasks: Arc<Tasks>,
}

impl Fetching {
    pub(super) fn new(
        fetcher: Fetcher,
        store: Store,
        client: Client,
        trust: Arc<Trust>,
        node: NodeId,
        config: &AgentConfig,
        tasks: Arc<Tasks>,
    ) -> Arc<Self> {
        let (locality, deadline) = (config.locality.clone(), config.fetch_deadline);
        Arc::new(Self { fetcher, store, client, trust, node, locality, deadline, flights: Arc::default(), tasks })
    }

    /// Fetches in progress: what, and how far.
    pub(super) fn flights(&self) -> Vec<(ArtifactId, Progress)> {
        let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let running = flights.iter().filter_map(|(id, flight)| match &*flight.borrow() {
            Flight::Running(progress) => Some((*id, *progress)),
            Flight::Landed(_) | Flight::Failed(_) => None,
        });
        running.collect()
    }

    /// What the directory and this node's own store have of an identity, by subject.
    pub(super) async fn look(&self, identity: IdentityId, subject: Option<&str>) -> Result<Vec<Wanted>, Failed> {
        let lookup = Lookup {
            identities: vec![identity],
            want: Some(WANT),
            near: self.locality.clone(),
            exclude: vec![self.node],
        };
        let local = self.local_offers(identity);
        let offers = match self.client.lookup(&lookup).await {
            Ok(found) => found.offers,
            // What is here can be installed without anybody's help.
            Err(error) if local.is_empty() => return Err(unreachable(&error)),
            Err(error) => {
                tracing::warn!(%error, "metadata server not reached: going on with what this node has");
                Vec::new()
            }
        };
        let mut by_subject: BTreeMap<String, Vec<Offer>> = BTreeMap::new();
        for offer in local.into_iter().chain(offers) {
            if offer.artifact.identity == identity && subject.is_none_or(|subject| *offer.artifact.subject == *subject)
            {
                by_subject.entry(offer.artifact.subject.to_string()).or_default().push(offer);
            }
        }
        Ok(by_subject.into_values().take(MAX_SUBJECTS).map(Wanted::new).collect())
    }

    /// What there is of many identities, each artifact once, and why the directory could not be asked.
    pub(super) async fn offers(&self, identities: Vec<IdentityId>) -> (Vec<Offer>, Option<String>) {
        let local = identities.iter().flat_map(|identity| self.local_offers(*identity));
        let mut offers: HashMap<ArtifactId, Offer> = local.map(|offer| (offer.artifact.artifact, offer)).collect();
        let lookup = Lookup { identities, want: Some(WANT), near: self.locality.clone(), exclude: vec![self.node] };
        let failure = match self.client.lookup(&lookup).await {
            Ok(found) => {
                for offer in found.offers {
                    let count = offer.holder_count;
                    let one = offers.entry(offer.artifact.artifact).or_insert(offer);
                    one.holder_count = one.holder_count.max(count);
                }
                None
            }
            Err(error) => Some(unreachable(&error).detail),
        };
        (offers.into_values().collect(), failure)
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

    /// Takes the first candidate that the policy admits, and fetches it unless it is here or already on its way.
    pub(super) async fn bring(self: &Arc<Self>, wanted: Wanted) -> Result<Coming, Failed> {
        let mut failed = Failed::new("none-found", "nobody has it");
        for offer in wanted.candidates.into_iter().take(MAX_CANDIDATES) {
            match self.bring_one(&offer).await {
                Ok(coming) => return Ok(coming),
                Err(reason) => {
                    tracing::info!(artifact = %offer.artifact.artifact, detail = reason.detail, "candidate not taken");
                    failed = reason;
                }
            }
        }
        Err(failed)
    }

    async fn bring_one(self: &Arc<Self>, offer: &Offer) -> Result<Coming, Failed> {
        let id = offer.artifact.artifact;
        let here = self.store.get(&id);
        if let Some(artifact) = &here
            && artifact.state() == State::Complete
            && artifact.has_all()
        {
            let admitted = self.readmit(artifact)?;
            let all = Fetched { wire_bytes: 0, reused_bytes: admitted.manifest().wire_size(), holders: 0 };
            return Ok(Coming { admitted, flight: watch::channel(Flight::Landed(all)).1 });
        }
        let sources = self.sources(&offer.holders, offer.artifact.chunks);
        let admitted = match here {
            Some(artifact) => self.readmit(&artifact)?,
            None => self.manifest(id, &sources).await?,
        };
        if admitted.manifest().identity.id() != offer.artifact.identity {
            return Err(Failed::new(
                "untrusted",
                format!("artifact {} is of another identity than announced", id.short()),
            ));
        }
        let flight = self.fly(&admitted, sources);
        Ok(Coming { admitted, flight })
    }

    fn admit(&self, envelope: bytes::Bytes) -> Result<Admitted, Failed> {
        self.judge(|policy| SignedManifest::admit(envelope, policy, UnixTime::now()))
    }

    /// What is in the store was trusted when it came; the policy may have changed since.
    fn readmit(&self, artifact: &Artifact) -> Result<Admitted, Failed> {
        self.judge(|policy| artifact.signed().readmit(policy, UnixTime::now()))
    }

    fn judge(&self, judge: impl FnOnce(&Policy) -> Result<Admitted, ManifestError>) -> Result<Admitted, Failed> {
        let Some(policy) = self.trust.policy() else {
            return Err(Failed::new("untrusted", "this agent has no trust policy: set `trust.policy`"));
        };
        judge(&policy).map_err(|error| match error {
            ManifestError::Refused(_) => Failed::new("untrusted", error.to_string()),
            _ => Failed::new("transient", error.to_string()),
        })
    }

    async fn manifest(&self, id: ArtifactId, sources: &[Source]) -> Result<Admitted, Failed> {
        let verdict = Mutex::new(None);
        let accept = |envelope| {
            let admitted = self.admit(envelope).and_then(|admitted| match admitted.id() == id {
                true => Ok(admitted),
                false => Err(Failed::new("transient", "a holder sent another manifest than the one asked for")),
            });
            let good = admitted.is_ok();
            *verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(admitted);
            good
        };
        let asked = self.fetcher.manifest(id, sources, &traceparent(), &accept).await;
        match (verdict.into_inner().unwrap_or_else(PoisonError::into_inner), asked) {
            (Some(verdict), _) => verdict,
            (None, Err(error)) => Err(failed(&error)),
            (None, Ok(())) => Err(Failed::new("transient", "no manifest came")),
        }
    }

    /// Waits until the store knows the artifact, so that its chunks can be asked for, or until its fetch has failed.
    pub(super) async fn wait_until_begun(&self, id: &ArtifactId, flight: &mut watch::Receiver<Flight>) {
        let begun = |flight: &Flight| self.store.get(id).is_some() || !matches!(flight, Flight::Running(_));
        // The fetch tells of its progress as soon as the store has begun; if it has ended, there is nothing to wait for.
        let _ = flight.wait_for(begun).await;
    }

    /// Joins the fetch that runs, or starts one.
    fn fly(self: &Arc<Self>, admitted: &Admitted, sources: Vec<Source>) -> watch::Receiver<Flight> {
        let id = admitted.id();
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&id) {
            return flight.clone();
        }
        let (tell, flight) = watch::channel(Flight::Running(Progress::default()));
        flights.insert(id, flight.clone());
        drop(flights);
        let (fetching, admitted) = (self.clone(), admitted.clone());
        let traceparent = traceparent();
        let span = tracing::info_span!("fetch", artifact = %id.short(), traceparent);
        let work = async move {
            let _landed = Landing { flights: fetching.flights.clone(), id };
            let result = fetching.fetch(admitted, sources, &traceparent, &tell).await;
            tell.send_replace(match result {
                Ok(fetched) => Flight::Landed(fetched),
                Err(error) => Flight::Failed(failed(&error)),
            });
        };
        self.tasks.spawn("fetch", work.instrument(span));
        flight
    }

    async fn fetch(
        &self,
        admitted: Admitted,
        sources: Vec<Source>,
        traceparent: &str,
        tell: &watch::Sender<Flight>,
    ) -> Result<Fetched, transfer::FetchError> {
        let id = admitted.id();
        let (progress, mut changes) = watch::channel(Progress::default());
        let find = self.find(id, admitted.manifest().identity.id(), admitted.manifest().chunks.len());
        let deadline = Instant::now() + self.deadline;
        let fetch = self.fetcher.fetch(admitted, sources, find, deadline, traceparent, &progress);
        let mut fetch = std::pin::pin!(fetch);
        let result = loop {
            tokio::select! {
                result = &mut fetch => break result,
                _ = changes.changed() => {
                    let now = *changes.borrow_and_update();
                    tell.send_replace(Flight::Running(now));
                }
            }
        };
        match &result {
            Ok(fetched) => tracing::info!(
                artifact = %id,
                wire_bytes = fetched.wire_bytes,
                reused_bytes = fetched.reused_bytes,
                holders = fetched.holders,
                "fetched"
            ),
            Err(error) => tracing::warn!(artifact = %id, %error, "fetch failed"),
        }
        result
    }

    /// For a fetch that looks for more holders.
    fn find(&self, id: ArtifactId, identity: IdentityId, chunks: usize) -> Find {
        let (client, near, node) = (self.client.clone(), self.locality.clone(), self.node);
        let chunks = u32::try_from(chunks).unwrap_or(u32::MAX);
        Arc::new(move || {
            let (client, near) = (client.clone(), near.clone());
            async move {
                let lookup =
                    Lookup { identities: vec![identity], want: Some(WANT), near: near.clone(), exclude: vec![node] };
                let offers = client.lookup(&lookup).await.map(|found| found.offers).unwrap_or_default();
                let holders = offers.into_iter().filter(|offer| offer.artifact.artifact == id).flat_map(|o| o.holders);
                holders.map(|holder| source(&holder, &near, chunks)).collect()
            }
            .boxed()
        })
    }

    fn sources(&self, holders: &[HolderInfo], chunks: u32) -> Vec<Source> {
        holders.iter().map(|holder| source(holder, &self.locality, chunks)).collect()
    }
}

impl Wanted {
    /// Newest first; of equals the one that more nodes hold.
    fn new(mut candidates: Vec<Offer>) -> Self {
        candidates.sort_by_key(|offer| {
            let artifact = &offer.artifact;
            std::cmp::Reverse((artifact.created, artifact.generation, offer.holder_count, artifact.artifact))
        });
        // What is here and is offered by others too keeps the entry with the others.
        let mut merged: Vec<Offer> = Vec::new();
        for offer in candidates {
            match merged.iter_mut().find(|other| other.artifact.artifact == offer.artifact.artifact) {
                Some(other) if other.holders.is_empty() => *other = offer,
                Some(_) => {}
                None => merged.push(offer),
            }
        }
        Self { candidates: merged }
    }

    pub(super) fn holders(&self) -> usize {
        self.candidates.first().map_or(0, |offer| offer.holders.len())
    }
}

/// Takes a fetch off the list however it ends.
struct Landing {
    flights: Arc<Mutex<HashMap<ArtifactId, watch::Receiver<Flight>>>>,
    id: ArtifactId,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

fn source(holder: &HolderInfo, here: &Locality, chunks: u32) -> Source {
    Source {
        node: holder.node,
        addrs: holder.endpoints.iter().map(|endpoint| endpoint.addr()).collect(),
        locality: match here.closeness(&holder.locality) {
            Closeness::SameRack => transfer::Locality::SameRack,
            Closeness::SameZone => transfer::Locality::SameZone,
            Closeness::SameRegion | Closeness::Other => transfer::Locality::Other,
        },
        complete: holder.chunks_held >= chunks,
    }
}

fn unreachable(error: &ClientError) -> Failed {
    Failed::new("transient", format!("metadata server: {error}"))
}

fn failed(error: &transfer::FetchError) -> Failed {
    let class = match error {
        transfer::FetchError::NoHolder(_) => "none-found",
        transfer::FetchError::Store(error) if error.is_no_space() => "no-space",
        transfer::FetchError::Store(_) | transfer::FetchError::Thread(_) | transfer::FetchError::Deadline { .. } => {
            "transient"
        }
    };
    Failed::new(class, error.to_string())
}

/// A W3C trace context of its own, so that the logs of all nodes that took part can be found by it.
fn traceparent() -> String {
    format!("00-{:032x}-{:016x}-01", rand::random::<u128>(), rand::random::<u64>())
}
