//! Which chunks are there and which artifacts they belong to. In memory, in shards; presence on disk and in here change
//! together under a shard's lock, so that they cannot part when one thread deletes a chunk that another is bringing.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::artifact::Artifact;
use super::locked;
use crate::digest::Digest;
use crate::identity::UnixTime;

const SHARDS: usize = 64;

/// A chunk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkFile {
    pub(super) len: u64,
    /// Written or hashed on this boot: what a power cut can do to it, it would have shown.
    pub(super) verified: bool,
}

#[derive(Debug)]
struct Entry {
    file: Option<ChunkFile>,
    users: Vec<User>,
    /// When somebody last brought it; an orphan is spared for a while after.
    brought: UnixTime,
    last: Bringing,
}

/// One bringing of a chunk: none is like another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bringing(u64);

impl Entry {
    fn new(brought: UnixTime) -> Self {
        Self { file: None, users: Vec::new(), brought, last: Bringing::default() }
    }
}

/// A place in an artifact; a chunk can occur in one artifact more than once.
#[derive(Debug)]
struct User {
    artifact: Arc<Artifact>,
    index: usize,
}

impl User {
    fn tell(&self, file: Option<ChunkFile>) {
        let expected = u64::from(self.artifact.manifest().chunks[self.index].encoded_len);
        self.artifact.set_have(self.index, file.is_some_and(|file| file.len == expected));
    }
}

type Shard = HashMap<Digest, Entry>;

#[derive(Debug)]
pub(super) struct Index {
    shards: [Mutex<Shard>; SHARDS],
    chunks: AtomicU64,
    bytes: AtomicU64,
    bringings: AtomicU64,
}

impl Index {
    pub(super) fn new() -> Self {
        let [chunks, bytes, bringings] = [const { AtomicU64::new(0) }; 3];
        Self { shards: std::array::from_fn(|_| Mutex::default()), chunks, bytes, bringings }
    }

    /// Number of chunk files.
    pub(super) fn chunks(&self) -> u64 {
        self.chunks.load(Ordering::Acquire)
    }

