use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::artifact::{Chunk, MAX_FILES};

fn tree(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, file.as_bytes()).unwrap();
    }
    dir
}

fn look(dir: &Path, rules: &ScanRules) -> Result<Found, ScanError> {
    scan(&Tree::open(dir)?, rules)
}

fn refused(dir: &Path) -> ScanError {
    look(dir, &ScanRules::default()).unwrap_err()
}

fn take(dir: &Path, store: &(dyn Fn(&Chunk, &[u8]) -> std::io::Result<()> + Sync)) -> Result<Snapshot, SnapshotError> {
    snapshot(&Tree::open(dir).unwrap(), &ScanRules::default(), None, &Outputs { store, progress: &|_| () })
}

#[test]
fn files_are_sorted_and_grouped_into_entries_of_the_asked_depth() {
    let dir = tree(&["b/x", "a/two/f", "a/one/f", "c"]);
    let entries = |entry_depth| {
        let found = look(dir.path(), &ScanRules { entry_depth, ..Default::default() }).unwrap();
        assert!(found.files.is_sorted_by(|a, b| a.path < b.path));
        found.entries.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(entries(1), ["a", "b", "c"]);
    assert_eq!(entries(2), ["a/one", "a/two", "b/x", "c"]);
}

#[test]
fn links_pipes_sockets_and_setuid_files_are_refused_by_name_or_skipped_with_the_reason() {
    type Make = fn(&Path);
    let makes: [(Make, &str); 4] = [
        (|path| std::os::unix::fs::symlink("/etc/passwd", path).unwrap(), "symbolic link"),
        (
            |path| {
                let mode = rustix::fs::Mode::RUSR;
                rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            },
            "named pipe",
        ),
        (|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()), "socket"),
        (
            |path| {
                std::fs::write(path, "x").unwrap();
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o4755)).unwrap();
            },
            "set-user-id",
        ),
    ];
    for (make, name) in makes {
        let dir = tree(&["good"]);
        make(&dir.path().join("special"));
        let error = refused(dir.path()).to_string();
        assert!(error.contains(name) && error.contains("special") && error.contains("--skip-special"), "{error}");
        let found = look(dir.path(), &ScanRules { special: Special::Skip, ..Default::default() }).unwrap();
        assert_eq!(found.files.len(), 1);
        assert!(found.skipped[0].contains(name), "{:?}", found.skipped);
    }
}

#[test]
fn names_that_no_artifact_can_hold_are_refused() {
    let dir = tree(&["good"]);
    std::fs::write(dir.path().join(OsStr::from_bytes(b"bad\xff")), "x").unwrap();
    assert!(matches!(refused(dir.path()), ScanError::NotUtf8 { .. }));
    let dir = tree(&["good", "line\nbreak"]);
    assert!(matches!(refused(dir.path()), ScanError::Path { .. }));
    let dir = tree(&["Kernel", "kernel"]);
    assert!(matches!(refused(dir.path()), ScanError::CaseCollision(..)));
    let deep = vec!["d"; 33].join("/");
    assert!(matches!(
        refused(tree(&[&deep]).path()),
        ScanError::Path { source: crate::artifact::PathError::TooDeep, .. }
    ));
}

#[test]
fn a_directory_deeper_than_any_artifact_is_refused_by_name_and_not_walked() {
    let dir = tempfile::tempdir().unwrap();
    // A thread's stack does not hold so many levels of a walk.
    std::fs::create_dir_all(dir.path().join(vec!["d"; 400].join("/"))).unwrap();
    let refused = refused(dir.path());
    let ScanError::Path { path, source: crate::artifact::PathError::TooDeep } = refused else { panic!("{refused}") };
    assert_eq!(path, dir.path().join(vec!["d"; 33].join("/")));
}

#[test]
fn missing_empty_and_unreadable_directories_are_told_apart() {
    let dir = tree(&["file"]);
    assert!(matches!(refused(&dir.path().join("none")), ScanError::Tree(TreeError::Read { .. })));
    assert!(matches!(refused(&dir.path().join("file")), ScanError::Tree(TreeError::NotADirectory(_))));
    let empty = tempfile::tempdir().unwrap();
    std::fs::create_dir(empty.path().join("sub")).unwrap();
    assert!(matches!(refused(empty.path()), ScanError::Empty(_)));
}

