//! Who has lately fetched what from us: whom to name when we are busy. Bounded; names are hints.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::digest::ArtifactId;
use crate::identity::NodeId;

const MAX_ARTIFACTS: usize = 1024;
const MAX_PEERS: usize = 16;
const FORGET_AFTER: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<HashMap<ArtifactId, Peers>>);

#[derive(Debug)]
struct Peers {
    /// Newest last.
    nodes: VecDeque<NodeId>,
    at: Instant,
}

impl Recent {
    pub(super) fn saw(&self, artifact: &ArtifactId, peer: NodeId, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_ARTIFACTS && !all.contains_key(artifact) {
            all.retain(|_, peers| now.saturating_duration_since(peers.at) < FORGET_AFTER);
            if all.len() >= MAX_ARTIFACTS {
                return;
            }
        }
        let peers = all.entry(*artifact).or_insert_with(|| Peers { nodes: VecDeque::new(), at: now });
        peers.at = now;
        peers.nodes.retain(|node| *node != peer);
        peers.nodes.push_back(peer);
        if peers.nodes.len() > MAX_PEERS {
            peers.nodes.pop_front();
        }
    }

    /// Newest first, without `peer` itself.
    pub(super) fn others(&self, artifact: &ArtifactId, peer: NodeId) -> Vec<NodeId> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = all.get(artifact).map(|peers| peers.nodes.iter().rev().filter(|node| **node != peer).copied());
        nodes.map(Iterator::collect).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn the_newest_come_first_and_the_table_is_bounded() {
        let recent = Recent::default();
        let now = Instant::now();
        let id = ArtifactId::of(b"a");
        let node = |seed: u8| PrivateKey::from_seed(seed).node_id();
        for seed in 1..=20 {
            recent.saw(&id, node(seed), now);
        }
        let others = recent.others(&id, node(20));
        assert_eq!(others.len(), MAX_PEERS - 1);
        assert_eq!(others[0], node(19));
        for n in 0..2 * MAX_ARTIFACTS {
            recent.saw(&ArtifactId::of(&n.to_be_bytes()), node(1), now);
        }
        assert_eq!(recent.0.lock().unwrap().len(), MAX_ARTIFACTS);
        recent.saw(&ArtifactId::of(b"later"), node(1), now + FORGET_AFTER);
        assert_eq!(recent.others(&ArtifactId::of(b"later"), node(2)), [node(1)]);
    }
}
