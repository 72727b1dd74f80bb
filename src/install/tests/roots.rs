use super::child;
use super::*;

fn problem(path: &Path) -> RootProblem {
    match CacheRoot::open(path) {
        Err(InstallError::Root { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_absent_root_is_made_for_us_alone_but_not_its_parents() {
    let dir = tempfile::tempdir().unwrap();
    let root = CacheRoot::open(&dir.path().join("cache")).unwrap();
    assert_eq!(root.path().metadata().unwrap().mode() & 0o7777, 0o700);
    assert_eq!(root.path().join(layout::CONTROL).metadata().unwrap().mode() & 0o7777, 0o700);
    assert_eq!(problem(&dir.path().join("no/such/parent")), RootProblem::ParentMissing);
}

#[test]
fn a_root_that_is_a_link_is_refused_however_it_is_spelled() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    for spelling in ["link", "link/", "link/."] {
        assert_eq!(problem(&dir.path().join(spelling)), RootProblem::Symlink, "{spelling}");
    }
    assert_eq!(std::fs::read_dir(dir.path().join("real")).unwrap().count(), 0);
}

#[test]
fn a_root_that_is_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"").unwrap();
    assert_eq!(problem(&dir.path().join("file")), RootProblem::NotADirectory);
}

#[test]
fn a_root_that_others_can_write_is_refused_with_the_mend() {
    let (_dir, root) = root();
    for mode in [0o777, 0o770, 0o702, 0o1777] {
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(problem(root.path()), RootProblem::WritableByOthers { mode });
        assert!(CacheRoot::open(root.path()).unwrap_err().to_string().contains("chmod go-w"));
    }
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    CacheRoot::open(root.path()).unwrap();
}

#[test]
fn the_control_directory_is_held_to_the_same_rules() {
    let (_dir, root) = root();
    let control = root.path().join(layout::CONTROL);
    std::fs::set_permissions(&control, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(problem(root.path()), RootProblem::WritableByOthers { mode: 0o777 });
    std::fs::remove_dir_all(&control).unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), &control).unwrap();
    assert_eq!(problem(root.path()), RootProblem::Symlink);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_root_of_another_user_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    if std::os::unix::fs::chown(dir.path(), Some(4242), None).is_err() {
        child::skip("only root can give a directory away");
        return;
    }
    assert!(matches!(problem(dir.path()), RootProblem::OtherOwner { owner: 4242, .. }));
}

#[test]
fn staging_on_another_file_system_is_refused_before_a_transfer() {
    child::in_own_mounts("other-file-system");
}

/// In a mount namespace of its own.
pub(super) fn other_file_system() {
    let (_dir, root) = root();
    let control = root.path().join(layout::CONTROL);
    child::mount_tmpfs(&control, "1m");
    let error = CacheRoot::open(root.path()).unwrap_err();
    assert!(matches!(&error, InstallError::OtherFileSystem { path } if *path == control), "{error:?}");
    assert_eq!(error.class(), NegativeClass::Incompatible);
    // The same for the directory that an entry would be moved into.
    std::fs::create_dir(root.path().join("deep")).unwrap();
    child::mount_tmpfs(&root.path().join("deep"), "1m");
    let error = small().install(&root).unwrap_err();
    assert!(matches!(&error, InstallError::OtherFileSystem { path } if path.ends_with("deep/x")), "{error:?}");
    assert!(visible(root.path()).is_empty());
}

#[test]
fn cleaning_removes_the_staging_of_the_dead_and_the_trash_and_spares_the_living() {
    let (_dir, root) = root();
    let control = root.path().join(layout::CONTROL);
    let fixture = small();
    let lock = lock(&root);
    let installation = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS).unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("precious"), b"").unwrap();
    std::fs::create_dir_all(control.join("staging/1-1-0/tree/a")).unwrap();
    std::fs::write(control.join("staging/1-1-0/tree/a/part"), b"x").unwrap();
    std::os::unix::fs::symlink(outside.path(), control.join("staging/1-1-0/tree/link")).unwrap();
    std::fs::write(control.join("staging/stray"), b"x").unwrap();
    std::fs::create_dir_all(control.join("trash/0/inner")).unwrap();

    // Another process would come with handles of its own.
    let mut cleaned = CacheRoot::open(root.path()).unwrap().clean().unwrap();
    cleaned.staging.sort();
    assert_eq!(cleaned, Cleaned { staging: vec!["1-1-0".into(), "stray".into()], trash: 1 });
    assert!(outside.path().join("precious").exists());
    installation.needed().ones().for_each(|index| installation.chunk(index, &fixture.chunks[index]).unwrap());
    installation.commit().unwrap();
    assert_eq!(root.clean().unwrap(), Cleaned::default());
}

#[test]
fn a_discarded_entry_is_gone_at_once_and_can_be_installed_again() {
    let (_dir, root) = root();
    let fixture = small();
    fixture.install(&root).unwrap();
    let lock = lock(&root);
    let entry = RelPath::new("deep/x/y").unwrap();
    assert!(root.discard(&lock, &entry).unwrap());
    assert!(!root.discard(&lock, &entry).unwrap());
    assert!(matches!(root.discard(&lock, &RelPath::new(".warmd").unwrap()), Err(InstallError::Reserved(_))));
    assert_eq!(root.clean().unwrap(), Cleaned::default());
    drop(lock);
    assert_eq!(fixture.install(&root).unwrap().installed, [entry]);
    assert_eq!(visible(root.path()), fixture.paths());
}
