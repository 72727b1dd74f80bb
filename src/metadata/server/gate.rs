//! From a TCP connection to one that gRPC may have: there is room, and a certificate that is admitted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Peer};
use crate::identity::NodeId;
use crate::lifecycle::Shares;
use crate::lifecycle::Tasks;
use crate::metadata::metrics::{Metrics, Reject};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection passes through before it reaches gRPC.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) acceptor: TlsAcceptor,
    pub(super) slots: Arc<Semaphore>,
    pub(super) of_nodes: Shares<NodeId>,
    pub(super) ready: mpsc::Sender<io::Result<Connection>>,
    pub(super) cut: CancellationToken,
    pub(super) metrics: Metrics,
}

/// Until `drain`.
pub(super) async fn accept(listener: TcpListener, gate: Gate, handshakes: Tasks, drain: CancellationToken) {
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((stream, addr)) => match gate.slots.clone().try_acquire_owned() {
                    Ok(slot) => handshakes.spawn("metadata handshake", handshake(gate.clone(), stream, addr, slot)),
                    Err(_) => gate.metrics.reject(Reject::Full),
                },
                Err(error) => {
                    // Out of descriptors: wait for some to be closed instead of spinning.
                    tracing::warn!(%error, "accept metadata connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    drain.run_until_cancelled(accepting).await;
}

async fn handshake(gate: Gate, stream: TcpStream, addr: SocketAddr, slot: OwnedSemaphorePermit) {
    // Small answers wait for nothing.
    let _ = stream.set_nodelay(true);
    let node = match tokio::time::timeout(HANDSHAKE_TIMEOUT, gate.acceptor.accept(stream)).await {
        Ok(Ok(tls)) => {
            let certificates = tls.get_ref().1.peer_certificates();
            certificates.and_then(|chain| chain.first()).and_then(NodeId::from_certificate).map(|node| (tls, node))
        }
        Ok(Err(error)) => {
            tracing::debug!(%addr, %error, "metadata handshake");
            None
        }
        Err(_) => None,
    };
    let Some((tls, node)) = node else {
        gate.metrics.reject(Reject::Handshake);
        return;
    };
    let Some(share) = gate.of_nodes.take(node) else {
        gate.metrics.reject(Reject::Full);
        return;
    };
    let slot = (slot, share);
    let connection = Connection::new(tls, Peer { node, addr }, slot, gate.cut, gate.metrics.connections.clone());
    // Fails only when the server ends.
    let _ = gate.ready.send(Ok(connection)).await;
}
