//! The same node in libp2p's words: its peer id is its node key, and its addresses are TCP.

use std::net::SocketAddr;

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use libp2p::multiaddr::{Multiaddr, Protocol};

use crate::identity::NodeId;
use crate::protocol::metadata::Endpoint;

/// The multihash code of a peer id that is the key itself; all ed25519 ones are.
const INLINE: u64 = 0;

pub(super) fn keypair(mut seed: [u8; 32]) -> Option<Keypair> {
    Keypair::ed25519_from_bytes(&mut seed).ok()
}

/// `None` for a key that no node can have.
pub(super) fn node_of(peer: &PeerId) -> Option<NodeId> {
    let hash: &libp2p::multihash::Multihash<64> = peer.as_ref();
    if hash.code() != INLINE {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?.try_into_ed25519().ok()?;
    NodeId::from_bytes(&key.to_bytes()).ok()
}

pub(super) fn peer_of(node: &NodeId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(node.as_bytes()).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

pub(super) fn multiaddr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::from(addr.ip()).with(Protocol::Tcp(addr.port()))
}

/// The TCP address, if it is nothing but that and one that a node could have; see [`Endpoint`].
pub(super) fn dialable(addr: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = addr.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Some(Protocol::Tcp(port)) = parts.next() else { return None };
    match parts.next() {
        None | Some(Protocol::P2p(_)) => Endpoint::new(SocketAddr::new(ip, port)).ok().map(Endpoint::addr),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn a_peer_id_is_the_node_key() {
        for seed in 1..5 {
            let node = PrivateKey::from_seed(seed).node_id();
            let peer = peer_of(&node).unwrap();
            assert_eq!(node_of(&peer), Some(node));
            assert_eq!(keypair([seed; 32]).unwrap().public().to_peer_id(), peer);
        }
        assert_eq!(node_of(&PeerId::random()), None);
    }

    #[test]
    fn only_plain_tcp_addresses_of_hosts_are_dialled() {
        for addr in ["10.0.0.1:4780", "[2001:db8::1]:1", "127.0.0.1:9"] {
            assert_eq!(dialable(&multiaddr(addr.parse().unwrap())), Some(addr.parse().unwrap()));
        }
        for text in [
            "/ip4/169.254.169.254/tcp/80",
            "/ip4/0.0.0.0/tcp/80",
            "/ip4/10.0.0.1/tcp/0",
            "/ip4/10.0.0.1/udp/4780",
            "/ip4/10.0.0.1/tcp/4780/ws",
            "/dns4/example/tcp/4780",
            "/ip4/10.0.0.1",
        ] {
            assert_eq!(dialable(&text.parse().unwrap()), None, "{text}");
        }
    }
}
