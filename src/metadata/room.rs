//! How much a server works at. Beyond it, callers are sent away at once and told when to come again: what waited in a queue
//! would be answered after its caller gave up.
//!
//! Look-ups and listings are sent away first: a node whose lease is not renewed is lost to all others, a node that looks up
//! a little later is not.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// When to come again; callers add jitter.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The trailer or header that says so, in milliseconds.
pub(super) const RETRY_AFTER_MS: &str = "retry-after-ms";

/// Requests that are worked at, from their head to their answer.
#[derive(Debug)]
pub(super) struct Room {
    places: Arc<Semaphore>,
    reserved: usize,
}

/// Given back when the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Room {
    /// A quarter of the places is reserved for announcements and withdrawals.
    pub(super) fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), reserved: places / 4 }
    }

    pub(super) fn enter(&self) -> Option<Place> {
        let permit = self.places.clone().try_acquire_owned().ok()?;
        Some(Place { _permit: Arc::new(permit) })
    }

    /// Whether only reserved places are left. To be asked by whoever has a place.
    pub(super) fn is_crowded(&self) -> bool {
        self.places.available_permits() < self.reserved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_quarter_of_the_places_is_reserved() {
        let room = Room::new(8);
        let mut places: Vec<Place> = (0..6).filter_map(|_| room.enter()).collect();
        assert!(places.len() == 6 && !room.is_crowded());
        places.extend(room.enter());
        assert!(room.is_crowded());
        places.extend(room.enter());
        assert!(room.enter().is_none());
        places.truncate(1);
        assert!(room.enter().is_some() && !room.is_crowded());
    }
}
