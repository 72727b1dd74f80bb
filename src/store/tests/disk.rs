//! What a disk, a kill, a reboot and a second process can do.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use super::*;

const CHILD: &str = "WARMD_TEST_STORE_OF_CHILD";
const CHILD_CHUNKS: u64 = 2000;

fn refuse(directory: &Path) -> String {
    Store::open(&config(directory), Metrics::default()).unwrap_err().to_string()
}

fn on_boot(directory: &Path, boot: &str) -> Store {
    Store::open_on_boot(&config(directory), Metrics::default(), boot.to_owned()).unwrap()
}

fn everything(store: &Store) -> Report {
    store.verify(None, &mut |_| std::ops::ControlFlow::Continue(())).unwrap()
}

/// Writes to a sealed file behind the store's back, as a power cut or a bad disk would.
fn damage(store: &Store, content: &[u8], damaged: &[u8]) {
    let path = store.shared.layout.chunk(&Digest::of(content));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(path, damaged).unwrap();
}

#[test]
fn a_partial_artifact_is_resumed_with_exactly_what_was_there() {
    let (directory, store) = store();
    let contents = contents(1, 100, 300);
    let held = store.begin(admitted(&contents, 1)).unwrap();
    put(&store, &contents[20..60]);
    let (id, have) = (held.id(), held.have());
    std::fs::write(store.shared.layout.tmp_file(77), b"half a chunk").unwrap();
    std::fs::write(store.shared.layout.trash_file(77), b"half deleted").unwrap();
    drop((held, store));
    let store = open(directory.path());
    let artifact = store.get(&id).unwrap();
    assert_eq!((artifact.have(), artifact.state()), (have, State::Partial));
    assert_eq!(std::fs::read_dir(store.shared.layout.tmp()).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(store.shared.layout.trash()).unwrap().count(), 0);
    let held = store.begin(admitted(&contents, 1)).unwrap();
    put(&store, &contents);
    store.seal(&held.id()).unwrap();
    assert_readable(&store, &held);
}

#[test]
#[ignore = "the other half of the tests below, which run it in a process of its own"]
fn child_that_works_until_it_is_killed() {
    let Ok(directory) = std::env::var(CHILD) else { return };
    let store = open(Path::new(&directory));
    let report = |digest: Digest| {
        let mut out = std::io::stdout();
        writeln!(out, "put {digest}").and_then(|()| out.flush()).unwrap();
    };
    let one = contents(1, CHILD_CHUNKS, 40_000);
    let _held = store.begin(admitted(&one, 1)).unwrap();
    for (index, content) in one.iter().enumerate() {
        put(&store, std::slice::from_ref(content));
        report(Digest::of(content));
        // And artifacts that come and go.
        let seed = index as u64 % 7 + 2;
        let artifact = fetched(&store, &contents(seed, seed, 5_000), 1);
        if index % 3 == 0 {
            store.remove(&artifact.id()).unwrap();
        }
    }
}

