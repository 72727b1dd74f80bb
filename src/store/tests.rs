mod archives;
mod disk;
mod model;
mod room;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use tokio::sync::watch::Receiver;

use super::*;
use crate::artifact::{
    Admitted, Base, Chunk, Codec, Draft, Family, File, MAX_CHUNK, ManifestError, Outputs, Provenance, RelPath,
    SignedManifest, SourceFile, SourceIdentity, Stamp, Tree, build,
};
use crate::identity::{Policy, PrivateKey, TrustClass};

const NOW: u64 = 1_800_000_000;

fn config(directory: &Path) -> Config {
    Config { reserve_bytes: Some(0), ..Config::new(directory.join("store")) }
}

fn open(directory: &Path) -> Store {
    Store::open(&config(directory), Metrics::default()).unwrap()
}

/// In memory where the machine has that: thousands of syncs of a real disk would take minutes.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A store in a directory of its own.
fn store() -> (tempfile::TempDir, Store) {
    let directory = scratch();
    let store = open(directory.path());
    (directory, store)
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn draft(files: Vec<File>, chunks: Vec<Chunk>, generation: u64) -> Draft {
    let mut entries: Vec<RelPath> = files.iter().map(|file| file.path.prefix(1)).collect();
    entries.dedup();
    Draft {
        identity: SourceIdentity::new(Family::directory(), BTreeMap::new()).unwrap(),
        class: TrustClass::HostCode,
        subject: "subject".to_owned(),
        generation,
        created: UnixTime::from_seconds(NOW),
        expires: None,
        provenance: Provenance::default(),
        files,
        chunks,
        entries,
        attributes: BTreeMap::new(),
    }
}

fn raw(content: &[u8]) -> Chunk {
    let len = content.len() as u32;
    Chunk { digest: Digest::of(content), encoded_len: len, decoded_len: len, codec: Codec::Raw }
}

/// An artifact of one raw chunk per content.
fn signed(contents: &[Vec<u8>], generation: u64) -> SignedManifest {
    let mut offset = 0;
    let file = |(index, content): (usize, &Vec<u8>)| {
        let path = RelPath::new(&format!("files/{index:06}")).unwrap();
        let (digest, size) = (Digest::of(content), content.len() as u64);
        offset += size;
        File { path, executable: false, mtime_ns: 0, size, digest, offset: offset - size }
    };
    let files = contents.iter().enumerate().map(file).collect();
    let chunks = contents.iter().map(|content| raw(content)).collect();
    SignedManifest::sign(draft(files, chunks, generation), &PrivateKey::from_seed(1)).unwrap()
}

fn admit(envelope: Bytes) -> Result<Admitted, ManifestError> {
    let policy = Policy::parse(&format!(
        "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n[[signer]]\nname = \"builder\"\nkey = \"{}\"\n\
         families = [\"*\"]\nclass = \"host-code\"\n",
        PrivateKey::from_seed(1).public()
    ));
    SignedManifest::admit(envelope, &policy.unwrap(), UnixTime::from_seconds(NOW))
}

fn admitted(contents: &[Vec<u8>], generation: u64) -> Admitted {
    admit(signed(contents, generation).envelope().clone()).unwrap()
}

fn contents(seed: u64, count: u64, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|index| noise(seed * 1_000_000 + index, len)).collect()
}

fn put(store: &Store, contents: &[Vec<u8>]) {
    for content in contents {
        store.put_chunk(&Digest::of(content), content).unwrap();
    }
}

/// A complete artifact.
fn fetched(store: &Store, contents: &[Vec<u8>], generation: u64) -> Arc<Artifact> {
    let held = store.begin(admitted(contents, generation)).unwrap();
    put(store, contents);
    store.seal(&held.id()).unwrap();
    Arc::clone(&held)
}

fn assert_readable(store: &Store, artifact: &Artifact) {
    for chunk in &artifact.manifest().chunks {
        assert_eq!(Digest::of(&store.read_chunk(chunk).unwrap()), chunk.digest);
    }
}

fn changed(changes: &mut Receiver<u64>) -> bool {
    let changed = changes.has_changed().unwrap();
    changes.mark_unchanged();
    changed
}

/// The mappings of this process that name `text`.
fn mappings(text: &str) -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn large_chunks_are_read_by_mapping_and_small_ones_by_copy() {
    let (_directory, store) = store();
    for (len, mapped) in [(1, 0), (65_535, 0), (65_536, 1), (MAX_CHUNK, 1)] {
        let content = noise(len as u64, len);
        assert!(store.put_chunk(&Digest::of(&content), &content).unwrap());
        assert!(!store.put_chunk(&Digest::of(&content), &content).unwrap(), "not new the second time");
        let bytes = store.read_chunk(&raw(&content)).unwrap();
        let name = Digest::of(&content).to_string();
        assert_eq!(bytes, content);
        assert_eq!(mappings(&name), mapped, "{len} bytes");
        let part = bytes.slice(..1);
        drop(bytes);
        assert_eq!(mappings(&name), mapped, "a part of the bytes keeps the mapping");
        drop(part);
        assert_eq!(mappings(&name), 0);
    }
}

