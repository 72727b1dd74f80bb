//! Where in the DHT an identity is found. The identity's digest covers its family.

use crate::digest::IdentityId;
use crate::identity::NodeId;

/// Distinguishes our keys from everything else that is hashed.
const CONTEXT: &str = "warmd discovery 1: holders of an identity";

/// Into how many keys the holders of one identity are spread, so that an identity that every node holds does not rest on
/// the same twenty nodes. A smaller number's keys are among the larger one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shards {
    One,
    Four,
    Sixteen,
}

impl Shards {
    /// By the size of the routing table, which grows by about twenty with each doubling of the cluster: about 100 nodes fill
    /// 64 places, and about 400 nodes 105.
    pub(super) fn for_table(peers: usize) -> Self {
        match peers {
            0..=64 => Self::One,
            65..=105 => Self::Four,
            _ => Self::Sixteen,
        }
    }

    /// What a node that sees the cluster as larger would use.
    pub(super) fn more(self) -> Self {
        match self {
            Self::One => Self::Four,
            Self::Four | Self::Sixteen => Self::Sixteen,
        }
    }

    pub(super) fn count(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Four => 4,
            Self::Sixteen => 16,
        }
    }

    /// The one that a node announces itself in.
    pub(super) fn of(self, node: &NodeId) -> u8 {
        blake3::hash(node.as_bytes()).as_bytes()[0] % self.count()
    }
}

pub(super) fn key(identity: &IdentityId, shard: u8) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(identity.as_bytes()).update(&[shard]);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn each_identity_and_shard_has_a_key_of_its_own() {
        let (a, b) = (IdentityId::of(b"a"), IdentityId::of(b"b"));
        let keys: HashSet<_> = (0..16).flat_map(|shard| [key(&a, shard), key(&b, shard)]).collect();
        assert_eq!(keys.len(), 32);
        assert_eq!(key(&a, 3), key(&a, 3));
    }

    #[test]
    fn a_node_that_sees_a_smaller_cluster_announces_where_others_look() {
        for seed in 1..50 {
            let node = PrivateKey::from_seed(seed).node_id();
            for shards in [Shards::One, Shards::Four, Shards::Sixteen] {
                assert!(shards.of(&node) < shards.count());
                assert!(shards.of(&node) < shards.more().count());
            }
        }
        assert_eq!([0, 64, 65, 106].map(Shards::for_table), [Shards::One, Shards::One, Shards::Four, Shards::Sixteen]);
    }
}
