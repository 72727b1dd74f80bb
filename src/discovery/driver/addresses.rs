//! Which addresses of a node are believed.

use libp2p::kad::store::RecordStore;
use libp2p::{Multiaddr, PeerId, kad};

use super::{dialable, multiaddr};

/// Addresses believed of one node, of a record, or dialled because of one message.
pub(super) const MAX_ADDRS: usize = 8;

/// Those that could be a node's, within bounds.
pub(super) fn addrs(addrs: &[Multiaddr]) -> impl Iterator<Item = Multiaddr> {
    let addrs: Vec<_> = addrs.iter().take(MAX_ADDRS).filter_map(dialable).map(multiaddr).collect();
    addrs.into_iter()
}

/// Takes where a node says that it is found. The table keeps all that it was ever told, and tells it to others.
pub(super) fn believe<S: RecordStore + Send + 'static>(kad: &mut kad::Behaviour<S>, peer: &PeerId, told: &[Multiaddr]) {
    // As the table keeps them.
    let told: Vec<Multiaddr> = addrs(told).filter_map(|addr| addr.with_p2p(*peer).ok()).collect();
    for addr in &told {
        kad.add_address(peer, addr.clone());
    }
    let known: Vec<Multiaddr> = kad.kbucket(*peer).map_or_else(Vec::new, |bucket| {
        let entry = bucket.iter().find(|entry| entry.node.key.preimage() == peer);
        entry.map_or_else(Vec::new, |entry| entry.node.value.iter().cloned().collect())
    });
    for addr in surplus(&known, &told) {
        kad.remove_address(peer, addr);
    }
}

/// Of those that are known, oldest first, the ones to forget.
fn surplus<'a>(known: &'a [Multiaddr], told: &'a [Multiaddr]) -> impl Iterator<Item = &'a Multiaddr> {
    let too_many = known.len().saturating_sub(MAX_ADDRS);
    known.iter().filter(|addr| !told.contains(addr)).take(too_many)
}

#[cfg(test)]
mod tests {
    use libp2p::kad::store::MemoryStore;

    use super::*;

    #[test]
    fn however_often_a_node_moves_few_addresses_of_it_are_known_and_those_that_it_told_last() {
        let ours = PeerId::random();
        let mut kad = kad::Behaviour::new(ours, MemoryStore::new(ours));
        let peer = PeerId::random();
        let told = |round: u8| {
            let addrs = (1..4u8).map(|n| format!("/ip4/10.0.{round}.{n}/tcp/4783/p2p/{peer}").parse().unwrap());
            addrs.collect::<Vec<Multiaddr>>()
        };
        for round in 0..100 {
            believe(&mut kad, &peer, &told(round));
        }
        let bucket = kad.kbucket(peer).unwrap();
        let known: Vec<_> = bucket.iter().flat_map(|entry| entry.node.value.iter().cloned()).collect();
        assert_eq!(known.len(), MAX_ADDRS);
        assert!(told(99).iter().all(|addr| known.contains(addr)) && told(98).iter().all(|addr| known.contains(addr)));
    }
}