#[test]
fn a_build_is_published_and_the_next_generation_shares_its_chunks() {
    let (directory, store) = store();
    let tree = directory.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let write = |index: u64, seed: u64| std::fs::write(tree.join(format!("{index:03}")), noise(seed, 20_000)).unwrap();
    (0..200).for_each(|index| write(index, index));
    let source_tree = Tree::open(&tree).unwrap();
    let publish = |generation: u64, base: Option<&Artifact>| {
        let source = |index: u64| {
            let source = tree.join(format!("{index:03}"));
            let stamp = Stamp::of(&source.metadata().unwrap());
            SourceFile {
                path: RelPath::new(&format!("{index:03}")).unwrap(),
                tree: source_tree.clone(),
                executable: false,
                mtime_ns: 0,
                stamp,
                content: None,
            }
        };
        let sources: Vec<SourceFile> = (0..200).map(source).collect();
        let sink =
            |chunk: &Chunk, bytes: &[u8]| store.put_chunk(&chunk.digest, bytes).map(drop).map_err(io::Error::other);
        let has_chunk = |digest: &Digest| store.has_chunk(digest);
        let base = base.map(|base| Base { manifest: base.manifest(), has_chunk: &has_chunk });
        let built = build(&sources, base.as_ref(), &Outputs { store: &sink, progress: &|_| () }).unwrap();
        let draft = draft(built.files, built.chunks, generation);
        store.insert_published(SignedManifest::sign(draft, &PrivateKey::from_seed(1)).unwrap()).unwrap()
    };
    let first = publish(1, None);
    write(7, 1000);
    let second = publish(2, Some(&first));
    assert_eq!((first.role(), first.state()), (Role::Published, State::Complete));
    assert!(store.usage() < first.manifest().wire_size() + second.manifest().wire_size() / 4);
    let ours = |artifact: &Artifact| artifact.role() == Role::Published;
    let newest = store.latest(&first.identity(), "subject", ours).unwrap();
    assert_eq!(newest.id(), second.id());
    assert!(store.latest(&first.identity(), "other", ours).is_none());
    assert_readable(&store, &second);
}

#[test]
fn publishing_without_all_chunks_is_refused() {
    let (_directory, store) = store();
    let contents = contents(1, 3, 100);
    put(&store, &contents[..2]);
    let error = store.insert_published(signed(&contents, 1)).unwrap_err();
    assert!(matches!(error, StoreError::Incomplete { missing: 1, .. }), "{error}");
    assert!(store.list().is_empty());
    assert_eq!(store.usage(), 200, "what was put is kept for the next attempt");
    put(&store, &contents);
    store.insert_published(signed(&contents, 1)).unwrap();
}

