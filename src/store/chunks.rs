//! Chunk files: how they come, how they are read, and how damaged ones go.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::io::Errno;

use super::index::{Bringing, ChunkFile};
use super::{Store, StoreError, sealed};
use crate::artifact::Chunk;
use crate::digest::Digest;
use crate::identity::UnixTime;

/// Bytes that are made room for at once where chunks come one by one: what may go is found by looking at all there is.
const AHEAD: u64 = 64 << 20;

/// What a look at a chunk file's content found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Corrupt,
    Missing,
}

impl Store {
    /// Keeps a chunk; `encoded` is what the caller verified to have that digest. Returns whether it is new. Not synced: a
    /// chunk survives the process, and after a power cut it is verified before it is used.
    pub fn put_chunk(&self, digest: &Digest, encoded: &[u8]) -> Result<bool, StoreError> {
        self.bring_chunk(digest, encoded).map(|brought| brought.is_some())
    }

    /// When it was brought, if it is new.
    fn bring_chunk(&self, digest: &Digest, encoded: &[u8]) -> Result<Option<Bringing>, StoreError> {
        let now = UnixTime::now();
        if self.shared.index.bring(digest, now).is_some_and(|file| file.verified && file.len == encoded.len() as u64) {
            return Ok(None);
        }
        self.check_room(encoded.len() as u64)?;
        let tmp = self.shared.layout.tmp_file(self.next());
        let path = self.shared.layout.chunk(digest);
        let file = ChunkFile { len: encoded.len() as u64, verified: true };
        let place = || std::fs::rename(&tmp, &path);
        let put = write_sealed(&tmp, encoded).and_then(|()| self.shared.index.put(digest, file, now, place));
        let brought = put.map_err(|error| {
            // The first error is the one to report; a leftover goes when the store is next opened.
            let _ = std::fs::remove_file(&tmp);
            self.write_error("write chunk", &path, encoded.len() as u64, error)
        })?;
        self.shared.metrics.written_bytes.inc_by(encoded.len() as u64);
        self.observe();
        Ok(brought)
    }

    /// As [`Store::put_chunk`], for one for whom no room was made: what a fetch would evict goes for it. Tells when it was
    /// brought, if it is new.
    pub fn put_new_chunk(&self, digest: &Digest, encoded: &[u8]) -> Result<Option<Bringing>, StoreError> {
        match self.bring_chunk(digest, encoded) {
            Err(error) if error.is_no_space() => {
                // Nobody else takes the room meanwhile who has to make it.
                let change = self.change();
                let needed = encoded.len() as u64;
                self.find_room(&change, needed.max(AHEAD)).or_else(|_| self.make_room_within(&change, needed))?;
                self.bring_chunk(digest, encoded)
            }
            put => put,
        }
    }

    /// Chunks that were brought for an artifact that will not come: they are the first to go, unless an artifact has them, or
    /// somebody brought them again.
    pub fn abandon(&self, brought: &[(Digest, Bringing)]) {
        brought.iter().for_each(|(digest, at)| self.shared.index.abandon(digest, *at));
    }

    pub fn has_chunk(&self, digest: &Digest) -> bool {
        self.shared.index.file(digest).is_some()
    }

    /// The encoded bytes, mapped. A chunk from before the last boot is verified first; a damaged one is deleted, and the
    /// artifacts that it belongs to are partial again.
    pub fn read_chunk(&self, chunk: &Chunk) -> Result<Bytes, StoreError> {
        let digest = &chunk.digest;
        let expected = u64::from(chunk.encoded_len);
        // A chunk of another length than the manifest says is not the one that it means, whatever is wrong with it.
        let seen = self.shared.index.file(digest).filter(|file| file.len == expected);
        let seen = seen.ok_or(StoreError::Missing(*digest))?;
        let path = self.shared.layout.chunk(digest);
        match read_sealed(&path, digest, chunk.encoded_len as usize, seen.verified) {
            Ok(Some(bytes)) => {
                if !seen.verified {
                    self.shared.index.mark_verified(digest, seen);
                }
                self.shared.metrics.read_bytes.inc_by(expected);
                Ok(bytes)
            }
            Ok(None) => Err(self.discard(digest, seen)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.discard_lost(digest, seen)),
            Err(error) if is_disk_error(&error) => Err(self.discard(digest, seen)),
            Err(source) => Err(StoreError::Io { action: "read chunk", path, source }),
        }
    }

