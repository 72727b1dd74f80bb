//! So much at a time for each of many, so that none of them takes what there is for the others.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

type Places<K> = Arc<Mutex<HashMap<K, Arc<Semaphore>>>>;

/// Counts what each has; nothing is remembered of those who have nothing. Clones count together.
#[derive(Debug, Clone)]
pub struct Shares<K> {
    each: usize,
    places: Places<K>,
}

/// One of somebody's; given back when dropped.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    of: K,
    places: Places<K>,
    /// Present until it is dropped.
    permit: Option<OwnedSemaphorePermit>,
}

impl<K: Copy + Eq + Hash> Shares<K> {
    pub fn new(each: usize) -> Self {
        Self { each, places: Arc::default() }
    }

    /// `None` if `of` has all of its share.
    pub fn take(&self, of: K) -> Option<Share<K>> {
        let mut places = locked(&self.places);
        let place = places.entry(of).or_insert_with(|| Arc::new(Semaphore::new(self.each)));
        let permit = place.clone().try_acquire_owned().ok()?;
        Some(Share { of, places: self.places.clone(), permit: Some(permit) })
    }

    /// Waits for others of its own.
    pub async fn wait(&self, of: K) -> Option<Share<K>> {
        let place = locked(&self.places).entry(of).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone();
        let permit = place.acquire_owned().await.ok()?;
        Some(Share { of, places: self.places.clone(), permit: Some(permit) })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut places = locked(&self.places);
        drop(self.permit.take());
        // Whoever has a share or waits for one refers to it, too.
        if places.get(&self.of).is_some_and(|place| Arc::strong_count(place) == 1) {
            places.remove(&self.of);
        }
    }
}

fn locked<K>(places: &Places<K>) -> MutexGuard<'_, HashMap<K, Arc<Semaphore>>> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_share_and_no_more_whatever_others_have() {
        let shares = Shares::new(2);
        let (first, second) = (shares.take(1), shares.take(1));
        assert!(first.is_some() && second.is_some());
        assert!(shares.take(1).is_none());
        let other = shares.take(2);
        assert!(other.is_some());
        drop(first);
        let third = shares.take(1);
        assert!(third.is_some());
        drop((second, third, other));
        assert!(locked(&shares.places).is_empty(), "nothing is remembered of those who have nothing");
    }

    #[tokio::test]
    async fn who_waits_has_the_next_share_that_is_given_back() {
        let shares = Shares::new(1);
        let first = shares.take(1).unwrap();
        let give_back = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        let (second, ()) = tokio::join!(shares.wait(1), give_back);
        assert!(second.is_some() && shares.take(1).is_none());
        drop(second);
        assert!(locked(&shares.places).is_empty());
    }
}
