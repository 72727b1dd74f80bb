//! Fixtures, and what an installation does when nothing goes wrong.

mod child;
mod crash;
mod hostile;
mod locks;
mod markers;
mod model;
mod relocated;
mod roots;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::artifact::{
    Admitted, Chunk, Draft, Family, Manifest, Outputs, Provenance, SignedManifest, SourceFile, SourceIdentity, Stamp,
    build,
};
use crate::digest::Digest;
use crate::identity::{Policy, PrivateKey, TrustClass, UnixTime};

const NOW: u64 = 1_800_000_000;

const LIMITS: Limits = Limits { reserve_bytes: 0, max_bytes: u64::MAX };

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Content {
    bytes: Vec<u8>,
    executable: bool,
    mtime_ns: u64,
}

type Tree = BTreeMap<String, Content>;

/// An admitted manifest with the encoded bytes of its chunks.
struct Fixture {
    tree: Tree,
    admitted: Arc<Admitted>,
    chunks: Vec<Vec<u8>>,
}

impl Fixture {
    /// Entries are the first components of the paths, and the first three below `deep`.
    fn new(tree: Tree) -> Self {
        Self::altered(tree, |_| ())
    }

    /// `alter` makes the manifest lie; it is signed all the same.
    fn altered(tree: Tree, alter: impl FnOnce(&mut Draft)) -> Self {
        let (mut draft, by_digest) = draft(&tree);
        alter(&mut draft);
        let chunks = draft.chunks.iter().map(|c| by_digest.get(&c.digest).cloned().unwrap_or_default()).collect();
        Self { tree, admitted: admit(draft), chunks }
    }

    fn manifest(&self) -> &Manifest {
        self.admitted.manifest()
    }

    fn install(&self, root: &CacheRoot) -> Result<Installed, InstallError> {
        self.install_within(root, LIMITS)
    }

    fn install_within(&self, root: &CacheRoot, limits: Limits) -> Result<Installed, InstallError> {
        let lock = root.lock(Instant::now() + Duration::from_secs(60)).unwrap();
        self.install_locked(root, &lock, limits)
    }

    fn install_locked(&self, root: &CacheRoot, lock: &InstallLock, limits: Limits) -> Result<Installed, InstallError> {
        let installation = Installation::begin(root, lock, self.admitted.clone(), limits)?;
        for index in installation.needed().ones() {
            installation.chunk(index, &self.chunks[index])?;
        }
        installation.commit()
    }

    fn paths(&self) -> BTreeMap<String, Vec<u8>> {
        self.tree.iter().map(|(path, content)| (path.clone(), content.bytes.clone())).collect()
    }

    /// Every entry is absent, or there with all its files as signed.
    fn assert_only_whole_entries(&self, root: &Path) {
        let found = visible(root);
        let mut known = 0;
        for entry in &self.manifest().entries {
            let within = |path: &str| RelPath::new(path).unwrap().is_within(entry);
            let have: BTreeMap<&String, &Vec<u8>> = found.iter().filter(|(path, _)| within(path)).collect();
            let want = self.tree.iter().filter(|(path, _)| within(path)).map(|(path, content)| (path, &content.bytes));
            assert!(have.is_empty() || have == want.collect(), "`{entry}` is not whole: {:?}", have.keys());
            known += have.len();
        }
        assert_eq!(known, found.len(), "files of no entry in {:?}", found.keys());
    }
}

fn draft(tree: &Tree) -> (Draft, BTreeMap<Digest, Vec<u8>>) {
    let sources_dir = tempfile::tempdir().unwrap();
    let mut sources = Vec::new();
    let read_from = crate::artifact::Tree::open(sources_dir.path()).unwrap();
    for (path, content) in tree {
        let source = sources_dir.path().join(path);
        std::fs::create_dir_all(source.parent().unwrap()).unwrap();
        std::fs::write(&source, &content.bytes).unwrap();
        let stamp = Stamp::of(&source.metadata().unwrap());
        let path = RelPath::new(path).unwrap();
        let Content { executable, mtime_ns, .. } = *content;
        sources.push(SourceFile { path, tree: read_from.clone(), executable, mtime_ns, stamp, content: None });
    }
    let chunks = Mutex::new(BTreeMap::new());
    let store = |chunk: &Chunk, bytes: &[u8]| {
        chunks.lock().unwrap().insert(chunk.digest, bytes.to_vec());
        Ok(())
    };
    let built = build(&sources, None, &Outputs { store: &store, progress: &|_| () }).unwrap();
    let depth = |path: &RelPath| if path.as_str().starts_with("deep/") { 3 } else { 1 };
    let entries: BTreeSet<RelPath> = built.files.iter().map(|file| file.path.prefix(depth(&file.path))).collect();
    let draft = Draft {
        identity: SourceIdentity::new(Family::directory(), BTreeMap::new()).unwrap(),
        class: TrustClass::HostCode,
        subject: String::new(),
        generation: 1,
        created: UnixTime::from_seconds(NOW),
        expires: None,
        provenance: Provenance::default(),
        files: built.files,
        chunks: built.chunks,
        entries: entries.into_iter().collect(),
        attributes: BTreeMap::new(),
    };
    (draft, chunks.into_inner().unwrap())
}

