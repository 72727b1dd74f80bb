//! How a server is reached: TCP, then mutual TLS, then HTTP/2. tonic's own TLS is not built in, so that there is one place
//! where certificates are checked.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::ServerAddr;

const MAX_HEADERS: u32 = 16 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The way to one server.
pub(super) struct Link {
    addr: ServerAddr,
    tls: TlsConnector,
    deadline: Duration,
    /// The server was last reached on this machine.
    loopback: AtomicBool,
}

impl Link {
    pub(super) fn new(addr: ServerAddr, tls: Arc<rustls::ClientConfig>, deadline: Duration) -> Self {
        Self { addr, tls: TlsConnector::from(tls), deadline, loopback: AtomicBool::new(false) }
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.loopback.load(Ordering::Relaxed)
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

    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let connecting = async {
            let stream = TcpStream::connect((self.addr.host(), self.addr.port())).await?;
            stream.set_nodelay(true)?;
            self.loopback.store(stream.peer_addr()?.ip().to_canonical().is_loopback(), Ordering::Relaxed);
            let name = self.addr.tls_name().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            self.tls.connect(name, stream).await
        };
        tokio::time::timeout(self.deadline, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}