#[test]
fn one_file_more_than_allowed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("f0");
    std::fs::write(&first, "").unwrap();
    // Hard links: the walk sees as many files, the file system holds one.
    let mut link = first.clone();
    let mut links = 1;
    for i in 1..=MAX_FILES {
        let path = dir.path().join(format!("f{i}"));
        if links == 30_000 || std::fs::hard_link(&link, &path).is_err() {
            std::fs::write(&path, "").unwrap();
            link = path;
            links = 0;
        }
        links += 1;
    }
    assert!(matches!(refused(dir.path()), ScanError::TooMany { .. }));
    std::fs::remove_file(&first).unwrap();
    assert_eq!(look(dir.path(), &ScanRules::default()).unwrap().files.len(), MAX_FILES);
}

#[test]
fn a_file_that_grows_during_the_first_reading_is_read_again() {
    let dir = tree(&["a", "b"]);
    let readings = AtomicU32::new(0);
    let grow = |_: &Chunk, _: &[u8]| {
        if readings.fetch_add(1, Ordering::SeqCst) == 0 {
            std::fs::write(dir.path().join("b"), "longer than before").unwrap();
        }
        Ok(())
    };
    let snapshot = take(dir.path(), &grow).unwrap();
    assert_eq!(readings.load(Ordering::SeqCst), 2);
    assert_eq!(snapshot.built.files[1].size, 18);
}

#[test]
fn a_file_that_appears_while_others_are_read_is_not_forgotten() {
    let dir = tree(&["a"]);
    let add = |_: &Chunk, _: &[u8]| std::fs::write(dir.path().join("later"), "x").or(Ok(()));
    // The second reading rewrites `later`; from then on nothing but its times changes, so it never settles.
    assert!(matches!(take(dir.path(), &add), Err(SnapshotError::Unstable { .. })));
    let snapshot = take(dir.path(), &|_, _| Ok(())).unwrap();
    assert_eq!(snapshot.entries.len(), 2);
}

#[test]
fn a_zero_byte_file_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty"), "").unwrap();
    let snapshot = take(dir.path(), &|_, _| Ok(())).unwrap();
    assert_eq!(snapshot.built.files.len(), 1);
    assert!(snapshot.built.chunks.is_empty());
}

#[test]
fn a_directory_with_a_private_key_is_refused() {
    let dir = tree(&["cache"]);
    crate::identity::PrivateKey::from_seed(1).save_new(&dir.path().join("node.key")).unwrap();
    let skip = ScanRules { special: Special::Skip, ..Default::default() };
    assert!(matches!(look(dir.path(), &skip), Err(ScanError::PrivateKey(_))));
}

#[test]
fn a_private_key_that_everybody_may_read_is_refused_too() {
    let dir = tree(&["cache"]);
    let key = dir.path().join("node.key");
    crate::identity::PrivateKey::from_seed(1).save_new(&key).unwrap();
    let bundle = format!("-----BEGIN CERTIFICATE-----\n{}", std::fs::read_to_string(&key).unwrap());
    std::fs::write(&key, bundle).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o444)).unwrap();
    let refused = take(dir.path(), &|_, _| Ok(())).unwrap_err();
    assert!(matches!(refused, SnapshotError::Build(BuildError::PrivateKey(path)) if path == key));
}

#[test]
fn a_directory_that_became_a_link_while_it_was_captured_brings_nothing_from_elsewhere() {
    let (dir, secret) = (tree(&["top/a/file", "top/b"]), tree(&["file"]));
    std::fs::write(secret.path().join("file"), "secret").unwrap();
    let (top, away) = (dir.path().join("top"), dir.path().join("away"));
    let (stored, held) = (std::sync::Mutex::new(Vec::new()), Tree::open(&top).unwrap());
    let swap = |_: &Chunk, bytes: &[u8]| {
        stored.lock().unwrap().extend_from_slice(bytes);
        if !away.exists() {
            std::fs::rename(&top, &away).unwrap();
            std::os::unix::fs::symlink(secret.path(), &top).unwrap();
            std::fs::rename(away.join("a"), away.join("c")).unwrap();
            std::os::unix::fs::symlink(secret.path(), away.join("a")).unwrap();
        }
        Ok(())
    };
    let rules = ScanRules { special: Special::Skip, ..Default::default() };
    let taken = snapshot(&held, &rules, None, &Outputs { store: &swap, progress: &|_| () }).unwrap();
    let paths: Vec<&str> = taken.built.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["b", "c/file"]);
    assert!(!stored.into_inner().unwrap().windows(6).any(|part| part == b"secret"));
}
