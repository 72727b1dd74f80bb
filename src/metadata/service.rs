//! The rpc handlers: who calls, is it allowed, what does the registry say.
//!
//! A caller is the node of its TLS certificate, put there by the connection; no handler runs without one. Every error
//! becomes a gRPC status here and nowhere else.

mod door;
mod error;

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures_util::Stream;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::backend::Marked;
use super::backend::shared::{Shared, StoreError};
use super::fleet::{About, Feed, Fleet, Reports, Told};
use super::metrics::{Method, MethodLabels, Metrics, Outcome, RequestLabels};
use super::registry::{Change, Changes, Counts, Herds, Registry};
use super::room::Room;
use super::server::Peer;
use super::trust::TrustStore;
use super::watch::{Subscription, Watchers};
use crate::digest::IdentityId;
use crate::identity::trust::{Documents, Known};
use crate::identity::{NodeId, UnixTime};
use crate::protocol::ProtocolError;
use crate::protocol::fleet::{FleetPage, Key};
use crate::protocol::metadata::pb::metadata_server::Metadata;
use crate::protocol::metadata::{
    AnnounceReply, Announcement, Found, Lookup, MAX_AHEAD, PageRequest, ServerEpoch, Withdrawal, pb,
};
use crate::protocol::report::{NodeReport, UnixMillis};
pub(super) use door::Door;
use door::peer;
pub(super) use error::ServiceError;

/// What handlers and the server's tasks share.
#[derive(Debug)]
pub(super) struct Directory {
    /// The registry's time at an instant. A server of its own begins at 0; one that shares a store has the store's.
    clock: RwLock<(Instant, Duration)>,
    registry: RwLock<Registry>,
    herds: Herds,
    marked: Mutex<Marked>,
    shared: Option<Arc<Shared>>,
    pub(super) trust: Arc<TrustStore>,
    /// This server counts for the directory, and not another one that shares the store.
    counts: AtomicBool,
    pub(super) watchers: Arc<Watchers>,
    pub(super) room: Room,
    pub(super) metrics: Metrics,
    pub(super) about: About,
    pub(super) reports: Reports,
    pub(super) feed: Feed,
}

impl Directory {
    #[expect(clippy::too_many_arguments, reason = "the wiring of the server, called once")]
    pub(super) fn new(
        about: About,
        registry: Registry,
        marked: Marked,
        shared: Option<Arc<Shared>>,
        trust: TrustStore,
        watchers: Arc<Watchers>,
        room: Room,
        metrics: Metrics,
    ) -> Self {
        let directory = Self {
            clock: RwLock::new((Instant::now(), Duration::ZERO)),
            registry: RwLock::new(registry),
            herds: Herds::default(),
            marked: Mutex::new(marked),
            counts: AtomicBool::new(shared.is_none()),
            shared,
            trust: Arc::new(trust),
            watchers,
            room,
            metrics,
            about,
            reports: Reports::default(),
            feed: Feed::default(),
        };
        directory.change(|_, _| ());
        directory
    }

    /// Leases do not depend on this machine's wall clock.
    pub(super) fn now(&self) -> Duration {
        let (at, time) = *self.clock.read().unwrap_or_else(PoisonError::into_inner);
        time + at.elapsed()
    }

    pub(super) fn set_clock(&self, time: Duration, at: Instant) {
        *self.clock.write().unwrap_or_else(PoisonError::into_inner) = (at, time);
    }

    /// Whether counters of the directory are this server's to show.
    pub(super) fn set_counts(&self, counts: bool) {
        self.counts.store(counts, Ordering::Relaxed);
        self.metrics.leads.set(counts.into());
    }

