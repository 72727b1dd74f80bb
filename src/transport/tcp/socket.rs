//! TCP sockets, as a transport between nodes wants them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsStream;

use crate::identity::NodeId;

const BACKLOG: i32 = 1024;

pub(super) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // A port whose last connections are not forgotten yet can be listened on again.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The kernel notices a peer that is gone, as QUIC would.
pub(super) fn prepare(stream: &TcpStream, idle_timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let third = idle_timeout / 3;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(third).with_interval(third).with_retries(3))?;
    socket.set_tcp_user_timeout(Some(idle_timeout))
}

/// The same connection once more.
pub(super) fn duplicate(stream: &TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(socket2::SockRef::from(stream).try_clone()?.into())
}

pub(super) fn peer_of(tls: &TlsStream<TcpStream>) -> Option<NodeId> {
    let certificates: &[CertificateDer<'_>] = tls.get_ref().1.peer_certificates()?;
    NodeId::from_certificate(certificates.first()?)
}
