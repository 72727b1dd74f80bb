//! Connections over TCP, for networks that lose UDP: TLS 1.3 with the same certificates and pins, and in it HTTP/2, of which
//! only the streams are of use here. They have what requests rely on: windows, a reset with a code, and an end that no cut
//! connection can imitate. One lost packet holds up all streams of a connection; that is the price.

mod socket;
mod stream;

use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, Request};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::sync::CancellationToken;

use super::traffic::{Counted, Traffic};
use super::{Carried, MAX_PIECE, StreamCode, TransportConfig, TransportError};
use crate::identity::{NodeId, NodeTls, PEER_ALPN, server_name};
use crate::lifecycle::Tasks;
pub(super) use stream::{RecvStream, SendStream};

/// After a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// For the last frames of a connection that is closed.
const FAREWELL: Duration = Duration::from_secs(1);

const MAX_HEADERS: u32 = 4 * 1024;

type Io = Counted<TlsStream<TcpStream>>;

/// The listener, and what dials.
pub(super) struct Side {
    listener: TcpListener,
    pub(super) local_addr: SocketAddr,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    settings: Settings,
    closing: watch::Sender<Option<StreamCode>>,
    tasks: Arc<Tasks>,
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    max_streams: u32,
    idle_timeout: Duration,
}

/// A connection that has arrived, and what completes it.
pub(super) struct Arrived {
    stream: TcpStream,
    pub(super) addr: SocketAddr,
    acceptor: TlsAcceptor,
    settings: Settings,
    closing: watch::Receiver<Option<StreamCode>>,
    tasks: Arc<Tasks>,
}

impl Side {
    pub(super) fn bind(listen: SocketAddr, config: &TransportConfig, tls: &NodeTls) -> Result<Self, TransportError> {
        let listener = socket::bind(listen).map_err(|source| TransportError::BindTcp { addr: listen, source })?;
        let local_addr = listener.local_addr().map_err(|source| TransportError::BindTcp { addr: listen, source })?;
        Ok(Self {
            listener,
            local_addr,
            acceptor: TlsAcceptor::from(Arc::new(tls.server_config(PEER_ALPN)?)),
            connector: TlsConnector::from(Arc::new(tls.client_config(PEER_ALPN)?)),
            settings: Settings { max_streams: config.max_streams, idle_timeout: config.idle_timeout },
            closing: watch::Sender::new(None),
            tasks: Arc::new(Tasks::new()),
        })
    }

