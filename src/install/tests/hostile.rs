use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::artifact::Codec;

/// Gives `bytes` for the chunk at `index`, right ones for the others, and tries to commit.
fn with_chunk(fixture: &Fixture, root: &CacheRoot, index: usize, bytes: &[u8]) -> InstallError {
    let lock = lock(root);
    let installation = Installation::begin(root, &lock, fixture.admitted.clone(), LIMITS).unwrap();
    let mut error = None;
    for needed in installation.needed().ones() {
        let given = if needed == index { bytes } else { &fixture.chunks[needed] };
        error = installation.chunk(needed, given).err().or(error);
    }
    assert!(matches!(installation.commit(), Err(InstallError::Incomplete { .. })));
    assert!(visible(root.path()).is_empty() && staging_is_empty(root.path()));
    error.expect("nothing was found wrong")
}

fn chunk_of(fixture: &Fixture, path: &str) -> usize {
    let manifest = fixture.manifest();
    let file = manifest.files.iter().find(|file| file.path.as_str() == path).unwrap();
    manifest.spans(file).next().unwrap().chunk
}

#[test]
fn a_flipped_byte_of_any_chunk_is_found_and_nothing_becomes_visible() {
    let fixture = small();
    let raw = chunk_of(&fixture, "big/model");
    let (_dir, root) = root();
    for index in 0..fixture.chunks.len() {
        for at in [0, fixture.chunks[index].len() / 2, fixture.chunks[index].len() - 1] {
            let mut bytes = fixture.chunks[index].clone();
            bytes[at] ^= 0x10;
            let error = with_chunk(&fixture, &root, index, &bytes);
            match error {
                InstallError::Corrupt { index: found } => assert_eq!(found, index),
                InstallError::CorruptFile { path } => assert!(path.as_str().starts_with("big") && index <= raw + 1),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_truncated_padded_or_empty_chunk_is_found() {
    let fixture = small();
    let (_dir, root) = root();
    for index in 0..fixture.chunks.len() {
        let right = &fixture.chunks[index];
        let padded = [right.as_slice(), &[0]].concat();
        for bytes in [&right[..right.len() - 1], &padded, &[]] {
            assert!(
                matches!(with_chunk(&fixture, &root, index, bytes), InstallError::Corrupt { index: i } if i == index)
            );
        }
    }
}

#[test]
fn after_a_corrupt_chunk_the_right_bytes_are_still_taken() {
    let fixture = small();
    let (_dir, root) = root();
    let lock = lock(&root);
    let installation = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS).unwrap();
    for index in installation.needed().ones() {
        assert!(matches!(installation.chunk(index, b"garbage"), Err(InstallError::Corrupt { .. })));
        installation.chunk(index, &fixture.chunks[index]).unwrap();
    }
    installation.commit().unwrap();
    assert_eq!(visible(root.path()), fixture.paths());
}

#[test]
fn a_signer_that_lies_about_a_file_digest_installs_nothing() {
    for path in ["a/one", "deep/x/y/kernel", "big/model", "empty"] {
        let mut tree = small().tree;
        tree.remove("big/twin");
        let fixture = Fixture::altered(tree, |draft| {
            let file = draft.files.iter_mut().find(|file| file.path.as_str() == path).unwrap();
            file.digest = Digest::of(b"something else");
        });
        let (_dir, root) = root();
        let error = fixture.install(&root).unwrap_err();
        match &error {
            InstallError::Corrupt { index } => assert_eq!(*index, chunk_of(&fixture, path)),
            InstallError::CorruptFile { path: found } => assert_eq!(found.as_str(), path),
            other => panic!("{other:?}"),
        }
        assert!(visible(root.path()).is_empty() && staging_is_empty(root.path()));
    }
}

#[test]
fn a_chunk_that_decodes_to_more_than_it_says_is_refused_although_its_digest_fits() {
    let bomb = zstd::bulk::compress(&vec![0; 64 * 1024 * 1024], 1).unwrap();
    let tree = Tree::from([("text".into(), plain(vec![0; 100_000]))]);
    let mut fixture = Fixture::altered(tree, |draft| {
        assert_eq!(draft.chunks[0].codec, Codec::Zstd);
        draft.chunks[0].digest = Digest::of(&bomb);
        draft.chunks[0].encoded_len = bomb.len() as u32;
    });
    fixture.chunks[0] = bomb;
    let (_dir, root) = root();
    assert!(matches!(fixture.install(&root), Err(InstallError::Corrupt { index: 0 })));
    assert!(visible(root.path()).is_empty() && staging_is_empty(root.path()));
}

#[test]
fn a_manifest_that_names_warmds_own_directory_is_refused() {
    for path in [".warmd/markers/x", ".warmd/new", ".WARMD/x", ".warmd"] {
        let fixture = Fixture::new(Tree::from([(path.to_owned(), plain(noise(1, 10)))]));
        let (_dir, root) = root();
        let error = fixture.install(&root).unwrap_err();
        assert!(matches!(error, InstallError::Reserved(_)), "{path}: {error:?}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_link_in_the_root_is_never_followed() {
    let (_dir, root) = root();
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), root.path().join("deep")).unwrap();
    let error = small().install(&root).unwrap_err();
    assert!(matches!(&error, InstallError::Root { problem: RootProblem::Symlink, path } if path.ends_with("deep/x")));
    assert!(root.path().join("deep").is_symlink() && staging_is_empty(root.path()));
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

/// Swaps directories of the root and of warmd's own for links to `outside` and back, until told to stop; counts.
fn swap_until(stop: &AtomicBool, swaps: &AtomicUsize, root: &Path, outside: &Path) {
    let targets = [
        root.join("deep"),
        root.join("deep/x"),
        root.join(".warmd/staging"),
        root.join(".warmd/markers"),
        root.join(".warmd"),
    ];
    while !stop.load(Ordering::Relaxed) {
        for target in &targets {
            let aside = target.with_extension("aside");
            if std::fs::rename(target, &aside).is_ok() {
                swaps.fetch_add(usize::from(std::os::unix::fs::symlink(outside, target).is_ok()), Ordering::Relaxed);
                std::thread::yield_now();
                std::fs::remove_file(target).ok();
                // Somebody made a directory meanwhile: that is inside of the root all the same, and what was moved away is in
                // the way of the next swap.
                if std::fs::rename(&aside, target).is_err() {
                    std::fs::remove_dir_all(&aside).ok();
                }
            }
        }
    }
}

#[test]
fn nothing_is_written_outside_while_directories_are_swapped_for_links() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(outside.path().join("x/y")).unwrap();
    std::fs::write(outside.path().join("precious"), b"mine").unwrap();
    let inode =
        |path: &str| outside.path().join(path).metadata().map(|m| (m.ino(), m.mtime(), m.mtime_nsec())).unwrap();
    let before = ["", "x", "x/y", "precious"].map(inode);
    let tree = (0..6).map(|i| (format!("deep/x/{i}/kernel"), plain(noise(i, 200)))).collect();
    let fixture = Fixture::new(tree);
    let (dir, held) = root();
    let path = dir.path().join("cache");
    std::fs::create_dir_all(path.join("deep/x")).unwrap();
    let (stop, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| swap_until(&stop, &swaps, &path, outside.path()));
        // On a busy machine the other thread comes late.
        for round in (0..).take_while(|round| *round < 300 || swaps.load(Ordering::Relaxed) < 50) {
            // Sometimes a root that is opened anew amid the swaps, or refused.
            let fresh = if round % 2 == 0 { CacheRoot::open(&path).ok() } else { None };
            let root = fresh.as_ref().unwrap_or(&held);
            let Ok(lock) = root.lock(Instant::now()) else { continue };
            if let Ok(installation) = Installation::begin(root, &lock, fixture.admitted.clone(), LIMITS) {
                let given = installation.needed().ones().try_for_each(|i| installation.chunk(i, &fixture.chunks[i]));
                let _ = given.and_then(|()| installation.commit().map(|_| ()));
            }
            fixture.manifest().entries.iter().for_each(|entry| drop(root.discard(&lock, entry)));
            let _ = root.clean();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(["", "x", "x/y", "precious"].map(inode), before);
    assert_eq!(visible(outside.path()), BTreeMap::from([("precious".to_owned(), b"mine".to_vec())]));
}