    /// Bytes of all chunk files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    pub(super) fn file(&self, digest: &Digest) -> Option<ChunkFile> {
        self.shard(digest).get(digest).and_then(|entry| entry.file)
    }

    /// [`Index::file`] for one who will rely on it although nothing refers to it yet: starts its grace anew.
    pub(super) fn bring(&self, digest: &Digest, now: UnixTime) -> Option<ChunkFile> {
        let mut shard = self.shard(digest);
        let entry = shard.get_mut(digest)?;
        self.note(entry, now);
        entry.file
    }

    fn note(&self, entry: &mut Entry, now: UnixTime) {
        entry.brought = entry.brought.max(now);
        entry.last = Bringing(self.bringings.fetch_add(1, Ordering::Relaxed) + 1);
    }

    /// `place` gives the file its name. Returns which bringing it was if the chunk is new.
    pub(super) fn put(
        &self,
        digest: &Digest,
        file: ChunkFile,
        now: UnixTime,
        place: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Option<Bringing>> {
        let mut shard = self.shard(digest);
        place()?;
        let entry = shard.entry(*digest).or_insert_with(|| Entry::new(now));
        self.note(entry, now);
        let before = entry.file.replace(file);
        entry.users.iter().for_each(|user| user.tell(Some(file)));
        self.count(before, Some(file));
        Ok(before.is_none().then_some(entry.last))
    }

    /// Remembers that the file seen as `seen` holds what its name says.
    pub(super) fn mark_verified(&self, digest: &Digest, seen: ChunkFile) {
        if let Some(file) = self.shard(digest).get_mut(digest).and_then(|entry| entry.file.as_mut())
            && *file == seen
        {
            file.verified = true;
        }
    }

    /// Forgets a file, unless it is no longer the one that was seen; `take` removes its name, or says false if the file is
    /// to stay after all. Returns the artifacts that lost a chunk.
    pub(super) fn discard(&self, digest: &Digest, seen: ChunkFile, take: impl FnOnce() -> bool) -> Vec<Arc<Artifact>> {
        let mut shard = self.shard(digest);
        let MapEntry::Occupied(mut found) = shard.entry(*digest) else { return Vec::new() };
        let entry = found.get_mut();
        if entry.file != Some(seen) || !take() {
            return Vec::new();
        }
        self.count(entry.file.take(), None);
        entry.users.iter().for_each(|user| user.tell(None));
        let losers = entry.users.iter().map(|user| user.artifact.clone()).collect();
        if entry.users.is_empty() {
            found.remove();
        }
        losers
    }

    /// Adds the artifact to the users of its chunks and tells it which are there.
    pub(super) fn link(&self, artifact: &Arc<Artifact>, now: UnixTime) {
        for (index, chunk) in artifact.manifest().chunks.iter().enumerate() {
            let mut shard = self.shard(&chunk.digest);
            let entry = shard.entry(chunk.digest).or_insert_with(|| Entry::new(now));
            let user = User { artifact: artifact.clone(), index };
            user.tell(entry.file);
            entry.users.push(user);
        }
    }

    /// The opposite of [`Index::link`]; `take` removes a file that nobody else uses, or says false if it is to stay as an
    /// orphan. Returns the bytes of those removed.
    pub(super) fn unlink(&self, artifact: &Arc<Artifact>, mut take: impl FnMut(&Digest) -> bool) -> u64 {
        let mut freed = 0;
        for chunk in &artifact.manifest().chunks {
            let mut shard = self.shard(&chunk.digest);
            // Gone already if it occurs twice in this artifact.
            let MapEntry::Occupied(mut found) = shard.entry(chunk.digest) else { continue };
            let entry = found.get_mut();
            entry.users.retain(|user| !Arc::ptr_eq(&user.artifact, artifact));
            if !entry.users.is_empty() || entry.file.is_some() && !take(&chunk.digest) {
                continue;
            }
            freed += entry.file.map_or(0, |file| file.len);
            self.count(entry.file, None);
            found.remove();
        }
        freed
    }

    /// Drops the chunks that no artifact uses and nobody brought since `before`. Returns how many and their bytes.
    pub(super) fn drop_orphans(&self, before: UnixTime, mut take: impl FnMut(&Digest)) -> (u64, u64) {
        let (mut chunks, mut bytes) = (0, 0);
        for shard in &self.shards {
            let orphan = |_: &Digest, entry: &mut Entry| entry.users.is_empty() && entry.brought < before;
            for (digest, entry) in locked(shard).extract_if(orphan) {
                let Some(file) = entry.file else { continue };
                take(&digest);
                self.count(entry.file, None);
                chunks += 1;
                bytes += file.len;
            }
        }
        (chunks, bytes)
    }

    /// Ends the grace of a chunk that no artifact uses, and that nobody brought again.
    pub(super) fn abandon(&self, digest: &Digest, brought: Bringing) {
        if let Some(entry) = self.shard(digest).get_mut(digest)
            && entry.users.is_empty()
            && entry.last == brought
        {
            entry.brought = UnixTime::from_seconds(0);
        }
    }

    /// Visits every chunk file with its length and the artifacts that use it.
    pub(super) fn visit(&self, mut visit: impl FnMut(u64, &mut dyn Iterator<Item = &Arc<Artifact>>)) {
        for shard in &self.shards {
            for entry in locked(shard).values() {
                if let Some(file) = entry.file {
                    visit(file.len, &mut entry.users.iter().map(|user| &user.artifact));
                }
            }
        }
    }

    /// Every chunk file, in order of digests.
    pub(super) fn files(&self) -> Vec<(Digest, ChunkFile)> {
        let all = self.shards.iter().flat_map(|shard| {
            let present: Vec<_> = locked(shard).iter().filter_map(|(d, entry)| Some((*d, entry.file?))).collect();
            present
        });
        let mut files: Vec<_> = all.collect();
        files.sort_unstable_by_key(|(digest, _)| *digest);
        files
    }

    fn count(&self, before: Option<ChunkFile>, after: Option<ChunkFile>) {
        if let Some(file) = after {
            self.chunks.fetch_add(1, Ordering::AcqRel);
            self.bytes.fetch_add(file.len, Ordering::AcqRel);
        }
        if let Some(file) = before {
            self.chunks.fetch_sub(1, Ordering::AcqRel);
            self.bytes.fetch_sub(file.len, Ordering::AcqRel);
        }
    }

    fn shard(&self, digest: &Digest) -> MutexGuard<'_, Shard> {
        locked(&self.shards[usize::from(digest.as_bytes()[0]) % SHARDS])
    }
}