    /// `None` once this side is closed.
    pub(super) async fn accept(&self) -> Option<Arrived> {
        let mut closing = self.closing.subscribe();
        loop {
            let accepted = tokio::select! {
                _ = ordered(&mut closing) => return None,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, addr)) => {
                    let (acceptor, closing) = (self.acceptor.clone(), self.closing.subscribe());
                    let (settings, tasks) = (self.settings, self.tasks.clone());
                    return Some(Arrived { stream, addr, acceptor, settings, closing, tasks });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a peer over TCP");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    pub(super) async fn dial(&self, node: NodeId, addr: SocketAddr) -> Result<Connection, TransportError> {
        let refused = |reason: String| TransportError::Refused { addr, reason };
        let stream = TcpStream::connect(addr).await.map_err(|source| TransportError::Unreachable { addr, source })?;
        socket::prepare(&stream, self.settings.idle_timeout)
            .map_err(|source| TransportError::Unreachable { addr, source })?;
        let name = ServerName::try_from(server_name(node)).map_err(|error| refused(error.to_string()))?;
        let tls = self.connector.connect(name, stream).await.map_err(|error| refused(error.to_string()))?;
        let tls = TlsStream::Client(tls);
        let peer = socket::peer_of(&tls).ok_or_else(|| refused("the peer shows no node certificate".to_owned()))?;
        let traffic = Arc::new(Traffic::default());
        let (sender, driver) = h2::client::Builder::new()
            .enable_push(false)
            // The windows of a puller over QUIC.
            .initial_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(32 * 1024 * 1024)
            .max_frame_size(MAX_PIECE)
            .max_header_list_size(MAX_HEADERS)
            .max_send_buffer_size(64 * 1024)
            .handshake(Counted::new(tls, traffic.clone()))
            .await
            .map_err(|error| refused(error.to_string()))?;
        let (connection, control) = Connection::new(peer, addr, traffic, Way::Out(sender));
        let closing = self.closing.subscribe();
        let token = self.tasks.token().clone();
        self.tasks.spawn_finishing("TCP connection to a peer", drive_out(driver, control, closing, token));
        Ok(connection)
    }

    pub(super) async fn close(&self, code: StreamCode) {
        self.closing.send_replace(Some(code));
        self.tasks.shutdown(FAREWELL).await;
    }
}

impl Arrived {
    pub(super) async fn handshake(self) -> Result<Connection, TransportError> {
        let addr = self.addr;
        let refused = |reason: String| TransportError::Refused { addr, reason };
        socket::prepare(&self.stream, self.settings.idle_timeout)
            .map_err(|source| TransportError::Unreachable { addr, source })?;
        let line = socket::duplicate(&self.stream).map_err(|source| TransportError::Unreachable { addr, source })?;
        let tls = self.acceptor.accept(self.stream).await.map_err(|error| refused(error.to_string()))?;
        let tls = TlsStream::Server(tls);
        let peer = socket::peer_of(&tls).ok_or_else(|| refused("the peer shows no node certificate".to_owned()))?;
        let traffic = Arc::new(Traffic::default());
        let driver = h2::server::Builder::new()
            // Requests are small.
            .initial_window_size(64 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .max_concurrent_streams(self.settings.max_streams)
            .max_pending_accept_reset_streams(self.settings.max_streams as usize)
            .max_header_list_size(MAX_HEADERS)
            .max_send_buffer_size(1024 * 1024)
            .handshake(Counted::new(tls, traffic.clone()))
            .await
            .map_err(|error| refused(error.to_string()))?;
        // h2 allows no more at a time, so there is always room.
        let (requests, arriving) = mpsc::channel(self.settings.max_streams as usize);
        let (connection, control) = Connection::new(peer, addr, traffic, Way::In(Arc::new(Mutex::new(arriving))));
        let token = self.tasks.token().clone();
        let driving = drive_in(driver, line, requests, control, self.closing, token);
        self.tasks.spawn_finishing("TCP connection of a peer", driving);
        Ok(connection)
    }
}

/// The order to close, when there is one.
async fn ordered(orders: &mut watch::Receiver<Option<StreamCode>>) -> StreamCode {
    match orders.wait_for(Option::is_some).await.map(|code| *code) {
        Ok(Some(code)) => code,
        // Nobody is left who could give one.
        _ => pending().await,
    }
}

/// The halves of one request's stream.
type Exchange = (SendStream, RecvStream);
type Arriving = Arc<Mutex<mpsc::Receiver<Exchange>>>;

#[derive(Debug, Clone)]
enum Way {
    Out(h2::client::SendRequest<Bytes>),
    In(Arriving),
}

/// Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    peer: NodeId,
    addr: SocketAddr,
    traffic: Arc<Traffic>,
    orders: watch::Sender<Option<StreamCode>>,
    end: Arc<End>,
    way: Way,
}

/// How a connection has ended.
#[derive(Debug, Default)]
struct End {
    over: CancellationToken,
    why: OnceLock<Why>,
}

#[derive(Debug)]
enum Why {
    Code(StreamCode),
    Lost(String),
}

/// The driver's half of a connection.
struct Control {
    orders: watch::Receiver<Option<StreamCode>>,
    end: Arc<End>,
}

impl Control {
    fn ended(&self, why: Why) {
        // The first reason is the reason.
        let _ = self.end.why.set(why);
        self.end.over.cancel();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.ended(Why::Lost("the endpoint was dropped".to_owned()));
    }
}

impl Connection {
    fn new(peer: NodeId, addr: SocketAddr, traffic: Arc<Traffic>, way: Way) -> (Self, Control) {
        let (orders, receiver) = watch::channel(None);
        let end = Arc::new(End::default());
        let control = Control { orders: receiver, end: end.clone() };
        (Self { peer, addr, traffic, orders, end, way }, control)
    }

    pub(super) fn peer(&self) -> NodeId {
        self.peer
    }

