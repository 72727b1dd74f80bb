//! What the root of a family holds: one walk, told apart by subject, with the reason for everything that stays.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rayon::prelude::*;

use super::relocation::{GroupError, MAX_GROUP, normalise};
use super::scan::{self, Filter, walk};
use super::{CacheFamily, Found, Place, ScanError, ScanRules, Snapshot, SnapshotError, Special, Unit, capture};
use crate::artifact::{Base, BuildError, MAX_FILES, Outputs, RelPath, SourceFile, Tree};

/// Bytes of groups that are held at once; real ones of 50,000 kernels have 60 MB.
const MAX_GROUPS: u64 = 256 * 1024 * 1024;

/// Files and directories that are looked at in one root: nobody chose what lies in it.
const MAX_NAMES: usize = 2 * MAX_FILES;

/// What the root of a family holds.
#[derive(Debug, Default)]
pub struct Survey {
    /// Sorted by name.
    pub subjects: Vec<Subject>,
    /// Some of what stays, each path with the reason.
    pub left: Vec<String>,
}

/// What belongs to one artifact.
#[derive(Debug, Default)]
pub struct Subject {
    /// Empty where a root is one artifact.
    pub name: String,
    /// Sorted by path.
    pub files: Vec<SourceFile>,
    /// Sorted by path.
    pub entries: Vec<Entry>,
}

/// What is installed by one rename.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: RelPath,
    /// When the youngest of its files was written.
    pub newest: SystemTime,
}

/// What of a root becomes one artifact.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    pub root: &'a Tree,
    pub family: &'static CacheFamily,
    /// As in [`Subject::name`].
    pub subject: &'a str,
    /// Entries with younger files may not be finished: they are left out.
    pub settled_by: Option<SystemTime>,
}

/// Looks through `root`; one that does not exist holds nothing. Links, devices and names that no artifact can have are left
/// out, unfinished entries too.
pub fn survey(root: &Path, family: &'static CacheFamily) -> Result<Survey, ScanError> {
    match Tree::open(root) {
        Err(error) if error.is_gone() => Ok(Survey::default()),
        root => look(&root?, Named { family, subject: None, most_names: MAX_NAMES, reads_for_keys: false }, None),
    }
}

/// Captures one subject of a family's root, as [`super::snapshot`] captures a directory.
pub fn snapshot_subject(
    selection: &Selection<'_>,
    base: Option<&Base<'_>>,
    outputs: &Outputs<'_>,
) -> Result<Snapshot, SnapshotError> {
    let Selection { root, family, subject, settled_by } = *selection;
    let look = |reads_for_keys| {
        let named = Named { family, subject: Some(subject), most_names: MAX_NAMES, reads_for_keys };
        let mut survey = look(root, named, settled_by)?;
        let found = survey.subjects.pop().ok_or_else(|| ScanError::Empty(root.path().join(subject)))?;
        let entries = found.entries.into_iter().map(|entry| entry.path).collect();
        Ok(Found { files: found.files, entries, skipped: survey.left })
    };
    match capture(root, || look(false), base, outputs) {
        // One that everybody may read: it stays, and the rest need not.
        Err(SnapshotError::Build(BuildError::PrivateKey(_))) => capture(root, || look(true), base, outputs),
        taken => taken,
    }
}

impl Subject {
    /// When the youngest of all files was written; `None` without any.
    pub fn newest(&self) -> Option<SystemTime> {
        self.entries.iter().map(|entry| entry.newest).max()
    }

    /// Bytes of content.
    pub fn size(&self) -> u64 {
        self.files.iter().map(SourceFile::size).sum()
    }
}

/// The part of a root that a family, or one subject of it, names.
struct Named<'a> {
    family: &'static CacheFamily,
    subject: Option<&'a str>,
    most_names: usize,
    reads_for_keys: bool,
}

impl Filter for Named<'_> {
    fn leaves(&self, path: &str, is_directory: bool) -> Option<&'static str> {
        if self.subject.is_some_and(|subject| self.family.subject_depth > 0 && !is_on_the_way(path, subject)) {
            return Some(scan::UNTOLD);
        }
        if is_directory {
            return (!self.family.enters(path)).then_some("is no part of this kind of cache");
        }
        match self.family.place(path) {
            Place::Left(why) => Some(why),
            Place::Entry { .. } => None,
        }
    }

    fn most_names(&self) -> usize {
        self.most_names
    }

    fn reads_for_keys(&self) -> bool {
        self.reads_for_keys
    }
}

/// Whether `path` is `subject`, lies in it or above it.
fn is_on_the_way(path: &str, subject: &str) -> bool {
    path.split('/').zip(subject.split('/')).all(|(a, b)| a == b)
}

fn look(root: &Tree, named: Named<'_>, settled_by: Option<SystemTime>) -> Result<Survey, ScanError> {
    let family = named.family;
    let (files, mut left) = find(root, named)?;
    let mut candidates = group(files, family);
    let mut held = 0;
    candidates.retain(|candidate| {
        held += candidate.group_bytes(family);
        let fits = held <= MAX_GROUPS;
        if !fits {
            left.push(format!("{}: its group is one too many", candidate.entry));
        }
        fits
    });
    let check = |mut candidate: Candidate| {
        let young = settled_by.is_some_and(|by| candidate.newest() > by);
        let finished =
            if young { Err("was written just now".to_owned()) } else { candidate.finish(root.path(), family) };
        (candidate, finished)
    };
    let checked: Vec<(Candidate, Result<(), String>)> = candidates.into_par_iter().map(check).collect();
    let mut subjects = Subjects::default();
    for (candidate, finished) in checked {
        match finished.and_then(|()| subjects.accept(&candidate)) {
            Ok(()) => subjects.add(candidate),
            Err(why) => left.push(format!("{}: {why}", candidate.entry)),
        }
    }
    left.sort_unstable();
    Ok(Survey { subjects: subjects.sorted(), left })
}

