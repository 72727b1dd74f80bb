//! A store in memory, whole, damaged, lying and hanging, and a directory.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};

use super::metrics::{Operation, Outcome};
use super::*;
use crate::artifact::{
    Admitted, Chunk, Codec, Draft, Family, File, Provenance, RelPath, SignedManifest, SourceIdentity,
};
use crate::digest::Digest;
use crate::identity::{Policy, PrivateKey, TrustClass, UnixTime};
use crate::store::{self, State, Store};

const NOW: u64 = 1_800_000_000;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// An artifact of one raw chunk per content.
fn signed(subject: &str, generation: u64, contents: &[Vec<u8>]) -> SignedManifest {
    let mut offset = 0;
    let file = |(index, content): (usize, &Vec<u8>)| {
        let path = RelPath::new(&format!("files/{index:06}")).unwrap();
        let (digest, size) = (Digest::of(content), content.len() as u64);
        offset += size;
        File { path, executable: false, mtime_ns: 0, size, digest, offset: offset - size }
    };
    let files: Vec<File> = contents.iter().enumerate().map(file).collect();
    let chunk = |content: &Vec<u8>| {
        let len = content.len() as u32;
        Chunk { digest: Digest::of(content), encoded_len: len, decoded_len: len, codec: Codec::Raw }
    };
    let draft = Draft {
        identity: SourceIdentity::new(Family::directory(), BTreeMap::new()).unwrap(),
        class: TrustClass::HostCode,
        subject: subject.to_owned(),
        generation,
        created: UnixTime::from_seconds(NOW + generation),
        expires: None,
        provenance: Provenance::default(),
        entries: vec![RelPath::new("files").unwrap()],
        files,
        chunks: contents.iter().map(chunk).collect(),
        attributes: BTreeMap::new(),
    };
    SignedManifest::sign(draft, &PrivateKey::from_seed(1)).unwrap()
}

fn admitted(envelope: Bytes) -> Admitted {
    let policy = Policy::parse(&format!(
        "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n[[signer]]\nname = \"builder\"\nkey = \"{}\"\n\
         families = [\"*\"]\nclass = \"host-code\"\n",
        PrivateKey::from_seed(1).public()
    ));
    SignedManifest::admit(envelope, &policy.unwrap(), UnixTime::from_seconds(NOW)).unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let config = store::Config { reserve_bytes: Some(0), ..store::Config::new(dir.path().join("store")) };
    let store = Store::open(&config, store::Metrics::default()).unwrap();
    (dir, store)
}

/// A complete artifact in a store.
fn publish(store: &Store, signed: SignedManifest, contents: &[Vec<u8>]) -> Summary {
    for content in contents {
        store.put_chunk(&Digest::of(content), content).unwrap();
    }
    let artifact = store.insert_published(signed).unwrap();
    Summary::of(artifact.signed(), artifact.content_id())
}

/// An origin in memory, and what is behind it.
struct Bench {
    origin: Origin,
    objects: Arc<InMemory>,
    metrics: Metrics,
}

impl Bench {
    fn new() -> Self {
        let (objects, metrics) = (Arc::new(InMemory::new()), Metrics::default());
        let origin = Origin::with(objects.clone(), &OriginConfig::default(), metrics.clone());
        Self { origin, objects, metrics }
    }

    /// With one artifact of three chunks in it.
    async fn pushed() -> (Self, Summary, Vec<Vec<u8>>) {
        let (bench, (_dir, store)) = (Self::new(), store());
        let contents: Vec<Vec<u8>> = (1..=3).map(|seed| noise(seed, 10_000)).collect();
        let summary = publish(&store, signed("", 1, &contents), &contents);
        bench.origin.push(&store, summary.artifact, &|_| ()).await.unwrap();
        (bench, summary, contents)
    }

    async fn pull(&self, summary: &Summary, store: &Store) -> Result<Pulled, OriginError> {
        let envelope = self.origin.envelope(&summary.artifact).await?;
        self.origin.pull(store, admitted(envelope), &|_| ()).await
    }

