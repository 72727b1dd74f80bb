//! How much a server works at. Beyond it, callers are sent away at once and told when to come again: what waited in a queue
//! would be answered after its caller gave up.
//!
//! Look-ups and listings are sent away first: a node whose lease is not renewed is lost to all others, a node that looks up
//! a little later is not.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::identity::NodeId;
use crate::lifecycle::{Share, Shares};

/// When to come again; callers add jitter.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The trailer or header that says so, in milliseconds.
pub(super) const RETRY_AFTER_MS: &str = "retry-after-ms";

/// Requests that are worked at, from their head to their answer.
#[derive(Debug)]
pub(super) struct Room {
    places: Arc<Semaphore>,
    reserved: usize,
    shares: Shares<NodeId>,
}

/// One node has at most this part of the places: its requests may have bodies that do not come.
const SHARE: usize = 8;

/// Given back when the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Place {
    _permit: Arc<(OwnedSemaphorePermit, Share<NodeId>)>,
}

impl Room {
    /// A quarter of the places is reserved for announcements and withdrawals.
    pub(super) fn new(places: usize) -> Self {
        let shares = Shares::new((places / SHARE).max(1));
        Self { places: Arc::new(Semaphore::new(places)), reserved: places / 4, shares }
    }

    pub(super) fn enter(&self, node: NodeId) -> Option<Place> {
        let share = self.shares.take(node)?;
        let permit = self.places.clone().try_acquire_owned().ok()?;
        Some(Place { _permit: Arc::new((permit, share)) })
    }

    /// Whether only reserved places are left. To be asked by whoever has a place.
    pub(super) fn is_crowded(&self) -> bool {
        self.places.available_permits() < self.reserved
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
    fn the_last_quarter_of_the_places_is_reserved() {
        let room = Room::new(8);
        let mut places: Vec<Place> = (0..6).filter_map(|seed| room.enter(node(seed))).collect();
        assert!(places.len() == 6 && !room.is_crowded());
        places.extend(room.enter(node(6)));
        assert!(room.is_crowded());
        places.extend(room.enter(node(7)));
        assert!(room.enter(node(8)).is_none());
        places.truncate(1);
        assert!(room.enter(node(9)).is_some() && !room.is_crowded());
    }

    #[test]
    fn one_node_never_has_all_the_places() {
        let room = Room::new(64);
        let places: Vec<Place> = std::iter::from_fn(|| room.enter(node(1))).take(64).collect();
        assert_eq!(places.len(), 64 / SHARE);
        assert!(!room.is_crowded() && room.enter(node(2)).is_some());
    }
}
