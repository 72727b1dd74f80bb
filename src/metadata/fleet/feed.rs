//! Which documents changed, in the order of their last change. Each key is there once: a change replaces the one before, so a
//! reader that comes late is told of each document once, and holds up nobody.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::protocol::fleet::Key;

/// Keys that are remembered; a reader who missed more is told everything.
const MAX_KEYS: usize = 50_000;

#[derive(Debug)]
pub(in crate::metadata) struct Feed {
    changed: Mutex<Changed>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Changed {
    by_key: HashMap<Key, u64>,
    by_version: BTreeMap<u64, Key>,
    version: u64,
    /// Of changes up to here nothing is known.
    forgotten: u64,
}

impl Default for Feed {
    fn default() -> Self {
        // Version 0 is what a reader has who knows nothing.
        let changed = Changed { version: 1, forgotten: 1, ..Changed::default() };
        Self { changed: Mutex::new(changed), version: watch::Sender::new(1) }
    }
}

impl Feed {
    fn lock(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// These documents are, or may be, others than before.
    pub(in crate::metadata) fn mark(&self, keys: impl IntoIterator<Item = Key>) {
        let mut changed = self.lock();
        let before = changed.version;
        keys.into_iter().for_each(|key| changed.mark(key));
        if changed.version != before {
            self.version.send_replace(changed.version);
        }
    }

    /// Everything may be another.
    pub(in crate::metadata) fn begin_anew(&self) {
        let mut changed = self.lock();
        let version = changed.version + 1;
        *changed = Changed { version, forgotten: version, ..Changed::default() };
        self.version.send_replace(version);
    }

    /// The version now, and what changed since an earlier one; `None` for whoever has missed too much.
    pub(super) fn since(&self, since: u64) -> (u64, Option<Vec<Key>>) {
        let changed = self.lock();
        let known = (changed.forgotten..=changed.version).contains(&since);
        let keys = known.then(|| changed.by_version.range(since + 1..).map(|(_, key)| *key).collect());
        (changed.version, keys)
    }
}

impl Changed {
    fn mark(&mut self, key: Key) {
        self.version += 1;
        if let Some(before) = self.by_key.insert(key, self.version) {
            self.by_version.remove(&before);
        }
        self.by_version.insert(self.version, key);
        if self.by_version.len() > MAX_KEYS
            && let Some((version, oldest)) = self.by_version.pop_first()
        {
            self.by_key.remove(&oldest);
            self.forgotten = version;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::IdentityId;

    fn key(n: u32) -> Key {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        Key::Identity(IdentityId::from_array(bytes))
    }

    #[test]
    fn a_slow_reader_is_told_of_each_document_once() {
        let feed = Feed::default();
        assert_eq!(feed.since(0), (1, None), "who knows nothing is told everything");
        for _ in 0..1_000 {
            feed.mark([key(1), key(2)]);
        }
        feed.mark([key(1)]);
        let (version, keys) = feed.since(1);
        assert_eq!(keys, Some(vec![key(2), key(1)]));
        assert_eq!(feed.since(version), (version, Some(Vec::new())));
        assert_eq!(feed.since(version + 1).1, None, "a version that was not yet is of another life");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_who_missed_it_is_told_everything() {
        let feed = Feed::default();
        feed.mark([key(0)]);
        let (early, _) = feed.since(0);
        feed.mark((1..=MAX_KEYS as u32).map(key));
        assert_eq!(feed.lock().by_key.len(), MAX_KEYS);
        assert_eq!(feed.since(early).1.map(|keys| keys.len()), Some(MAX_KEYS));
        feed.mark([key(MAX_KEYS as u32 + 1)]);
        assert_eq!(feed.since(early).1, None);
    }

    #[tokio::test]
    async fn readers_are_woken_and_a_new_beginning_is_everything() {
        let feed = Feed::default();
        let mut versions = feed.subscribe();
        feed.mark([key(1)]);
        versions.changed().await.unwrap();
        let seen = *versions.borrow_and_update();
        feed.begin_anew();
        versions.changed().await.unwrap();
        assert_eq!(feed.since(seen).1, None);
    }
}