fn admit(draft: Draft) -> Arc<Admitted> {
    let key = PrivateKey::from_seed(1);
    let policy = Policy::parse(&format!(
        "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n[[signer]]\nname = \"builder\"\nkey = \"{}\"\n\
         families = [\"*\"]\nclass = \"host-code\"\n",
        key.public()
    ))
    .unwrap();
    let signed = SignedManifest::sign(draft, &key).unwrap();
    Arc::new(SignedManifest::admit(signed.envelope().clone(), &policy, UnixTime::from_seconds(NOW)).unwrap())
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn plain(bytes: Vec<u8>) -> Content {
    Content { bytes, ..Content::default() }
}

/// Raw and zstd chunks, a file over two chunks and its equal twin, empty files, modes, times, nested entries.
fn small() -> Fixture {
    let big = noise(9, crate::artifact::MAX_CHUNK + 10);
    Fixture::new(Tree::from([
        ("a/one".into(), plain(noise(1, 3000))),
        ("a/sub/two".into(), Content { bytes: noise(2, 10), executable: false, mtime_ns: 1_700_000_000_123_456_789 }),
        ("b".into(), Content { bytes: b"#!/bin/sh\n".to_vec(), executable: true, mtime_ns: 0 }),
        ("big/model".into(), Content { bytes: big.clone(), executable: true, mtime_ns: 1_600_000_000_000_000_001 }),
        ("big/twin".into(), plain(big)),
        ("deep/x/y/kernel".into(), plain(b"ld.global.b32 %r1, [%rd4];\n".repeat(60_000))),
        ("deep/x/z/empty".into(), Content { mtime_ns: 1_650_000_000_000_000_000, ..Content::default() }),
        ("empty".into(), Content::default()),
    ]))
}

/// A root in a directory of its own.
fn root() -> (tempfile::TempDir, CacheRoot) {
    let dir = tempfile::tempdir().unwrap();
    let root = CacheRoot::open(&dir.path().join("cache")).unwrap();
    (dir, root)
}

/// A lock that nobody else wants. A process that another test is just starting has a copy of it for a moment.
fn lock(root: &CacheRoot) -> InstallLock {
    root.lock(Instant::now() + Duration::from_secs(60)).unwrap()
}

/// Regular files below `root`, without warmd's own.
fn visible(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    walk(root, "", &mut found);
    found
}

fn walk(dir: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for item in std::fs::read_dir(dir).unwrap() {
        let item = item.unwrap();
        let path = format!("{prefix}{}", item.file_name().to_str().unwrap());
        if path == layout::CONTROL {
            continue;
        }
        if item.file_type().unwrap().is_dir() {
            walk(&item.path(), &format!("{path}/"), found);
        } else {
            found.insert(path, std::fs::read(item.path()).unwrap());
        }
    }
}

fn staging_is_empty(root: &Path) -> bool {
    std::fs::read_dir(root.join(layout::CONTROL).join(layout::STAGING)).unwrap().next().is_none()
}

#[test]
fn all_files_come_with_content_mode_and_time_of_the_manifest() {
    let (_dir, root) = root();
    let fixture = small();
    let done = fixture.install(&root).unwrap();
    assert_eq!(done.installed, fixture.manifest().entries);
    assert_eq!(done.existing, []);
    assert_eq!((done.files, done.bytes), (fixture.tree.len() as u64, fixture.manifest().size()));
    assert_eq!(visible(root.path()), fixture.paths());
    for (path, content) in &fixture.tree {
        let meta = root.path().join(path).metadata().unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, if content.executable { 0o755 } else { 0o644 }, "{path}");
        if content.mtime_ns != 0 {
            let found = meta.mtime() as u64 * 1_000_000_000 + meta.mtime_nsec() as u64;
            assert_eq!(found, content.mtime_ns, "{path}");
        }
    }
    assert!(staging_is_empty(root.path()));
    assert!(verify_installed(&root, fixture.manifest()).unwrap().is_whole());
}

#[test]
fn no_setuid_setgid_or_sticky_file_ever_appears() {
    let (_dir, root) = root();
    // What is made in a setgid directory must not inherit more than its group.
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o2755)).unwrap();
    let fixture = small();
    fixture.install(&root).unwrap();
    for path in fixture.tree.keys() {
        assert_eq!(root.path().join(path).metadata().unwrap().mode() & 0o7000, 0, "{path}");
    }
}

