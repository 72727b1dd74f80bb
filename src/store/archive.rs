//! Archives: an artifact as one standard tar file, for baked images, object storage and places without a network.
//!
//! ```text
//! warmd-manifest.dsse    the signed envelope
//! chunks/<digest>        each distinct chunk, encoded, in order of its first place in the manifest
//! ```
//!
//! Chunks and not files, because the signature covers chunk by chunk what is in here: import is the same verification as a
//! transfer from a peer, nothing is compressed twice, and no path of the archive is ever used. Every header has one valid
//! spelling (ustar, regular file, mode 0644, all else zero), so an archive is compared with what [`Store::export`] would
//! have written, not parsed: no extension, link or other order can be in one that is accepted.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tar::{EntryType, Header};

use super::sweep::distinct;
use super::{State, Store, StoreError};
use crate::artifact::{Admitted, Chunk, MAX_ENVELOPE, ManifestError};
use crate::digest::{ArtifactId, Digest};

const BLOCK: usize = 512;
const MANIFEST_NAME: &str = "warmd-manifest.dsse";

/// An archive could not be written, or is not one that we accept; then nothing of it stays in the store.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("archive has something else where `{expected}` must be; only archives by `warmd export` can be imported")]
    Unexpected { expected: String },
    #[error("`{0}` in the archive is damaged")]
    Damaged(String),
    #[error("archive ends too early")]
    Truncated,
    #[error("manifest of {0} bytes, allowed are {MAX_ENVELOPE}")]
    ManifestTooLarge(u64),
    #[error("read archive")]
    Read(#[source] io::Error),
    #[error("write archive")]
    Write(#[source] io::Error),
}

impl Store {
    /// Writes a complete artifact; the same bytes every time. Returns how many.
    pub fn export(&self, id: &ArtifactId, out: &mut dyn Write) -> Result<u64, ArchiveError> {
        let artifact = self.hold(id).ok_or(StoreError::NoArtifact(*id))?;
        let missing = artifact.manifest().chunks.len() - artifact.progress().chunks;
        if missing > 0 || artifact.state() != State::Complete {
            return Err(StoreError::Incomplete { id: *id, missing }.into());
        }
        let mut written = write_member(out, MANIFEST_NAME, artifact.signed().envelope())?;
        for chunk in distinct_chunks(&artifact.manifest().chunks) {
            let bytes = self.read_chunk(&chunk)?;
            written += write_member(out, &chunk_name(&chunk.digest), &bytes)?;
        }
        out.write_all(&[0; 2 * BLOCK]).and_then(|()| out.flush()).map_err(ArchiveError::Write)?;
        Ok(written + 2 * BLOCK as u64)
    }

    /// Adds the artifact of an archive. `admit` asks the trust policy before anything else is read.
    pub fn import(
        &self,
        archive: &mut dyn Read,
        admit: &dyn Fn(Bytes) -> Result<Admitted, ManifestError>,
    ) -> Result<ArtifactId, ArchiveError> {
        let mut archive = Archive { input: archive };
        let admitted = admit(archive.manifest()?)?;
        let (id, chunks) = (admitted.id(), distinct_chunks(&admitted.manifest().chunks));
        let was_here = self.get(&id).is_some();
        let held = self.begin(admitted)?;
        let imported = self.import_chunks(&mut archive, &chunks);
        drop(held);
        match imported {
            Ok(()) => Ok(self.seal(&id).map(|()| id)?),
            Err(error) => {
                if !was_here && let Err(left) = self.remove(&id) {
                    tracing::warn!(artifact = %id, error = %left, "remove what came from a bad archive");
                }
                Err(error)
            }
        }
    }

    fn import_chunks(&self, archive: &mut Archive<'_>, chunks: &[Chunk]) -> Result<(), ArchiveError> {
        for chunk in chunks {
            let name = chunk_name(&chunk.digest);
            let bytes = archive.member(&name, chunk.encoded_len as usize)?;
            if Digest::of(&bytes) != chunk.digest {
                return Err(ArchiveError::Damaged(name));
            }
            self.put_chunk(&chunk.digest, &bytes)?;
        }
        archive.end()
    }
}

fn distinct_chunks(chunks: &[Chunk]) -> Vec<Chunk> {
    let by_digest: std::collections::HashMap<Digest, Chunk> = chunks.iter().map(|one| (one.digest, *one)).collect();
    distinct(chunks).iter().map(|digest| by_digest[digest]).collect()
}

fn chunk_name(digest: &Digest) -> String {
    format!("chunks/{digest}")
}

/// The only spelling of a member's header.
pub(super) fn header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut header = Header::new_ustar();
    let bytes = name.as_bytes();
    header.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    *header.as_bytes()
}

fn padding(size: usize) -> usize {
    size.next_multiple_of(BLOCK) - size
}

fn write_member(out: &mut dyn Write, name: &str, bytes: &[u8]) -> Result<u64, ArchiveError> {
    let zeros = &[0; BLOCK][..padding(bytes.len())];
    let mut write = |part: &[u8]| out.write_all(part).map_err(ArchiveError::Write);
    write(&header(name, bytes.len() as u64))?;
    write(bytes)?;
    write(zeros)?;
    Ok((BLOCK + bytes.len() + zeros.len()) as u64)
}

struct Archive<'a> {
    input: &'a mut dyn Read,
}

impl Archive<'_> {
    fn manifest(&mut self) -> Result<Bytes, ArchiveError> {
        let block = self.block()?;
        let unexpected = || ArchiveError::Unexpected { expected: MANIFEST_NAME.to_owned() };
        let size = Header::from_byte_slice(&block).entry_size().map_err(|_| unexpected())?;
        if header(MANIFEST_NAME, size) != block {
            return Err(unexpected());
        }
        if size > MAX_ENVELOPE as u64 {
            return Err(ArchiveError::ManifestTooLarge(size));
        }
        self.content(MANIFEST_NAME, size as usize)
    }

    fn member(&mut self, name: &str, size: usize) -> Result<Bytes, ArchiveError> {
        if self.block()? != header(name, size as u64) {
            return Err(ArchiveError::Unexpected { expected: name.to_owned() });
        }
        self.content(name, size)
    }

    /// Two empty blocks and nothing after them.
    fn end(&mut self) -> Result<(), ArchiveError> {
        let unexpected = || ArchiveError::Unexpected { expected: "the end".to_owned() };
        for _ in 0..2 {
            if self.block()? != [0; BLOCK] {
                return Err(unexpected());
            }
        }
        let mut more = [0; 1];
        match self.input.read(&mut more).map_err(ArchiveError::Read)? {
            0 => Ok(()),
            _ => Err(unexpected()),
        }
    }

    fn block(&mut self) -> Result<[u8; BLOCK], ArchiveError> {
        let mut block = [0; BLOCK];
        self.exactly(&mut block)?;
        Ok(block)
    }

    fn content(&mut self, name: &str, size: usize) -> Result<Bytes, ArchiveError> {
        let mut bytes = vec![0; size];
        self.exactly(&mut bytes)?;
        let mut padded = [0; BLOCK];
        let padded = &mut padded[..padding(size)];
        self.exactly(padded)?;
        match padded.iter().all(|byte| *byte == 0) {
            true => Ok(bytes.into()),
            false => Err(ArchiveError::Damaged(name.to_owned())),
        }
    }

    fn exactly(&mut self, bytes: &mut [u8]) -> Result<(), ArchiveError> {
        self.input.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
            _ => ArchiveError::Read(error),
        })
    }
}
