//! Places for requests, and whether any of them is taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

pub(super) struct Slots {
    max: usize,
    taken: AtomicUsize,
    /// Zero exactly while none is taken; how many else is as of the last change to or from that.
    told: watch::Sender<usize>,
}

/// One place, until it is dropped.
pub(super) struct Slot(Arc<Slots>);

impl Slots {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: AtomicUsize::new(0), told: watch::Sender::new(0) })
    }

    /// None if all are taken.
    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        let more = |taken| (taken < self.max).then_some(taken + 1);
        self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        // Another one that was taken a moment ago may not be told yet, and who has a place counts on the watch.
        if *self.told.borrow() == 0 {
            self.tell();
        }
        Some(Slot(self.clone()))
    }

    /// Zero while no place is taken.
    pub(super) fn watch(&self) -> watch::Receiver<usize> {
        self.told.subscribe()
    }

    /// What is read under the watch's lock is not older than any change before it: the last to tell tells the truth.
    fn tell(&self) {
        self.told.send_modify(|told| *told = self.taken.load(Ordering::SeqCst));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.0.taken.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_places_and_a_watch_sees_the_first_taken_and_the_last_left() {
        let slots = Slots::new(2);
        let watch = slots.watch();
        assert_eq!(*watch.borrow(), 0);
        let (first, second) = (slots.take().unwrap(), slots.take().unwrap());
        assert!(slots.take().is_none());
        assert_ne!(*watch.borrow(), 0);
        drop(first);
        assert_ne!(*watch.borrow(), 0);
        drop(second);
        assert_eq!(*watch.borrow(), 0);
        assert!(slots.take().is_some());
    }

    #[test]
    fn whoever_takes_and_leaves_at_once_leaves_none_taken() {
        let slots = Slots::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| drop(slots.take().unwrap())));
            }
        });
        assert_eq!(*slots.watch().borrow(), 0);
    }
}
