//! The handlers of the local API: convert, call, convert.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::audit::Audit;
use super::convert;
use super::directory::Directory;
use super::fetching::{Fetching, FetchingMetrics};
use super::holdings::Holdings;
use super::publish::Publisher;
use super::reload::{self, Effective};
use super::reporting::Reporter;
use super::starts::{Start, StartMetrics};
use super::trust::Trust;
use crate::artifact::SignedManifest;
use crate::digest::IdentityId;
use crate::identity::{NodeId, UnixTime};
use crate::lifecycle::Tasks;
use crate::local::Publication;
use crate::metadata::ServerAddr;
use crate::origin::Origin;
use crate::protocol::pb;
use crate::protocol::pb::agent_server::Agent;
use crate::store::Store;
use crate::transfer::{self, EngineId, Provider};

mod archive;
mod callers;
mod calls;
pub(super) mod chunks;
mod fleet;
mod origin;
mod publish;
mod push;
mod status;
mod trust;
mod turns;
mod warm;

use self::callers::{caller, connected, grant, operator, tree};
use self::calls::Calls;
use self::status::{no_artifact, publish_status, store_status};
pub(super) use self::turns::Turns;
use self::warm::{tell_manifests, warm};

/// Messages between a handler and its caller's connection.
const QUEUE: usize = 16;

const MAX_PAGE: usize = 1000;

/// As many as the metadata server answers at once.
const MAX_IDENTITIES: usize = 64;

/// Bytes between two reports of a publication's progress: a report for each of many small files would cost more than reading it.
const PROGRESS_STEP: u64 = 8 * 1024 * 1024;

/// How long a publish waits for a metadata server to know of it.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(3);

/// Time for the manifests of what nearly fits, unless the caller says otherwise, and at most.
const NEARBY_BUDGET: Duration = Duration::from_secs(2);
const MAX_NEARBY_BUDGET: Duration = Duration::from_secs(30);

type Events<T> = ReceiverStream<Result<T, Status>>;

pub(super) struct Control(Arc<Parts>);

/// A minute.
const MAX_BETWEEN_TOKENS_US: u64 = 60_000_000;
const MAX_ADAPTERS: u32 = 1_000_000;

/// What the handlers use.
pub(super) struct Parts {
    pub(super) node: NodeId,
    pub(super) addr: SocketAddr,
    pub(super) config: Effective,
    pub(super) store: Store,
    pub(super) trust: Arc<Trust>,
    pub(super) directory: Arc<Directory>,
    pub(super) servers: Vec<ServerAddr>,
    pub(super) provider: Arc<Provider>,
    pub(super) holdings: Arc<Holdings>,
    pub(super) fetching: Arc<Fetching>,
    pub(super) origin: Option<Origin>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) starts: StartMetrics,
    pub(super) wanted: FetchingMetrics,
    pub(super) transfer: transfer::Metrics,
    pub(super) reporter: Arc<Reporter>,
    pub(super) audit: Audit,
    pub(super) turns: Turns,
    pub(super) tasks: Arc<Tasks>,
}

impl Control {
    /// The service.
    pub(super) fn calls(parts: Arc<Parts>) -> Calls {
        Calls::new(Self(parts))
    }

    /// Runs a handler's work as a task of the agent; it ends when the caller goes away, at the next thing it tells.
    fn stream<T, W, F>(&self, name: &'static str, queue: usize, work: W) -> Response<Events<T>>
    where
        T: Send + 'static,
        W: FnOnce(Arc<Parts>, mpsc::Sender<Result<T, Status>>) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let (events, receiver) = mpsc::channel(queue);
        self.0.tasks.spawn(name, work(self.0.clone(), events).in_current_span());
        Response::new(ReceiverStream::new(receiver))
    }
}

#[tonic::async_trait]
impl Agent for Control {
    type PublishStream = Events<pb::PublishEvent>;
    type PushStream = Events<pb::PushReply>;
    type WarmStream = Events<pb::WarmEvent>;
    type ReadChunksStream = Events<pb::ChunkData>;
    type VerifyStream = Events<pb::VerifyEvent>;
    type ExportStream = Events<pb::ArchiveBytes>;
    type OriginPushStream = Events<pb::OriginPushEvent>;
    type OriginPullStream = Events<pb::WarmEvent>;

