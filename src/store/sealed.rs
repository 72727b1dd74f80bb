//! Chunk files as bytes. They are ours, in a directory that nobody else enters, and never written again once they have
//! their name: so they are mapped, not copied. The mapping goes with the last reference to its bytes, also when the file
//! was deleted meanwhile.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapOptions};
use rustix::fs::OFlags;

/// Smaller files are copied: setting up and tearing down a mapping costs more. Both cost the same at about this size.
const MAP_FROM: usize = 64 * 1024;

/// The file and its length.
pub(super) fn open(path: &Path) -> io::Result<(File, u64)> {
    let no_follow = i32::try_from((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(no_follow).open(path)?;
    let len = file.metadata()?.len();
    Ok((file, len))
}

/// The whole content, `len` bytes, without a copy where that pays.
pub(super) fn bytes(file: &File, len: usize) -> io::Result<Bytes> {
    if len < MAP_FROM {
        return copy(file, len);
    }
    match map(file, len) {
        Ok(map) => Ok(Bytes::from_owner(map)),
        // The process has no room for more mappings (vm.max_map_count).
        Err(error) if error.kind() == io::ErrorKind::OutOfMemory => copy(file, len),
        Err(error) => Err(error),
    }
}

pub(super) fn copy(mut file: &File, len: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; len];
    file.read_exact(&mut bytes)?;
    Ok(bytes.into())
}

#[expect(unsafe_code, reason = "the only mapping of files in this program")]
fn map(file: &File, len: usize) -> io::Result<Mmap> {
    // SAFETY: the file is sealed. It is mode 0400 in a 0700 directory of ours under an exclusive lock; this program
    // replaces and unlinks such files by name but never writes to or truncates one.
    let map = unsafe { MmapOptions::new().len(len).map(file) }?;
    // Brings in all pages at once, and makes an unreadable disk an error here instead of a SIGBUS later.
    match map.advise(Advice::PopulateRead) {
        // Kernels before 5.14 do not know it.
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
        _ => Ok(map),
    }
}
