use std::collections::BTreeMap;

use super::*;
use crate::agent::audit::Audit;
use crate::artifact::{Chunk, Codec, File, ManifestError, Provenance, RelPath, SignedManifest, SourceIdentity};
use crate::digest::Digest;
use crate::identity::{PrivateKey, TrustClass, TrustConfig, UnixTime};
use crate::store::{self, Store, StoreError};

/// An agent's publisher, and a pod that can say what it likes.
pub(in crate::agent) struct Pod {
    pub(in crate::agent) publisher: Arc<Publisher>,
    pub(in crate::agent) store: Store,
    grant: Grant,
    _dir: tempfile::TempDir,
}

impl Pod {
    pub(in crate::agent) fn new() -> Self {
        Self::with(Some(PrivateKey::from_seed(1)), None)
    }

    fn with(signer: Option<PrivateKey>, max_bytes: Option<u64>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config =
            store::Config { reserve_bytes: Some(0), max_bytes, ..store::Config::new(dir.path().join("store")) };
        let store = Store::open(&config, store::Metrics::default()).unwrap();
        let trust = crate::agent::trust::Trust::load(TrustConfig::default(), dir.path(), Audit::nowhere()).unwrap();
        let publisher = Publisher::new(store.clone(), signer, trust);
        Self { publisher, store, grant: Grant::of_operator(0), _dir: dir }
    }

    pub(in crate::agent) fn begin(&self, draft: &Draft) -> Result<Push, PublishError> {
        Push::begin(&self.publisher, self.grant, begin(draft))
    }

    /// A push of these chunks and this manifest.
    fn push(&self, chunks: &[Vec<u8>], draft: &Draft) -> Result<Published, PublishError> {
        let mut push = self.begin(draft)?;
        for chunk in chunks {
            push.chunk(chunk.clone().into())?()?;
        }
        push.seal(&draft.encode().unwrap())
    }

    fn publishes_nothing(&self, chunks: &[Vec<u8>], draft: &Draft) -> PublishError {
        let error = self.push(chunks, draft).unwrap_err();
        assert!(self.store.list().is_empty(), "an artifact in spite of {error}");
        error
    }
}

pub(in crate::agent) fn begin(draft: &Draft) -> PushBegin {
    PushBegin { identity: Bytes::copy_from_slice(draft.identity.id().as_bytes()), subject: draft.subject.clone() }
}

fn raw(content: &[u8]) -> Chunk {
    let len = content.len() as u32;
    Chunk { digest: Digest::of(content), encoded_len: len, decoded_len: len, codec: Codec::Raw }
}

/// One file and one raw chunk of each content, in a family.
fn of_family(family: &str, class: TrustClass, files: &[(&str, &[u8])]) -> (Vec<Vec<u8>>, Draft) {
    let mut offset = 0;
    let file = |(name, content): &(&str, &[u8])| {
        let (path, size) = (RelPath::new(name).unwrap(), content.len() as u64);
        offset += size;
        File { path, executable: false, mtime_ns: 0, size, digest: Digest::of(content), offset: offset - size }
    };
    let listed: Vec<File> = files.iter().map(file).collect();
    let mut entries: Vec<RelPath> = listed.iter().map(|file| file.path.prefix(1)).collect();
    entries.dedup();
    let draft = Draft {
        identity: SourceIdentity::new(family.parse().unwrap(), BTreeMap::new()).unwrap(),
        class,
        subject: "subject".to_owned(),
        generation: 0,
        created: UnixTime::from_seconds(0),
        expires: None,
        provenance: Provenance::default(),
        files: listed,
        chunks: files.iter().map(|(_, content)| raw(content)).collect(),
        entries,
        attributes: BTreeMap::new(),
    };
    (files.iter().map(|(_, content)| content.to_vec()).collect(), draft)
}

pub(in crate::agent) fn tree(files: &[(&str, &[u8])]) -> (Vec<Vec<u8>>, Draft) {
    of_family("directory", TrustClass::HostCode, files)
}

const TWO: [(&str, &[u8]); 2] = [("a", b"one"), ("b", b"two")];