    async fn publish(&self, request: Request<pb::PublishRequest>) -> Result<Response<Self::PublishStream>, Status> {
        let grant = grant(&request, &self.0.config)?;
        let turn = self.0.turns.take(grant.uid)?;
        let request = request.into_inner();
        let publication = Publication::try_from(request.clone());
        let publication = publication.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let config = reload::now(&self.0.config);
        let opened = tokio::task::spawn_blocking(move || tree(grant.uid, &request, &config)).await;
        let tree = opened.map_err(|_| Status::internal("the publishing thread panicked"))??;
        Ok(self.stream("publish", QUEUE, move |parts, events| {
            publish::publish(parts, publication, tree, (grant, turn), events)
        }))
    }

    async fn push(&self, request: Request<Streaming<pb::PushRequest>>) -> Result<Response<Self::PushStream>, Status> {
        let grant = grant(&request, &self.0.config)?;
        let turn = self.0.turns.take(grant.uid)?;
        let requests = request.into_inner();
        Ok(self.stream("push", QUEUE, move |parts, replies| async move {
            let pushed = push::receive(&parts.publisher, grant, requests, &replies).await;
            drop(turn);
            let reply = match pushed {
                Ok(published) => {
                    parts.holdings.settle(ANNOUNCE_TIMEOUT).await;
                    Ok(pb::push_reply::Reply::Published(convert::published(published, Vec::new())))
                }
                Err(error) => Err(publish_status(&error)),
            };
            // The caller is gone: what it sealed is published all the same.
            let _ = replies.send(reply.map(|reply| pb::PushReply { reply: Some(reply) })).await;
        }))
    }

    async fn warm(&self, request: Request<pb::WarmRequest>) -> Result<Response<Self::WarmStream>, Status> {
        let request = request.into_inner();
        let identity = IdentityId::try_from(&request.identity[..])
            .map_err(|_| Status::invalid_argument("`identity` is not 32 bytes"))?;
        let subject = (!request.any_subject).then_some(request.subject);
        Ok(self.stream("warm", QUEUE, move |parts, events| async move {
            let looked = parts.fetching.look(identity, subject.as_deref()).await;
            let told = match looked {
                Ok(wanted) if request.manifest_only => tell_manifests(&parts, wanted, &events).await,
                looked => warm(&parts, looked, &request.family, &events).await,
            };
            if told.is_err() {
                tracing::debug!("caller of Warm went away; fetches go on");
            }
        }))
    }

