//! Which chunks were lately sent to whom, so that many who begin together get different ones. Bounded; a hint.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::artifact::Bitmap;
use crate::digest::ArtifactId;
use crate::identity::NodeId;

const MAX_ARTIFACTS: usize = 64;

/// Nodes told apart for one artifact; what more of them were given is not noted.
const MAX_NODES: usize = 4096;

/// By then whoever was given a chunk has told that it has it.
const FORGET_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Given(HashMap<ArtifactId, Chunks>);

#[derive(Debug)]
struct Chunks {
    since: Instant,
    /// Numbers from 1 on.
    nodes: HashMap<NodeId, u16>,
    /// For each chunk the number of who got it last; 0 for nobody.
    last: Vec<u16>,
}

impl Given {
    /// Whether no other node was given one of these of an artifact's `count` chunks; the error is what others were given.
    pub(super) fn check(
        &self,
        artifact: &ArtifactId,
        count: usize,
        indices: &[u32],
        peer: NodeId,
        now: Instant,
    ) -> Result<(), Bitmap> {
        let Some(chunks) = self.0.get(artifact).filter(|chunks| !chunks.is_old(now)) else { return Ok(()) };
        let mine = chunks.nodes.get(&peer).copied().unwrap_or(0);
        let others = |last: u16| last != 0 && last != mine;
        if !indices.iter().any(|index| chunks.last.get(*index as usize).is_some_and(|last| others(*last))) {
            return Ok(());
        }
        let mut given = Bitmap::empty(count);
        chunks.last.iter().enumerate().for_each(|(index, last)| given.set(index, others(*last)));
        Err(given)
    }

    /// `peer` gets these.
    pub(super) fn note(&mut self, artifact: &ArtifactId, count: usize, indices: &[u32], peer: NodeId, now: Instant) {
        self.0.retain(|_, chunks| !chunks.is_old(now));
        if self.0.len() >= MAX_ARTIFACTS && !self.0.contains_key(artifact) {
            return;
        }
        let none = || Chunks { since: now, nodes: HashMap::new(), last: vec![0; count] };
        let chunks = self.0.entry(*artifact).or_insert_with(none);
        let Some(number) = chunks.number(peer) else { return };
        for index in indices {
            if let Some(last) = chunks.last.get_mut(*index as usize) {
                *last = number;
            }
        }
    }

    /// `peer` hands nothing on: what it was given counts as given to nobody.
    pub(super) fn forget(&mut self, peer: &NodeId) {
        for chunks in self.0.values_mut() {
            if let Some(number) = chunks.nodes.get(peer) {
                chunks.last.iter_mut().filter(|last| *last == number).for_each(|last| *last = 0);
            }
        }
    }
}

impl Chunks {
    fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= FORGET_AFTER
    }

    fn number(&mut self, peer: NodeId) -> Option<u16> {
        let next = self.nodes.len() + 1;
        match self.nodes.get(&peer) {
            Some(number) => Some(*number),
            None if next > MAX_NODES => None,
            None => {
                let number = u16::try_from(next).ok()?;
                self.nodes.insert(peer, number);
                Some(number)
            }
        }
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
    fn fresh_is_what_no_other_node_was_given_lately() {
        let (mut given, id, now) = (Given::default(), ArtifactId::of(b"a"), Instant::now());
        given.note(&id, 10, &[1, 2], node(1), now);
        let others = |given: &Given, indices: &[u32], seed, now| {
            given.check(&id, 10, indices, node(seed), now).map_err(|given| given.ones().collect::<Vec<_>>())
        };
        assert_eq!(others(&given, &[2], 1, now), Ok(()), "the same node again");
        assert_eq!(others(&given, &[3, 2], 2, now), Err(vec![1, 2]));
        assert_eq!(others(&given, &[3], 3, now), Ok(()));
        given.note(&id, 10, &[2], node(2), now);
        assert_eq!(others(&given, &[2], 1, now), Err(vec![2]));
        assert_eq!(others(&given, &[2], 3, now + FORGET_AFTER), Ok(()));
    }

    #[test]
    fn what_one_node_was_given_is_fresh_again_and_no_other() {
        let (mut given, id, now) = (Given::default(), ArtifactId::of(b"a"), Instant::now());
        given.note(&id, 10, &[1, 2], node(1), now);
        given.note(&id, 10, &[2, 3], node(2), now);
        given.forget(&node(1));
        given.forget(&node(9));
        assert_eq!(given.check(&id, 10, &[1], node(3), now), Ok(()));
        let others = given.check(&id, 10, &[2], node(3), now).unwrap_err();
        assert_eq!(others.ones().collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn of_more_than_255_nodes_the_last_one_is_told_from_the_first() {
        let (mut given, id, now) = (Given::default(), ArtifactId::of(b"a"), Instant::now());
        let chunks = Chunks { since: now, nodes: HashMap::new(), last: vec![0; 10] };
        let chunks = given.0.entry(id).or_insert(chunks);
        for seed in 0..=u8::MAX {
            chunks.number(node(seed));
        }
        assert_eq!(chunks.nodes.len(), 256);
        given.note(&id, 10, &[7], node(u8::MAX), now);
        assert!(given.check(&id, 10, &[7], node(0), now).is_err());
        assert!(given.check(&id, 10, &[7], node(u8::MAX), now).is_ok());
    }

    #[test]
    fn the_table_is_bounded_and_beyond_it_everything_is_fresh() {
        let (mut given, now) = (Given::default(), Instant::now());
        for number in 0..=MAX_ARTIFACTS as u32 {
            let id = ArtifactId::of(&number.to_be_bytes());
            given.note(&id, 1, &[0], node(1), now);
            assert_eq!(given.check(&id, 1, &[0], node(2), now).is_ok(), number == MAX_ARTIFACTS as u32);
        }
    }
}
