//! The listener: bounded connections, and clients that are gone or take nothing are let go.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::live::LiveBoard;
use super::site::{MAX_STREAMS, Site};
use super::{WebError, WebSection};
use crate::lifecycle::Tasks;

const MAX_CONNECTIONS: usize = 4 * MAX_STREAMS;

/// For a request's head, and between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that acknowledges nothing for so long, or has no room for what is sent, is gone.
const STALLED: Duration = Duration::from_secs(60);

/// Longer than any stream.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// Serves the page of one [`LiveBoard`].
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    tasks: Tasks,
}

impl Server {
    /// Listens on `addr`, which stands for [`WebSection::listen`]. Streams end when the server is shut down or dropped.
    pub async fn bind(addr: SocketAddr, section: &WebSection, board: LiveBoard) -> Result<Self, WebError> {
        let site = Arc::new(Site::new(section, addr, board)?);
        let failed = |source| WebError::Bind { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let tasks = Tasks::new();
        let connections = tasks.child();
        tasks.spawn("web server", accept(listener, site, connections));
        Ok(Self { addr, tasks })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub async fn shutdown(self, deadline: Duration) {
        self.tasks.shutdown(deadline).await;
    }
}

async fn accept(listener: TcpListener, site: Arc<Site>, connections: Tasks) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let site = site.clone();
                connections.spawn("web connection", async move {
                    let _slot = slot;
                    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serve(stream, from, site)).await;
                });
            }
            Err(error) => {
                // Out of descriptors: wait for some to be closed instead of spinning.
                tracing::warn!(%error, "accept web connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, from: SocketAddr, site: Arc<Site>) {
    // Errors here mean that the client has gone.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(STALLED));
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(request, from).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "web connection");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::web::Document;

    const DEADLINE: Duration = Duration::from_secs(20);

    async fn local(board: &LiveBoard) -> Server {
        Server::bind("127.0.0.1:0".parse().unwrap(), &WebSection::default(), board.clone()).await.unwrap()
    }

    async fn asked(server: &Server, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// All bytes up to the first ones that contain `end`.
    async fn until(stream: &mut TcpStream, end: &str) -> String {
        let mut text = String::new();
        let mut piece = [0; 4096];
        while !text.contains(end) {
            let read = tokio::time::timeout(DEADLINE, stream.read(&mut piece)).await.unwrap().unwrap();
            assert_ne!(read, 0, "ended: {text}");
            text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
        text
    }

    #[tokio::test]
    async fn what_changes_reaches_an_open_stream_and_a_shutdown_ends_it() {
        let board = LiveBoard::default();
        let server = local(&board).await;
        let mut stream = asked(&server, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let head = until(&mut stream, "\"reset\":true").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
        board.set(&"node/1".parse().unwrap(), Document::new(&1).unwrap()).unwrap();
        until(&mut stream, "\"set\":{\"node/1\":1}").await;
        server.shutdown(DEADLINE).await;
        let mut rest = Vec::new();
        tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_holds_back_nobody_and_finds_the_latest() {
        let board = LiveBoard::default();
        let server = local(&board).await;
        let mut slow = asked(&server, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        until(&mut slow, "\"reset\":true").await;
        let mut quick = asked(&server, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let filler = "x".repeat(200_000);
        for value in 0..40 {
            let document = Document::new(&(&filler, value)).unwrap();
            board.set(&format!("node/{}", value % 4).parse().unwrap(), document).unwrap();
        }
        board.set(&"last".parse().unwrap(), Document::new(&"one").unwrap()).unwrap();
        until(&mut quick, "\"last\":\"one\"").await;
        let text = until(&mut slow, "\"last\":\"one\"").await;
        assert!(text.len() < 3_000_000, "a backlog of {} bytes", text.len());
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused() {
        let server = local(&LiveBoard::default()).await;
        let request = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(20_000));
        let answer = until(&mut asked(&server, &request).await, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
}
