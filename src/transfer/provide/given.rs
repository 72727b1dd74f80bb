//! Which chunks were lately sent to whom, so that many who begin together get different ones. Bounded; a hint.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::artifact::Bitmap;
use crate::digest::ArtifactId;
use crate::identity::NodeId;

const MAX_ARTIFACTS: usize = 64;

/// Nodes told apart for one artifact; what more of them were given is not noted.
const MAX_NODES: usize = u8::MAX as usize;

/// By then whoever was given a chunk has told that it has it.
const FORGET_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Given(Mutex<HashMap<ArtifactId, Chunks>>);

#[derive(Debug)]
struct Chunks {
    since: Instant,
    nodes: Vec<NodeId>,
    /// For each chunk the place in `nodes` of who got it last, and one; 0 for nobody.
    last: Vec<u8>,
}

impl Given {
    /// Notes that `peer` gets these of an artifact's `count` chunks. If they are to be fresh and another node was given one
    /// of them, nothing is noted, and the error is what others were given.
    pub(super) fn give(
        &self,
        artifact: &ArtifactId,
        count: usize,
        indices: &[u32],
        peer: NodeId,
        fresh: bool,
        now: Instant,
    ) -> Result<(), Bitmap> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, chunks| now.saturating_duration_since(chunks.since) < FORGET_AFTER);
        if all.len() >= MAX_ARTIFACTS && !all.contains_key(artifact) {
            return Ok(());
        }
        let chunks =
            all.entry(*artifact).or_insert_with(|| Chunks { since: now, nodes: Vec::new(), last: vec![0; count] });
        let place = chunks.place(peer);
        let others = |last: u8| last != 0 && Some(last) != place;
        if fresh && indices.iter().any(|index| chunks.last.get(*index as usize).is_some_and(|last| others(*last))) {
            let mut given = Bitmap::empty(count);
            chunks.last.iter().enumerate().for_each(|(index, last)| given.set(index, others(*last)));
            return Err(given);
        }
        for index in indices {
            if let (Some(last), Some(place)) = (chunks.last.get_mut(*index as usize), place) {
                *last = place;
            }
        }
        Ok(())
    }
}

impl Chunks {
    fn place(&mut self, peer: NodeId) -> Option<u8> {
        let known = self.nodes.iter().position(|node| *node == peer);
        let index = known.or_else(|| {
            let free = self.nodes.len() < MAX_NODES;
            free.then(|| {
                self.nodes.push(peer);
                self.nodes.len() - 1
            })
        });
        index.and_then(|index| u8::try_from(index + 1).ok())
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
        let (given, id, now) = (Given::default(), ArtifactId::of(b"a"), Instant::now());
        let ask = |indices: &[u32], seed, fresh, now| given.give(&id, 10, indices, node(seed), fresh, now);
        assert_eq!(ask(&[1, 2], 1, true, now), Ok(()));
        assert_eq!(ask(&[2], 1, true, now), Ok(()), "the same node again");
        let told = ask(&[3, 2], 2, true, now).unwrap_err();
        assert_eq!(told.ones().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(ask(&[3], 3, true, now), Ok(()), "a refusal notes nothing");
        assert_eq!(ask(&[2], 2, false, now), Ok(()), "whoever insists gets it");
        assert_eq!(ask(&[2], 1, true, now).unwrap_err().ones().collect::<Vec<_>>(), [2, 3]);
        assert_eq!(ask(&[2], 1, true, now + FORGET_AFTER), Ok(()));
    }

    #[test]
    fn the_table_is_bounded_and_beyond_it_everything_is_fresh() {
        let (given, now) = (Given::default(), Instant::now());
        for number in 0..=MAX_ARTIFACTS as u32 {
            let id = ArtifactId::of(&number.to_be_bytes());
            assert_eq!(given.give(&id, 1, &[0], node(1), true, now), Ok(()));
            let again = given.give(&id, 1, &[0], node(2), true, now);
            assert_eq!(again.is_ok(), number == MAX_ARTIFACTS as u32);
        }
    }
}
