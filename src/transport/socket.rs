//! UDP sockets with large buffers. The kernel clamps what it is asked for and says nothing, so the sizes are read back.

use std::net::SocketAddr;
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};

use super::{TransportConfig, TransportError};

/// Bytes that the kernel gave for receiving and for sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    pub receive: usize,
    pub send: usize,
}

pub(super) fn bind(
    addr: SocketAddr,
    config: &TransportConfig,
    server: Option<quinn::ServerConfig>,
) -> Result<(quinn::Endpoint, Buffers), TransportError> {
    let failed = |source| TransportError::Bind { addr, source };
    let (socket, buffers) = open(addr, config.socket_buffer).map_err(failed)?;
    if server.is_some() {
        report(buffers, config.socket_buffer);
    }
    let mut endpoint = quinn::EndpointConfig::default();
    endpoint
        .max_udp_payload_size(config.max_datagram)
        .map_err(|_| TransportError::Config("`transport.max_datagram` is too small"))?;
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = quinn::Endpoint::new(endpoint, server, socket.into(), runtime).map_err(failed)?;
    Ok((endpoint, buffers))
}

fn open(addr: SocketAddr, wanted: usize) -> std::io::Result<(Socket, Buffers)> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(wanted)?;
    socket.set_send_buffer_size(wanted)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    // Linux reports twice what it counts for payload.
    let buffers = Buffers { receive: socket.recv_buffer_size()? / 2, send: socket.send_buffer_size()? / 2 };
    Ok((socket, buffers))
}

fn report(buffers: Buffers, wanted: usize) {
    let Buffers { receive, send } = buffers;
    if receive < wanted / 2 || send < wanted / 2 {
        tracing::warn!(
            receive_bytes = receive,
            send_bytes = send,
            wanted_bytes = wanted,
            "the kernel gave small UDP buffers: transfers will lose packets; \
             raise them with `sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted}`"
        );
    } else {
        tracing::info!(receive_bytes = receive, send_bytes = send, "UDP socket buffers");
    }
}