#[test]
fn what_a_pod_pushes_is_signed_as_the_next_generation_by_this_agent() {
    let pod = Pod::new();
    let (chunks, draft) = tree(&TWO);
    let lie = Draft { generation: 900, created: UnixTime::from_seconds(5), ..draft.clone() };
    assert_eq!(pod.push(&chunks, &lie).unwrap().generation, 1);
    let artifact = pod.store.list().remove(0);
    assert_eq!(artifact.manifest().files, draft.files);
    assert_eq!(artifact.manifest().provenance.builder, crate::local::builder());
    assert!(artifact.manifest().created.seconds() > 1_600_000_000);
    assert!(pod.push(&chunks, &draft).unwrap().unchanged);

    let (chunks, draft) = tree(&[TWO[0], TWO[1], ("c", b"three")]);
    // The base has the others.
    let next = pod.push(&chunks[2..], &draft).unwrap();
    assert_eq!((next.generation, next.new_wire_size), (2, 5));
}

#[test]
fn a_signature_that_only_claims_to_be_ours_makes_no_generation_of_ours() {
    let (pod, other) = (Pod::new(), PrivateKey::from_seed(2));
    let (chunks, draft) = tree(&TWO);
    pod.push(&chunks, &draft).unwrap();
    let last = Draft { generation: u64::MAX, created: UnixTime::now(), ..draft };
    let ours = PrivateKey::from_seed(1).public().id();
    let forged = SignedManifest::sign(last, &other).unwrap().with_junk_of(ours);
    assert_eq!(forged.signer(), ours);
    pod.store.insert_published(forged).unwrap();
    let (chunks, draft) = tree(&[("c", b"three")]);
    assert_eq!(pod.push(&chunks, &draft).unwrap().generation, 2);
}

#[test]
fn after_the_highest_generation_there_is_no_other() {
    let pod = Pod::new();
    let (chunks, draft) = tree(&TWO);
    pod.push(&chunks, &draft).unwrap();
    let attributes = BTreeMap::from([("owner".to_owned(), "a".to_owned())]);
    let last = Draft { generation: u64::MAX, created: UnixTime::now(), attributes, ..draft.clone() };
    pod.store.insert_published(SignedManifest::sign(last, &PrivateKey::from_seed(1)).unwrap()).unwrap();
    assert!(matches!(pod.push(&chunks, &draft), Err(PublishError::LastGeneration)));
}

#[test]
fn the_base_is_the_newest_of_this_subject() {
    let pod = Pod::new();
    let (chunks, draft) = tree(&TWO);
    assert!(pod.begin(&draft).unwrap().base().is_empty());
    pod.push(&chunks, &draft).unwrap();
    let artifact = pod.store.list().remove(0);
    assert_eq!(&pod.begin(&draft).unwrap().base(), artifact.signed().envelope());
    let other = Draft { subject: "other".to_owned(), ..draft };
    assert!(pod.begin(&other).unwrap().base().is_empty());
}

#[test]
fn an_agent_without_a_signer_says_so_before_anything_is_sent() {
    assert!(matches!(Pod::with(None, None).begin(&tree(&TWO).1), Err(PublishError::NoSigner)));
}

#[test]
fn chunks_are_named_by_what_they_hold_so_one_that_was_altered_is_missing() {
    let (mut chunks, draft) = tree(&TWO);
    chunks[1] = b"owt".to_vec();
    let error = Pod::new().publishes_nothing(&chunks, &draft);
    assert!(matches!(&error, PublishError::Store(StoreError::Missing(digest)) if *digest == Digest::of(b"two")));
}

#[test]
fn a_chunk_that_was_never_sent_is_missing() {
    let (chunks, draft) = tree(&TWO);
    let error = Pod::new().publishes_nothing(&chunks[..1], &draft);
    assert!(matches!(error, PublishError::Store(StoreError::Missing(_))));
}