/// Runs the child until it has reported that many chunks, kills it, and returns them.
fn kill_after(directory: &Path, reports: usize) -> Vec<Digest> {
    let test = "store::tests::disk::child_that_works_until_it_is_killed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The pipe stays open, so that it is the kill that ends the child.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let digest = |line: String| line.split_once("put ").map(|(_, digest)| digest.parse().unwrap());
    let put: Vec<Digest> = lines.by_ref().filter_map(digest).take(reports).collect();
    let refusal = refuse(directory);
    assert!(refusal.contains(&format!("in use by process {}", child.id())), "{refusal}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(put.len(), reports);
    put
}

#[test]
fn after_a_kill_at_any_moment_all_that_is_listed_is_whole_and_the_lock_is_free() {
    let directory = scratch();
    let held_by_child = admitted(&contents(1, CHILD_CHUNKS, 40_000), 1).id();
    for reports in [1, 2, 3, 5, 8, 13, 21, 34, 55, 89] {
        let put = kill_after(directory.path(), reports);
        let store = open(directory.path());
        assert!(put.iter().all(|digest| store.has_chunk(digest)), "what was put is there");
        let report = everything(&store);
        assert!(report.corrupt.is_empty() && report.missing.is_empty());
        assert_eq!(report.checked_bytes, store.usage());
        for artifact in store.list() {
            let chunks = &artifact.manifest().chunks;
            let there: Vec<usize> = (0..chunks.len()).filter(|at| store.has_chunk(&chunks[*at].digest)).collect();
            assert_eq!(artifact.have().ones().collect::<Vec<_>>(), there);
            assert!(artifact.state() == State::Partial || artifact.has_all());
        }
        let resumed = store.get(&held_by_child).unwrap();
        assert!(resumed.state() == State::Partial && resumed.have().count() >= reports);
    }
}

#[test]
fn a_torn_chunk_is_noticed_after_a_reboot_before_it_is_served() {
    let directory = scratch();
    let store = on_boot(directory.path(), "one");
    let contents = contents(1, 4, 100_000);
    let artifact = fetched(&store, &contents, 1);
    let id = artifact.id();
    damage(&store, &contents[1], &noise(5, 100_000));
    damage(&store, &contents[2], &contents[2][..5]);
    drop((artifact, store));

    let store = on_boot(directory.path(), "two");
    let artifact = store.get(&id).unwrap();
    let chunks = &artifact.manifest().chunks;
    assert_eq!(artifact.state(), State::Partial, "one has the wrong length at first sight");
    assert!(matches!(store.read_chunk(&chunks[1]), Err(StoreError::Damaged(_))));
    assert!(matches!(store.read_chunk(&chunks[1]), Err(StoreError::Missing(_))));
    assert!(matches!(store.read_chunk(&chunks[2]), Err(StoreError::Missing(_))));
    assert_eq!(artifact.have().ones().collect::<Vec<_>>(), [0, 3]);
    put(&store, &contents);
    store.seal(&id).unwrap();
    assert_readable(&store, &artifact);
}

#[test]
fn damage_found_in_a_complete_artifact_makes_it_partial_again() {
    let directory = scratch();
    let store = on_boot(directory.path(), "one");
    let contents = contents(1, 3, 1000);
    let id = fetched(&store, &contents, 1).id();
    damage(&store, &contents[1], &noise(5, 1000));
    drop(store);
    let store = on_boot(directory.path(), "two");
    let mut changes = store.subscribe();
    assert_eq!(store.get(&id).unwrap().state(), State::Complete);
    assert!(matches!(store.read_chunk(&raw(&contents[1])), Err(StoreError::Damaged(_))));
    assert_eq!(store.get(&id).unwrap().state(), State::Partial);
    assert!(changed(&mut changes));
    assert!(store.shared.layout.partial(&id).exists() && !store.shared.layout.manifest(&id).exists());
    assert_eq!(store.shared.metrics.damaged_chunks.get(), 1);
}

#[test]
fn a_pass_over_all_chunks_restores_trust_and_an_interrupted_one_does_not() {
    let directory = scratch();
    let contents = contents(1, 5, 1000);
    let store = on_boot(directory.path(), "one");
    let id = fetched(&store, &contents, 1).id();
    damage(&store, &contents[3], &noise(5, 1000));
    drop(store);
    let unverified = |store: &Store| store.shared.index.files().iter().filter(|(_, file)| !file.verified).count();

    let store = on_boot(directory.path(), "two");
    let report = store.verify(None, &mut |_| std::ops::ControlFlow::Break(())).unwrap();
    assert_eq!((report.finished, report.checked_chunks), (false, 1));
    drop(store);
    let store = on_boot(directory.path(), "two");
    assert!(unverified(&store) >= 4);
    let mut bytes = 0;
    let report = store.verify(None, &mut |more| {
        bytes += more;
        std::ops::ControlFlow::Continue(())
    });
    let report = report.unwrap();
    assert!(report.finished);
    assert_eq!(report.incomplete, [(id, 1)]);
    assert_eq!(bytes, report.checked_bytes);
    drop(store);
    let store = on_boot(directory.path(), "two");
    assert_eq!((unverified(&store), store.usage()), (0, 4000));
}

#[test]
fn a_torn_boot_record_means_no_trust() {
    let (directory, store) = store();
    put(&store, &contents(1, 1, 100));
    let boot = store.shared.layout.boot();
    drop(store);
    let record = std::fs::read(&boot).unwrap();
    std::fs::write(&boot, &record[..record.len() / 2]).unwrap();
    assert!(open(directory.path()).shared.index.files().iter().all(|(_, file)| !file.verified));
    std::fs::remove_file(&boot).unwrap();
    assert!(open(directory.path()).shared.index.files().iter().all(|(_, file)| !file.verified));
    std::fs::write(&boot, &record).unwrap();
    assert!(open(directory.path()).shared.index.files().iter().all(|(_, file)| file.verified));
}

#[test]
fn publishing_on_top_of_a_damaged_old_chunk_is_refused() {
    let directory = scratch();
    let store = on_boot(directory.path(), "one");
    let contents = contents(1, 3, 1000);
    fetched(&store, &contents, 1);
    damage(&store, &contents[2], &noise(5, 1000));
    drop(store);
    let store = on_boot(directory.path(), "two");
    let error = store.insert_published(signed(&contents, 2)).unwrap_err();
    assert!(matches!(error, StoreError::Incomplete { missing: 1, .. }), "{error}");
}

#[test]
fn verify_tells_corrupt_from_missing() {
    let (_directory, store) = store();
    let contents = contents(1, 5, 1000);
    let artifact = fetched(&store, &contents, 1);
    damage(&store, &contents[1], &noise(5, 1000));
    std::fs::remove_file(store.shared.layout.chunk(&Digest::of(&contents[3]))).unwrap();
    let report = store.verify(Some(&artifact.id()), &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert_eq!(report.corrupt, [Digest::of(&contents[1])]);
    assert_eq!(report.missing, [Digest::of(&contents[3])]);
    assert_eq!(report.incomplete, [(artifact.id(), 2)]);
    assert_eq!((report.checked_chunks, store.usage()), (5, 3000));
    assert!(store.verify(Some(&ArtifactId::of(b"none")), &mut |_| std::ops::ControlFlow::Continue(())).is_err());
}

#[test]
fn a_torn_manifest_is_dropped_and_what_it_named_can_be_fetched_again_without_its_chunks() {
    let (directory, store) = store();
    let contents = contents(1, 3, 1000);
    let id = fetched(&store, &contents, 1).id();
    let path = store.shared.layout.manifest(&id);
    drop(store);
    let envelope = std::fs::read(&path).unwrap();
    std::fs::write(&path, &envelope[..envelope.len() - 1]).unwrap();
    std::fs::write(path.with_file_name(".x.1.tmp"), b"left by a killed write").unwrap();
    let store = open(directory.path());
    assert!(store.list().is_empty() && !path.exists());
    assert!(store.begin(admitted(&contents, 1)).unwrap().have().is_full());
}

#[test]
fn a_manifest_that_cannot_be_read_stays_and_one_under_the_name_of_another_goes() {
    let (directory, store) = store();
    let id = fetched(&store, &contents(1, 3, 1000), 1).id();
    let [unreadable, other] = [b"a", b"b"].map(|name| store.shared.layout.manifest(&ArtifactId::of(name)));
    std::fs::copy(store.shared.layout.manifest(&id), &other).unwrap();
    drop(store);
    std::fs::create_dir(&unreadable).unwrap();
    let store = open(directory.path());
    assert_eq!(store.list().iter().map(|artifact| artifact.id()).collect::<Vec<_>>(), [id]);
    assert!(unreadable.exists() && !other.exists());
}

#[test]
fn killed_between_the_steps_of_sealing_it_is_complete_and_listed_once() {
    let (directory, store) = store();
    let artifact = fetched(&store, &contents(1, 3, 1000), 1);
    let partial = store.shared.layout.partial(&artifact.id());
    drop(store);
    std::fs::write(&partial, artifact.signed().envelope()).unwrap();
    let store = open(directory.path());
    assert_eq!(store.list().len(), 1);
    assert_eq!(store.list()[0].state(), State::Complete);
    assert!(!partial.exists());
}

#[test]
fn role_and_last_use_survive_a_restart() {
    let (directory, store) = store();
    let contents = contents(1, 3, 1000);
    put(&store, &contents);
    let artifact = store.insert_published(signed(&contents, 1)).unwrap();
    let later = UnixTime::now().after(Duration::from_secs(5000));
    store.touch(&artifact, later);
    drop(store);
    let store = open(directory.path());
    assert_eq!((store.list()[0].role(), store.list()[0].last_used()), (Role::Published, later));
}

#[test]
fn a_second_opening_is_refused_and_names_the_first() {
    let (directory, store) = store();
    assert!(refuse(directory.path()).contains(&format!("in use by process {}", std::process::id())));
    drop(store);
    open(directory.path());
}

#[test]
fn a_directory_that_is_not_ours_alone_is_refused_with_the_mend() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let mode = |mode| std::fs::set_permissions(&root, std::fs::Permissions::from_mode(mode)).unwrap();
    drop(open(directory.path()));
    assert_eq!(root.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    for open_mode in [0o777, 0o701, 0o740] {
        mode(open_mode);
        let refusal = refuse(directory.path());
        assert!(refusal.contains(&format!("run `chmod 700 {}`", root.display())), "{refusal}");
    }
    mode(0o700);
    std::fs::rename(&root, directory.path().join("elsewhere")).unwrap();
    symlink("elsewhere", &root).unwrap();
    assert!(refuse(directory.path()).contains("is a symbolic link"));
    std::fs::remove_file(&root).unwrap();
    std::fs::write(&root, b"").unwrap();
    assert!(refuse(directory.path()).contains("is not a directory"));
    std::fs::remove_file(&root).unwrap();
    std::fs::create_dir(&root).unwrap();
    mode(0o700);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&root, Some(1), None).unwrap();
        assert!(refuse(directory.path()).contains("belongs to another user"));
    }
}

