//! Asks metadata servers: one after the other until one answers, each for at most one deadline.
//!
//! Replies are hints from somebody who may lie: they are bounded, checked and typed here, and trusted nowhere.

mod address;
mod connect;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tonic::{Code, Response, Status};

use crate::digest::IdentityId;
use crate::identity::{NodeTls, RPC_ALPN, TlsError};
use crate::protocol::ProtocolError;
use crate::protocol::metadata::{
    AnnounceReply, Announcement, Found, Lookup, MAX_MESSAGE, Offer, Page, PageRequest, ServerEpoch, WatchEvent,
    Withdrawal, pb,
};
pub use address::{InvalidServerAddr, ServerAddr};
use connect::Link;

type Rpc = pb::metadata_client::MetadataClient<tonic::transport::Channel>;

/// Characters of a server's own words that we repeat.
const MAX_WORDS: usize = 200;

/// Which servers to ask, and for how long: `[metadata]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// In order of preference; the last one that answered is asked first.
    pub servers: Vec<ServerAddr>,
    /// For one call to one server, connecting included.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl ClientConfig {
    pub fn new(servers: Vec<ServerAddr>) -> Self {
        Self { servers, deadline: Duration::from_secs(5) }
    }
}

/// Why a server refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Refusal {
    /// The caller may not do this.
    Forbidden,
    /// The epoch is over, or the change of state impossible.
    Ended,
    /// A later message of this epoch arrived before.
    Overtaken,
    /// A table or a cap of the server is full.
    Full,
    /// The server finds the message invalid.
    Invalid,
}

/// A call gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no metadata server is configured: set `metadata.servers`, or `discovery.mode = \"serverless\"`")]
    NoServer,
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No server answered in time; the reason is the last one's.
    #[error("metadata server {server} is unavailable: {words}")]
    Unavailable { server: ServerAddr, words: Words },
    #[error("metadata server {server} refused: {words}")]
    Refused { server: ServerAddr, refusal: Refusal, words: Words },
    #[error("metadata server {server} answered nonsense")]
    Protocol { server: ServerAddr, source: ProtocolError },
}

/// What a server said, made harmless for logs and terminals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(String);

impl Words {
    fn of(text: &str) -> Self {
        let plain = |c: char| if c.is_control() { '?' } else { c };
        Self(text.chars().take(MAX_WORDS).map(plain).collect())
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Call {
    Announce,
    Withdraw,
    Lookup,
    Watch,
    List,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum CallResult {
    Ok,
    Unavailable,
    Refused,
    Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: Call,
    result: CallResult,
}

/// What a client counts.
#[derive(Debug, Clone, Default)]
pub struct ClientMetrics {
    calls: Family<CallLabels, Counter>,
    pub(super) connected: Gauge,
}

impl ClientMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let r = registry.sub_registry_with_prefix("warmd_metadata_client");
        r.register("calls", "Calls to a metadata server by method and result", metrics.calls.clone());
        r.register("connected", "1 while a metadata server takes our announcements.", metrics.connected.clone());
        metrics
    }
}

struct Server {
    addr: ServerAddr,
    link: Arc<Link>,
    rpc: Rpc,
}

struct Inner {
    servers: Vec<Server>,
    /// Index of the server to ask first.
    preferred: AtomicUsize,
    deadline: Duration,
    metrics: ClientMetrics,
}

/// A connection to one of several metadata servers; cheap to clone. Connects when first used.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.servers.iter().map(|server| &server.addr)).finish()
    }
}

impl Client {
    /// Must be called within a tokio runtime.
    pub fn new(config: ClientConfig, tls: &NodeTls, metrics: ClientMetrics) -> Result<Self, ClientError> {
        if config.servers.is_empty() {
            return Err(ClientError::NoServer);
        }
        let tls = Arc::new(tls.client_config(RPC_ALPN)?);
        let open = |addr: ServerAddr| {
            let link = Arc::new(Link::new(addr.clone(), tls.clone(), config.deadline));
            let rpc = Rpc::new(link.channel()).max_decoding_message_size(MAX_MESSAGE);
            Server { addr, link, rpc }
        };
        let servers = config.servers.into_iter().map(open).collect();
        Ok(Self(Arc::new(Inner { servers, preferred: AtomicUsize::new(0), deadline: config.deadline, metrics })))
    }

    pub(super) fn metrics(&self) -> &ClientMetrics {
        &self.0.metrics
    }

    /// Renews the node's lease.
    pub async fn announce(&self, announcement: &Announcement) -> Result<AnnounceReply, ClientError> {
        let request = pb::AnnounceRequest::from(announcement);
        let rpc = |mut rpc: Rpc| {
            let request = request.clone();
            async move { rpc.announce(request).await }
        };
        self.call(Call::Announce, rpc, |_, reply| reply.try_into()).await
    }

    /// Removes exactly one artifact of the node.
    pub async fn withdraw(&self, withdrawal: Withdrawal) -> Result<ServerEpoch, ClientError> {
        let request = pb::WithdrawRequest::from(withdrawal);
        let rpc = |mut rpc: Rpc| {
            let request = request.clone();
            async move { rpc.withdraw(request).await }
        };
        self.call(Call::Withdraw, rpc, |_, reply| reply.try_into()).await
    }