    async fn put(&self, path: &Path, bytes: Vec<u8>) {
        self.objects.put(path, bytes.into()).await.unwrap();
    }

    async fn names(&self) -> Vec<String> {
        let all: Vec<_> = self.objects.list(None).try_collect().await.unwrap();
        all.into_iter().map(|object| object.location.to_string()).collect()
    }
}

#[tokio::test]
async fn what_was_pushed_is_found_and_pulled_whole() {
    let (bench, summary, contents) = Bench::pushed().await;
    let mut names = vec![layout::artifact(&summary.artifact), layout::entry(&summary)];
    names.extend(contents.iter().map(|content| layout::chunk(&Digest::of(content))));
    let mut names: Vec<String> = names.iter().map(Path::to_string).collect();
    names.sort();
    assert_eq!(bench.names().await, names);

    assert_eq!(bench.origin.find(summary.identity).await.unwrap(), std::slice::from_ref(&summary));
    assert!(bench.origin.has(&summary).await.unwrap());
    let (_dir, store) = store();
    let told = Mutex::new(Vec::new());
    let envelope = bench.origin.envelope(&summary.artifact).await.unwrap();
    let tell = |now: Progress| told.lock().unwrap().push(now);
    let pulled = bench.origin.pull(&store, admitted(envelope), &tell).await.unwrap();
    assert_eq!(pulled, Pulled { read_bytes: 30_000, reused_bytes: 0 });
    let artifact = store.get(&summary.artifact).unwrap();
    assert_eq!(artifact.state(), State::Complete);
    assert_eq!(told.into_inner().unwrap().last(), Some(&Progress { bytes: 30_000, bytes_total: 30_000 }));
    assert_eq!(store.read_chunk(&artifact.manifest().chunks[1]).unwrap(), contents[1]);
}

#[tokio::test]
async fn a_directory_holds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let url = Some(format!("file://{}/origin", dir.path().display()).parse().unwrap());
    let config = OriginConfig { url, ..Default::default() };
    let origin = Origin::open(&config, Metrics::default()).unwrap().unwrap();
    assert_eq!(origin.list().await.unwrap(), [], "an empty directory is an empty origin");
    let (_here, from) = store();
    let contents = vec![noise(1, 5000), noise(2, 5000)];
    let summary = publish(&from, signed("s", 1, &contents), &contents);
    origin.push(&from, summary.artifact, &|_| ()).await.unwrap();
    let at = |path: &Path| dir.path().join("origin").join(path.as_ref());
    assert_eq!(std::fs::read(at(&layout::chunk(&Digest::of(&contents[0])))).unwrap(), contents[0]);
    assert_eq!(std::fs::read(at(&layout::entry(&summary))).unwrap(), summary.encode());

    let (_there, to) = store();
    let envelope = origin.envelope(&summary.artifact).await.unwrap();
    assert_eq!(envelope, from.get(&summary.artifact).unwrap().signed().envelope());
    origin.pull(&to, admitted(envelope), &|_| ()).await.unwrap();
    assert_eq!(to.get(&summary.artifact).unwrap().state(), State::Complete);
    assert_eq!(origin.list().await.unwrap(), [summary]);
}

#[tokio::test]
async fn chunks_that_are_there_are_neither_written_nor_read_again() {
    let (bench, first, mut contents) = Bench::pushed().await;
    let (_dir, from) = store();
    contents.push(noise(4, 700));
    let second = publish(&from, signed("", 2, &contents), &contents);
    let pushed = bench.origin.push(&from, second.artifact, &|_| ()).await.unwrap();
    assert_eq!(pushed, Pushed { written_bytes: 700, skipped_bytes: 30_000 });
    let again = bench.origin.push(&from, second.artifact, &|_| ()).await.unwrap();
    assert_eq!(again, Pushed { written_bytes: 0, skipped_bytes: 30_700 });

    let (_dir, to) = store();
    bench.pull(&first, &to).await.unwrap();
    assert_eq!(bench.pull(&second, &to).await.unwrap(), Pulled { read_bytes: 700, reused_bytes: 30_000 });
    assert_eq!(bench.pull(&second, &to).await.unwrap(), Pulled { read_bytes: 0, reused_bytes: 30_700 });
}

