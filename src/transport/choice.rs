//! Which peers are asked over TCP at once, because UDP did not reach them. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::identity::NodeId;

/// Then UDP is tried again: the network may have been mended.
pub(super) const REMEMBERED: Duration = Duration::from_secs(600);

const MAX_PEERS: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Choice {
    until: HashMap<NodeId, Instant>,
}

impl Choice {
    /// UDP did not reach `node`, TCP did. True if that is news.
    pub(super) fn needs_tcp(&mut self, node: NodeId, now: Instant) -> bool {
        let is_news = self.until.get(&node).is_none_or(|until| *until <= now);
        if is_news && self.until.len() >= MAX_PEERS {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() < MAX_PEERS {
            self.until.insert(node, now + REMEMBERED);
        }
        is_news
    }

    pub(super) fn is_tcp(&self, node: NodeId, now: Instant) -> bool {
        self.until.get(&node).is_some_and(|until| *until > now)
    }

    /// TCP no longer reaches it either.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.until.remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    fn node(seed: u8) -> NodeId {
        PrivateKey::from_seed(seed).node_id()
    }

    #[test]
    fn a_peer_that_needed_tcp_is_asked_so_for_a_while_and_that_is_news_once() {
        let (mut choice, now) = (Choice::default(), Instant::now());
        assert!(!choice.is_tcp(node(1), now));
        assert!(choice.needs_tcp(node(1), now) && !choice.needs_tcp(node(1), now));
        assert!(choice.is_tcp(node(1), now + REMEMBERED / 2) && !choice.is_tcp(node(2), now));
        assert!(!choice.is_tcp(node(1), now + REMEMBERED));
        assert!(choice.needs_tcp(node(1), now + REMEMBERED));
        choice.forget(node(1));
        assert!(!choice.is_tcp(node(1), now + REMEMBERED));
    }

    #[test]
    fn a_full_table_makes_room_only_by_what_has_run_out() {
        let (mut choice, now) = (Choice::default(), Instant::now());
        for _ in 0..MAX_PEERS {
            choice.until.insert(PrivateKey::generate().unwrap().node_id(), now + REMEMBERED);
        }
        choice.needs_tcp(node(1), now);
        assert_eq!(choice.until.len(), MAX_PEERS);
        assert!(!choice.is_tcp(node(1), now));
        choice.needs_tcp(node(1), now + REMEMBERED);
        assert_eq!(choice.until.len(), 1);
    }
}
