//! `/metrics` as text, and what supervisors ask: `/livez` (and `/healthz`) whether the process answers,
//! `/readyz` whether it takes work. Header and idle timeouts hold: hyper applies none without a timer.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{Format, Registry};
use crate::lifecycle::Tasks;

const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// `[metrics]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSection {
    /// Address of the plain HTTP server of `/metrics`, `/livez` and `/readyz`. Absent: none.
    pub listen: Option<SocketAddr>,
}

/// Serves one registry over plain HTTP. Bind it to an address that only the operator's scraper reaches.
#[derive(Debug)]
pub struct MetricsServer {
    addr: SocketAddr,
    ready: Arc<AtomicBool>,
    tasks: Tasks,
}

impl MetricsServer {
    /// Not ready until [`Self::set_ready`] says so.
    pub async fn bind(addr: SocketAddr, registry: Arc<Registry>) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let tasks = Tasks::new();
        let connections = tasks.child();
        let ready = Arc::new(AtomicBool::new(false));
        tasks.spawn("metrics server", accept(listener, registry, ready.clone(), connections));
        Ok(Self { addr, ready, tasks })
    }

    /// What `/readyz` answers: false before a role is reachable, and once it drains.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub async fn shutdown(self, deadline: Duration) {
        self.tasks.shutdown(deadline).await;
    }
}

async fn accept(listener: TcpListener, registry: Arc<Registry>, ready: Arc<AtomicBool>, connections: Tasks) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (registry, ready) = (registry.clone(), ready.clone());
                connections.spawn("metrics connection", async move {
                    let _slot = slot;
                    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serve(stream, registry, ready)).await;
                });
            }
            Err(error) => {
                // Out of descriptors: wait for some to be closed instead of spinning.
                tracing::warn!(%error, "accept metrics connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, registry: Arc<Registry>, ready: Arc<AtomicBool>) {
    let service = service_fn(move |request| {
        let response = answer(&request, &registry, ready.load(Ordering::Relaxed));
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "metrics connection");
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry, ready: bool) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let format = Format::accepted(request.headers());
            (StatusCode::OK, format.content_type(), format.encode(registry))
        }
        (&Method::GET, "/healthz" | "/livez") => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        (&Method::GET, "/readyz") if ready => (StatusCode::OK, "text/plain", "ready\n".to_owned()),
        (&Method::GET, "/readyz") => {
            (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "starting or draining\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "try /metrics, /livez or /readyz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_are_served_and_other_paths_are_not() {
        let mut registry = Registry::default();
        let counter: Counter = registry.add("warmd_tests_total", "Tests run");
        counter.inc();
        let server = MetricsServer::bind("127.0.0.1:0".parse().unwrap(), Arc::new(registry)).await.unwrap();
        let metrics = get(server.addr(), "/metrics").await;
        assert!(metrics.contains("warmd_tests_total 1"), "{metrics}");
        for alive in ["/healthz", "/livez"] {
            assert!(get(server.addr(), alive).await.ends_with("ok\n"));
        }
        assert!(get(server.addr(), "/").await.starts_with("HTTP/1.1 404"));
        server.shutdown(Duration::from_secs(5)).await;
    }

    #[tokio::test]
    async fn a_role_is_alive_before_it_is_ready_and_while_it_drains() {
        let server = MetricsServer::bind("127.0.0.1:0".parse().unwrap(), Arc::default()).await.unwrap();
        for (ready, expected) in [(None, "503"), (Some(true), "200"), (Some(false), "503")] {
            ready.into_iter().for_each(|ready| server.set_ready(ready));
            let told = get(server.addr(), "/readyz").await;
            assert!(told.starts_with(&format!("HTTP/1.1 {expected}")), "{told}");
            assert!(get(server.addr(), "/livez").await.starts_with("HTTP/1.1 200"));
        }
        server.shutdown(Duration::from_secs(5)).await;
    }
}