    /// Who can be asked for the artifacts of some identities. To miss no holder, watch first and look up then.
    pub async fn lookup(&self, lookup: &Lookup) -> Result<Found, ClientError> {
        let request = pb::LookupRequest::from(lookup);
        let rpc = |mut rpc: Rpc| {
            let request = request.clone();
            async move { rpc.lookup(request).await }
        };
        let convert = |server: &Server, reply| {
            let mut found = Found::try_from(reply)?;
            found.offers.retain_mut(|offer| {
                remove_unreachable(server, offer);
                !offer.holders.is_empty()
            });
            found.offers.retain(|offer| lookup.identities.contains(&offer.artifact.identity));
            Ok(found)
        };
        self.call(Call::Lookup, rpc, convert).await
    }

    /// Events of holders of these identities from now on.
    pub async fn watch(&self, identities: &[IdentityId]) -> Result<Watch, ClientError> {
        let request = pb::WatchRequest::from(identities);
        let rpc = |mut rpc: Rpc| {
            let request = request.clone();
            async move { rpc.watch(request).await }
        };
        let convert = |server: &Server, events| Ok(Watch { server: server.addr.clone(), events: Some(events) });
        self.call(Call::Watch, rpc, convert).await
    }

    /// A page of everything that the server knows.
    pub async fn list(&self, page: &PageRequest) -> Result<Page, ClientError> {
        let request = pb::ListRequest::from(page);
        let rpc = |mut rpc: Rpc| {
            let request = request.clone();
            async move { rpc.list(request).await }
        };
        let convert = |server: &Server, reply| {
            let mut page = Page::try_from(reply)?;
            page.offers.iter_mut().for_each(|offer| remove_unreachable(server, offer));
            Ok(page)
        };
        self.call(Call::List, rpc, convert).await
    }

    async fn call<T, D, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        method: Call,
        rpc: impl Fn(Rpc) -> F,
        convert: impl Fn(&Server, T) -> Result<D, ProtocolError>,
    ) -> Result<D, ClientError> {
        let Inner { servers, preferred, deadline, metrics } = &*self.0;
        let first = preferred.load(Ordering::Relaxed);
        let mut last = ClientError::NoServer;
        for turn in 0..servers.len() {
            let at = (first + turn) % servers.len();
            let server = &servers[at];
            let answered = match tokio::time::timeout(*deadline, rpc(server.rpc.clone())).await {
                Ok(Ok(response)) => convert(server, response.into_inner())
                    .map_err(|source| ClientError::Protocol { server: server.addr.clone(), source }),
                Ok(Err(status)) => Err(error_of(&server.addr, &status)),
                Err(_) => {
                    let words = Words::of("no answer in time");
                    Err(ClientError::Unavailable { server: server.addr.clone(), words })
                }
            };
            let result = match &answered {
                Ok(_) => CallResult::Ok,
                Err(ClientError::Refused { .. }) => CallResult::Refused,
                Err(ClientError::Protocol { .. }) => CallResult::Protocol,
                Err(_) => CallResult::Unavailable,
            };
            metrics.calls.get_or_create(&CallLabels { method, result }).inc();
            match answered {
                Err(error @ (ClientError::Unavailable { .. } | ClientError::Protocol { .. })) => {
                    tracing::debug!(server = %server.addr, error = &error as &dyn std::error::Error, "metadata call");
                    last = error;
                }
                other => {
                    preferred.store(at, Ordering::Relaxed);
                    return other;
                }
            }
        }
        Err(last)
    }
}

/// A server elsewhere has no business with our loopback.
fn remove_unreachable(server: &Server, offer: &mut Offer) {
    if !server.link.is_loopback() {
        offer.holders.retain(|holder| !holder.endpoints.iter().any(|endpoint| endpoint.is_loopback()));
    }
}

fn error_of(server: &ServerAddr, status: &Status) -> ClientError {
    let server = server.clone();
    let refusal = match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => Refusal::Forbidden,
        Code::FailedPrecondition => Refusal::Ended,
        Code::Aborted => Refusal::Overtaken,
        Code::ResourceExhausted => Refusal::Full,
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists => Refusal::Invalid,
        // tonic and our codec report so what they could not decode: too long, too many, not the message.
        Code::OutOfRange | Code::DataLoss | Code::Internal | Code::Unimplemented => {
            return ClientError::Protocol { server, source: ProtocolError::Frame };
        }
        Code::Ok | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Unavailable => {
            return ClientError::Unavailable { server, words: Words::of(status.message()) };
        }
    };
    ClientError::Refused { server, refusal, words: Words::of(status.message()) }
}

/// Events from one server. Ends after its first error: watch again, and look up again, since events may be missing.
#[derive(Debug)]
pub struct Watch {
    server: ServerAddr,
    events: Option<tonic::Streaming<pb::WatchEvent>>,
}

impl Stream for Watch {
    type Item = Result<WatchEvent, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(events) = &mut self.events else { return Poll::Ready(None) };
        let item = match std::task::ready!(Pin::new(events).poll_next(cx)) {
            Some(Ok(event)) => WatchEvent::try_from(event)
                .map_err(|source| ClientError::Protocol { server: self.server.clone(), source }),
            Some(Err(status)) => Err(error_of(&self.server, &status)),
            None => {
                self.events = None;
                return Poll::Ready(None);
            }
        };
        if item.is_err() {
            self.events = None;
        }
        Poll::Ready(Some(item))
    }
}