#[test]
fn chunks_of_no_or_too_many_bytes_are_refused_before_they_are_kept() {
    let pod = Pod::new();
    let mut push = pod.begin(&tree(&TWO).1).unwrap();
    for len in [0, MAX_CHUNK + 1] {
        assert!(matches!(push.chunk(vec![0; len].into()), Err(PushError::ChunkLength(refused)) if refused == len));
    }
    push.chunks = MAX_CHUNKS;
    assert!(matches!(push.chunk(vec![0].into()), Err(PushError::TooMany)));
    assert_eq!(pod.store.usage(), 0);
}

#[test]
fn a_file_with_another_content_than_its_digest_is_not_signed() {
    let (chunks, mut draft) = tree(&TWO);
    draft.files[1].digest = Digest::of(b"owt");
    let error = Pod::new().publishes_nothing(&chunks, &draft);
    assert!(matches!(&error, PublishError::Push(PushError::Content(ContentError::File(path))) if path.as_str() == "b"));
    let (chunks, mut draft) = tree(&[("a", b"one"), ("b", b"")]);
    draft.files[1] = File { offset: 0, digest: Digest::of(b"x"), ..draft.files[1].clone() };
    draft.chunks.truncate(1);
    let error = Pod::new().publishes_nothing(&chunks[..1], &draft);
    assert!(matches!(error, PublishError::Push(PushError::Content(ContentError::File(_)))));
}

#[test]
fn a_chunk_that_decodes_to_more_than_it_says_is_not_signed() {
    let content = vec![0; 1000];
    let bomb = zstd::bulk::compress(&vec![0; 3 * MAX_CHUNK], 1).unwrap();
    let (_, mut draft) = tree(&[("a", &content)]);
    draft.chunks[0] = Chunk { decoded_len: 1000, codec: Codec::Zstd, ..raw(&bomb) };
    let error = Pod::new().publishes_nothing(&[bomb], &draft);
    assert!(matches!(error, PublishError::Push(PushError::Content(ContentError::Chunk { .. }))), "{error}");
}

#[test]
fn what_takes_too_long_to_check_is_given_up() {
    let pod = Pod::new();
    let (chunks, draft) = tree(&TWO);
    let mut push = pod.begin(&draft).unwrap();
    for chunk in chunks {
        push.chunk(chunk.into()).unwrap()().unwrap();
    }
    push.ends = Instant::now();
    let error = push.seal(&draft.encode().unwrap()).unwrap_err();
    assert!(matches!(error, PublishError::Push(PushError::Deadline)));
}

#[test]
fn a_manifest_is_of_the_identity_and_the_subject_that_the_push_began_with() {
    let pod = Pod::new();
    let (_, draft) = tree(&TWO);
    let subject = Draft { subject: "other".to_owned(), ..draft.clone() };
    let facts = BTreeMap::from([("torch".to_owned(), "2".to_owned())]);
    let identity = SourceIdentity::new(draft.identity.family().clone(), facts).unwrap();
    for other in [subject, Draft { identity, ..draft.clone() }] {
        let sealed = pod.begin(&draft).unwrap().seal(&other.encode().unwrap());
        assert!(matches!(sealed, Err(PublishError::Push(PushError::Other))));
    }
}