    async fn find(&self, request: Request<pb::FindRequest>) -> Result<Response<pb::FindReply>, Status> {
        let asked = request.into_inner().identities;
        if asked.len() > MAX_IDENTITIES {
            return Err(Status::invalid_argument(format!("more than {MAX_IDENTITIES} identities in one call")));
        }
        let identities = asked.iter().map(|identity| IdentityId::try_from(&identity[..]));
        let identities = identities
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Status::invalid_argument("an identity is not 32 bytes"))?;
        Ok(Response::new(convert::found(self.0.fetching.offers(identities).await)))
    }

    async fn nearby(&self, request: Request<pb::NearbyRequest>) -> Result<Response<pb::NearbyReply>, Status> {
        let request = request.into_inner();
        if request.families.len() > MAX_IDENTITIES {
            return Err(Status::invalid_argument(format!("more than {MAX_IDENTITIES} families in one call")));
        }
        let wishes = request.families.into_iter().map(convert::wish).collect::<Result<Vec<_>, _>>()?;
        let budget = if request.budget_ms == 0 { NEARBY_BUDGET } else { Duration::from_millis(request.budget_ms) };
        let (near, unreachable) = self.0.fetching.nearby(wishes, budget.min(MAX_NEARBY_BUDGET)).await;
        Ok(Response::new(convert::nearby(near, unreachable)))
    }

    async fn read_chunks(
        &self,
        request: Request<pb::ReadChunksRequest>,
    ) -> Result<Response<Self::ReadChunksStream>, Status> {
        let (held, indices) = chunks::wanted(&self.0.store, request.into_inner())?;
        Ok(self.stream("read chunks", chunks::QUEUED, move |parts, chunks| async move {
            chunks::send(&parts, &held, indices, chunks).await;
        }))
    }

    async fn trust(&self, request: Request<pb::TrustKnown>) -> Result<Response<pb::TrustDocuments>, Status> {
        trust::documents(&self.0.trust, request.into_inner()).map(Response::new)
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusReply>, Status> {
        status::of(&self.0).await.map(Response::new)
    }

    async fn fleet(&self, request: Request<pb::FleetRequest>) -> Result<Response<pb::FleetReply>, Status> {
        fleet::page(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn configuration(
        &self,
        _: Request<pb::ConfigurationRequest>,
    ) -> Result<Response<pb::ConfigurationReply>, Status> {
        Ok(Response::new(pb::ConfigurationReply { toml: reload::as_toml(&self.0.config)? }))
    }

    async fn list(
        &self,
        request: Request<pb::ListArtifactsRequest>,
    ) -> Result<Response<pb::ListArtifactsReply>, Status> {
        let request = request.into_inner();
        let size = if request.page_size == 0 { 100 } else { (request.page_size as usize).min(MAX_PAGE) };
        let after = match request.page_token.is_empty() {
            true => None,
            false => Some(convert::artifact_id(&request.page_token)?),
        };
        // In order of ids, so the last id of a page is the token of the next.
        let mut rest = self.0.store.list();
        rest.retain(|artifact| after.is_none_or(|after| artifact.id() > after));
        let more = rest.len() > size;
        rest.truncate(size);
        let last = rest.last().map(|artifact| Bytes::copy_from_slice(artifact.id().as_bytes()));
        let artifacts = rest.iter().map(|artifact| convert::info(artifact)).collect();
        let next_page_token = last.filter(|_| more).unwrap_or_default();
        Ok(Response::new(pb::ListArtifactsReply { artifacts, next_page_token }))
    }

    async fn inspect(&self, request: Request<pb::InspectRequest>) -> Result<Response<pb::InspectReply>, Status> {
        let id = convert::artifact_id(&request.into_inner().artifact_id)?;
        let artifact = self.0.store.get(&id).ok_or_else(|| no_artifact(&id))?;
        let envelope = artifact.signed().envelope().clone();
        Ok(Response::new(pb::InspectReply { envelope, info: Some(convert::info(&artifact)) }))
    }

    async fn evict(&self, request: Request<pb::EvictRequest>) -> Result<Response<pb::EvictReply>, Status> {
        operator(&request, &self.0.config, "evict artifacts")?;
        let id = convert::artifact_id(&request.into_inner().artifact_id)?;
        let store = self.0.store.clone();
        let removed = tokio::task::spawn_blocking(move || store.remove(&id)).await;
        let removed = removed.map_err(|_| Status::internal("the store's thread panicked"))?;
        // That it is gone is told as every change of the store is.
        Ok(Response::new(pb::EvictReply { freed_bytes: removed.map_err(|error| store_status(&error))? }))
    }

    async fn verify(&self, request: Request<pb::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let uid = match request.get_ref().artifact_id.is_empty() {
            true => operator(&request, &self.0.config, "verify all of the store")?,
            false => caller(&request)?,
        };
        let turn = self.0.turns.take(uid)?;
        let id = request.into_inner().artifact_id;
        let id = if id.is_empty() { None } else { Some(convert::artifact_id(&id)?) };
        Ok(self.stream("verify", QUEUE, move |parts, events| async move {
            let worker = events.clone();
            let total = parts.store.usage();
            let verified = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                let mut bytes = 0;
                let mut progress = |more| {
                    bytes += more;
                    let _ = worker.try_send(Ok(convert::hashed(bytes, total)));
                    if worker.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                parts.store.verify(id.as_ref(), &mut progress)
            });
            let event = match verified.await {
                Ok(Ok(report)) => Ok(convert::report(&report)),
                Ok(Err(error)) => Err(store_status(&error)),
                Err(_) => Err(Status::internal("the verifying thread panicked")),
            };
            // The caller is gone.
            let _ = events.send(event).await;
        }))
    }

    async fn gc(&self, request: Request<pb::GcRequest>) -> Result<Response<pb::GcReply>, Status> {
        operator(&request, &self.0.config, "clean up the store")?;
        let store = self.0.store.clone();
        let swept = tokio::task::spawn_blocking(move || store.gc(UnixTime::now())).await;
        let swept = swept.map_err(|_| Status::internal("the store's thread panicked"))?;
        Ok(Response::new(convert::swept(&swept.map_err(|error| store_status(&error))?)))
    }

    async fn report_start(&self, request: Request<pb::StartReport>) -> Result<Response<pb::StartReported>, Status> {
        let open = connected(&request)?.open.clone();
        let start =
            Start::try_from(request.into_inner()).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.0.starts.count(&start);
        self.0.reporter.started(&start, open);
        Ok(Response::new(pb::StartReported {}))
    }

    async fn report_serving(
        &self,
        request: Request<pb::ServingReport>,
    ) -> Result<Response<pb::ServingReported>, Status> {
        let engine = EngineId(connected(&request)?.open.as_ptr().addr());
        let pb::ServingReport { between_tokens_us, adapters } = request.into_inner();
        if between_tokens_us > MAX_BETWEEN_TOKENS_US {
            return Err(Status::invalid_argument("`between_tokens_us` is at most 60,000,000"));
        }
        if adapters.is_some_and(|count| count > MAX_ADAPTERS) {
            return Err(Status::invalid_argument("`adapters` is at most 1,000,000"));
        }
        if between_tokens_us > 0 {
            self.0.provider.engine_serves(engine, Duration::from_micros(between_tokens_us));
        }
        self.0.reporter.engine_serves(adapters);
        Ok(Response::new(pb::ServingReported {}))
    }

    async fn audit(&self, request: Request<pb::AuditRequest>) -> Result<Response<pb::AuditReply>, Status> {
        let uid = caller(&request)?;
        let told = self.0.audit.tell_of_pod(uid, request.into_inner());
        told.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(pb::AuditReply {}))
    }

    async fn export(&self, request: Request<pb::ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        let turn = self.0.turns.take(caller(&request)?)?;
        let id = convert::artifact_id(&request.into_inner().artifact_id)?;
        let held = self.0.store.hold(&id).ok_or_else(|| no_artifact(&id))?;
        Ok(self.stream("export", QUEUE, move |parts, bytes| archive::export(parts, held, turn, bytes)))
    }

    async fn import(&self, request: Request<Streaming<pb::ArchiveBytes>>) -> Result<Response<pb::ImportReply>, Status> {
        let turn = self.0.turns.take(operator(&request, &self.0.config, "import archives")?)?;
        let policy = self.0.trust.policy().ok_or_else(|| {
            Status::failed_precondition("this agent has no trust policy (`trust.policy`): it imports nothing")
        })?;
        let admit = move |envelope| SignedManifest::admit(envelope, &policy, UnixTime::now());
        let id = archive::import(self.0.store.clone(), turn, request.into_inner(), admit).await?;
        let artifact = self.0.store.get(&id).ok_or_else(|| no_artifact(&id))?;
        Ok(Response::new(pb::ImportReply { info: Some(convert::info(&artifact)) }))
    }

    async fn origin_push(
        &self,
        request: Request<pb::OriginPushRequest>,
    ) -> Result<Response<Self::OriginPushStream>, Status> {
        operator(&request, &self.0.config, "write to the origin")?;
        let id = convert::artifact_id(&request.into_inner().artifact_id)?;
        let origin = origin::configured(&self.0)?;
        Ok(self.stream("push to origin", QUEUE, move |parts, events| origin::push(parts, origin, id, events)))
    }

    async fn origin_pull(
        &self,
        request: Request<pb::OriginPullRequest>,
    ) -> Result<Response<Self::OriginPullStream>, Status> {
        let id = convert::artifact_id(&request.into_inner().id)?;
        origin::configured(&self.0)?;
        Ok(self.stream("pull from origin", QUEUE, move |parts, events| origin::pull(parts, id, events)))
    }

    async fn origin_list(
        &self,
        request: Request<pb::OriginListRequest>,
    ) -> Result<Response<pb::OriginListReply>, Status> {
        let _turn = self.0.turns.take(caller(&request)?)?;
        let origin = origin::configured(&self.0)?;
        Ok(Response::new(origin::list(&self.0, &origin, &request.into_inner().family).await?))
    }

    async fn origin_has(&self, request: Request<pb::OriginHasRequest>) -> Result<Response<pb::OriginHasReply>, Status> {
        let origin = origin::configured(&self.0)?;
        Ok(Response::new(origin::has(&self.0, &origin, &request.into_inner()).await?))
    }
}
