//! Ports that somebody takes later, and ones where nobody ever listens.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::net::TcpSocket;
use warmd::discovery::beside;

/// Below those that the kernel gives to who asks for any, so that nobody has it meanwhile, or while a server that listened
/// there is away.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Agents find each other on the port [`beside`] that of their peers, so one of four is given away.
const APART: u16 = 4;

/// An address that is free, for TCP and for UDP; the one beside it is free, too.
pub fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Other processes have tests, too.
    let begin = (std::process::id() % 10) as u16 * 1_200;
    let port = || PORTS.start + (begin + NEXT.fetch_add(APART, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
    let is_free = |addr: SocketAddr| UdpSocket::bind(addr).is_ok() && TcpListener::bind(addr).is_ok();
    let any = std::iter::repeat_with(|| SocketAddr::from(([127, 0, 0, 1], port()))).take(3_000);
    any.into_iter().find(|addr| is_free(*addr) && is_free(beside(*addr))).unwrap()
}

/// An address where nobody listens, and nobody else does as long as the socket is kept.
pub fn deaf() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}
