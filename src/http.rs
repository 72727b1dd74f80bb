//! Plain HTTP/1 for operators: connections are bounded, and clients that are slow, silent or gone are let go.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::lifecycle::Tasks;

/// Of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// Before the next connection where there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// What clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Beyond them the oldest one is closed: whoever holds many must not keep a supervisor out.
    pub connections: usize,
    /// For a request's head, and between two requests. hyper applies none without a timer.
    pub head: Duration,
    /// A client that acknowledges nothing for so long, or has no room for what is sent, is gone.
    pub stalled: Duration,
    /// A connection ends then, whatever is under way.
    pub connection: Duration,
}

/// A listener and its connections. They end when it is shut down or dropped.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    tasks: Tasks,
}

impl Server {
    /// Calls `answer` with each request and the address that it comes from. Logs are of `name`.
    pub async fn bind<A, F, B>(name: &'static str, addr: SocketAddr, limits: Limits, answer: A) -> io::Result<Self>
    where
        A: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let tasks = Tasks::new();
        let connections = tasks.child();
        tasks.spawn(name, async move {
            // Oldest first.
            let mut open: VecDeque<CancellationToken> = VecDeque::new();
            loop {
                match listener.accept().await {
                    Ok((stream, from)) => {
                        let closed = room(&mut open, limits.connections);
                        let serving = serve(name, stream, limits, with(answer.clone(), from));
                        connections.spawn(name, async move {
                            let closed = closed.drop_guard();
                            let served = tokio::time::timeout(limits.connection, serving);
                            let _ = closed.token().run_until_cancelled(served).await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, server = name, "accept");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
        Ok(Self { addr, tasks })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Cuts off what is under way.
    pub async fn shutdown(self, deadline: Duration) {
        self.tasks.shutdown(deadline).await;
    }
}

/// For one connection more.
fn room(open: &mut VecDeque<CancellationToken>, most: usize) -> CancellationToken {
    open.retain(|closed| !closed.is_cancelled());
    if open.len() >= most
        && let Some(oldest) = open.pop_front()
    {
        oldest.cancel();
    }
    let closed = CancellationToken::new();
    open.push_back(closed.clone());
    closed
}

fn with<A, F>(answer: A, from: SocketAddr) -> impl Fn(Request<Incoming>) -> F
where
    A: Fn(Request<Incoming>, SocketAddr) -> F,
{
    move |request| answer(request, from)
}

async fn serve<A, F, B>(name: &'static str, stream: TcpStream, limits: Limits, answer: A)
where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Errors here mean that the client has gone.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(limits.stalled));
    let service = service_fn(move |request| {
        let answering = answer(request);
        async move { Ok::<_, Infallible>(answering.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, server = name, "connection");
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Answers with the address that asks.
    async fn echo(limits: Limits) -> Server {
        let answer = |_, from: SocketAddr| std::future::ready(Response::new(Full::new(Bytes::from(from.to_string()))));
        Server::bind("echo", "127.0.0.1:0".parse().unwrap(), limits, answer).await.unwrap()
    }

    fn limits() -> Limits {
        Limits { connections: 4, head: DEADLINE, stalled: DEADLINE, connection: DEADLINE }
    }

    /// All that is said until the connection ends.
    async fn asked(server: &Server, request: &str) -> (SocketAddr, String) {
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let (own, mut answer) = (stream.local_addr().unwrap(), String::new());
        timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        (own, answer)
    }

    #[tokio::test]
    async fn whoever_asks_is_known_by_its_address() {
        let server = echo(limits()).await;
        let (own, answer) = asked(&server, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&own.to_string()), "{answer}");
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused() {
        let server = echo(limits()).await;
        let request = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD + 4096));
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        timeout(DEADLINE, stream.read_exact(&mut status)).await.unwrap().unwrap();
        assert_eq!(&status, b"HTTP/1.1 431");
    }

    #[tokio::test]
    async fn whoever_says_nothing_loses_its_place_to_the_next() {
        let server = echo(Limits { connections: 1, head: Duration::from_millis(50), ..limits() }).await;
        let mut silent = TcpStream::connect(server.addr()).await.unwrap();
        let (_, answer) = asked(&server, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        timeout(DEADLINE, silent.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_shutdown_ends_connections() {
        let server = echo(limits()).await;
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        server.shutdown(DEADLINE).await;
        timeout(DEADLINE, stream.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    }
}
