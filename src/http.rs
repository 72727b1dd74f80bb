//! Plain HTTP/1 for operators: connections are bounded, and clients that are slow, silent or gone are let go.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
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
    /// Beyond them one is closed: whoever holds many must not keep a supervisor out. It is the oldest that is not being
    /// answered, and only where there is none, the oldest.
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
            let mut open: VecDeque<Arc<Place>> = VecDeque::new();
            loop {
                match listener.accept().await {
                    Ok((stream, from)) => {
                        let place = room(&mut open, limits.connections);
                        let closed = place.closed.clone();
                        let serving = serve(name, stream, limits, place, with(answer.clone(), from));
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

/// What is known of a connection.
#[derive(Debug, Default)]
struct Place {
    closed: CancellationToken,
    /// Answers of which not all is sent.
    answers: AtomicUsize,
}

impl Place {
    fn is_answered(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > 0
    }
}

/// An answer that is under way.
struct Answering(Arc<Place>);

impl Answering {
    fn begin(place: Arc<Place>) -> Self {
        place.answers.fetch_add(1, Ordering::Relaxed);
        Self(place)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// For one connection more.
fn room(open: &mut VecDeque<Arc<Place>>, most: usize) -> Arc<Place> {
    open.retain(|place| !place.closed.is_cancelled());
    if open.len() >= most {
        let at = open.iter().position(|place| !place.is_answered()).unwrap_or(0);
        open.remove(at).iter().for_each(|place| place.closed.cancel());
    }
    let place = Arc::<Place>::default();
    open.push_back(place.clone());
    place
}

fn with<A, F>(answer: A, from: SocketAddr) -> impl Fn(Request<Incoming>) -> F
where
    A: Fn(Request<Incoming>, SocketAddr) -> F,
{
    move |request| answer(request, from)
}

async fn serve<A, F, B>(name: &'static str, stream: TcpStream, limits: Limits, place: Arc<Place>, answer: A)
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
        let (answering, place) = (answer(request), place.clone());
        async move {
            let answer = answering.await;
            let sending = Answering::begin(place);
            let held = move |error| {
                let _ = &sending;
                error
            };
            Ok::<_, Infallible>(answer.map(|body| body.map_err(held)))
        }
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
    use futures_util::StreamExt;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;
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
    async fn whoever_is_being_answered_keeps_its_place_however_many_come() {
        let (say, words) = mpsc::channel::<&'static [u8]>(1);
        let words = Arc::new(std::sync::Mutex::new(Some(words)));
        let answer = move |_, _| {
            let words = words.lock().unwrap().take().unwrap();
            let said = tokio_stream::wrappers::ReceiverStream::new(words);
            let frames = said.map(|word| Ok::<_, Infallible>(Frame::data(Bytes::from_static(word))));
            std::future::ready(Response::new(StreamBody::new(frames)))
        };
        let limits = Limits { connections: 2, ..limits() };
        let server = Server::bind("stream", "127.0.0.1:0".parse().unwrap(), limits, answer).await.unwrap();
        let mut follower = TcpStream::connect(server.addr()).await.unwrap();
        follower.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        follower.read_exact(&mut [0; 12]).await.unwrap();
        let mut strangers = Vec::new();
        for _ in 0..4 {
            strangers.push(TcpStream::connect(server.addr()).await.unwrap());
        }
        // Of all that come only the last one finds a place that stays.
        for stranger in &mut strangers[..3] {
            timeout(DEADLINE, stranger.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
        }
        say.send(b"the end").await.unwrap();
        drop(say);
        let mut rest = Vec::new();
        let mut piece = [0; 64];
        while !rest.ends_with(b"0\r\n\r\n") {
            let read = timeout(DEADLINE, follower.read(&mut piece)).await.unwrap().unwrap();
            assert!(read > 0, "cut off after {:?}", String::from_utf8_lossy(&rest));
            rest.extend_from_slice(&piece[..read]);
        }
        assert!(String::from_utf8_lossy(&rest).contains("the end"));
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
