//! Asks metadata servers: one after the other until one answers, each for at most one deadline. A name with several addresses
//! stands for as many servers. Whoever answered last is asked first.
//!
//! Replies are hints from somebody who may lie: they are bounded, checked and typed here, and trusted nowhere.

mod address;
mod connect;
mod error;
mod metrics;
mod trust;

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::digest::IdentityId;
use crate::identity::{NodeTls, RPC_ALPN, UnixTime};
use crate::protocol::ProtocolError;
use crate::protocol::fleet::{FleetPage, Key};
use crate::protocol::metadata::{
    AnnounceReply, Announcement, Found, Lookup, MAX_AHEAD, MAX_MESSAGE, Offer, Page, PageRequest, ServerEpoch,
    WatchEvent, Withdrawal, pb,
};
use crate::protocol::report::NodeReport;
use crate::telemetry::trace::Propagate;
pub use address::{InvalidServerAddr, ServerAddr};
use connect::{Link, MAX_ADDRESSES};
use error::error_of;
pub use error::{ClientError, Refusal, Words};
pub use metrics::ClientMetrics;
use metrics::{Call, CallResult};

type Rpc = pb::metadata_client::MetadataClient<InterceptedService<Channel, Propagate>>;

/// Which servers to ask, and for how long: `[metadata]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// In order of preference; the last one that answered is asked first. A name may have several addresses.
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

struct Server {
    addr: ServerAddr,
    link: Arc<Link>,
    channel: Mutex<Numbered>,
}

/// A channel, and how many there were before it.
#[derive(Clone)]
struct Numbered {
    number: u64,
    rpc: Rpc,
}

impl Server {
    fn new(link: Link, addr: ServerAddr) -> Self {
        let link = Arc::new(link);
        let channel = Mutex::new(Self::open(&link, 0));
        Self { addr, link, channel }
    }

    fn open(link: &Arc<Link>, number: u64) -> Numbered {
        let channel = InterceptedService::new(link.channel(), Propagate);
        Numbered { number, rpc: Rpc::new(channel).max_decoding_message_size(MAX_MESSAGE) }
    }