#[test]
fn a_partial_artifact_tells_what_it_has_as_chunks_come() {
    let (_directory, store) = store();
    let contents = contents(1, 70, 100);
    put(&store, &contents[..3]);
    let mut changes = store.subscribe();
    let held = store.begin(admitted(&contents, 1)).unwrap();
    assert!(changed(&mut changes));
    assert_eq!(held.have().ones().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((held.missing_bytes(), held.state()), (6700, State::Partial));
    assert!(matches!(store.seal(&held.id()), Err(StoreError::Incomplete { missing: 67, .. })));
    put(&store, &contents[68..]);
    assert_eq!(held.have().ones().collect::<Vec<_>>(), [0, 1, 2, 68, 69]);
    assert!(held.has(69) && !held.has(67) && !held.has(700));
    put(&store, &contents);
    assert!(held.have().is_full() && held.has_all());
    assert!(!changed(&mut changes));
    store.seal(&held.id()).unwrap();
    assert!(changed(&mut changes));
    assert_eq!(held.state(), State::Complete);
    assert!(store.begin(admitted(&contents, 1)).is_ok(), "complete already: nothing to fetch");
}

#[tokio::test]
async fn one_who_waits_for_a_chunk_learns_that_it_came_or_that_it_never_will() {
    let (_directory, store) = store();
    let contents = contents(1, 3, 100);
    let held = store.begin(admitted(&contents, 1)).unwrap();
    let artifact = Arc::clone(&held);
    let mut wait = Box::pin(artifact.wait_for(1));
    assert!(futures_util::FutureExt::now_or_never(&mut wait).is_none());
    put(&store, &contents[..1]);
    assert!(futures_util::FutureExt::now_or_never(&mut wait).is_none());
    put(&store, &contents[1..2]);
    assert!(wait.await);
    let mut wait = Box::pin(artifact.wait_for(2));
    assert!(futures_util::FutureExt::now_or_never(&mut wait).is_none());
    drop(held);
    store.remove(&artifact.id()).unwrap();
    assert!(!wait.await);
}

#[test]
fn a_chunk_that_occurs_twice_in_an_artifact_is_stored_once_and_had_twice() {
    let (_directory, store) = store();
    let piece = noise(1, MAX_CHUNK);
    let whole = [piece.clone(), piece.clone()].concat();
    let path = RelPath::new("large").unwrap();
    let file = File {
        path,
        executable: false,
        mtime_ns: 0,
        size: 2 * MAX_CHUNK as u64,
        digest: Digest::of(&whole),
        offset: 0,
    };
    let draft = draft(vec![file], vec![raw(&piece), raw(&piece)], 1);
    let signed = SignedManifest::sign(draft, &PrivateKey::from_seed(1)).unwrap();
    let held = store.begin(admit(signed.envelope().clone()).unwrap()).unwrap();
    put(&store, std::slice::from_ref(&piece));
    assert!(held.have().is_full());
    store.seal(&held.id()).unwrap();
    let id = held.id();
    drop(held);
    assert_eq!(store.remove(&id).unwrap(), MAX_CHUNK as u64);
    assert_eq!(store.usage(), 0);
}

#[test]
fn chunks_shared_with_another_artifact_survive_its_removal() {
    let (_directory, store) = store();
    let all = contents(1, 10, 1000);
    let first = fetched(&store, &all[..8], 1);
    let second = fetched(&store, &all[4..], 2);
    assert_eq!(store.remove(&first.id()).unwrap(), 4000);
    assert_eq!(first.state(), State::Removed);
    assert_eq!(store.usage(), 6000);
    assert_readable(&store, &second);
    assert!(matches!(store.read_chunk(&raw(&all[0])), Err(StoreError::Missing(_))));
    assert!(matches!(store.remove(&first.id()), Err(StoreError::NoArtifact(_))));
    assert_eq!(store.remove(&second.id()).unwrap(), 6000);
}

#[test]
fn what_was_read_stays_readable_after_its_artifact_was_removed() {
    let (_directory, store) = store();
    let contents = contents(1, 2, 1 << 20);
    let artifact = fetched(&store, &contents, 1);
    let bytes = store.read_chunk(&artifact.manifest().chunks[0]).unwrap();
    store.remove(&artifact.id()).unwrap();
    assert_eq!(bytes, contents[0]);
    let trash = store.shared.layout.trash();
    assert_eq!(std::fs::read_dir(trash).unwrap().count(), 0);
}

#[test]
fn a_manifest_that_lies_about_a_chunks_length_gets_nothing_and_costs_nothing() {
    let (_directory, store) = store();
    let content = noise(1, 1000);
    let honest = fetched(&store, std::slice::from_ref(&content), 1);
    let lie = Chunk { encoded_len: 999, decoded_len: 999, ..raw(&content) };
    let file = File { size: 999, ..honest.manifest().files[0].clone() };
    let signed = SignedManifest::sign(draft(vec![file], vec![lie], 2), &PrivateKey::from_seed(1)).unwrap();
    let held = store.begin(admit(signed.envelope().clone()).unwrap()).unwrap();
    assert_eq!(held.have().count(), 0);
    assert!(matches!(store.read_chunk(&lie), Err(StoreError::Missing(_))));
    assert_readable(&store, &honest);
}

#[test]
fn threads_that_put_read_and_remove_the_same_chunks_end_consistent() {
    let (directory, store) = store();
    let all = contents(1, 12, 500);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (store, all) = (&store, &all);
            scope.spawn(move || {
                for round in 0..40 {
                    let from = ((thread + round) % 7) as usize;
                    let held = store.begin(admitted(&all[from..from + 5], 1)).unwrap();
                    put(store, &all[from..from + 5]);
                    assert!(held.have().is_full());
                    assert_readable(store, &held);
                    store.seal(&held.id()).unwrap();
                    let id = held.id();
                    drop(held);
                    match store.remove(&id) {
                        Ok(_) | Err(StoreError::InUse(_) | StoreError::NoArtifact(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    let (usage, list) = (store.usage(), store.list().len());
    drop(store);
    let store = open(directory.path());
    assert_eq!((store.usage(), store.list().len()), (usage, list));
    assert!(store.list().iter().all(|artifact| artifact.state() == State::Complete));
}

#[test]
fn metrics_have_the_names_that_dashboards_use() {
    let mut registry = crate::telemetry::Registry::default();
    let metrics = Metrics::register(&mut registry);
    let directory = scratch();
    let store = Store::open(&config(directory.path()), metrics).unwrap();
    let artifact = fetched(&store, &contents(1, 3, 1000), 1);
    store.read_chunk(&artifact.manifest().chunks[0]).unwrap();
    let text = crate::telemetry::encode(&registry);
    for line in [
        "warmd_store_bytes 3000",
        "warmd_store_chunks 3",
        "warmd_store_complete_artifacts 1",
        "warmd_store_partial_artifacts 0",
        "warmd_store_written_bytes_total 3000",
        "warmd_store_read_bytes_total 1000",
        "warmd_store_damaged_chunks_total 0",
        "warmd_store_evictions_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "no `{line}` in:\n{text}");
    }
    assert!(text.contains("\nwarmd_store_free_bytes "));
}
