//! The private directory of one installation. It is alive as long as its owner's handle: the kernel drops the `flock` with
//! the process, however that ends, and knows it across pid namespaces, where a pid says nothing.

use std::ffi::CString;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::dir::Dir;
use super::layout::{STAGING, TREE, staging_name};
use super::{At, CacheRoot, InstallError, RootProblem};

/// Staging directories of one process at a time, and those that it lost to a cleaner before it had locked them.
const MAX_ATTEMPTS: u32 = 1000;

#[derive(Debug)]
pub(super) struct Staging<'r> {
    root: &'r CacheRoot,
    name: String,
    pub(super) dir: Dir,
    /// Where files go: [`TREE`].
    pub(super) tree: Dir,
}

impl<'r> Staging<'r> {
    pub(super) fn new(root: &'r CacheRoot) -> Result<Self, InstallError> {
        let (name, dir) = Self::own_directory(root)?;
        match Self::make_tree(root, &dir) {
            Ok(tree) => Ok(Self { root, name, dir, tree }),
            Err(error) => {
                remove(root, &name);
                Err(error)
            }
        }
    }

    /// Taken without a tree: for writing a marker alone.
    fn own_directory(root: &CacheRoot) -> Result<(String, Dir), InstallError> {
        let pid = std::process::id();
        let start = start_time();
        let control = root.control_path();
        for attempt in 0..MAX_ATTEMPTS {
            let name = staging_name(pid, start, attempt);
            match root.staging.make(&name, Mode::RWXU) {
                Err(Errno::EXIST) => continue,
                made => made.at("make staging in", &control, STAGING)?,
            }
            // A cleaner may come between: then it owns or has removed the directory, and we take another.
            let dir = match root.staging.open(&name) {
                Err(Errno::NOENT) => continue,
                opened => opened.at("open", &control, STAGING)?,
            };
            let ours = dir.try_own().at("lock", &control, STAGING)?;
            if ours && dir.stat().at("stat", &control, STAGING)?.st_nlink > 0 {
                return Ok((name, dir));
            }
        }
        Err(InstallError::io("make staging in", control.join(STAGING), Errno::EXIST))
    }

    /// Its name comes by the kind of rename that a commit needs, so that a file system without it is told before a
    /// transfer and not after.
    fn make_tree(root: &CacheRoot, dir: &Dir) -> Result<Dir, InstallError> {
        let control = root.control_path();
        dir.make("new", Mode::RWXU).at("make staging in", &control, STAGING)?;
        match dir.rename_new("new", dir, TREE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let path = root.path().to_owned();
                return Err(InstallError::Root { path, problem: RootProblem::NoExclusiveRename });
            }
            renamed => renamed.at("rename in", &control, STAGING)?,
        }
        dir.open(TREE).at("open", &control, STAGING)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.root.control_path().join(STAGING).join(&self.name)
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        remove(self.root, &self.name);
    }
}

fn remove(root: &CacheRoot, name: &str) {
    let Ok(c_name) = CString::new(name) else {
        return;
    };
    if let Err(error) = root.staging.remove_tree(&c_name) {
        tracing::warn!(%error, staging = name, "staging was not removed; the next start removes it");
    }
}

/// Of this process, in clock ticks since boot: field 22 of `/proc/self/stat`, see proc_pid_stat(5). 0 without `/proc`.
fn start_time() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name may hold spaces and brackets; its last bracket ends it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or(0)
}
