//! Files in, chunks out: reads every file once, hashes, deduplicates, packs, compresses, on all cores.
//!
//! Call it from a blocking thread. Files are read in windows of bounded size. What a file's digest says and what its chunks
//! hold comes from one reading of its bytes, and a file whose identity, size or times differ after the reading is
//! reported as changed, so a torn snapshot cannot be sealed.

mod reader;
mod reuse;
mod window;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use blake3::hazmat::ChainingValue;
use bytes::Bytes;
use rayon::prelude::*;

use self::reader::Reader;
use self::window::{Batch, Pack, Window};
use super::manifest::{Chunk, File, Manifest};
use super::stream::piece_value;
use super::{CodecError, Encoder, FileHasher, LARGE_FILE, MAX_CHUNK, RelPath, Tree, TreeError};
use crate::digest::Digest;

/// A pack of small files is closed before it outgrows a chunk, or from this size on after a file whose digest says so. The
/// latter makes boundaries depend on content, so that two nodes that hold nearly the same files cut nearly the same packs.
const PACK_MIN: usize = 512 * 1024;

/// A snapshot could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("`{0}` changed while it was read")]
    Changed(RelPath),
    #[error("read `{path}`")]
    Read { path: RelPath, source: io::Error },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{path} holds a private key: it must not leave this node; publish another directory", path = .0.display())]
    PrivateKey(PathBuf),
    #[error("store chunk: {0}")]
    Sink(#[source] io::Error),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// A file to read, with what was known of it when it was found.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// In `tree`, and in the artifact.
    pub path: RelPath,
    pub tree: Tree,
    pub executable: bool,
    /// For the manifest: nanoseconds, or 0 where the family does not need it.
    pub mtime_ns: u64,
    pub stamp: Stamp,
    /// What the artifact has in place of the bytes on disk.
    pub content: Option<Bytes>,
}

impl SourceFile {
    /// Where it was found; for messages, and for what it says of its place.
    pub fn source(&self) -> PathBuf {
        self.tree.path().join(self.path.as_str())
    }

    /// Bytes of content.
    pub fn size(&self) -> u64 {
        self.content.as_ref().map_or(self.stamp.size, |content| content.len() as u64)
    }

    /// As far as it can be read.
    pub fn is_private_key(&self) -> bool {
        self.stamp.size < reader::MAX_KEY && self.read().is_ok_and(|content| reader::is_private_key(&content))
    }

    /// All of it; for files that are known to be small.
    pub fn read(&self) -> Result<Vec<u8>, BuildError> {
        let reader = Reader::open(self)?;
        let mut content = vec![0; self.size() as usize];
        reader.read(0, &mut content)?;
        reader.check()?;
        Ok(content)
    }
}

/// What tells that a file is still the one that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub modified: (i64, i64),
    pub changed: (i64, i64),
}

impl From<&rustix::fs::Stat> for Stamp {
    fn from(stat: &rustix::fs::Stat) -> Self {
        // Neither size nor nanoseconds are negative, and both fit.
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }
}

impl Stamp {
    pub fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// The parts of a manifest that come from the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// In the order of the sources.
    pub files: Vec<File>,
    pub chunks: Vec<Chunk>,
    /// Encoded bytes of the chunks that were taken over from the base.
    pub reused_bytes: u64,
}

/// What [`build`] needs from its caller.
pub struct Outputs<'a> {
    /// Stores the encoded bytes of a chunk; may see the same chunk twice.
    pub store: &'a (dyn Fn(&Chunk, &[u8]) -> io::Result<()> + Sync),
    /// Told how many more bytes were read.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// The generation before, and which of its chunks are still there.
pub struct Base<'a> {
    pub manifest: &'a Manifest,
    pub has_chunk: &'a dyn Fn(&Digest) -> bool,
}

