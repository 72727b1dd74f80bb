use std::os::unix::process::ExitStatusExt;

use rustix::io::Errno;

use super::*;
use crate::install::fault::injected::{Fault, arm, passed};

/// As [`small`], without the large file: many children build it.
fn tiny() -> Fixture {
    let mut tree = small().tree;
    tree.retain(|path, _| !path.starts_with("big"));
    tree.insert("b".into(), plain(noise(3, 100)));
    Fixture::new(tree)
}

pub(super) fn install_until_killed() {
    let root = CacheRoot::open(std::env::var(child::ROOT).unwrap().as_ref()).unwrap();
    let fixture = tiny();
    arm(Some((std::env::var(child::CALLS).unwrap().parse().unwrap(), Fault::Kill)));
    let installed = fixture.install(&root);
    arm(None);
    installed.unwrap();
}

#[test]
fn a_kill_at_any_call_leaves_whole_entries_and_one_restart_cleans_the_rest() {
    let fixture = tiny();
    let mut partial = 0;
    for calls in 0.. {
        let (_dir, root) = root();
        let mut command = child::of_role("install");
        let output = command.env(child::ROOT, root.path()).env(child::CALLS, calls.to_string()).output().unwrap();
        fixture.assert_only_whole_entries(root.path());
        if output.status.success() {
            assert!(calls > 30, "only {calls} calls were reached");
            assert_eq!(visible(root.path()), fixture.paths());
            break;
        }
        assert_eq!(output.status.signal(), Some(9), "{}", child::told(&output));
        let entries = visible(root.path()).len();
        partial += usize::from(entries > 0 && entries < fixture.tree.len());
        let marker = root.marker(&fixture.manifest().identity.id()).unwrap();
        assert!(marker.is_none() || visible(root.path()) == fixture.paths(), "a marker without its files");
        root.clean().unwrap();
        assert!(staging_is_empty(root.path()));
        // What is there wins, the rest is installed.
        fixture.install(&root).unwrap();
        assert_eq!(visible(root.path()), fixture.paths());
    }
    assert!(partial > 2, "kills between renames were seen {partial} times");
}

#[test]
fn an_error_at_any_call_surfaces_with_its_class_and_leaves_no_staging() {
    let fixture = small();
    for (errno, class) in [
        (Errno::NOSPC, NegativeClass::NoSpace),
        (Errno::DQUOT, NegativeClass::NoSpace),
        (Errno::IO, NegativeClass::Transient),
    ] {
        for calls in 0.. {
            let (_dir, root) = root();
            let lock = lock(&root);
            arm(Some((calls, Fault::Fail(errno))));
            let result = fixture.install_locked(&root, &lock, LIMITS);
            let reached = passed();
            arm(None);
            let Err(error) = result else {
                assert!(calls > 40 && reached <= calls, "only {calls} calls were reached");
                break;
            };
            assert_eq!(error.class(), class, "call {calls}: {error:?}");
            fixture.assert_only_whole_entries(root.path());
            assert!(staging_is_empty(root.path()), "call {calls} left staging");
            let marker = root.marker(&fixture.manifest().identity.id()).unwrap();
            assert!(marker.is_none() || visible(root.path()) == fixture.paths(), "a marker without its files");
        }
    }
}

#[test]
fn a_disk_that_fills_at_any_moment_leaves_nothing() {
    child::in_own_mounts("full-disk");
}

/// In a mount namespace of its own. The reserve is off, so that the disk itself says no.
pub(super) fn full_disks() {
    let dir = tempfile::tempdir().unwrap();
    let tree: Tree = (0..40).map(|i| (format!("{i:02}/file"), plain(noise(i, 5000)))).collect();
    let fixture = Fixture::new(tree);
    let mut refused = 0;
    let mut installed = 0;
    for pages in (0..200).step_by(3) {
        let disk = dir.path().join(format!("{pages}"));
        std::fs::create_dir(&disk).unwrap();
        child::mount_tmpfs(&disk, "800k");
        let root = CacheRoot::open(&disk).unwrap();
        let lock = lock(&root);
        let result = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS).and_then(|installation| {
            // Somebody else takes what was free at the beginning.
            std::fs::write(disk.join("other"), vec![1; pages * 4096]).unwrap();
            for index in installation.needed().ones() {
                installation.chunk(index, &fixture.chunks[index])?;
            }
            installation.commit()
        });
        std::fs::remove_file(disk.join("other")).ok();
        assert!(staging_is_empty(&disk), "{pages} pages");
        match result {
            Ok(_) => {
                installed += 1;
                assert_eq!(visible(&disk), fixture.paths());
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error.class(), NegativeClass::NoSpace, "{pages} pages: {error:?}");
                assert!(visible(&disk).is_empty(), "{pages} pages");
            }
        }
    }
    assert!(refused > 10 && installed > 10, "{refused} refused, {installed} installed");
}

#[test]
fn what_would_cross_the_reserve_or_the_limit_is_refused_before_anything_is_made() {
    let (_dir, root) = root();
    let fixture = small();
    let size = fixture.manifest().size();
    let error = fixture.install_within(&root, Limits { reserve_bytes: u64::MAX, max_bytes: size }).unwrap_err();
    assert!(matches!(error, InstallError::NoSpace { wanted, .. } if wanted >= size), "{error:?}");
    let error = fixture.install_within(&root, Limits { reserve_bytes: 0, max_bytes: size - 1 }).unwrap_err();
    assert!(matches!(error, InstallError::TooLarge { wanted, limit } if wanted == size && limit == size - 1));
    assert!(visible(root.path()).is_empty() && staging_is_empty(root.path()));
    fixture.install_within(&root, Limits { reserve_bytes: 0, max_bytes: size }).unwrap();
}
