//! ModelExpress's metadata service, `model_express.p2p.P2pService`, for weight clients that speak it already: they meet
//! each other here and move their weights as before. Off unless `[compatibility]` says so.
//!
//! It stands beside warmd's own directory and shares nothing with it: a listener, a table and metrics of its own. Its
//! clients speak plaintext and prove nothing, so whoever reaches the listener can list, replace and spoil every entry. No
//! node, identity, signer or artifact of warmd's is in reach of it.
//!
//! The table is in memory only. After a restart it is empty, heartbeats are refused, and workers register themselves anew
//! after two refused ones; versions that cannot do that stay unlisted.
//!
//! What it does otherwise than the original, and why:
//!
//! | call | here | there |
//! | --- | --- | --- |
//! | ListSources, identity without a `model_name` | INVALID_ARGUMENT | lists everything |
//! | ListSources, a status that is none | INVALID_ARGUMENT | lists every status |
//! | any, where the server cannot look | a status that says so | no sources, or nothing found |
//! | ListSources | at most 1,000 workers and 4 MiB, newest first | everything |
//! | PublishMetadata, table full | `success = false`, nothing is evicted | grows |
//! | PublishMetadata, `worker_id` with another rank | replaces the first | keeps both, shows one |
//! | PublishMetadata | `updated_at` is the server's time, status 0 means INITIALIZING | as the client says |
//! | GetMetadata | the worker's message as it was, unknown fields too | known fields, tensors in the old place and the new |
//! | UpdateStatus, status 0 | `success = false` | kept, and never reaped |
//!
//! A worker that went STALE comes back with its next READY, as there: clients say STALE while their network is broken.

mod config;
mod metrics;
mod service;
mod table;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};

use super::room::{RETRY_AFTER, RETRY_AFTER_MS};
use super::server::{self, ServerError};
use crate::lifecycle::Tasks;
use crate::protocol::model_express::{MAX_MESSAGE, pb};
use crate::telemetry::Registry;
pub use config::{CompatibilityConfig, ExplicitAddr, NotExplicit};
pub use metrics::Metrics;
use service::{Clock, Service, Sources};
use table::Table;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(20);
const MAX_STREAMS: u32 = 16;
const MAX_HEADERS: u32 = 16 * 1024;
/// Requests at a time over all connections: each may have a message of [`MAX_MESSAGE`] in memory.
const MAX_IN_FLIGHT: usize = 64;
/// What gRPC's own libraries obey, where they retry.
const PUSHBACK_MS: &str = "grpc-retry-pushback-ms";
/// How often gauges are set and the forgotten removed.
const TICK: Duration = Duration::from_secs(5);

type Connection = server::Connection<TcpStream, SocketAddr>;

/// A running service.
#[derive(Debug)]
pub struct Compatibility {
    addr: SocketAddr,
    /// Cancelled, it accepts no more and lets connections finish what they are at.
    serving: Tasks,
    /// Cancelled, it cuts connections.
    connections: CancellationToken,
    upkeep: Tasks,
}

impl Compatibility {
    /// Returns once it is listening.
    pub async fn bind(config: &CompatibilityConfig, metrics: &mut Registry) -> Result<Self, ServerError> {
        Self::bind_with(config, Clock::system(), metrics).await
    }

