//! The engine in a control group of its own, where that can be made (version 2; the kernel's cgroup-v2 documentation).
//!
//! It tells exactly what belongs to an engine, whatever its parents and sessions are, and it can be killed as a whole. In
//! most containers none can be made: everything works without it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use super::super::process::table;

/// Until a killed group is empty.
const LOOKS: u32 = 100;
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Dropping it kills what is in it.
#[derive(Debug)]
pub(super) struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Below our own group, around a process that has just begun: what it starts from now on is inside.
    pub(super) fn around(pid: i32) -> Option<Self> {
        let begun = table::read(pid).ok()?.begun;
        let own =
            own(&fs::read_to_string("/proc/self/mountinfo").ok()?, &fs::read_to_string("/proc/self/cgroup").ok()?)?;
        // The name is of this process only, for as long as the machine runs.
        let directory = own.join(format!("warmd-engine-{pid}-{begun}"));
        fs::create_dir(&directory).ok()?;
        let group = Self { directory };
        // Without `cgroup.kill` the kernel is older than 5.14.
        let entered =
            group.directory.join("cgroup.kill").exists() && group.write("cgroup.procs", &pid.to_string()).is_ok();
        entered.then_some(group)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Kills what is in it, and removes it.
    pub(super) async fn end(self) {
        for _ in 0..LOOKS {
            if self.remove().is_ok() {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
        tracing::warn!(directory = %self.directory.display(), "the engine's control group is not empty");
    }

    fn remove(&self) -> io::Result<()> {
        let _ = self.write("cgroup.kill", "1");
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        // Never makes a file, as a directory that is no control group would let it.
        fs::OpenOptions::new().write(true).open(self.directory.join(file))?.write_all(text.as_bytes())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// Process ids in the group of that directory; none if there is no such group.
pub(super) fn processes(directory: &Path) -> Vec<i32> {
    let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    processes.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// The directory of our own group, from `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn own(mounts: &str, groups: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|mount| {
        let (place, kind) = mount.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // Outside of the mount, or of our cgroup namespace, it has no directory.
        let below = Path::new(group).strip_prefix(root).ok().filter(|below| !below.starts_with(".."))?;
        kind.starts_with("cgroup2 ").then(|| Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

    #[test]
    fn our_own_group_is_below_the_mount_of_version_2() {
        let unified = Path::new("/sys/fs/cgroup/unified");
        assert_eq!(own(MOUNTS, "1:cpu:/x\n0::/\n").unwrap(), unified);
        assert_eq!(own(MOUNTS, "0::/system.slice/a.service\n").unwrap(), unified.join("system.slice/a.service"));
        let bound = MOUNTS.replace("0:38 / ", "0:38 /kubepods/pod1 ");
        assert_eq!(own(&bound, "0::/kubepods/pod1/c\n").unwrap(), unified.join("c"));
        assert_eq!(own(&bound, "0::/elsewhere\n"), None);
        assert_eq!(own(MOUNTS, "0::/../outside\n"), None);
        assert_eq!(own(MOUNTS, "1:cpu:/\n"), None);
        assert_eq!(own("", "0::/\n"), None);
    }

    #[tokio::test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    async fn what_is_in_a_group_is_killed_with_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let Some(group) = Cgroup::around(pid) else {
            child.kill().and_then(|()| child.wait()).unwrap();
            return eprintln!("skipped: no control group can be made here");
        };
        let directory = group.directory().to_owned();
        assert_eq!(processes(&directory), [pid]);
        group.end().await;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
        assert!(!directory.exists() && processes(&directory).is_empty());
    }
}
