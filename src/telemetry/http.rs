//! `/metrics` as text, and what supervisors ask: `/livez` (and `/healthz`) whether the process answers,
//! `/readyz` whether it takes work.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::{Format, Registry};
use crate::http::{Limits, Server};

/// No longer than supervisors and scrapers wait.
const LIMITS: Limits = Limits {
    connections: 64,
    head: Duration::from_secs(5),
    stalled: Duration::from_secs(60),
    connection: Duration::from_secs(10),
};

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
    server: Server,
    ready: Arc<AtomicBool>,
}

impl MetricsServer {
    /// Not ready until [`Self::set_ready`] says so.
    pub async fn bind(addr: SocketAddr, registry: Arc<Registry>) -> io::Result<Self> {
        let ready = Arc::new(AtomicBool::new(false));
        let told = ready.clone();
        let answer = move |request: Request<Incoming>, _| {
            std::future::ready(answer(&request, &registry, told.load(Ordering::Relaxed)))
        };
        Ok(Self { server: Server::bind("metrics", addr, LIMITS, answer).await?, ready })
    }

    /// What `/readyz` answers: false before a role is reachable, and once it drains.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    pub async fn shutdown(self, deadline: Duration) {
        self.server.shutdown(deadline).await;
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
    use tokio::net::TcpStream;

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
    async fn connections_that_others_hold_do_not_keep_a_supervisor_out() {
        let server = MetricsServer::bind("127.0.0.1:0".parse().unwrap(), Arc::default()).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..LIMITS.connections {
            held.push(TcpStream::connect(server.addr()).await.unwrap());
        }
        // Less than any of them may last.
        let alive = tokio::time::timeout(LIMITS.head / 2, get(server.addr(), "/livez")).await.unwrap();
        assert!(alive.ends_with("ok\n"));
        let closed = tokio::time::timeout(LIMITS.head / 2, held[0].read_u8()).await.unwrap().unwrap_err();
        assert_eq!(closed.kind(), io::ErrorKind::UnexpectedEof);
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
