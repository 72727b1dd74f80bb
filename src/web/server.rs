//! The listener of the page.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::live::LiveBoard;
use super::metrics::Metrics;
use super::site::{MAX_STREAMS, Site};
use super::{WebError, WebSection};
use crate::http::{self, Limits};

const LIMITS: Limits = Limits {
    connections: 4 * MAX_STREAMS,
    head: Duration::from_secs(10),
    stalled: Duration::from_secs(60),
    // Longer than any stream.
    connection: Duration::from_secs(2 * 3600),
};

/// Serves the page of one [`LiveBoard`].
#[derive(Debug)]
pub struct Server(http::Server);

impl Server {
    /// Listens on `addr`, which stands for [`WebSection::listen`]. Streams end when the server is shut down or dropped.
    pub async fn bind(
        addr: SocketAddr,
        section: &WebSection,
        board: LiveBoard,
        metrics: Metrics,
    ) -> Result<Self, WebError> {
        let site = Arc::new(Site::new(section, addr, board, metrics)?);
        let answer = move |request, from| {
            let site = site.clone();
            async move { site.answer(request, from).await }
        };
        let server = http::Server::bind("page", addr, LIMITS, answer).await;
        server.map(Self).map_err(|source| WebError::Bind { addr, source })
    }

    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    pub async fn shutdown(self, deadline: Duration) {
        self.0.shutdown(deadline).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::web::Document;

    const DEADLINE: Duration = Duration::from_secs(20);

    async fn local(board: &LiveBoard) -> Server {
        let (addr, section) = ("127.0.0.1:0".parse().unwrap(), WebSection::default());
        Server::bind(addr, &section, board.clone(), Metrics::default()).await.unwrap()
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
}
