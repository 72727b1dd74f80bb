//! Walks a directory without following links and tells which files an artifact of it would have.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::artifact::{MAX_FILES, PathError, RelPath, SourceFile, Stamp};

const SETUID_SETGID: u32 = 0o6000;
const ANY_EXECUTE: u32 = 0o111;

/// A directory holds what an artifact cannot.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("read {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    #[error("{0} holds no files: nothing to publish")]
    Empty(PathBuf),
    #[error("{directory} holds more than {MAX_FILES} files: publish parts of it", directory = directory.display())]
    TooMany { directory: PathBuf },
    #[error("{path}: {what} cannot be published; remove it or leave such files out with `--skip-special`", path = path.display())]
    Special { path: PathBuf, what: &'static str },
    #[error("{path}: the name is not UTF-8; rename it or leave it out with `--skip-special`", path = path.display())]
    NotUtf8 { path: PathBuf },
    #[error("{path}: {source}", path = path.display())]
    Path { path: PathBuf, source: PathError },
    #[error("`{0}` and `{1}` differ only in case: some file systems cannot hold both")]
    CaseCollision(RelPath, RelPath),
}

/// What to do with links, devices, sockets, set-user-id files and names that are not UTF-8.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Special {
    #[default]
    Refuse,
    Skip,
}

/// How a directory becomes files and entries.
#[derive(Debug, Clone)]
pub struct ScanRules {
    /// Components of an entry's path: 1 makes each top-level name an entry.
    pub entry_depth: usize,
    /// Record modification times.
    pub keep_mtime: bool,
    pub special: Special,
}

impl Default for ScanRules {
    fn default() -> Self {
        Self { entry_depth: 1, keep_mtime: false, special: Special::Refuse }
    }
}

/// What a directory holds.
#[derive(Debug)]
pub struct Found {
    /// Sorted by path.
    pub files: Vec<SourceFile>,
    /// Sorted.
    pub entries: Vec<RelPath>,
    pub skipped: Vec<String>,
}

pub fn scan(directory: &Path, rules: &ScanRules) -> Result<Found, ScanError> {
    let meta = directory.metadata().map_err(|source| ScanError::Read { path: directory.to_owned(), source })?;
    if !meta.is_dir() {
        return Err(ScanError::NotADirectory(directory.to_owned()));
    }
    let mut walk = Walk { directory, rules, files: Vec::new(), skipped: Vec::new() };
    walk.directory(directory, "")?;
    let Walk { mut files, skipped, .. } = walk;
    if files.is_empty() {
        return Err(ScanError::Empty(directory.to_owned()));
    }
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    check_case(&files)?;
    let entries: BTreeSet<RelPath> = files.iter().map(|file| file.path.prefix(rules.entry_depth.max(1))).collect();
    Ok(Found { files, entries: entries.into_iter().collect(), skipped })
}

fn check_case(files: &[SourceFile]) -> Result<(), ScanError> {
    let mut folded: HashMap<String, &RelPath> = HashMap::with_capacity(files.len());
    for file in files {
        if let Some(other) = folded.insert(file.path.as_str().to_lowercase(), &file.path) {
            return Err(ScanError::CaseCollision(other.clone(), file.path.clone()));
        }
    }
    Ok(())
}

struct Walk<'a> {
    directory: &'a Path,
    rules: &'a ScanRules,
    files: Vec<SourceFile>,
    skipped: Vec<String>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path, prefix: &str) -> Result<(), ScanError> {
        let read = |source| ScanError::Read { path: directory.to_owned(), source };
        for entry in std::fs::read_dir(directory).map_err(read)? {
            let entry = entry.map_err(read)?;
            let path = entry.path();
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                self.special(path, None)?;
                continue;
            };
            let relative = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
            match self.entry(path, &relative) {
                // What vanishes between listing and looking was not there.
                Err(ScanError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, relative: &str) -> Result<(), ScanError> {
        let meta = path.symlink_metadata().map_err(|source| ScanError::Read { path: path.clone(), source })?;
        let kind = meta.file_type();
        if kind.is_dir() {
            return self.directory(&path, relative);
        }
        let what = match kind {
            kind if kind.is_symlink() => Some("a symbolic link"),
            kind if kind.is_fifo() => Some("a named pipe"),
            kind if kind.is_socket() => Some("a socket"),
            kind if !kind.is_file() => Some("a device"),
            _ if meta.mode() & SETUID_SETGID != 0 => Some("a set-user-id or set-group-id file"),
            _ => None,
        };
        if let Some(what) = what {
            return self.special(path, Some(what));
        }
        let rel = RelPath::new(relative).map_err(|source| ScanError::Path { path: path.clone(), source })?;
        if self.files.len() == MAX_FILES {
            return Err(ScanError::TooMany { directory: self.directory.to_owned() });
        }
        let mtime_ns =
            u64::try_from(meta.mtime()).unwrap_or(0) * 1_000_000_000 + u64::try_from(meta.mtime_nsec()).unwrap_or(0);
        self.files.push(SourceFile {
            path: rel,
            source: path,
            executable: meta.mode() & ANY_EXECUTE != 0,
            mtime_ns: if self.rules.keep_mtime { mtime_ns } else { 0 },
            stamp: Stamp::of(&meta),
        });
        Ok(())
    }

    fn special(&mut self, path: PathBuf, what: Option<&'static str>) -> Result<(), ScanError> {
        if self.rules.special == Special::Skip {
            let reason = what.unwrap_or("a name that is not UTF-8");
            self.skipped.push(format!("{}: {reason}", path.to_string_lossy().escape_default()));
            return Ok(());
        }
        match what {
            Some(what) => Err(ScanError::Special { path, what }),
            None => Err(ScanError::NotUtf8 { path }),
        }
    }
}