    fn channel(&self) -> MutexGuard<'_, Numbered> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a call over channel `used` without an answer: whether another address of the name can be tried.
    fn turn_away(&self, used: u64) -> bool {
        let mut channel = self.channel();
        // Else another call has turned away already, and its new channel is as new to us.
        if channel.number == used {
            if !self.link.turn_away() {
                return false;
            }
            *channel = Self::open(&self.link, used + 1);
        }
        true
    }
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
        let open = |addr: ServerAddr| Server::new(Link::new(addr.clone(), tls.clone(), config.deadline), addr);
        let servers = config.servers.into_iter().map(open).collect();
        Ok(Self::of(servers, config.deadline, metrics))
    }

    /// As if `addr` were a name with the addresses `means`.
    #[cfg(test)]
    pub(super) fn of_name(
        addr: ServerAddr,
        means: Vec<std::net::SocketAddr>,
        deadline: Duration,
        tls: &NodeTls,
    ) -> Self {
        let tls = Arc::new(tls.client_config(RPC_ALPN).unwrap());
        let link = Link::new(addr.clone(), tls, deadline).meaning(means);
        Self::of(vec![Server::new(link, addr)], deadline, ClientMetrics::default())
    }

    fn of(servers: Vec<Server>, deadline: Duration, metrics: ClientMetrics) -> Self {
        Self(Arc::new(Inner { servers, preferred: AtomicUsize::new(0), deadline, metrics }))
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
            let latest = UnixTime::now().after(MAX_AHEAD);
            found.offers.retain(|offer| {
                lookup.identities.contains(&offer.artifact.identity) && offer.artifact.created <= latest
            });
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

    /// Tells what a node says of itself.
    pub async fn report(&self, report: &NodeReport) -> Result<(), ClientError> {
        let request = pb::NodeReport::from(report);
        let rpc = |mut rpc: Rpc| {
            let request = request.clone();
            async move { rpc.report(request).await }
        };
        self.call(Call::Report, rpc, |_, pb::ReportReply {}| Ok(())).await
    }

    /// Documents of what the server knows of the fleet, behind a key.
    pub async fn fleet(&self, after: Option<Key>) -> Result<FleetPage, ClientError> {
        let request = pb::FleetRequest { after: after.map(|key| key.to_string()).unwrap_or_default() };
        let rpc = |mut rpc: Rpc| {
            let request = request.clone();
            async move { rpc.fleet(request).await }
        };
        let convert = |_: &Server, reply| {
            let page = FleetPage::try_from(reply)?;
            // Else asking for the rest would not end.
            match page.documents.first() {
                Some(first) if after.is_some_and(|after| first.key <= after) => {
                    Err(ProtocolError::Invalid("documents"))
                }
                _ => Ok(page),
            }
        };
        self.call(Call::Fleet, rpc, convert).await
    }

    /// Asks again as long as servers have too much to do and there is time.
    async fn call<T, D, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        method: Call,
        rpc: impl Fn(Rpc) -> F,
        convert: impl Fn(&Server, T) -> Result<D, ProtocolError>,
    ) -> Result<D, ClientError> {
        let give_up = Instant::now() + self.0.deadline;
        loop {
            let error = match self.round(method, &rpc, &convert).await {
                Err(error) => error,
                answered => return answered,
            };
            let ClientError::Overloaded { retry_after, .. } = &error else { return Err(error) };
            // Those that were sent away together must not come back together.
            let pause = retry_after.mul_f64(rand::rng().random_range(1.0..2.0));
            if Instant::now() + pause >= give_up {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks each server once, until one answers. That one is overloaded says more than that others cannot be reached.
    async fn round<T, D, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        method: Call,
        rpc: impl Fn(Rpc) -> F,
        convert: impl Fn(&Server, T) -> Result<D, ProtocolError>,
    ) -> Result<D, ClientError> {
        let Inner { servers, preferred, .. } = &*self.0;
        let first = preferred.load(Ordering::Relaxed);
        let mut last = ClientError::NoServer;
        for turn in 0..servers.len() {
            let at = (first + turn) % servers.len();
            let server = &servers[at];
            for _ in 0..MAX_ADDRESSES {
                let Numbered { number, rpc: channel } = server.channel().clone();
                match self.ask(server, method, rpc(channel), &convert).await {
                    Err(error @ (ClientError::Unavailable { .. } | ClientError::Protocol { .. })) => {
                        tracing::debug!(server = %server.addr, error = &error as &dyn std::error::Error, "metadata call");
                        if !matches!(last, ClientError::Overloaded { .. }) {
                            last = error;
                        }
                    }
                    // Its connection is good. To leave it for another address of the name is more work for everybody.
                    Err(error @ ClientError::Overloaded { .. }) => {
                        server.link.answered();
                        last = error;
                        break;
                    }
                    other => {
                        server.link.answered();
                        preferred.store(at, Ordering::Relaxed);
                        return other;
                    }
                }
                if !server.turn_away(number) {
                    break;
                }
            }
        }
        Err(last)
    }

    async fn ask<T, D>(
        &self,
        server: &Server,
        method: Call,
        asked: impl Future<Output = Result<Response<T>, Status>>,
        convert: impl Fn(&Server, T) -> Result<D, ProtocolError>,
    ) -> Result<D, ClientError> {
        let Inner { deadline, metrics, .. } = &*self.0;
        let answered = match tokio::time::timeout(*deadline, asked).await {
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
            Err(ClientError::Overloaded { .. }) => CallResult::Overloaded,
            Err(_) => CallResult::Unavailable,
        };
        metrics.called(method, result);
        answered
    }
}

/// A server elsewhere has no business with our loopback.
fn remove_unreachable(server: &Server, offer: &mut Offer) {
    if !server.link.is_loopback() {
        offer.holders.retain(|holder| !holder.endpoints.iter().any(|endpoint| endpoint.is_loopback()));
    }
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