    pub(super) fn remote_address(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn carried(&self) -> Carried {
        self.traffic.carried()
    }

    pub(super) async fn open(&self) -> Result<Exchange, TransportError> {
        let Way::Out(sender) = &self.way else {
            return Err(TransportError::Lost("only who dials opens streams over TCP".to_owned()));
        };
        let mut sender = sender.clone().ready().await.map_err(|error| self.lost(&error))?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = hyper::Uri::from_static("https://peer/");
        let (answer, stream) = sender.send_request(request, false).map_err(|error| self.lost(&error))?;
        Ok((SendStream::asking(stream), RecvStream::awaiting(answer)))
    }

    pub(super) async fn accept(&self) -> Result<Exchange, TransportError> {
        let next = match &self.way {
            Way::In(arriving) => arriving.lock().await.recv().await,
            Way::Out(_) => {
                self.end.over.cancelled().await;
                None
            }
        };
        next.ok_or_else(|| self.why())
    }

    fn why(&self) -> TransportError {
        match self.end.why.get() {
            Some(Why::Code(code)) => TransportError::Reset(*code),
            Some(Why::Lost(text)) => TransportError::Lost(text.clone()),
            None => TransportError::Lost("connection closed".to_owned()),
        }
    }

    fn lost(&self, error: &h2::Error) -> TransportError {
        if self.end.why.get().is_some() { self.why() } else { stream::failed(error) }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.end.over.is_cancelled()
    }

    pub(super) async fn closed(&self) {
        self.end.over.cancelled().await;
    }

    pub(super) fn close(&self, code: StreamCode) {
        self.orders.send_replace(Some(code));
    }
}

/// Until the connection ends or is told to. A holder that is told so hears no code: HTTP/2 has none for that way.
async fn drive_out(
    driver: h2::client::Connection<Io, Bytes>,
    mut control: Control,
    mut closing: watch::Receiver<Option<StreamCode>>,
    token: CancellationToken,
) {
    let why = tokio::select! {
        biased;
        code = ordered(&mut control.orders) => Why::Code(code),
        code = ordered(&mut closing) => Why::Code(code),
        () = token.cancelled() => Why::Code(StreamCode::Done),
        ended = driver => match ended {
            Ok(()) => Why::Lost("closed by the peer".to_owned()),
            Err(error) => why(&error),
        },
    };
    control.ended(why);
}

async fn drive_in(
    mut driver: h2::server::Connection<Io, Bytes>,
    mut line: TcpStream,
    requests: mpsc::Sender<Exchange>,
    mut control: Control,
    mut closing: watch::Receiver<Option<StreamCode>>,
    token: CancellationToken,
) {
    let code = loop {
        tokio::select! {
            // Who closes says why before the tasks are cancelled.
            biased;
            code = ordered(&mut control.orders) => break code,
            code = ordered(&mut closing) => break code,
            () = token.cancelled() => break StreamCode::Done,
            () = requests.closed() => break StreamCode::Done,
            accepted = driver.accept() => match accepted {
                Some(Ok((request, answer))) => {
                    let pair = (SendStream::answering(answer), RecvStream::of(request.into_body()));
                    // Dropped, and so reset, if nobody takes requests any more.
                    let _ = requests.try_send(pair);
                }
                Some(Err(error)) => return control.ended(why(&error)),
                None => return control.ended(Why::Lost("closed by the peer".to_owned())),
            },
        }
    };
    driver.abrupt_shutdown(code.http2());
    let farewell = async {
        if poll_fn(|cx| driver.poll_closed(cx)).await.is_ok() {
            drop(driver);
            // What the peer has sent meanwhile is read: closing on unread bytes would take the reason from it.
            let _ = tokio::io::copy(&mut line, &mut tokio::io::sink()).await;
        }
    };
    // A peer that does not take it finds out when the connection is gone.
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    control.ended(Why::Code(code));
}

fn why(error: &h2::Error) -> Why {
    match stream::failed(error) {
        TransportError::Reset(code) => Why::Code(code),
        _ => Why::Lost(error.to_string()),
    }
}

/// Codes of streams, beyond those that HTTP/2 has a use for.
const OUR_CODES: u32 = 0x5741_0000;

impl StreamCode {
    fn http2(self) -> h2::Reason {
        h2::Reason::from(OUR_CODES + self.number())
    }

    fn from_http2(reason: h2::Reason) -> Option<Self> {
        u32::from(reason).checked_sub(OUR_CODES).filter(|number| *number < 0x1_0000).map(Self::from_number)
    }
}