    /// Changes the registry; watchers hear of it in the same order.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Registry, Duration) -> T) -> T {
        self.change_at(self.now(), change)
    }

    pub(super) fn change_at<T>(&self, now: Duration, change: impl FnOnce(&mut Registry, Duration) -> T) -> T {
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut registry, now);
        let changes = registry.take_changes();
        if self.counts.load(Ordering::Relaxed) {
            self.metrics.lapses.inc_by(changes.lapsed.len() as u64);
        }
        self.watchers.tell(&changes.events);
        self.marked().mark(&changes);
        self.show(&changes, &registry);
        result
    }

    /// Forgets what is over by now, and counts the rest.
    pub(super) fn expire(&self) -> Counts {
        self.herds.expire(self.now());
        self.change(|registry, now| {
            registry.expire(now);
            registry.counts(now)
        })
    }

    /// Which documents are others now.
    fn show(&self, changes: &Changes, registry: &Registry) {
        let Changes { nodes, lapsed, returned, identities, .. } = changes;
        if nodes.is_empty() && lapsed.is_empty() && returned.is_empty() && identities.is_empty() {
            return;
        }
        self.reports.forget(nodes.iter().copied().filter(|node| !registry.knows(*node)));
        let identities: HashSet<IdentityId> = identities.iter().copied().collect();
        let nodes = nodes.iter().chain(lapsed).chain(returned).copied().map(Key::Node);
        self.feed.mark(nodes.chain(identities.into_iter().map(Key::Identity)).chain([Key::Server]));
    }

    fn report(&self, node: NodeId, report: &NodeReport) -> Result<(), ServiceError> {
        if !self.read(|registry, now| registry.has_lease(node, now)) {
            return Err(ServiceError::NoLease(node));
        }
        self.reports.set(node, Told::new(report, UnixMillis::now()));
        self.feed.mark([Key::Node(node)]);
        Ok(())
    }

    /// Another registry takes the place of this one; watchers look up again.
    pub(super) fn replace(&self, mut registry: Registry, now: Duration) {
        registry.take_changes();
        let server_epoch = registry.server_epoch();
        *self.registry.write().unwrap_or_else(PoisonError::into_inner) = registry;
        self.set_clock(now, Instant::now());
        self.herds.clear();
        self.watchers.begin_anew(server_epoch);
        self.read(|registry, _| self.reports.retain(|node| registry.knows(node)));
        self.feed.begin_anew();
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Registry, Duration) -> T) -> T {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        read(&registry, self.now())
    }

    pub(super) fn marked(&self) -> MutexGuard<'_, Marked> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the registry says is all that there is to say: an unreachable store is no empty answer.
    fn known(&self) -> Result<&Self, StoreError> {
        self.shared.as_ref().map_or(Ok(()), |shared| shared.check())?;
        Ok(self)
    }

    fn lookup(&self, lookup: &Lookup, by: NodeId) -> Found {
        self.read(|registry, now| {
            let mut rng = rand::rng();
            let mut found = registry.lookup(lookup, now, &mut rng);
            self.herds.join(registry, lookup, by, &mut found, now, &mut rng);
            found
        })
    }

    async fn announce(&self, told: Announcement) -> Result<AnnounceReply, ServiceError> {
        let reply = match &self.shared {
            None => self.change(|registry, now| registry.announce(&told, now))?,
            Some(shared) => {
                let (node, state) = (told.node, told.state);
                shared.change(self, &Change::Announce(told)).await?;
                self.read(|registry, _| registry.reply(node, state))
            }
        };
        Ok(AnnounceReply { trust: self.trust.stamp(), ..reply })
    }

    async fn put_trust(&self, documents: Documents) -> Result<Known, ServiceError> {
        let known = match &self.shared {
            Some(shared) => shared.put_trust(&self.trust, &documents).await?,
            None => {
                let trust = self.trust.clone();
                let put = tokio::task::spawn_blocking(move || trust.put(&documents, UnixTime::now()));
                put.await.map_err(|_| ServiceError::Store(StoreError::Silent))??
            }
        };
        tracing::info!(
            root = known.root,
            policy = known.policy,
            issued = known.issued,
            "documents of trust were handed in"
        );
        Ok(known)
    }

    async fn withdraw(&self, told: Withdrawal) -> Result<ServerEpoch, ServiceError> {
        match &self.shared {
            None => self.change(|registry, now| registry.withdraw(&told, now))?,
            Some(shared) => shared.change(self, &Change::Withdraw(told)).await?,
        }
        Ok(self.read(|registry, _| registry.server_epoch()))
    }
}

/// The handlers.
#[derive(Debug, Clone)]
pub(super) struct Service(pub(super) Arc<Directory>);

impl Service {
    async fn answer<T, U: TryInto<D, Error = ProtocolError>, D>(
        &self,
        method: Method,
        request: Request<U>,
        handle: impl AsyncFnOnce(&Directory, Peer, D) -> Result<T, ServiceError>,
    ) -> Result<Response<T>, Status> {
        let begin = Instant::now();
        let handled = async {
            let peer = peer(&request)?;
            if matches!(method, Method::Lookup | Method::List | Method::Watch | Method::Report | Method::Fleet)
                && self.0.room.is_crowded()
            {
                return Err(ServiceError::Crowded);
            }
            // The extensions hold the place until there is an answer.
            let (_, _place, message) = request.into_parts();
            handle(&self.0, peer, message.try_into()?).await
        };
        let result = handled.await;
        let outcome = result.as_ref().map_or_else(ServiceError::outcome, |_| Outcome::Ok);
        self.0.metrics.requests.get_or_create(&RequestLabels { method, outcome }).inc();
        self.0.metrics.seconds.get_or_create(&MethodLabels { method }).observe(begin.elapsed().as_secs_f64());
        result.map(Response::new).map_err(Status::from)
    }
}