#[tokio::test]
async fn a_chunk_that_was_cut_short_is_written_again() {
    let (bench, summary, contents) = Bench::pushed().await;
    let (_dir, from) = store();
    publish(&from, signed("", 1, &contents), &contents);
    bench.put(&layout::chunk(&Digest::of(&contents[0])), contents[0][..9_999].to_vec()).await;
    let pushed = bench.origin.push(&from, summary.artifact, &|_| ()).await.unwrap();
    assert_eq!(pushed.written_bytes, 10_000);
    bench.pull(&summary, &store().1).await.unwrap();
}

#[tokio::test]
async fn what_is_not_whole_here_is_not_pushed() {
    let (bench, (_dir, store)) = (Bench::new(), store());
    let contents = vec![noise(1, 100), noise(2, 100)];
    let held = store.begin(admitted(signed("", 1, &contents).envelope().clone())).unwrap();
    store.put_chunk(&Digest::of(&contents[0]), &contents[0]).unwrap();
    let refused = bench.origin.push(&store, held.id(), &|_| ()).await;
    assert!(matches!(refused, Err(OriginError::Store(StoreError::Incomplete { missing: 1, .. }))), "{refused:?}");
    assert!(bench.names().await.is_empty());
}

#[tokio::test]
async fn a_push_that_fails_half_way_leaves_no_entry() {
    let (bench, (dir, store)) = (Bench::new(), store());
    let contents = vec![noise(1, 100), noise(2, 100)];
    let summary = publish(&store, signed("", 1, &contents), &contents);
    let lost = Digest::of(&contents[1]).to_string();
    std::fs::remove_file(dir.path().join("store/chunks").join(&lost[..2]).join(&lost)).unwrap();
    assert!(bench.origin.push(&store, summary.artifact, &|_| ()).await.is_err());
    assert!(bench.names().await.iter().all(|name| name.starts_with("chunks/")));
    assert!(bench.origin.find(summary.identity).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_chunk_that_is_missing_or_wrong_never_reaches_the_store() {
    for wrong in [None, Some(noise(9, 10_000)), Some(noise(2, 9_999)), Some(noise(2, 10_001)), Some(Vec::new())] {
        let (bench, summary, contents) = Bench::pushed().await;
        let (_dir, store) = store();
        let (digest, name) = (Digest::of(&contents[1]), layout::chunk(&Digest::of(&contents[1])));
        match &wrong {
            None => bench.objects.delete(&name).await.unwrap(),
            Some(bytes) => bench.put(&name, bytes.clone()).await,
        }
        let failed = bench.pull(&summary, &store).await.unwrap_err();
        match &wrong {
            None => assert!(matches!(failed, OriginError::Missing(_)), "{failed}"),
            Some(_) => assert!(matches!(failed, OriginError::Damaged(_)), "{failed}"),
        }
        assert!(!store.has_chunk(&digest));
        assert_eq!(store.get(&summary.artifact).unwrap().state(), State::Partial);
        // Somebody puts it right; what has arrived is kept.
        bench.put(&name, contents[1].clone()).await;
        let pulled = bench.pull(&summary, &store).await.unwrap();
        assert_eq!(pulled.read_bytes + pulled.reused_bytes, 30_000);
        assert!(pulled.read_bytes >= 10_000);
    }
}

#[tokio::test]
async fn an_object_that_is_too_large_is_not_read() {
    let (bench, summary, _) = Bench::pushed().await;
    bench.put(&layout::artifact(&summary.artifact), vec![0; MAX_ENVELOPE + 1]).await;
    let refused = bench.origin.envelope(&summary.artifact).await;
    assert!(matches!(refused, Err(OriginError::Damaged(_))), "{refused:?}");
}

#[tokio::test]
async fn a_truncated_envelope_is_admitted_by_nobody() {
    let (bench, summary, _) = Bench::pushed().await;
    let whole = bench.origin.envelope(&summary.artifact).await.unwrap();
    bench.put(&layout::artifact(&summary.artifact), whole[..whole.len() - 1].to_vec()).await;
    let envelope = bench.origin.envelope(&summary.artifact).await.unwrap();
    assert!(SignedManifest::decode_unverified(envelope).is_err());
}

#[tokio::test]
async fn an_index_that_lies_costs_nothing_but_its_entries() {
    let (bench, summary, _) = Bench::pushed().await;
    let other = Summary { generation: 9, created: UnixTime::from_seconds(NOW + 9), ..summary.clone() };
    // Nonsense, another artifact's entry, one that is too large, and names of no entry.
    bench.put(&layout::entry(&other), b"nonsense".to_vec()).await;
    let other = Summary { generation: 10, ..other };
    bench.put(&layout::entry(&other), summary.encode()).await;
    let other = Summary { generation: 11, ..other };
    bench.put(&layout::entry(&other), vec![0; MAX_ENTRY + 1]).await;
    bench.put(&layout::entries(&summary.identity).join("README"), Vec::new()).await;
    bench.put(&layout::index().join("README"), Vec::new()).await;
    assert_eq!(bench.origin.find(summary.identity).await.unwrap(), std::slice::from_ref(&summary));
    assert_eq!(bench.origin.list().await.unwrap(), [summary]);
    assert_eq!(bench.metrics.bad_objects.get(), 6);
}

#[tokio::test]
async fn the_newest_are_found_first_and_not_too_many() {
    let bench = Bench::new();
    let some = signed("", 1, &[noise(1, 10)]);
    let summary = |generation: u64| {
        let created = UnixTime::from_seconds(NOW + generation);
        Summary { generation, created, ..Summary::of(&some, some.manifest().content_id()) }
    };
    for generation in 0..100 {
        let summary = summary(generation);
        bench.put(&layout::entry(&summary), summary.encode()).await;
    }
    let found = bench.origin.find(summary(0).identity).await.unwrap();
    let generations: Vec<u64> = found.iter().map(|summary| summary.generation).collect();
    assert_eq!(generations, (100 - MAX_FOUND as u64..100).rev().collect::<Vec<_>>());
}

#[tokio::test]
async fn another_identity_has_nothing() {
    let (bench, _, _) = Bench::pushed().await;
    assert_eq!(bench.origin.find(IdentityId::of(b"another")).await.unwrap(), []);
    let missing = bench.origin.envelope(&ArtifactId::of(b"another")).await;
    assert!(matches!(missing, Err(OriginError::Missing(_))), "{missing:?}");
    assert_eq!(bench.metrics.requests(Operation::Read, Outcome::Missing), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_costs_one_deadline() {
    let day = Duration::from_secs(86_400);
    let hang = ThrottleConfig {
        wait_get_per_call: day,
        wait_put_per_call: day,
        wait_list_per_call: day,
        ..Default::default()
    };
    let (metrics, config) = (Metrics::default(), OriginConfig::default());
    let origin = Origin::with(Arc::new(ThrottledStore::new(InMemory::new(), hang)), &config, metrics.clone());
    let (_dir, store) = store();
    let contents = vec![noise(1, 100)];
    let summary = publish(&store, signed("", 1, &contents), &contents);
    let late = |ended: Option<OriginError>| matches!(ended, Some(OriginError::Deadline { seconds: 30, .. }));
    assert!(late(origin.find(summary.identity).await.err()));
    assert!(late(origin.envelope(&summary.artifact).await.err()));
    assert!(late(origin.push(&store, summary.artifact, &|_| ()).await.err()));
    let outcomes = [Operation::List, Operation::Read, Operation::Look];
    assert_eq!(outcomes.map(|operation| metrics.requests(operation, Outcome::Late)), [1, 1, 1]);
}