#[test]
fn an_entry_that_exists_wins_and_stays_untouched() {
    let (_dir, root) = root();
    let fixture = small();
    std::fs::create_dir_all(root.path().join("deep/x/y")).unwrap();
    std::fs::write(root.path().join("deep/x/y/kernel"), b"the engine's own").unwrap();
    std::os::unix::fs::symlink("/nowhere", root.path().join("b")).unwrap();
    let before = root.path().join("deep/x/y/kernel").metadata().unwrap();
    let done = fixture.install(&root).unwrap();
    let names = |paths: &[RelPath]| paths.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((names(&done.existing), names(&done.in_the_way)), (vec!["deep/x/y".into()], vec!["b".into()]));
    assert_eq!(names(&done.installed), ["a", "big", "deep/x/z", "empty"]);
    let after = root.path().join("deep/x/y/kernel").metadata().unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    assert_eq!(std::fs::read(root.path().join("deep/x/y/kernel")).unwrap(), b"the engine's own");
    assert!(root.path().join("b").is_symlink());
    let report = verify_installed(&root, fixture.manifest()).unwrap();
    assert_eq!(names(&report.different), ["b", "deep/x/y/kernel"]);
}

#[test]
fn a_link_in_the_place_of_everything_is_no_success() {
    let (_dir, root) = root();
    let fixture = Fixture::new(Tree::from([("real/f".into(), plain(b"f".to_vec()))]));
    std::os::unix::fs::symlink("/etc", root.path().join("real")).unwrap();
    let error = fixture.install(&root).unwrap_err();
    let InstallError::InTheWay { path, wanted: "directory" } = &error else { panic!("{error}") };
    assert!(path.ends_with("real") && staging_is_empty(root.path()));
    assert_eq!(error.class(), NegativeClass::Incompatible);
}

#[test]
fn an_entry_that_comes_between_begin_and_commit_wins_too() {
    let (_dir, root) = root();
    let fixture = small();
    let lock = lock(&root);
    let installation = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS).unwrap();
    installation.needed().ones().for_each(|index| installation.chunk(index, &fixture.chunks[index]).unwrap());
    std::fs::create_dir(root.path().join("a")).unwrap();
    let done = installation.commit().unwrap();
    assert_eq!(done.existing, [RelPath::new("a").unwrap()]);
    assert_eq!(done.files, fixture.tree.len() as u64 - 2);
    assert_eq!(std::fs::read_dir(root.path().join("a")).unwrap().count(), 0);
    assert!(staging_is_empty(root.path()));
}

#[test]
fn a_second_install_needs_nothing() {
    let (_dir, root) = root();
    let fixture = small();
    fixture.install(&root).unwrap();
    let lock = lock(&root);
    let installation = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS).unwrap();
    assert_eq!(installation.needed().count(), 0);
    assert_eq!(installation.size(), (0, 0));
    let done = installation.commit().unwrap();
    assert_eq!((done.installed.len(), done.existing.len()), (0, fixture.manifest().entries.len()));
}

#[test]
fn only_chunks_of_missing_entries_are_needed() {
    let (_dir, root) = root();
    let fixture = small();
    std::fs::create_dir(root.path().join("big")).unwrap();
    let lock = lock(&root);
    let installation = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS).unwrap();
    let needed: Vec<usize> = installation.needed().ones().collect();
    let manifest = fixture.manifest();
    let expected: BTreeSet<usize> = manifest
        .files
        .iter()
        .filter(|file| !file.path.as_str().starts_with("big"))
        .flat_map(|file| manifest.spans(file).map(|span| span.chunk))
        .collect();
    assert_eq!(needed, expected.into_iter().collect::<Vec<_>>());
    assert!(needed.len() < manifest.chunks.len());
}

#[test]
fn chunks_come_from_many_threads_in_any_order_and_more_than_once() {
    let (_dir, root) = root();
    let tree = (0..3000).map(|i| (format!("{:03}/{i}", i % 300), plain(noise(i, 500 + i as usize)))).collect();
    let fixture = Fixture::new(tree);
    let lock = lock(&root);
    let installation = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS).unwrap();
    let count = fixture.chunks.len();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (installation, fixture) = (&installation, &fixture);
            scope.spawn(move || {
                for step in 0..count {
                    let index = (step * 7 + thread * count / 4) % count;
                    installation.chunk(index, &fixture.chunks[index]).unwrap();
                    installation.chunk(step, &fixture.chunks[step]).unwrap();
                }
            });
        }
    });
    installation.commit().unwrap();
    assert_eq!(visible(root.path()), fixture.paths());
}

#[test]
fn dropping_an_installation_leaves_nothing() {
    let (_dir, root) = root();
    let fixture = small();
    let lock = lock(&root);
    let installation = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS).unwrap();
    installation.chunk(0, &fixture.chunks[0]).unwrap();
    assert!(!staging_is_empty(root.path()));
    drop(installation);
    assert!(staging_is_empty(root.path()));
    assert!(visible(root.path()).is_empty());
}

#[test]
fn a_commit_before_all_chunks_are_there_is_refused() {
    let (_dir, root) = root();
    let fixture = small();
    let lock = lock(&root);
    let installation = Installation::begin(&root, &lock, fixture.admitted.clone(), LIMITS).unwrap();
    let needed: Vec<usize> = installation.needed().ones().collect();
    needed[1..].iter().for_each(|index| installation.chunk(*index, &fixture.chunks[*index]).unwrap());
    assert!(matches!(installation.commit(), Err(InstallError::Incomplete { missing: 1 })));
    assert!(visible(root.path()).is_empty() && staging_is_empty(root.path()));
}
