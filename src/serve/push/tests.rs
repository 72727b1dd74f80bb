use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::artifact::{Draft, Family, Provenance, SourceIdentity};
use crate::caches::ScanRules;
use crate::identity::{PrivateKey, TrustClass};
use crate::local::Content;

fn publication(directory: &Path) -> Publication {
    Publication {
        directory: directory.to_owned(),
        identity: SourceIdentity::new(Family::directory(), BTreeMap::new()).unwrap(),
        class: TrustClass::HostCode,
        subject: String::new(),
        attributes: BTreeMap::new(),
        provenance: Provenance::default(),
        content: Content::All(ScanRules::default()),
        expires: None,
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// What was sent: the chunks and the manifest.
fn captured(directory: &Path, base: Option<&SignedManifest>) -> (Vec<Bytes>, Draft) {
    let (requests, mut sent) = mpsc::channel(1000);
    let output = Output { requests, sent: Mutex::default(), read: AtomicU64::new(0), progress: |_| () };
    capture(publication(directory), base, &output).unwrap();
    drop(output);
    let (mut chunks, mut sealed) = (Vec::new(), None);
    while let Some(message) = sent.blocking_recv() {
        match message.request.unwrap() {
            Request::Chunk(chunk) => chunks.push(chunk),
            Request::Seal(body) => sealed = Some(Draft::decode(&body).unwrap()),
            Request::Reading(_) => {}
            Request::Begin(_) => panic!("begun twice"),
        }
    }
    (chunks, sealed.unwrap())
}

#[test]
fn of_a_next_generation_only_new_chunks_are_sent() {
    let dir = tempfile::tempdir().unwrap();
    for file in 0..20 {
        std::fs::write(dir.path().join(format!("{file:02}")), noise(file, 300_000)).unwrap();
    }
    let (chunks, draft) = captured(dir.path(), None);
    let all: usize = chunks.iter().map(Bytes::len).sum();
    assert!(all >= 20 * 300_000, "{all}");

    let base = SignedManifest::sign(draft, &PrivateKey::from_seed(1)).unwrap();
    std::fs::write(dir.path().join("new"), noise(99, 1000)).unwrap();
    let (chunks, next) = captured(dir.path(), Some(&base));
    assert_eq!(chunks, [noise(99, 1000)]);
    assert_eq!(next.files.len(), 21);
    let (chunks, _) = captured(dir.path(), Some(&SignedManifest::sign(next, &PrivateKey::from_seed(1)).unwrap()));
    assert!(chunks.is_empty());
}

#[test]
fn nothing_is_read_on_for_an_agent_that_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "content").unwrap();
    let (requests, sent) = mpsc::channel(1);
    drop(sent);
    let output = Output { requests, sent: Mutex::default(), read: AtomicU64::new(0), progress: |_| () };
    assert!(matches!(capture(publication(dir.path()), None, &output), Err(PushError::NoAnswer)));
}

#[test]
fn a_chunk_is_sent_once() {
    let (requests, mut sent) = mpsc::channel(10);
    let output = Output { requests, sent: Mutex::default(), read: AtomicU64::new(0), progress: |_| () };
    let chunk = Chunk { digest: Digest::of(b"x"), encoded_len: 1, decoded_len: 1, codec: crate::artifact::Codec::Raw };
    output.chunk(&chunk, b"x").unwrap();
    output.chunk(&chunk, b"x").unwrap();
    assert!(sent.try_recv().is_ok() && sent.try_recv().is_err());
}
