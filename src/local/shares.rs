//! So much at a time for each user: none of them takes what there is for the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Clones are the same.
#[derive(Debug, Clone)]
pub struct Shares {
    each: usize,
    /// As many as there are users who may call.
    by_uid: Arc<Mutex<HashMap<u32, Arc<Semaphore>>>>,
}

/// Given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    _permit: OwnedSemaphorePermit,
}

impl Shares {
    pub fn new(each: usize) -> Self {
        Self { each, by_uid: Arc::default() }
    }

    /// `None` if the user has all of its share.
    pub fn take(&self, uid: u32) -> Option<Share> {
        self.of(uid).try_acquire_owned().ok().map(|permit| Share { _permit: permit })
    }

    /// Waits for others of the same user.
    pub async fn wait(&self, uid: u32) -> Option<Share> {
        self.of(uid).acquire_owned().await.ok().map(|permit| Share { _permit: permit })
    }

    fn of(&self, uid: u32) -> Arc<Semaphore> {
        let mut by_uid = self.by_uid.lock().unwrap_or_else(PoisonError::into_inner);
        by_uid.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_has_all_of_its_share_leaves_that_of_others() {
        let shares = Shares::new(2);
        let taken = [shares.take(1).unwrap(), shares.take(1).unwrap()];
        assert!(shares.take(1).is_none() && shares.take(2).is_some());
        drop(taken);
        assert!(shares.take(1).is_some());
    }
}
