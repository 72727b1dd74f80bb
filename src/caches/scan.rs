//! Walks a directory without following links and tells which files an artifact of it would have.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use rustix::fs::{FileType, Stat};

use crate::artifact::{Listing, MAX_FILES, PathError, RelPath, SourceFile, Stamp, Tree, TreeError};

const SETUID_SETGID: u32 = 0o6000;
const ANY_EXECUTE: u32 = 0o111;
const FOR_OTHERS: u32 = 0o077;

/// Reasons that are kept; a root full of locks needs no more.
const MAX_REASONS: usize = 1000;

/// A directory holds what an artifact cannot.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{0} holds no files: nothing to publish")]
    Empty(PathBuf),
    #[error("{directory} holds more than {MAX_FILES} files: publish parts of it", directory = directory.display())]
    TooMany { directory: PathBuf },
    #[error("{path}: {what} cannot be published; remove it or leave such files out with `--skip-special`", path = path.display())]
    Special { path: PathBuf, what: &'static str },
    #[error("{path}: the name is not UTF-8; rename it or leave it out with `--skip-special`", path = path.display())]
    NotUtf8 { path: PathBuf },
    #[error("{directory} holds more than {limit} files and directories: remove what no engine needs", directory = directory.display())]
    Overgrown { directory: PathBuf, limit: usize },
    #[error("{path} holds a private key: it must not leave this node; publish another directory", path = .0.display())]
    PrivateKey(PathBuf),
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

pub fn scan(tree: &Tree, rules: &ScanRules) -> Result<Found, ScanError> {
    let (mut files, skipped) = walk(tree, rules, None)?;
    if files.is_empty() {
        return Err(ScanError::Empty(tree.path().to_owned()));
    }
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    check_case(&files)?;
    let entries: BTreeSet<RelPath> = files.iter().map(|file| file.path.prefix(rules.entry_depth.max(1))).collect();
    Ok(Found { files, entries: entries.into_iter().collect(), skipped })
}

/// The reason of a [`Filter`] that nobody needs to hear.
pub(super) const UNTOLD: &str = "";

/// Which part of a tree is looked at. With it, a single file that cannot be published is left out and refuses nothing.
pub(super) trait Filter: Sync {
    /// Why a directory or a file is left out, by its path below the top.
    fn leaves(&self, path: &str, is_directory: bool) -> Option<&'static str>;

    /// Files and directories that are looked at before the walk gives up.
    fn most_names(&self) -> usize;

    /// Whether small files are read, and private keys among them left out. Else only those that nobody else may read are:
    /// looking into each of many files takes long.
    fn reads_for_keys(&self) -> bool;
}

/// Files in no order, and what was left out.
pub(super) fn walk(tree: &Tree, rules: &ScanRules, filter: Option<&dyn Filter>) -> Result<Part, ScanError> {
    let [files, names, reasons] = [const { AtomicUsize::new(0) }; 3];
    Walk { tree, rules, filter, files, names, reasons }.directory("")
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

/// What one directory and those below it hold, in no order: files, and what was left out.
pub(super) type Part = (Vec<SourceFile>, Vec<String>);

/// Subdirectories are walked side by side: looking at a file costs more than reading a small one.
struct Walk<'a> {
    tree: &'a Tree,
    rules: &'a ScanRules,
    filter: Option<&'a dyn Filter>,
    /// Found so far.
    files: AtomicUsize,
    /// With a filter: looked at, and left out with a reason, so far.
    names: AtomicUsize,
    reasons: AtomicUsize,
}

impl Walk<'_> {
    fn directory(&self, prefix: &str) -> Result<Part, ScanError> {
        let (mut files, mut skipped, mut below) = (Vec::new(), Vec::new(), Vec::new());
        let mut listing = self.tree.list(prefix)?;
        while let Some((name, is_directory)) = listing.name()? {
            let Ok(name) = name.to_str() else {
                let path = self.tree.path().join(prefix).join(OsStr::from_bytes(name.to_bytes()));
                skipped.push(self.special(path, None)?);
                continue;
            };
            let relative = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
            if let Some(why) = self.filtered(&relative, is_directory)? {
                if why != UNTOLD {
                    self.leave(&mut skipped, format!("{relative}: {why}"));
                }
                continue;
            }
            if is_directory {
                below.extend(self.below(&mut skipped, relative)?);
                continue;
            }
            match self.file(&listing, name, &relative) {
                // What vanishes between listing and looking was not there.
                Err(ScanError::Tree(error)) if error.is_gone() => {}
                Err(error @ (ScanError::PrivateKey(_) | ScanError::Path { .. })) if self.filter.is_some() => {
                    self.leave(&mut skipped, error.to_string());
                }
                Err(error) => return Err(error),
                Ok(Ok(file)) => files.push(file),
                Ok(Err(reason)) => skipped.push(reason),
            }
        }
        drop(listing);
        let parts: Vec<Part> = below
            .par_iter()
            .map(|relative| match self.directory(relative) {
                Err(ScanError::Tree(error)) if error.is_gone() => Ok(Part::default()),
                walked => walked,
            })
            .collect::<Result<_, _>>()?;
        for (more, left_out) in parts {
            files.extend(more);
            skipped.extend(left_out);
        }
        Ok((files, skipped))
    }

    /// Why the filter leaves something out.
    fn filtered(&self, relative: &str, is_directory: bool) -> Result<Option<&'static str>, ScanError> {
        let Some(filter) = self.filter else {
            return Ok(None);
        };
        let limit = filter.most_names();
        if self.names.fetch_add(1, Ordering::Relaxed) >= limit {
            return Err(ScanError::Overgrown { directory: self.tree.path().to_owned(), limit });
        }
        Ok(filter.leaves(relative, is_directory))
    }

    /// The directory, if it is to be walked. Below one that no path of an artifact names nothing could be named, and the walk
    /// must not go as deep as somebody likes.
    fn below(&self, skipped: &mut Vec<String>, relative: String) -> Result<Option<String>, ScanError> {
        match RelPath::new(&relative) {
            Ok(_) => Ok(Some(relative)),
            Err(source) => {
                let error = ScanError::Path { path: self.tree.path().join(&relative), source };
                if self.filter.is_none() {
                    return Err(error);
                }
                self.leave(skipped, error.to_string());
                Ok(None)
            }
        }
    }

    fn leave(&self, skipped: &mut Vec<String>, reason: String) {
        if self.reasons.fetch_add(1, Ordering::Relaxed) < MAX_REASONS {
            skipped.push(reason);
        }
    }

    /// The file, or why it is left out.
    fn file(&self, listing: &Listing<'_>, name: &str, relative: &str) -> Result<Result<SourceFile, String>, ScanError> {
        let path = || self.tree.path().join(relative);
        let stat = listing.look(name)?;
        if let Some(what) = special_kind(&stat) {
            return self.special(path(), Some(what)).map(Err);
        }
        let rel = RelPath::new(relative).map_err(|source| ScanError::Path { path: path(), source })?;
        if self.files.fetch_add(1, Ordering::Relaxed) >= MAX_FILES {
            return Err(ScanError::TooMany { directory: self.tree.path().to_owned() });
        }
        let stamp = Stamp::from(&stat);
        let part = |number: i64| u64::try_from(number).unwrap_or(0);
        let mtime_ns = part(stamp.modified.0) * 1_000_000_000 + part(stamp.modified.1);
        let file = SourceFile {
            path: rel,
            tree: self.tree.clone(),
            executable: stat.st_mode & ANY_EXECUTE != 0,
            mtime_ns: if self.rules.keep_mtime { mtime_ns } else { 0 },
            stamp,
            content: None,
        };
        let reads = stat.st_mode & FOR_OTHERS == 0 || self.filter.is_some_and(|filter| filter.reads_for_keys());
        // Others are looked at when they are read.
        match reads && file.is_private_key() {
            true => Err(ScanError::PrivateKey(path())),
            false => Ok(Ok(file)),
        }
    }

    fn special(&self, path: PathBuf, what: Option<&'static str>) -> Result<String, ScanError> {
        if self.rules.special == Special::Skip {
            let reason = what.unwrap_or("a name that is not UTF-8");
            return Ok(format!("{}: {reason}", path.to_string_lossy().escape_default()));
        }
        match what {
            Some(what) => Err(ScanError::Special { path, what }),
            None => Err(ScanError::NotUtf8 { path }),
        }
    }
}

/// What no artifact can hold.
fn special_kind(stat: &Stat) -> Option<&'static str> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => Some("a symbolic link"),
        FileType::Fifo => Some("a named pipe"),
        FileType::Socket => Some("a socket"),
        FileType::RegularFile if stat.st_mode & SETUID_SETGID != 0 => Some("a set-user-id or set-group-id file"),
        FileType::RegularFile => None,
        _ => Some("a device"),
    }
}