fn only_for_itself(peer: Peer, node: NodeId) -> Result<(), ServiceError> {
    if peer.node == node { Ok(()) } else { Err(ServiceError::NotYours { caller: peer.node, node }) }
}

/// The newest are offered first: what claims to be of tomorrow would stay the newest. Whoever holds it may be honest, so
/// the rest is taken.
fn without_tomorrow(mut told: Announcement, now: UnixTime) -> Announcement {
    let (latest, before) = (now.after(MAX_AHEAD), told.held.len());
    told.held.retain(|held| held.artifact.created <= latest);
    if told.held.len() < before {
        let (node, artifacts) = (told.node, before - told.held.len());
        tracing::warn!(%node, artifacts, "artifacts of tomorrow are left out: is a clock wrong?");
    }
    told
}

type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Metadata for Service {
    async fn announce(&self, request: Request<pb::AnnounceRequest>) -> Result<Response<pb::AnnounceReply>, Status> {
        let handle = async |directory: &Directory, peer: Peer, told: Announcement| {
            only_for_itself(peer, told.node)?;
            if !peer.is_local() && told.endpoints.iter().any(|endpoint| endpoint.is_loopback()) {
                return Err(ServiceError::Loopback);
            }
            Ok(directory.announce(without_tomorrow(told, UnixTime::now())).await?.into())
        };
        self.answer(Method::Announce, request, handle).await
    }

    async fn withdraw(&self, request: Request<pb::WithdrawRequest>) -> Result<Response<pb::WithdrawReply>, Status> {
        let handle = async |directory: &Directory, peer: Peer, told: Withdrawal| {
            only_for_itself(peer, told.node)?;
            Ok(pb::WithdrawReply { server_epoch: directory.withdraw(told).await?.0 })
        };
        self.answer(Method::Withdraw, request, handle).await
    }

    async fn lookup(&self, request: Request<pb::LookupRequest>) -> Result<Response<pb::LookupReply>, Status> {
        let handle = async |directory: &Directory, peer: Peer, lookup: Lookup| {
            Ok(directory.known()?.lookup(&lookup, peer.node).into())
        };
        self.answer(Method::Lookup, request, handle).await
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        let handle = async |directory: &Directory, peer: Peer, identities: Vec<IdentityId>| {
            let subscription = directory.known()?.watchers.open(peer.node, identities)?;
            let events = futures_util::stream::unfold(subscription, |mut subscription: Subscription| async {
                let event = subscription.next().await?;
                Some((Ok(event.into()), subscription))
            });
            Ok(Box::pin(events) as WatchStream)
        };
        self.answer(Method::Watch, request, handle).await
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListReply>, Status> {
        let handle = async |directory: &Directory, _, page: PageRequest| {
            let listed = |registry: &Registry, now| registry.list(&page, now, &mut rand::rng());
            Ok(directory.known()?.read(listed).into())
        };
        self.answer(Method::List, request, handle).await
    }

    async fn get_trust(&self, request: Request<pb::TrustKnown>) -> Result<Response<pb::TrustDocuments>, Status> {
        let handle = async |directory: &Directory, _, known: Known| Ok((&directory.trust.after(known)).into());
        self.answer(Method::GetTrust, request, handle).await
    }

    async fn put_trust(&self, request: Request<pb::TrustDocuments>) -> Result<Response<pb::TrustKnown>, Status> {
        let handle = async |directory: &Directory, _, documents| Ok(directory.put_trust(documents).await?.into());
        self.answer(Method::PutTrust, request, handle).await
    }

    async fn report(&self, request: Request<pb::NodeReport>) -> Result<Response<pb::ReportReply>, Status> {
        let handle = async |directory: &Directory, peer: Peer, report: NodeReport| {
            directory.report(peer.node, &report)?;
            Ok(pb::ReportReply {})
        };
        self.answer(Method::Report, request, handle).await
    }

    async fn fleet(&self, request: Request<pb::FleetRequest>) -> Result<Response<pb::FleetReply>, Status> {
        let fleet = Fleet(self.0.clone());
        let handle = async |directory: &Directory, _, after: Option<Key>| {
            let server_epoch = directory.known()?.read(|registry, _| registry.server_epoch());
            let rendering = tokio::task::spawn_blocking(move || fleet.page(after)).await;
            let page: FleetPage = rendering.map_err(|_| ServiceError::Store(StoreError::Silent))?;
            Ok(page.reply(server_epoch.0))
        };
        self.answer(Method::Fleet, request, handle).await
    }
}

#[cfg(test)]
mod tests;