/// `files` are sorted by path. The result depends on them alone, not on how many threads read them.
pub fn build(files: &[SourceFile], base: Option<&Base<'_>>, outputs: &Outputs<'_>) -> Result<Built, BuildError> {
    let mut stream = Stream::new(files.len(), outputs);
    if let Some(base) = base {
        stream.digests = hash_all(files, outputs)?.into_iter().map(Some).collect();
        stream.reused_bytes =
            reuse::keep(base, &stream.digests, &mut stream.chunks, &mut stream.places, &mut stream.end);
    }
    let batches = window::batches(files, |index| stream.is_placed(index));
    let (mut this, mut next) = (Window::default(), Window::default());
    for (at, batch) in batches.iter().enumerate() {
        let few = match batch {
            Batch::Few(few) => few,
            Batch::Huge(index) => {
                stream.cut_huge(*index, &files[*index])?;
                continue;
            }
        };
        if this.files() != few {
            this.read(files, few, outputs)?;
        }
        stream.lay_out(files, &this)?;
        let packs = stream.take_ready();
        // Reading waits for the disk while encoding does not; and the last pack of a window keeps one core busy only.
        let (chunks, read) = rayon::join(
            || encode_all(&packs, &this, outputs),
            || match batches.get(at + 1) {
                Some(Batch::Few(few)) => next.read(files, few, outputs),
                _ => Ok(()),
            },
        );
        stream.append(chunks?);
        read?;
        std::mem::swap(&mut this, &mut next);
    }
    stream.close()?;
    stream.finish(files)
}

fn hash_all(files: &[SourceFile], outputs: &Outputs<'_>) -> Result<Vec<Digest>, BuildError> {
    files
        .par_iter()
        .map_init(Vec::new, |buffer: &mut Vec<u8>, file| {
            let reader = Reader::open(file)?;
            let mut hasher = FileHasher::new(file.size());
            buffer.resize(piece_len(file.size(), 0).max(buffer.len()), 0);
            for offset in piece_offsets(file.size()) {
                let piece = &mut buffer[..piece_len(file.size(), offset)];
                reader.read(offset, piece)?;
                reader.check_key(offset, piece)?;
                hasher.piece(offset, piece);
                (outputs.progress)(piece.len() as u64);
            }
            reader.check()?;
            hasher.finish().ok_or_else(|| BuildError::Changed(file.path.clone()))
        })
        .collect()
}

/// The content stream as far as it is laid out.
struct Stream<'a> {
    outputs: &'a Outputs<'a>,
    digests: Vec<Option<Digest>>,
    /// Where content lies in the stream.
    places: HashMap<Digest, u64>,
    chunks: Vec<Chunk>,
    /// Decoded bytes in `chunks`.
    end: u64,
    /// The small files that will be cut next; their places are already given.
    pack: Pack,
    /// Packs to be encoded, in stream order.
    ready: Vec<Pack>,
    ready_bytes: u64,
    reused_bytes: u64,
}

impl<'a> Stream<'a> {
    fn new(files: usize, outputs: &'a Outputs<'a>) -> Self {
        Self {
            outputs,
            digests: vec![None; files],
            places: HashMap::new(),
            chunks: Vec::new(),
            end: 0,
            pack: Pack::default(),
            ready: Vec::new(),
            ready_bytes: 0,
            reused_bytes: 0,
        }
    }

    fn is_placed(&self, index: usize) -> bool {
        self.digests[index].is_some_and(|digest| self.places.contains_key(&digest))
    }

    /// Gives what is new in a window its place.
    fn lay_out(&mut self, files: &[SourceFile], window: &Window) -> Result<(), BuildError> {
        for (index, digest, part) in window.contents() {
            // With a base, the digest decided what is reused: the second reading must agree with the first.
            if self.digests[index].is_some_and(|known| known != digest) {
                return Err(BuildError::Changed(files[index].path.clone()));
            }
            self.digests[index] = Some(digest);
            if !part.is_empty() && !self.places.contains_key(&digest) {
                self.place(digest, part);
            }
        }
        self.pack.detach(window);
        Ok(())
    }

    fn place(&mut self, digest: Digest, part: Range<usize>) {
        if part.len() as u64 >= LARGE_FILE {
            self.close_pack();
            self.places.insert(digest, self.end + self.ready_bytes);
            self.ready_bytes += part.len() as u64;
            let cuts = part.clone().step_by(MAX_CHUNK);
            self.ready.extend(cuts.map(|begin| Pack::of(begin..part.end.min(begin + MAX_CHUNK))));
            return;
        }
        if self.pack.len() + part.len() > MAX_CHUNK {
            self.close_pack();
        }
        self.places.insert(digest, self.end + self.ready_bytes + self.pack.len() as u64);
        self.pack.push(part);
        if self.pack.len() >= PACK_MIN && digest.as_bytes()[0] < 32 {
            self.close_pack();
        }
    }