/// A small file system of its own; `None` where the machine does not allow that.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(options: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(directory.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(directory)),
            other => {
                let _ = writeln!(std::io::stderr(), "skipped: this test needs to mount a tmpfs: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().unwrap();
    }
}

#[test]
fn a_disk_that_fills_at_any_moment_is_told_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount("size=2m,mode=700") else { return };
    let contents = contents(1, 10, 60_000);
    for left in (0..=600_000).step_by(50_000) {
        let store = open(disk.0.path());
        let held = store.begin(admitted(&contents, 1)).unwrap();
        let filler = disk.0.path().join("filler");
        std::fs::write(&filler, vec![1; (store.free_space().unwrap() - left) as usize]).unwrap();
        let result = contents.iter().try_for_each(|one| store.put_chunk(&Digest::of(one), one).map(drop));
        assert!(result.is_ok() || result.unwrap_err().is_no_space());
        let have = held.have();
        assert!(have.count() as u64 * 60_000 <= left);
        drop((held, store));
        // Opening must work on a full disk, too.
        let store = open(disk.0.path());
        assert_eq!(store.list()[0].have(), have);
        assert!(everything(&store).corrupt.is_empty());
        assert_eq!(std::fs::read_dir(store.shared.layout.tmp()).unwrap().count(), 0);
        std::fs::remove_file(&filler).unwrap();
        put(&store, &contents);
        let id = store.list()[0].id();
        store.seal(&id).unwrap();
        store.remove(&id).unwrap();
    }
}

#[test]
fn a_disk_without_inodes_is_a_full_disk() {
    // 256 directories of chunks and a dozen of other things.
    let Some(disk) = SmallDisk::mount("size=8m,mode=700,nr_inodes=300") else { return };
    let store = open(disk.0.path());
    let contents = contents(1, 100, 100);
    let held = store.begin(admitted(&contents, 1)).unwrap();
    let full = contents.iter().find_map(|one| store.put_chunk(&Digest::of(one), one).err()).unwrap();
    assert!(matches!(full, StoreError::NoSpace { needed: 100, .. }), "{full}");
    let have = held.have();
    assert!(have.count() > 0);
    let other = store.begin(admitted(&contents[..1], 7)).unwrap_err();
    assert!(other.is_no_space(), "{other}");
    assert_eq!(store.list().len(), 1);
    drop((held, store));
    assert_eq!(open(disk.0.path()).list()[0].have(), have);
}