/// Sorted by path.
fn find(root: &Tree, named: Named<'_>) -> Result<(Vec<SourceFile>, Vec<String>), ScanError> {
    let rules = ScanRules { entry_depth: 1, keep_mtime: named.family.keep_mtime, special: Special::Skip };
    let (mut files, left) = match walk(root, &rules, Some(&named)) {
        Err(ScanError::TooMany { directory }) => return Err(ScanError::Overgrown { directory, limit: MAX_FILES }),
        walked => walked?,
    };
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok((files, left))
}

/// An entry that may or may not be complete.
struct Candidate {
    entry: RelPath,
    subject: String,
    unit: &'static Unit,
    files: Vec<SourceFile>,
}

/// `files` are sorted, so that those of one entry are neighbours.
fn group(files: Vec<SourceFile>, family: &'static CacheFamily) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for file in files {
        let path = file.path.clone();
        match (family.place(path.as_str()), candidates.last_mut()) {
            (Place::Entry { entry, .. }, Some(last)) if entry == last.entry.as_str() => last.files.push(file),
            (Place::Entry { entry, subject, unit }, _) => {
                let entry = path.prefix(entry.split('/').count());
                candidates.push(Candidate { entry, subject: subject.to_owned(), unit, files: vec![file] });
            }
            (Place::Left(_), _) => {}
        }
    }
    candidates
}

impl Candidate {
    /// Says what is missing, and gives files that name their place the bytes that travel.
    fn finish(&mut self, root: &Path, family: &CacheFamily) -> Result<(), String> {
        let below = self.entry.as_str().len() + 1;
        let names = self.files.iter().map(|file| file.path.as_str().get(below..).unwrap_or(""));
        if let Some(missing) = self.unit.lacks(names) {
            return Err(format!("not finished, it lacks {missing}"));
        }
        for index in 0..self.files.len() {
            let file = &self.files[index];
            if family.relocation.changes(&file.path) {
                let content =
                    self.rewritten(file, root).map_err(|error| format!("{} {error}", file.path.file_name()))?;
                self.files[index].content = Some(content.into());
            }
        }
        Ok(())
    }

    /// What [`Candidate::finish`] will hold; it does not read larger ones.
    fn group_bytes(&self, family: &CacheFamily) -> u64 {
        let groups = self.files.iter().filter(|file| family.relocation.changes(&file.path));
        groups.map(|file| file.stamp.size).filter(|size| *size <= MAX_GROUP).sum()
    }

    fn rewritten(&self, file: &SourceFile, root: &Path) -> Result<Vec<u8>, Unmovable> {
        if file.stamp.size > MAX_GROUP {
            return Err(GroupError::TooLarge.into());
        }
        let source = file.source();
        let own = source.parent().unwrap_or(root);
        // The engine may have known the root by another path.
        let is_own = |named: &Path| named == own || same_directory(named, own);
        let is_member = |path: &RelPath| self.files.binary_search_by(|other| other.path.cmp(path)).is_ok();
        Ok(normalise(&file.read()?, &file.path, is_own, is_member)?)
    }

    fn newest(&self) -> SystemTime {
        let written = |file: &SourceFile| {
            let (seconds, nanoseconds) = file.stamp.modified;
            let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            UNIX_EPOCH + seconds + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
        };
        self.files.iter().map(written).max().unwrap_or(UNIX_EPOCH)
    }
}

/// Why a file that names its place stays there.
#[derive(Debug, thiserror::Error)]
enum Unmovable {
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error("could not be read: {0}")]
    Read(#[from] BuildError),
}

fn same_directory(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[derive(Default)]
struct Subjects {
    by_name: BTreeMap<String, Subject>,
    /// Paths so far, in lower case: some file systems cannot hold two that differ in case only.
    folded: HashSet<String>,
}

impl Subjects {
    fn accept(&mut self, candidate: &Candidate) -> Result<(), String> {
        let mut folded = HashSet::with_capacity(candidate.files.len());
        for file in &candidate.files {
            let path = file.path.as_str().to_lowercase();
            if self.folded.contains(&path) || !folded.insert(path) {
                return Err(format!("`{}` differs from another file in case only", file.path));
            }
        }
        self.folded.extend(folded);
        Ok(())
    }

    fn add(&mut self, candidate: Candidate) {
        let newest = candidate.newest();
        let subject = self.by_name.entry(candidate.subject).or_default();
        subject.entries.push(Entry { path: candidate.entry, newest });
        subject.files.extend(candidate.files);
    }

    fn sorted(self) -> Vec<Subject> {
        let named = self.by_name.into_iter().map(|(name, mut subject)| {
            // An entry's own path can sort after that of a neighbour whose files sort before its own.
            subject.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
            Subject { name, ..subject }
        });
        named.collect()
    }
}

#[cfg(test)]
mod tests;
