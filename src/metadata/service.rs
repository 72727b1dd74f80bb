//! The rpc handlers: who calls, is it allowed, what does the registry say.
//!
//! A caller is the node of its TLS certificate, put there by the connection; no handler runs without one. Every error
//! becomes a gRPC status here and nowhere else.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures_util::Stream;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::{Request, Response, Status};

use super::backend::Marked;
use super::metrics::{Method, MethodLabels, Metrics, Outcome, RequestLabels};
use super::registry::{Registry, RegistryError};
use super::room::{RETRY_AFTER, RETRY_AFTER_MS, Room};
use super::server::Peer;
use super::watch::{Subscription, WatchError, Watchers};
use crate::digest::IdentityId;
use crate::identity::NodeId;
use crate::protocol::ProtocolError;
use crate::protocol::metadata::pb::metadata_server::Metadata;
use crate::protocol::metadata::{Announcement, Lookup, PageRequest, Withdrawal, pb};

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    #[error("no client certificate")]
    NoCaller,
    #[error("{caller} must not speak for {node}")]
    NotYours { caller: NodeId, node: NodeId },
    #[error("a loopback endpoint from a caller on another machine")]
    Loopback,
    #[error("too many requests at once: come again later")]
    Crowded,
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Watch(#[from] WatchError),
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let text = error.to_string();
        match error {
            ServiceError::NoCaller => Self::unauthenticated(text),
            ServiceError::Crowded => {
                let mut status = Self::unavailable(text);
                status.metadata_mut().insert(RETRY_AFTER_MS, MetadataValue::from(RETRY_AFTER.as_millis() as u64));
                status
            }
            ServiceError::NotYours { .. } => Self::permission_denied(text),
            ServiceError::Loopback | ServiceError::Protocol(_) => Self::invalid_argument(text),
            ServiceError::Registry(error) => match error {
                RegistryError::OldEpoch { .. } | RegistryError::Ended | RegistryError::Transition { .. } => {
                    Self::failed_precondition(text)
                }
                RegistryError::Overtaken { .. } => Self::aborted(text),
                RegistryError::Full { .. } => Self::resource_exhausted(text),
            },
            ServiceError::Watch(error) => match error {
                WatchError::PerCaller(_) | WatchError::Total(_) => Self::resource_exhausted(text),
                WatchError::Closed => Self::unavailable(text),
            },
        }
    }
}

impl ServiceError {
    fn outcome(&self) -> Outcome {
        match self {
            Self::NoCaller | Self::NotYours { .. } => Outcome::Refused,
            Self::Loopback | Self::Protocol(_) => Outcome::Invalid,
            Self::Crowded => Outcome::Crowded,
            Self::Registry(RegistryError::Full { .. }) => Outcome::Full,
            Self::Registry(_) => Outcome::Refused,
            Self::Watch(WatchError::PerCaller(_) | WatchError::Total(_)) => Outcome::Full,
            Self::Watch(WatchError::Closed) => Outcome::Unavailable,
        }
    }
}

/// What handlers and the server's tasks share.
#[derive(Debug)]
pub(super) struct Directory {
    start: Instant,
    registry: RwLock<Registry>,
    marked: Mutex<Marked>,
    pub(super) watchers: Arc<Watchers>,
    pub(super) room: Room,
    pub(super) metrics: Metrics,
}

impl Directory {
    pub(super) fn new(
        registry: Registry,
        marked: Marked,
        watchers: Arc<Watchers>,
        room: Room,
        metrics: Metrics,
    ) -> Self {
        let directory = Self {
            start: Instant::now(),
            registry: RwLock::new(registry),
            marked: Mutex::new(marked),
            watchers,
            room,
            metrics,
        };
        directory.change(|_, _| ());
        directory
    }

    /// Since the server started: leases do not depend on anybody's wall clock.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Changes the registry; watchers hear of it in the same order.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Registry, Duration) -> T) -> T {
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut registry, self.now());
        let changes = registry.take_changes();
        self.metrics.lapses.inc_by(changes.lapsed);
        self.watchers.tell(&changes.events);
        self.marked().mark(&changes);
        result
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Registry, Duration) -> T) -> T {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        read(&registry, self.now())
    }

    pub(super) fn marked(&self) -> MutexGuard<'_, Marked> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handlers.
#[derive(Debug, Clone)]
pub(super) struct Service(pub(super) Arc<Directory>);

/// In front of every handler, also of those that are still to be written: no stranger passes, and no more than there is
/// room for.
#[derive(Debug, Clone)]
pub(super) struct Door(pub(super) Arc<Directory>);

