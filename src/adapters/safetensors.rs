//! The safetensors format: eight bytes of length, a JSON header, tensors without holes.
//!
//! The rules are those of <https://github.com/huggingface/safetensors#format>, read strictly, and every number is checked
//! before anything is allocated by it: the header begins with `{` and has no key twice, names are short and printable,
//! a tensor is as long as its shape says, and together the tensors tile the data: no overlap, no hole, no rest. We read
//! it ourselves because the reference library maps whole files, lets the last of two equal names win, and has no limits
//! of ours; the format is small.
//!
//! Files are read in pieces by position and never mapped: somebody else's file may shrink under a mapping.

mod dtype;
mod header;
mod writer;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use dtype::{Dtype, Float};
pub use header::{Header, Tensor};
pub(super) use writer::Hashed;
pub use writer::{Content, Outgoing, write};

/// Bytes that are read at once.
const PIECE: u64 = 1024 * 1024;

/// What a file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub file: u64,
    /// Bytes of the header.
    pub header: u64,
    pub tensors: usize,
}

impl Limits {
    /// An adapter of rank 512 for a model of a trillion parameters has 8 GiB.
    pub const ADAPTER: Self = Self { file: 16 << 30, header: 16 << 20, tensors: 131_072 };
    /// A shard of a model.
    pub const BASE: Self = Self { file: 1 << 40, header: 64 << 20, tensors: 524_288 };
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: is not a regular file", path = .0.display())]
    NotAFile(PathBuf),
    /// What is wrong with its bytes.
    #[error("{path}: {fault}", path = .path.display())]
    Malformed { path: PathBuf, fault: Fault },
    #[error("{path}: tensor `{tensor}` has {bytes} bytes, at most {limit} are read at once", path = .path.display())]
    TooLarge { path: PathBuf, tensor: String, bytes: u64, limit: u64 },
    #[error("{path}: tensor `{tensor}` is {dtype}, expected F32, F16 or BF16", path = .path.display())]
    NotFloat { path: PathBuf, tensor: String, dtype: Dtype },
}

/// Why bytes are no safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("{0} bytes are no safetensors file")]
    TooShort(u64),
    #[error("{found} bytes, allowed are {limit}")]
    FileTooLarge { found: u64, limit: u64 },
    #[error("the header claims {claimed} bytes, the file has {left} left for it")]
    HeaderBeyondFile { claimed: u64, left: u64 },
    #[error("the header claims {claimed} bytes, allowed are {limit}")]
    HeaderTooLarge { claimed: u64, limit: u64 },
    #[error("the header does not begin with `{{`")]
    HeaderStart,
    #[error("header: {0}")]
    Header(String),
    #[error("more than {0} tensors")]
    TooMany(usize),
    #[error("tensor `{0}`: names have 1 to 512 bytes and no control characters")]
    Name(String),
    #[error("tensor `{0}`: its shape has more elements than can be counted")]
    ShapeOverflow(String),
    #[error("tensor `{name}`: {dtype} {shape:?} needs {needed} bytes, its offsets give it {given}")]
    Size { name: String, dtype: Dtype, shape: Vec<u64>, needed: u64, given: u64 },
    #[error("tensor `{0}` ends before it begins")]
    Backwards(String),
    #[error("tensor `{0}` overlaps another one")]
    Overlap(String),
    #[error("{bytes} bytes before tensor `{before}` belong to no tensor")]
    Hole { before: String, bytes: u64 },
    #[error("the tensors have {tensors} bytes, the file has {data}")]
    End { tensors: u64, data: u64 },
}

/// An open file whose header was checked.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    file: File,
    header: Header,
}

impl Weights {
    /// A link is refused, and so is what is no regular file.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, SafetensorsError> {
        // Not to block on a FIFO.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path);
        Self::of(file.map_err(|source| SafetensorsError::Io { path: path.to_owned(), source })?, path, limits)
    }

    /// For files that the operator has put there, which may be links.
    pub fn open_following(path: &Path, limits: &Limits) -> Result<Self, SafetensorsError> {
        let flags = rustix::fs::OFlags::NONBLOCK;
        let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path);
        Self::of(file.map_err(|source| SafetensorsError::Io { path: path.to_owned(), source })?, path, limits)
    }

    fn of(file: File, path: &Path, limits: &Limits) -> Result<Self, SafetensorsError> {
        let io = |source| SafetensorsError::Io { path: path.to_owned(), source };
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(SafetensorsError::NotAFile(path.to_owned()));
        }
        let malformed = |fault| SafetensorsError::Malformed { path: path.to_owned(), fault };
        let mut claimed = [0; 8];
        if meta.len() < claimed.len() as u64 {
            return Err(malformed(Fault::TooShort(meta.len())));
        }
        file.read_exact_at(&mut claimed, 0).map_err(io)?;
        let length = header::length(claimed, meta.len(), limits).map_err(malformed)?;
        let mut json = vec![0; length];
        file.read_exact_at(&mut json, 8).map_err(io)?;
        let header = Header::parse(&json, meta.len() - 8 - length as u64, limits).map_err(malformed)?;
        Ok(Self { path: path.to_owned(), file, header })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The tensor's bytes in pieces of at most 1 MiB, whole elements each.
    pub fn pieces(
        &self,
        tensor: &Tensor,
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), SafetensorsError> {
        let io = |source| SafetensorsError::Io { path: self.path.clone(), source };
        let mut at = tensor.range.start;
        let mut buffer = vec![0; PIECE.min(tensor.len()) as usize];
        while at < tensor.range.end {
            let length = PIECE.min(tensor.range.end - at);
            let piece = &mut buffer[..length as usize];
            self.file.read_exact_at(piece, self.header.data() + at).map_err(io)?;
            each(piece).map_err(io)?;
            at += length;
        }
        Ok(())
    }

    /// All elements as `f32`, at most `limit` of them.
    pub fn floats(&self, tensor: &Tensor, limit: u64) -> Result<Vec<f32>, SafetensorsError> {
        let float = self.float(tensor)?;
        let path = || self.path.clone();
        let count = tensor.len() / float.size() as u64;
        if count > limit {
            let (tensor, bytes) = (tensor.name.clone(), tensor.len());
            return Err(SafetensorsError::TooLarge { path: path(), tensor, bytes, limit: limit * float.size() as u64 });
        }
        let mut values = Vec::with_capacity(count as usize);
        self.pieces(tensor, |piece| {
            float.decode(piece, &mut values);
            Ok(())
        })?;
        Ok(values)
    }

    pub fn float(&self, tensor: &Tensor) -> Result<Float, SafetensorsError> {
        let (path, dtype) = (|| self.path.clone(), tensor.dtype);
        let name = || tensor.name.clone();
        dtype.float().ok_or_else(|| SafetensorsError::NotFloat { path: path(), tensor: name(), dtype })
    }
}

#[cfg(test)]
mod tests;
