//! Files in, chunks out: reads every file once, hashes, deduplicates, packs, compresses, on all cores.
//!
//! Call it from a blocking thread. Files are read in windows of bounded size. What a file's digest says and what its chunks
//! hold comes from one reading of its bytes, and a file whose identity, size or times differ after the reading is
//! reported as changed, so a torn snapshot cannot be sealed.

mod reuse;

use std::collections::HashMap;
use std::fs::File as OsFile;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use blake3::hazmat::ChainingValue;
use bytes::Bytes;
use rayon::prelude::*;

use super::manifest::{Chunk, File, Manifest};
use super::stream::piece_value;
use super::{CodecError, Encoder, FileHasher, LARGE_FILE, MAX_CHUNK, RelPath};
use crate::digest::Digest;

/// Bytes of file content in memory at once.
const WINDOW: u64 = 32 * 1024 * 1024;

/// A pack of small files is closed at this size, or from [`PACK_MIN`] on after a file whose digest says so. The latter
/// makes boundaries depend on content, so that two nodes that hold nearly the same files cut nearly the same packs.
const PACK_MAX: usize = 1024 * 1024;
const PACK_MIN: usize = 512 * 1024;

/// A snapshot could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("`{0}` changed while it was read")]
    Changed(RelPath),
    #[error("read `{path}`")]
    Read { path: RelPath, source: io::Error },
    #[error("store chunk: {0}")]
    Sink(#[source] io::Error),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// A file to read, with what was known of it when it was found.
#[derive(Debug, Clone)]
pub struct SourceFile {
    pub path: RelPath,
    /// Where it is read from.
    pub source: PathBuf,
    pub executable: bool,
    /// For the manifest: nanoseconds, or 0 where the family does not need it.
    pub mtime_ns: u64,
    pub stamp: Stamp,
    /// What the artifact has in place of the bytes on disk.
    pub content: Option<Bytes>,
}

impl SourceFile {
    /// Bytes of content.
    pub fn size(&self) -> u64 {
        self.content.as_ref().map_or(self.stamp.size, |content| content.len() as u64)
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

/// `files` are sorted by path.
pub fn build(files: &[SourceFile], base: Option<&Base<'_>>, outputs: &Outputs<'_>) -> Result<Built, BuildError> {
    let mut stream = Stream::new(files.len(), outputs);
    if let Some(base) = base {
        stream.digests = hash_all(files, outputs)?.into_iter().map(Some).collect();
        stream.reused_bytes =
            reuse::keep(base, &stream.digests, &mut stream.chunks, &mut stream.places, &mut stream.end);
    }
    let mut window = Vec::new();
    let mut bytes = 0;
    for (index, file) in files.iter().enumerate() {
        if stream.is_placed(index) {
            continue;
        }
        if file.size() > WINDOW {
            stream.cut_huge(index, file)?;
            continue;
        }
        if bytes + file.size() > WINDOW {
            stream.take(files, &window)?;
            window.clear();
            bytes = 0;
        }
        window.push(index);
        bytes += file.size();
    }
    stream.take(files, &window)?;
    stream.close()?;
    stream.finish(files)
}

fn hash_all(files: &[SourceFile], outputs: &Outputs<'_>) -> Result<Vec<Digest>, BuildError> {
    files
        .par_iter()
        .map(|file| {
            let reader = Reader::open(file)?;
            let mut hasher = FileHasher::new(file.size());
            let mut buffer = vec![0; piece_len(file.size(), 0)];
            for offset in piece_offsets(file.size()) {
                let piece = &mut buffer[..piece_len(file.size(), offset)];
                reader.read(offset, piece)?;
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
    /// Small files waiting to be cut; their places are already given.
    pack: Vec<Vec<u8>>,
    pack_bytes: usize,
    /// Chunks to be encoded, in stream order, each the files that it is made of.
    ready: Vec<Vec<Vec<u8>>>,
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
            pack: Vec::new(),
            pack_bytes: 0,
            ready: Vec::new(),
            ready_bytes: 0,
            reused_bytes: 0,
        }
    }

    fn is_placed(&self, index: usize) -> bool {
        self.digests[index].is_some_and(|digest| self.places.contains_key(&digest))
    }

    /// Reads a window of files, lays out what is new, and encodes what is full.
    fn take(&mut self, files: &[SourceFile], window: &[usize]) -> Result<(), BuildError> {
        let read: Vec<(Vec<u8>, Digest)> =
            window.par_iter().map(|&index| read_whole(&files[index], self.outputs)).collect::<Result<_, _>>()?;
        for (&index, (content, digest)) in window.iter().zip(read) {
            // With a base, the digest decided what is reused: the second reading must agree with the first.
            if self.digests[index].is_some_and(|known| known != digest) {
                return Err(BuildError::Changed(files[index].path.clone()));
            }
            self.digests[index] = Some(digest);
            if !content.is_empty() && !self.places.contains_key(&digest) {
                self.lay_out(content, digest);
            }
        }
        self.encode_ready()
    }

    fn lay_out(&mut self, content: Vec<u8>, digest: Digest) {
        if content.len() as u64 >= LARGE_FILE {
            self.close_pack();
            self.places.insert(digest, self.end + self.ready_bytes);
            self.ready_bytes += content.len() as u64;
            if content.len() <= MAX_CHUNK {
                self.ready.push(vec![content]);
            } else {
                self.ready.extend(content.chunks(MAX_CHUNK).map(|piece| vec![piece.to_vec()]));
            }
            return;
        }
        self.places.insert(digest, self.end + self.ready_bytes + self.pack_bytes as u64);
        self.pack_bytes += content.len();
        self.pack.push(content);
        let boundary = self.pack_bytes >= PACK_MIN && digest.as_bytes()[0] < 32;
        if boundary || self.pack_bytes >= PACK_MAX {
            self.close_pack();
        }
    }

    fn close_pack(&mut self) {
        if !self.pack.is_empty() {
            self.ready_bytes += self.pack_bytes as u64;
            self.pack_bytes = 0;
            self.ready.push(std::mem::take(&mut self.pack));
        }
    }

    fn encode_ready(&mut self) -> Result<(), BuildError> {
        let chunks: Vec<Chunk> =
            self.ready.par_iter().map(|parts| encode_parts(parts, self.outputs)).collect::<Result<_, _>>()?;
        self.chunks.extend(chunks);
        self.end += self.ready_bytes;
        self.ready.clear();
        self.ready_bytes = 0;
        Ok(())
    }

    fn close(&mut self) -> Result<(), BuildError> {
        self.close_pack();
        self.encode_ready()
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

/// A chunk of one file is encoded where it lies, several are put together first.
fn encode_parts(parts: &[Vec<u8>], outputs: &Outputs<'_>) -> Result<Chunk, BuildError> {
    match parts {
        [one] => encode(one, outputs),
        several => encode(&several.concat(), outputs),
    }
}

fn encode(decoded: &[u8], outputs: &Outputs<'_>) -> Result<Chunk, BuildError> {
    thread_local! {
        static ENCODER: std::cell::RefCell<Option<Encoder>> = const { std::cell::RefCell::new(None) };
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

fn read_whole(file: &SourceFile, outputs: &Outputs<'_>) -> Result<(Vec<u8>, Digest), BuildError> {
    // At most WINDOW bytes.
    let content = file.read()?;
    (outputs.progress)(content.len() as u64);
    let digest = Digest::of(&content);
    Ok((content, digest))
}

fn piece_offsets(size: u64) -> impl Iterator<Item = u64> {
    (0..size).step_by(MAX_CHUNK)
}

fn piece_len(size: u64, offset: u64) -> usize {
    // At most MAX_CHUNK.
    (size - offset).min(MAX_CHUNK as u64) as usize
}

/// One source file, held open and known to be the one that was found.
struct Reader<'f> {
    file: &'f SourceFile,
    os: OsFile,
}

impl<'f> Reader<'f> {
    fn open(file: &'f SourceFile) -> Result<Self, BuildError> {
        // Neither a link that took the file's place nor a FIFO that would block.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let opened = OsFile::options().read(true).custom_flags(flags.bits() as i32).open(&file.source);
        let os = opened.map_err(|error| match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => BuildError::Changed(file.path.clone()),
            _ => BuildError::Read { path: file.path.clone(), source: error },
        })?;
        let reader = Self { file, os };
        reader.check()?;
        Ok(reader)
    }

    fn check(&self) -> Result<(), BuildError> {
        let meta = self.os.metadata().map_err(|error| self.failed(error))?;
        if Stamp::of(&meta) == self.file.stamp { Ok(()) } else { Err(BuildError::Changed(self.file.path.clone())) }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BuildError> {
        if let Some(content) = &self.file.content {
            let piece = content.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
            buffer.copy_from_slice(piece.ok_or_else(|| BuildError::Changed(self.file.path.clone()))?);
            return Ok(());
        }
        self.os.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BuildError::Changed(self.file.path.clone()),
            _ => self.failed(error),
        })
    }

    fn failed(&self, source: io::Error) -> BuildError {
        BuildError::Read { path: self.file.path.clone(), source }
    }
}

#[cfg(test)]
mod tests;
