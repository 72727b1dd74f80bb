//! How much of something one node may have at a time, so that an admitted node cannot take all there is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::NodeId;

type Counts = Arc<Mutex<HashMap<NodeId, usize>>>;

/// Counts what each node has. Clones count together.
#[derive(Debug, Clone)]
pub struct Shares {
    most: usize,
    counts: Counts,
}

/// One of a node's; given back when dropped.
#[derive(Debug)]
pub struct Share {
    node: NodeId,
    counts: Counts,
}

impl Shares {
    pub fn new(most: usize) -> Self {
        Self { most, counts: Counts::default() }
    }

    /// `None` if the node has as many as it may.
    pub fn take(&self, node: NodeId) -> Option<Share> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&node).copied().unwrap_or(0);
        if count >= self.most {
            return None;
        }
        counts.insert(node, count + 1);
        Some(Share { node, counts: self.counts.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(&self.node) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.node)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn a_node_has_its_share_and_no_more_whatever_others_have() {
        let (shares, node) = (Shares::new(2), |seed| PrivateKey::from_seed(seed).node_id());
        let (first, second) = (shares.take(node(1)), shares.take(node(1)));
        assert!(first.is_some() && second.is_some());
        assert!(shares.take(node(1)).is_none());
        let other = shares.take(node(2));
        assert!(other.is_some());
        drop(first);
        assert!(shares.take(node(1)).is_some());
        drop((second, other));
        assert!(shares.counts.lock().unwrap().is_empty(), "nothing is remembered of those who have nothing");
    }
}
