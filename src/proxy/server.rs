//! The listener in front: bounded connections, and an end that fails nobody's request.
//!
//! Each connection stays on one of a few threads, and so does all that it needs: its timers, and the connections to the
//! engine. A token on its way wakes no other thread, and nothing else that the process does delays it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::alarm::ConnectionTimer;
use super::socket::Socket;
use super::upstream::Pool;
use super::{Config, Proxy};
use crate::lifecycle::{Cancelled, Tasks, Thread};

/// For what is cancelled to be gone, and for each thread after it.
const ENDING: Duration = Duration::from_secs(1);

/// Connections over the limit that are told so at a time; more wait to be accepted.
const TOLD: usize = 64;

/// Between two looks at connections to the engine that nobody uses.
const SWEEP: Duration = Duration::from_millis(500);

/// hyper takes no less.
const LEAST_BUFFER: usize = 8 * 1024;

/// Serves a [`Proxy`] on one address.
pub struct Server {
    addr: SocketAddr,
    proxy: Arc<Proxy>,
    slots: Arc<Semaphore>,
    accepting: CancellationToken,
    closing: CancellationToken,
    tasks: Tasks,
    threads: Vec<Thread>,
}

impl Server {
    pub async fn bind(addr: SocketAddr, proxy: Arc<Proxy>) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let slots = Arc::new(Semaphore::new(proxy.config.max_connections + TOLD));
        let (accepting, closing) = (CancellationToken::new(), CancellationToken::new());
        let count = usize::from(proxy.config.threads.get());
        let threads: Vec<Thread> = (0..count).map(|_| Thread::start("proxy")).collect::<io::Result<_>>()?;
        let tasks = Tasks::new();
        let lanes = threads.iter().map(|thread| Lane::new(thread.child_of(&tasks), &proxy.config)).collect();
        let door = Door { proxy: proxy.clone(), slots: slots.clone(), closing: closing.clone(), lanes };
        let (open, ending) = (accepting.clone(), tasks.token().clone());
        tasks.spawn("proxy listener", async move {
            open.run_until_cancelled(accept(&listener, &door)).await;
            drop(listener);
            // The door owns the connections: it stays until they are cancelled.
            ending.cancelled().await;
        });
        Ok(Self { addr, proxy, slots, accepting, closing, tasks, threads })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Says from now on in `/health`, and in each answer by closing its connection, that this is the end. Requests are
    /// still served.
    pub fn announce_end(&self) {
        self.proxy.draining.cancel();
    }

    /// Announces the end, stops accepting after [`Config::notice`](super::Config), lets requests finish, and cancels what is
    /// left at `deadline`. False if something was left.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        self.announce_end();
        tokio::time::sleep(self.proxy.config.notice.min(deadline / 2)).await;
        self.accepting.cancel();
        self.closing.cancel();
        let all = u32::try_from(self.proxy.config.max_connections + TOLD).unwrap_or(u32::MAX);
        let finished = tokio::time::timeout_at(until, self.slots.acquire_many(all)).await.is_ok();
        let mut ended = self.tasks.shutdown(ENDING).await;
        for thread in self.threads {
            ended &= thread.end(ENDING).await;
        }
        ended && finished
    }
}

/// What connections are let in by.
struct Door {
    proxy: Arc<Proxy>,
    slots: Arc<Semaphore>,
    closing: CancellationToken,
    lanes: Vec<Lane>,
}

/// What the connections of one thread share.
struct Lane {
    connections: Tasks,
    pool: Arc<Pool>,
}

impl Lane {
    fn new(connections: Tasks, config: &Config) -> Self {
        let kept = config.max_kept.div_ceil(config.threads.get().into());
        let pool = Arc::new(Pool::new(config.keep_alive, kept));
        connections.spawn("proxy pool", sweep(pool.clone()));
        Self { connections, pool }
    }
}

async fn sweep(pool: Arc<Pool>) {
    let mut every = tokio::time::interval(SWEEP);
    loop {
        every.tick().await;
        pool.sweep();
    }
}

async fn accept(listener: &TcpListener, door: &Door) {
    loop {
        let Ok(slot) = door.slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                // An error here means that the client has gone.
                let _ = door.admit(stream, slot);
            }
            Err(error) => {
                // Out of descriptors: wait for some to be closed instead of spinning.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Door {
    /// On the thread that has the fewest.
    fn admit(&self, stream: TcpStream, slot: OwnedSemaphorePermit) -> io::Result<()> {
        let is_over_limit = self.slots.available_permits() < TOLD;
        // Each piece of a stream goes out at once.
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let Some(lane) = self.lanes.iter().min_by_key(|lane| lane.connections.len()) else { return Ok(()) };
        let (proxy, pool, closing) = (self.proxy.clone(), lane.pool.clone(), self.closing.clone());
        lane.connections.spawn("proxy connection", async move {
            let _slot = slot;
            // Its readiness is this thread's matter from here on.
            match TcpStream::from_std(stream) {
                Ok(stream) => serve(proxy, pool, stream, closing, is_over_limit).await,
                Err(error) => tracing::warn!(%error, "client connection"),
            }
        });
        Ok(())
    }
}

async fn serve<S>(proxy: Arc<Proxy>, pool: Arc<Pool>, stream: S, closing: CancellationToken, is_over_limit: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (socket, heads) = Socket::new(stream, proxy.config.stalled);
    let mut builder = http1::Builder::new();
    builder
        .timer(ConnectionTimer::default())
        // Pieces of an answer are small: as in `gather`, one buffer costs less than a list.
        .writev(false)
        .header_read_timeout(proxy.config.head)
        .max_header_size(proxy.config.max_head_bytes)
        .max_buf_size(proxy.config.max_head_bytes.max(LEAST_BUFFER));
    let service = service_fn(move |request| {
        let (proxy, pool, has_length) = (proxy.clone(), pool.clone(), heads.next_has_length());
        async move {
            let response = match is_over_limit {
                true => proxy.too_many(),
                false => proxy.serve(request, has_length, pool).await,
            };
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service));
    let served = tokio::select! {
        biased;
        served = connection.as_mut() => served,
        () = Cancelled::of(&closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "client connection");
    }
}
