//! The state of what the facts were read from: cheap to take, and different as soon as any of it changed.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Files and directories that are looked at; beyond that the answer is not kept.
const MAX_ENTRIES: usize = 200_000;

/// The kernel stamps files by a clock of this resolution or a finer one.
const RESOLUTION: Duration = Duration::from_secs(1);

/// Paths that the probe names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Watch {
    /// Files and directories by their own size and times; absent ones count as absent.
    pub(super) files: Vec<PathBuf>,
    /// Directories of packages: their names, and the times of metadata directories and `.pth` files in them.
    pub(super) sites: Vec<PathBuf>,
    /// Directories, and the ending of the files in them that count.
    pub(super) trees: Vec<(PathBuf, String)>,
}

/// What a [`Watch`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) digest: Digest,
    /// The latest change, in nanoseconds since 1970.
    newest: i128,
}

impl State {
    /// Whether all of it is older than `began` by more than clocks can be wrong: a later change is a visible one.
    pub(super) fn is_settled_before(&self, began: SystemTime) -> bool {
        let began = began.checked_sub(RESOLUTION).unwrap_or(SystemTime::UNIX_EPOCH);
        let began = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        self.newest < i128::try_from(began).unwrap_or(i128::MAX)
    }
}

impl Watch {
    /// `None` if there is too much to look at.
    pub(super) fn state(&self) -> Option<State> {
        let files = self.files.iter().map(|path| look(path)).collect::<Vec<_>>();
        let sites = self.sites.par_iter().map(|path| site(path));
        let trees = self.trees.par_iter().map(|(path, suffix)| tree(path, suffix.as_bytes()));
        let mut all: Vec<Seen> = sites.chain(trees).flatten().collect();
        all.extend(files);
        if all.len() > MAX_ENTRIES {
            return None;
        }
        all.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        for seen in &all {
            hasher.update(&(seen.path.as_os_str().len() as u64).to_le_bytes());
            hasher.update(seen.path.as_os_str().as_bytes());
            for number in seen.stamp {
                hasher.update(&number.to_le_bytes());
            }
        }
        let newest = all.iter().flat_map(|seen| [seen.stamp[1], seen.stamp[2]]).max().unwrap_or(0);
        Some(State { digest: Digest::from_array(*hasher.finalize().as_bytes()), newest })
    }
}

/// A path, and its size, modification and change time; zeros if there is nothing.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    path: PathBuf,
    stamp: [i128; 3],
}

fn look(path: &Path) -> Seen {
    seen(path, fs::metadata(path).ok().as_ref())
}

fn seen(path: &Path, meta: Option<&Metadata>) -> Seen {
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    let stamp = meta.map_or([0; 3], |meta| {
        // The size of a directory says nothing.
        let size = if meta.is_dir() { 0 } else { i128::from(meta.size()) };
        [size, nanoseconds(meta.mtime(), meta.mtime_nsec()), nanoseconds(meta.ctime(), meta.ctime_nsec())]
    });
    Seen { path: path.to_owned(), stamp }
}

fn site(directory: &Path) -> Vec<Seen> {
    let metadata = |path: &PathBuf| {
        let kind = path.extension().unwrap_or_default();
        kind == "dist-info" || kind == "egg-info" || kind == "pth"
    };
    let below = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(metadata).map(|path| look(&path)).chain([look(directory)]).collect()
}

fn tree(directory: &Path, suffix: &[u8]) -> Vec<Seen> {
    let (mut found, mut below) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && name != "__pycache__" => below.push(entry.path()),
            Ok(kind) if !kind.is_dir() && name.as_bytes().ends_with(suffix) => found.push(look(&entry.path())),
            _ => {}
        }
    }
    found.par_extend(below.par_iter().flat_map(|directory| tree(directory, suffix)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(root: &Path) -> Watch {
        Watch {
            files: vec![root.join("python"), root.join("nvcc")],
            sites: vec![root.join("site")],
            trees: vec![(root.join("site/vllm"), ".py".to_owned())],
        }
    }

    #[test]
    fn every_change_of_what_counts_is_seen_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for directory in ["site/vllm/deep/__pycache__", "site/vllm-1.dist-info", "site/other"] {
            fs::create_dir_all(path(directory)).unwrap();
        }
        for file in ["python", "site/vllm/deep/a.py", "site/vllm/b.txt", "site/x.pth"] {
            fs::write(path(file), "1").unwrap();
        }
        // The kernel's clock may not have moved on when the directory changes.
        fs::File::open(path("site/vllm-1.dist-info")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let mut state = watch(dir.path()).state().unwrap().digest;
        let mut changed = |what: &str, expected: bool| {
            let now = watch(dir.path()).state().unwrap().digest;
            assert_eq!(now != state, expected, "{what}");
            state = now;
        };
        changed("nothing", false);
        fs::write(path("site/vllm/b.txt"), "22").unwrap();
        fs::write(path("site/vllm/deep/__pycache__/a.py"), "22").unwrap();
        fs::write(path("site/other/a.py"), "22").unwrap();
        changed("other files", false);
        fs::write(path("site/vllm/deep/a.py"), "22").unwrap();
        changed("a source", true);
        fs::write(path("site/vllm/c.py"), "").unwrap();
        changed("a new source", true);
        fs::write(path("site/x.pth"), "22").unwrap();
        changed("a .pth file", true);
        fs::write(path("site/vllm-1.dist-info/RECORD"), "").unwrap();
        changed("a metadata directory", true);
        fs::write(path("nvcc"), "").unwrap();
        changed("a program that was absent", true);
        fs::remove_file(path("python")).unwrap();
        changed("a program that is gone", true);
    }

    #[test]
    fn what_changed_during_the_probe_is_not_settled() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("python"), "1").unwrap();
        let state = watch(dir.path()).state().unwrap();
        let now = SystemTime::now();
        assert!(!state.is_settled_before(now));
        assert!(state.is_settled_before(now + Duration::from_secs(60)));
    }
}
