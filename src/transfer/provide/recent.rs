//! Who has lately asked for what here: whom to name when there is no slot. Bounded; names are hints.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::seq::index::sample;

use crate::digest::ArtifactId;
use crate::identity::NodeId;
use crate::protocol::peer::{MAX_OTHERS, Neighbour};

const MAX_ARTIFACTS: usize = 256;
const MAX_PEERS: usize = 256;
const FORGET_AFTER: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct Recent(HashMap<ArtifactId, Peers>);

#[derive(Debug)]
struct Peers {
    nodes: Vec<Neighbour>,
    /// The place that whoever comes to a full list takes.
    next: usize,
    at: Instant,
}

impl Recent {
    pub(super) fn saw(&mut self, artifact: &ArtifactId, peer: Neighbour, now: Instant) {
        if self.0.len() >= MAX_ARTIFACTS && !self.0.contains_key(artifact) {
            self.0.retain(|_, peers| now.saturating_duration_since(peers.at) < FORGET_AFTER);
            if self.0.len() >= MAX_ARTIFACTS {
                return;
            }
        }
        let peers = self.0.entry(*artifact).or_insert_with(|| Peers { nodes: Vec::new(), next: 0, at: now });
        peers.at = now;
        match peers.nodes.iter().position(|known| known.node == peer.node) {
            Some(at) => peers.nodes[at] = peer,
            None if peers.nodes.len() < MAX_PEERS => peers.nodes.push(peer),
            None => {
                peers.nodes[peers.next] = peer;
                peers.next = (peers.next + 1) % MAX_PEERS;
            }
        }
    }

    /// Some of them at random, so that many who are sent away together do not all meet at the same few; without `peer`.
    pub(super) fn others<R: Rng + ?Sized>(&self, artifact: &ArtifactId, peer: NodeId, rng: &mut R) -> Vec<Neighbour> {
        let Some(peers) = self.0.get(artifact) else { return Vec::new() };
        // One more, in place of `peer`.
        let some = sample(rng, peers.nodes.len(), peers.nodes.len().min(MAX_OTHERS + 1));
        some.iter().map(|at| peers.nodes[at]).filter(|other| other.node != peer).take(MAX_OTHERS).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::identity::PrivateKey;

    fn neighbour(seed: u8) -> Neighbour {
        let endpoint = format!("10.0.0.{seed}:4780").parse().unwrap();
        Neighbour { node: PrivateKey::from_seed(seed).node_id(), endpoint }
    }

    #[test]
    fn each_hears_of_others_and_in_time_of_all() {
        let (mut recent, now, id) = (Recent::default(), Instant::now(), ArtifactId::of(b"a"));
        let mut rng = SmallRng::seed_from_u64(3);
        (1..=40).for_each(|seed| recent.saw(&id, neighbour(seed), now));
        let me = neighbour(7).node;
        let mut told = BTreeSet::new();
        for _ in 0..50 {
            let others = recent.others(&id, me, &mut rng);
            assert_eq!(others.iter().map(|other| other.node).collect::<BTreeSet<_>>().len(), MAX_OTHERS);
            told.extend(others.into_iter().map(|other| other.node));
        }
        assert!(told.len() == 39 && !told.contains(&me));
    }

    #[test]
    fn the_tables_are_bounded_and_forget_what_is_old() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        let id = |n: usize| ArtifactId::of(&n.to_be_bytes());
        (0..2 * MAX_ARTIFACTS).for_each(|n| recent.saw(&id(n), neighbour(1), now));
        assert_eq!(recent.0.len(), MAX_ARTIFACTS);
        recent.saw(&id(usize::MAX), neighbour(1), now + FORGET_AFTER);
        let others = recent.others(&id(usize::MAX), neighbour(2).node, &mut SmallRng::seed_from_u64(3));
        assert_eq!(others, [neighbour(1)]);
        assert_eq!(recent.0.len(), 1);
    }
}
