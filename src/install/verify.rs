//! Whether what is installed is still what was signed.

use std::fs::File as OsFile;
use std::io::{self, Read};

use rayon::prelude::*;
use rustix::fs::fstat;
use rustix::io::Errno;

use super::dir::is_regular;
use super::relocated::Relocated;
use super::{CacheRoot, InstallError};
use crate::artifact::{File, Manifest, RelPath};
use crate::caches::MAX_GROUP;
use crate::digest::Digest;

/// Bytes read at once.
const BUFFER: usize = 256 * 1024;

/// What [`verify_installed`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Files that were as the manifest says, and their bytes.
    pub files: u64,
    pub bytes: u64,
    pub missing: Vec<RelPath>,
    /// Other content, no regular file, or reached through a link.
    pub different: Vec<RelPath>,
}

impl Report {
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty() && self.different.is_empty()
    }
}

/// Hashes every file of `manifest` that is in `root`, on all cores.
pub fn verify_installed(root: &CacheRoot, manifest: &Manifest) -> Result<Report, InstallError> {
    let relocated = Relocated::new(root, manifest)?;
    let look = |file| look_at(root, manifest, &relocated, file);
    let found: Vec<Found> = manifest.files.par_iter().map(look).collect::<Result<_, InstallError>>()?;
    let mut report = Report::default();
    for (file, found) in manifest.files.iter().zip(found) {
        match found {
            Found::Same => {
                report.files += 1;
                report.bytes += file.size;
            }
            Found::Missing => report.missing.push(file.path.clone()),
            Found::Different => report.different.push(file.path.clone()),
        }
    }
    Ok(report)
}

enum Found {
    Same,
    Missing,
    Different,
}

fn look_at(root: &CacheRoot, manifest: &Manifest, relocated: &Relocated, file: &File) -> Result<Found, InstallError> {
    let failed = |source| InstallError::Io { verb: "read", path: root.path().join(file.path.as_str()), source };
    let open = match root.dir.open_read(file.path.as_str()) {
        Ok(open) => open,
        Err(Errno::NOENT) => return Ok(Found::Missing),
        Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV | Errno::NXIO) => return Ok(Found::Different),
        Err(errno) => return Err(failed(errno.into())),
    };
    let stat = fstat(&open).map_err(|errno| failed(errno.into()))?;
    if !is_regular(&stat) {
        return Ok(Found::Different);
    }
    if relocated.changes(file) {
        let mut bytes = Vec::new();
        open.take(MAX_GROUP + 1).read_to_end(&mut bytes).map_err(failed)?;
        let normal = relocated.normalise(manifest, file, &bytes);
        let same = normal.is_some_and(|normal| Digest::of(&normal) == file.digest);
        return Ok(if same { Found::Same } else { Found::Different });
    }
    if stat.st_size as u64 != file.size {
        return Ok(Found::Different);
    }
    let digest = hash(open, file.size).map_err(failed)?;
    Ok(if digest == file.digest { Found::Same } else { Found::Different })
}

/// Reads one byte more than `size` at most: the file may be growing.
fn hash(file: OsFile, size: u64) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER) + 1)];
    let mut file = file.take(size + 1);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            read => hasher.update(&buffer[..read]),
        };
    }
}