    fn close_pack(&mut self) {
        if self.pack.len() > 0 {
            self.ready_bytes += self.pack.len() as u64;
            self.ready.push(std::mem::take(&mut self.pack));
        }
    }

    fn take_ready(&mut self) -> Vec<Pack> {
        std::mem::take(&mut self.ready)
    }

    /// The chunks of what [`Stream::take_ready`] gave.
    fn append(&mut self, chunks: Vec<Chunk>) {
        self.chunks.extend(chunks);
        self.end += std::mem::take(&mut self.ready_bytes);
    }

    fn close(&mut self) -> Result<(), BuildError> {
        self.close_pack();
        let packs = self.take_ready();
        self.append(encode_all(&packs, &Window::default(), self.outputs)?);
        Ok(())
    }

    /// A file larger than the window: each piece is read, hashed and encoded at once, before the file's digest is known.
    fn cut_huge(&mut self, index: usize, file: &SourceFile) -> Result<(), BuildError> {
        self.close()?;
        let reader = Reader::open(file)?;
        let size = file.size();
        let offsets: Vec<u64> = piece_offsets(size).collect();
        let pieces: Vec<(ChainingValue, Chunk)> = offsets
            .par_iter()
            .map_init(Vec::new, |buffer: &mut Vec<u8>, &offset| {
                buffer.resize(piece_len(size, offset), 0);
                reader.read(offset, buffer)?;
                (self.outputs.progress)(buffer.len() as u64);
                Ok((piece_value(offset, buffer), encode(buffer, self.outputs)?))
            })
            .collect::<Result<_, BuildError>>()?;
        reader.check()?;
        let mut hasher = FileHasher::new(size);
        for (offset, (value, _)) in offsets.iter().zip(&pieces) {
            hasher.set(*offset, *value);
        }
        let digest = hasher.finish().ok_or_else(|| BuildError::Changed(file.path.clone()))?;
        if self.digests[index].is_some_and(|known| known != digest) {
            return Err(BuildError::Changed(file.path.clone()));
        }
        self.digests[index] = Some(digest);
        if !self.places.contains_key(&digest) {
            self.places.insert(digest, self.end);
            self.chunks.extend(pieces.into_iter().map(|(_, chunk)| chunk));
            self.end += size;
        }
        Ok(())
    }

    fn finish(self, files: &[SourceFile]) -> Result<Built, BuildError> {
        let mut out = Vec::with_capacity(files.len());
        for (source, digest) in files.iter().zip(&self.digests) {
            let digest = digest.ok_or_else(|| BuildError::Changed(source.path.clone()))?;
            out.push(File {
                path: source.path.clone(),
                executable: source.executable,
                mtime_ns: source.mtime_ns,
                size: source.size(),
                digest,
                offset: self.places.get(&digest).copied().unwrap_or(0),
            });
        }
        Ok(Built { files: out, chunks: self.chunks, reused_bytes: self.reused_bytes })
    }
}

fn encode_all(packs: &[Pack], window: &Window, outputs: &Outputs<'_>) -> Result<Vec<Chunk>, BuildError> {
    thread_local! {
        static TOGETHER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let encode = |pack: &Pack| TOGETHER.with_borrow_mut(|buffer| encode(pack.bytes(window, buffer), outputs));
    packs.par_iter().map(encode).collect()
}

fn encode(decoded: &[u8], outputs: &Outputs<'_>) -> Result<Chunk, BuildError> {
    thread_local! {
        static ENCODER: RefCell<Option<Encoder>> = const { RefCell::new(None) };
    }
    ENCODER.with_borrow_mut(|slot| {
        let encoder = match slot {
            Some(encoder) => encoder,
            None => slot.insert(Encoder::new()?),
        };
        let (codec, encoded) = encoder.encode(decoded)?;
        // Both lengths are at most MAX_CHUNK.
        let (encoded_len, decoded_len) = (encoded.len() as u32, decoded.len() as u32);
        let chunk = Chunk { digest: Digest::of(encoded), encoded_len, decoded_len, codec };
        (outputs.store)(&chunk, encoded).map_err(BuildError::Sink)?;
        Ok(chunk)
    })
}

fn piece_offsets(size: u64) -> impl Iterator<Item = u64> {
    (0..size).step_by(MAX_CHUNK)
}

fn piece_len(size: u64, offset: u64) -> usize {
    // At most MAX_CHUNK.
    (size - offset).min(MAX_CHUNK as u64) as usize
}

#[cfg(test)]
mod tests;
