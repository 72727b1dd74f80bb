//! How a server is reached: TCP, then mutual TLS, then HTTP/2. tonic's own TLS is not built in, so that there is one place
//! where certificates are checked.

mod route;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::ServerAddr;
use route::Route;

const MAX_HEADERS: u32 = 16 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Addresses of one name that are tried.
pub(super) const MAX_ADDRESSES: usize = 8;

/// The way to one server, or to several that share a name.
pub(super) struct Link {
    addr: ServerAddr,
    tls: TlsConnector,
    deadline: Duration,
    route: Mutex<Route>,
    /// The server was last reached on this machine.
    loopback: AtomicBool,
    /// What the name means in tests.
    #[cfg(test)]
    means: Option<Vec<SocketAddr>>,
}

impl Link {
    pub(super) fn new(addr: ServerAddr, tls: Arc<rustls::ClientConfig>, deadline: Duration) -> Self {
        Self {
            addr,
            tls: TlsConnector::from(tls),
            deadline,
            route: Mutex::default(),
            loopback: AtomicBool::new(false),
            #[cfg(test)]
            means: None,
        }
    }

    #[cfg(test)]
    pub(super) fn meaning(self, means: Vec<SocketAddr>) -> Self {
        Self { means: Some(means), ..self }
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.loopback.load(Ordering::Relaxed)
    }

    /// The server that was reached last gave an answer.
    pub(super) fn answered(&self) {
        self.route().answered();
    }

    /// It gave none: a new channel goes elsewhere. False if the name has no address that was not tried since the last
    /// answer.
    pub(super) fn turn_away(&self) -> bool {
        self.route().turn_away()
    }

    /// Connects when first used, and again after each loss.
    pub(super) fn channel(self: &Arc<Self>) -> Channel {
        let link = self.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let link = link.clone();
            async move { link.connect().await.map(TokioIo::new) }
        });
        // The name is only the `:authority` of requests: whom we reach is decided by the connector.
        Endpoint::from_static("http://metadata.warmd")
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .http2_max_header_list_size(MAX_HEADERS)
            .connect_with_connector_lazy(connector)
    }

    /// One address after the other, each with its share of the deadline.
    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let end = Instant::now() + self.deadline;
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let found = timeout(self.deadline, self.resolve()).await.map_err(|_| late())??;
        let order = self.route().order(found, &mut rand::rng());
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for (turn, addr) in order.iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(order.len() - turn).unwrap_or(1);
            match timeout(share, self.open(*addr)).await {
                Ok(Ok(stream)) => {
                    self.loopback.store(addr.ip().to_canonical().is_loopback(), Ordering::Relaxed);
                    self.route().reached(*addr);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = late(),
            }
        }
        Err(last)
    }

    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        #[cfg(test)]
        if let Some(means) = &self.means {
            return Ok(means.clone());
        }
        let found = tokio::net::lookup_host((self.addr.host(), self.addr.port())).await?;
        Ok(found.take(MAX_ADDRESSES).collect())
    }

    async fn open(&self, addr: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let name = self.addr.tls_name().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.tls.connect(name, stream).await
    }

    fn route(&self) -> MutexGuard<'_, Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