    /// Hashes a chunk file without keeping it in memory. What is not good is deleted.
    pub(super) fn check_chunk(&self, digest: &Digest, seen: ChunkFile) -> Result<Verdict, StoreError> {
        let path = self.shared.layout.chunk(digest);
        match hash_file(&path) {
            Ok((found, len)) if found == *digest && len == seen.len => {
                self.shared.index.mark_verified(digest, seen);
                Ok(Verdict::Good)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.discard_lost(digest, seen);
                Ok(Verdict::Missing)
            }
            Err(source) if !is_disk_error(&source) => Err(StoreError::Io { action: "verify chunk", path, source }),
            Ok(_) | Err(_) => {
                self.discard(digest, seen);
                Ok(Verdict::Corrupt)
            }
        }
    }

    /// Deletes a chunk that does not hold what its name says.
    fn discard(&self, digest: &Digest, seen: ChunkFile) -> StoreError {
        let path = self.shared.layout.chunk(digest);
        let mut trash = None;
        let losers = self.shared.index.discard(digest, seen, || {
            trash = self.take(&path);
            true
        });
        empty(trash);
        tracing::warn!(chunk = %digest, "deleted a damaged chunk");
        self.shared.metrics.damaged_chunks.inc();
        self.demote(&losers);
        StoreError::Damaged(*digest)
    }

    /// Forgets a chunk whose file is gone, unless it has come back meanwhile.
    fn discard_lost(&self, digest: &Digest, seen: ChunkFile) -> StoreError {
        let path = self.shared.layout.chunk(digest);
        let losers = self.shared.index.discard(digest, seen, || !path.exists());
        if !losers.is_empty() {
            tracing::warn!(chunk = %digest, "a chunk file is gone");
            self.demote(&losers);
        }
        StoreError::Missing(*digest)
    }

    /// Takes a file's name away at once; deleting its content, which takes longer, is for [`empty`].
    pub(super) fn take(&self, path: &Path) -> Option<PathBuf> {
        let trash = self.shared.layout.trash_file(self.next());
        match std::fs::rename(path, &trash) {
            Ok(()) => Some(trash),
            // A full disk may have no room for the name in the trash.
            Err(_) => {
                delete(path);
                None
            }
        }
    }
}

/// Deletes what [`Store::take`] took.
pub(super) fn empty(trash: impl IntoIterator<Item = PathBuf>) {
    trash.into_iter().for_each(|path| delete(&path));
}

fn delete(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "delete a file of the store");
    }
}

fn write_sealed(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?.write_all(bytes)
}

/// `None` if the content is not what it should be; content that is not `verified` is hashed.
fn read_sealed(path: &Path, digest: &Digest, expected: usize, verified: bool) -> io::Result<Option<Bytes>> {
    let (file, len) = sealed::open(path)?;
    if len != expected as u64 {
        return Ok(None);
    }
    if verified {
        return sealed::bytes(&file, expected).map(Some);
    }
    // Read, not mapped: a bad disk is an error here and would be a signal there.
    let bytes = sealed::copy(&file, expected)?;
    Ok((Digest::of(&bytes) == *digest).then_some(bytes))
}

fn hash_file(path: &Path) -> io::Result<(Digest, u64)> {
    let (file, len) = sealed::open(path)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok((hasher.finalize().into(), len))
}

fn is_disk_error(error: &io::Error) -> bool {
    // EFAULT is what populating a mapping makes of EIO.
    [Errno::IO, Errno::FAULT].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