    async fn bind_with(
        config: &CompatibilityConfig,
        clock: Clock,
        metrics: &mut Registry,
    ) -> Result<Self, ServerError> {
        let at = config.listen.addr();
        let listen = |source| ServerError::Listen { addr: at, source };
        let listener = TcpListener::bind(at).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let metrics = Metrics::register(metrics);
        let sources = Arc::new(Sources::new(Table::new(config.limits()), clock, metrics.clone()));

        let service = Self { addr, serving: Tasks::new(), connections: CancellationToken::new(), upkeep: Tasks::new() };
        let (ready, incoming) = mpsc::channel(64);
        let slots = Arc::new(Semaphore::new(config.max_connections));
        let gate = Gate { slots, ready, cut: service.connections.clone(), metrics };
        let drain = service.serving.token();
        service.serving.spawn_finishing("compatibility accept", accept(listener, gate, drain.clone()));
        service.serving.spawn_finishing("compatibility rpc", serve(sources.clone(), incoming, drain.clone()));
        service.upkeep.spawn_finishing("compatibility upkeep", upkeep(sources, service.upkeep.token().clone()));
        tracing::warn!(
            %addr,
            "model_express.p2p is served in plaintext and without authentication: whoever reaches this address can list, \
             replace and spoil the sources of weights there"
        );
        if !addr.ip().is_loopback() {
            tracing::warn!(%addr, "it is not on loopback: let a network policy admit weight clients only");
        }
        Ok(service)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// True if everything ended in good order before the deadline.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let left = || end.saturating_duration_since(Instant::now());
        let drained = self.serving.shutdown(deadline / 2).await;
        self.connections.cancel();
        let cut = self.serving.shutdown(left()).await;
        self.upkeep.shutdown(left()).await && drained && cut
    }
}

impl Drop for Compatibility {
    fn drop(&mut self) {
        self.connections.cancel();
    }
}

/// What a connection passes through before it reaches gRPC.
struct Gate {
    slots: Arc<Semaphore>,
    ready: mpsc::Sender<io::Result<Connection>>,
    cut: CancellationToken,
    metrics: Metrics,
}

async fn accept(listener: TcpListener, gate: Gate, drain: CancellationToken) {
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((stream, addr)) => {
                    let Ok(slot) = gate.slots.clone().try_acquire_owned() else {
                        gate.metrics.rejects.inc();
                        continue;
                    };
                    // Small answers wait for nothing.
                    let _ = stream.set_nodelay(true);
                    let open = gate.metrics.connections.clone();
                    let connection = Connection::new(stream, addr, slot, gate.cut.clone(), open);
                    // Fails only when the server ends.
                    let _ = gate.ready.send(Ok(connection)).await;
                }
                Err(error) => {
                    // Out of descriptors: wait for some to be closed instead of spinning.
                    tracing::warn!(%error, "accept compatibility connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    drain.run_until_cancelled(accepting).await;
}

async fn serve(sources: Arc<Sources>, incoming: mpsc::Receiver<io::Result<Connection>>, drain: CancellationToken) {
    let handlers =
        pb::p2p_service_server::P2pServiceServer::new(Service(sources)).max_decoding_message_size(MAX_MESSAGE);
    let room = Room(Arc::new(Semaphore::new(MAX_IN_FLIGHT)));
    let served = tonic::transport::Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .load_shed(true)
        .concurrency_limit_per_connection(MAX_STREAMS as usize)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE / 2))
        .http2_max_pending_accept_reset_streams(Some(MAX_STREAMS as usize))
        .add_service(InterceptedService::new(handlers, room))
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), drain.cancelled())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "compatibility rpc ended");
    }
}

/// For requests, from their head until they are read. Beyond it callers are told when to come again.
#[derive(Debug, Clone)]
struct Room(Arc<Semaphore>);

impl Interceptor for Room {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let place = self.0.clone().try_acquire_owned().map_err(|_| crowded())?;
        // Dropped with the request.
        request.extensions_mut().insert(Arc::new(place));
        Ok(request)
    }
}

fn crowded() -> Status {
    let mut status = Status::unavailable("too many requests at once: come again later");
    for key in [RETRY_AFTER_MS, PUSHBACK_MS] {
        status.metadata_mut().insert(key, MetadataValue::from(RETRY_AFTER.as_millis() as u64));
    }
    status
}

/// The last time when the service ends.
async fn upkeep(sources: Arc<Sources>, token: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ending = token.run_until_cancelled(tick.tick()).await.is_none();
        sources.tidy();
        if ending {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