#[test]
fn a_family_decides_its_class_and_its_files() {
    let kernel: [(&str, &[u8]); 2] = [("KEY/k.cubin", b"cubin"), ("KEY/k.json", b"{}")];
    let refused = |class, files: &[(&str, &[u8])]| {
        let (chunks, draft) = of_family("triton", class, files);
        match Pod::new().publishes_nothing(&chunks, &draft) {
            PublishError::Push(PushError::Kind(error)) => error,
            other => panic!("{other}"),
        }
    };
    assert!(matches!(refused(TrustClass::Data, &kernel), KindError::Class { .. }));
    assert!(matches!(refused(TrustClass::HostCode, &[("k.so", b"evil")]), KindError::Stray { .. }));
    let group = [("KEY/__grp__k.json", br#"{"child_paths":{"k.cubin":"/etc/k.cubin"}}"#.as_slice()), kernel[0]];
    assert!(matches!(refused(TrustClass::HostCode, &group), KindError::Group { .. }));
}

#[test]
fn a_body_that_is_no_manifest_is_refused_whole() {
    let pod = Pod::new();
    let (_, draft) = tree(&TWO);
    let body = draft.encode().unwrap();
    let seal = |body: &[u8]| pod.begin(&draft).unwrap().seal(body).unwrap_err();
    // A field that nobody knows, and half of it.
    assert!(matches!(
        seal(&[&body[..], &[0x98, 0x06, 1]].concat()),
        PublishError::Manifest(ManifestError::NotCanonical)
    ));
    assert!(matches!(seal(&body[..body.len() / 2]), PublishError::Manifest(_)));
    assert!(matches!(seal(&vec![0; 17 << 20]), PublishError::Manifest(ManifestError::TooLarge(_))));
    let climbing: Vec<u8> = draft_with_path(&draft, b"zzzzzz", b"../../");
    assert!(matches!(seal(&climbing), PublishError::Manifest(ManifestError::Path { .. })));
    let twice = Draft { files: [draft.files.clone(), draft.files.clone()].concat(), ..draft.clone() };
    assert!(matches!(seal(&twice.encode().unwrap()), PublishError::Manifest(ManifestError::FileOrder(_))));
}

/// The bytes of a manifest with a path that no [`RelPath`] can be.
fn draft_with_path(draft: &Draft, placeholder: &[u8], path: &[u8]) -> Vec<u8> {
    let mut draft = draft.clone();
    draft.files[1].path = RelPath::new(std::str::from_utf8(placeholder).unwrap()).unwrap();
    let mut body = draft.encode().unwrap().to_vec();
    let at = body.windows(placeholder.len()).position(|window| window == placeholder).unwrap();
    body[at..at + path.len()].copy_from_slice(path);
    body
}

#[test]
fn a_clean_up_takes_nothing_away_from_a_push_that_is_going_on() {
    let pod = Pod::new();
    let (chunks, draft) = tree(&TWO);
    pod.push(&chunks, &draft).unwrap();
    let (chunks, next) = tree(&[TWO[0], TWO[1], ("c", b"three")]);
    let mut push = pod.begin(&next).unwrap();
    push.chunk(chunks[2].clone().into()).unwrap()().unwrap();

    let ends = UnixTime::now().after(pod.publisher.push_deadline());
    assert_eq!(pod.store.gc(ends).unwrap(), store::Swept::default());
    let base = pod.store.list().remove(0);
    assert!(matches!(pod.store.remove(&base.id()), Err(StoreError::InUse(_))));
    assert_eq!(push.seal(&next.encode().unwrap()).unwrap().generation, 2);
}

#[test]
fn what_an_abandoned_push_brought_is_cleaned_up() {
    let pod = Pod::new();
    let (chunks, draft) = tree(&TWO);
    let mut push = pod.begin(&draft).unwrap();
    push.chunk(chunks[0].clone().into()).unwrap()().unwrap();
    drop(push);
    let later = UnixTime::now().after(pod.store.config().orphan_grace + Duration::from_secs(2));
    assert_eq!(pod.store.gc(later).unwrap().orphans, 1);
    assert_eq!(pod.store.usage(), 0);
}

#[test]
fn a_full_store_ends_the_push() {
    let pod = Pod::with(Some(PrivateKey::from_seed(1)), Some(4));
    let (chunks, draft) = tree(&TWO);
    let mut push = pod.begin(&draft).unwrap();
    push.chunk(chunks[0].clone().into()).unwrap()().unwrap();
    let full = push.chunk(chunks[1].clone().into()).unwrap()();
    assert!(matches!(full, Err(PublishError::Store(StoreError::OverLimit { .. }))));
}

#[test]
fn a_push_into_a_full_store_takes_the_place_of_what_nobody_uses_or_has_pinned() {
    let pod = Pod::with(Some(PrivateKey::from_seed(1)), Some(6));
    let (chunks, draft) = tree(&TWO);
    let old = pod.push(&chunks, &draft).unwrap().artifact;
    let (chunks, draft) = tree(&[("c", b"three")]);
    let other = Draft { subject: "other".to_owned(), ..draft };
    pod.store.pin(&old).unwrap();
    assert!(matches!(pod.push(&chunks, &other), Err(PublishError::Store(StoreError::OverLimit { .. }))));
    pod.store.unpin(&old).unwrap();
    let new = pod.push(&chunks, &other).unwrap().artifact;
    assert_eq!(pod.store.list().iter().map(|artifact| artifact.id()).collect::<Vec<_>>(), [new]);
}

#[test]
fn that_the_store_is_full_is_told_of_a_directory_too() {
    let (pod, dir) = (Pod::with(Some(PrivateKey::from_seed(1)), Some(4)), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("file"), "longer than that").unwrap();
    let draft = tree(&TWO).1;
    let publication = crate::local::Publication {
        directory: dir.path().to_owned(),
        identity: draft.identity,
        class: draft.class,
        subject: draft.subject,
        attributes: BTreeMap::new(),
        provenance: Provenance::default(),
        content: crate::local::Content::All(crate::caches::ScanRules::default()),
        expires: None,
    };
    let directory = crate::artifact::Tree::open(dir.path()).unwrap();
    let error = pod.publisher.publish(publication, &directory, pod.grant, &|_| ()).unwrap_err();
    let PublishError::Store(error @ StoreError::OverLimit { .. }) = error else { panic!("{error}") };
    assert!(error.to_string().contains("store.max_bytes"), "{error}");
}

fn of_pod(push_bytes: u64, max_bytes: Option<u64>) -> Pod {
    let grant = Grant { uid: 1000, class: TrustClass::Data, push_bytes };
    Pod { grant, ..Pod::with(Some(PrivateKey::from_seed(1)), max_bytes) }
}

#[test]
fn a_pod_has_code_signed_only_of_the_families_that_warmd_knows() {
    let pod = of_pod(100, None);
    for family in ["directory", "unheard-of"] {
        let (chunks, draft) = of_family(family, TrustClass::DeviceCode, &TWO);
        let refused = pod.publishes_nothing(&chunks, &draft);
        assert!(matches!(refused, PublishError::Class { highest: TrustClass::Data, .. }), "{refused}");
        assert!(refused.to_string().contains("--class data") && refused.to_string().contains("local.publish_class"));
    }
    let kernel: [(&str, &[u8]); 2] = [("KEY/k.json", b"{}"), ("KEY/k.so", b"code")];
    let (chunks, draft) = of_family("triton", TrustClass::HostCode, &kernel);
    pod.push(&chunks, &draft).unwrap();
    let (chunks, draft) = of_family("directory", TrustClass::Data, &TWO);
    pod.push(&chunks, &draft).unwrap();
}

#[test]
fn pushes_that_are_not_complete_have_so_many_bytes_of_one_user() {
    let pod = of_pod(6, None);
    let (chunks, draft) = tree(&TWO);
    let (mut first, mut second) = (pod.begin(&draft).unwrap(), pod.begin(&draft).unwrap());
    first.chunk(chunks[0].clone().into()).unwrap()().unwrap();
    drop(second.chunk(chunks[1].clone().into()).unwrap());
    assert!(matches!(second.chunk(chunks[1].clone().into()), Err(PushError::Quota { uid: 1000, push_bytes: 6 })));
    drop(first);
    assert!(second.chunk(chunks[1].clone().into()).is_ok());
}

#[test]
fn what_a_push_brought_that_was_given_up_makes_room_for_the_next() {
    let pod = of_pod(100, Some(4));
    let (chunks, draft) = tree(&TWO);
    let mut push = pod.begin(&draft).unwrap();
    push.chunk(chunks[0].clone().into()).unwrap()().unwrap();
    let mut next = pod.begin(&draft).unwrap();
    let refused = next.chunk(chunks[1].clone().into()).unwrap()();
    assert!(refused.is_err(), "the first goes on");
    drop(push);
    next.chunk(chunks[1].clone().into()).unwrap()().unwrap();
    assert_eq!(pod.store.usage(), 3);
}