impl Interceptor for Door {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        peer(&request)?;
        let place = self.0.room.enter().ok_or_else(|| {
            self.0.metrics.turned_away.inc();
            ServiceError::Crowded
        })?;
        // Dropped with the request.
        request.extensions_mut().insert(place);
        Ok(request)
    }
}

fn peer<T>(request: &Request<T>) -> Result<Peer, ServiceError> {
    request.extensions().get::<Peer>().copied().ok_or(ServiceError::NoCaller)
}

impl Service {
    fn answer<T, U: TryInto<D, Error = ProtocolError>, D>(
        &self,
        method: Method,
        request: Request<U>,
        handle: impl FnOnce(&Directory, Peer, D) -> Result<T, ServiceError>,
    ) -> Result<Response<T>, Status> {
        let begin = Instant::now();
        let defers = matches!(method, Method::Lookup | Method::List | Method::Watch) && self.0.room.is_crowded();
        let result = peer(&request).and_then(|peer| match defers {
            true => Err(ServiceError::Crowded),
            false => {
                let (_, extensions, message) = request.into_parts();
                // With the place in them, until there is an answer.
                let _extensions = extensions;
                handle(&self.0, peer, message.try_into()?)
            }
        });
        let outcome = result.as_ref().map_or_else(ServiceError::outcome, |_| Outcome::Ok);
        self.0.metrics.requests.get_or_create(&RequestLabels { method, outcome }).inc();
        self.0.metrics.seconds.get_or_create(&MethodLabels { method }).observe(begin.elapsed().as_secs_f64());
        result.map(Response::new).map_err(Status::from)
    }
}

fn only_for_itself(peer: Peer, node: NodeId) -> Result<(), ServiceError> {
    if peer.node == node { Ok(()) } else { Err(ServiceError::NotYours { caller: peer.node, node }) }
}

type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Metadata for Service {
    async fn announce(&self, request: Request<pb::AnnounceRequest>) -> Result<Response<pb::AnnounceReply>, Status> {
        self.answer(Method::Announce, request, |directory, peer, told: Announcement| {
            only_for_itself(peer, told.node)?;
            if !peer.is_local() && told.endpoints.iter().any(|endpoint| endpoint.is_loopback()) {
                return Err(ServiceError::Loopback);
            }
            Ok(directory.change(|registry, now| registry.announce(&told, now))?.into())
        })
    }

    async fn withdraw(&self, request: Request<pb::WithdrawRequest>) -> Result<Response<pb::WithdrawReply>, Status> {
        self.answer(Method::Withdraw, request, |directory, peer, told: Withdrawal| {
            only_for_itself(peer, told.node)?;
            let server_epoch = directory.change(|registry, now| {
                registry.withdraw(&told, now)?;
                Ok::<_, ServiceError>(registry.server_epoch())
            })?;
            Ok(pb::WithdrawReply { server_epoch: server_epoch.0 })
        })
    }

    async fn lookup(&self, request: Request<pb::LookupRequest>) -> Result<Response<pb::LookupReply>, Status> {
        self.answer(Method::Lookup, request, |directory, _, lookup: Lookup| {
            Ok(directory.read(|registry, now| registry.lookup(&lookup, now, &mut rand::rng())).into())
        })
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        self.answer(Method::Watch, request, |directory, peer, identities: Vec<IdentityId>| {
            let subscription = directory.watchers.open(peer.node, identities)?;
            let events = futures_util::stream::unfold(subscription, |mut subscription: Subscription| async {
                let event = subscription.next().await?;
                Some((Ok(event.into()), subscription))
            });
            Ok(Box::pin(events) as WatchStream)
        })
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListReply>, Status> {
        self.answer(Method::List, request, |directory, _, page: PageRequest| {
            Ok(directory.read(|registry, now| registry.list(&page, now, &mut rand::rng())).into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::registry::tests::{announcement, node};
    use crate::metadata::server::tests::bare_directory;
    use crate::protocol::metadata::NodeState;

    #[tokio::test]
    async fn loopback_endpoints_are_taken_from_this_machine_only() {
        let service = Service(bare_directory());
        for (caller, taken) in [("127.0.0.1:5", true), ("[::ffff:127.0.0.1]:5", true), ("10.0.0.9:5", false)] {
            let mut told = announcement(1, 1, 1 + u64::from(caller.starts_with('[')), NodeState::Ready);
            told.endpoints = Arc::from(["127.0.0.1:9".parse().unwrap()]);
            let mut request = Request::new(pb::AnnounceRequest::from(&told));
            request.extensions_mut().insert(Peer { node: node(1), addr: caller.parse().unwrap() });
            let code = service.announce(request).await.err().map(|status| status.code());
            assert_eq!(code, (!taken).then_some(tonic::Code::InvalidArgument), "{caller}");
        }
    }
}
