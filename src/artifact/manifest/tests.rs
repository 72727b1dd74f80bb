use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::artifact::{Family, MAX_ATTRIBUTES, MAX_CHUNK, pb};

const NOW: u64 = 1_800_000_000;

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn file(name: &str, offset: u64, content: &[u8]) -> File {
    File {
        path: path(name),
        executable: false,
        mtime_ns: 0,
        size: content.len() as u64,
        digest: Digest::of(content),
        offset,
    }
}

fn raw(content: &[u8]) -> Chunk {
    let len = content.len() as u32;
    Chunk { digest: Digest::of(content), encoded_len: len, decoded_len: len, codec: Codec::Raw }
}

fn draft() -> Draft {
    Draft {
        identity: SourceIdentity::new(Family::directory(), BTreeMap::from([("torch".into(), "2.13.0".into())]))
            .unwrap(),
        class: TrustClass::HostCode,
        subject: "subject".to_owned(),
        generation: 1,
        created: UnixTime::from_seconds(NOW),
        expires: None,
        provenance: Provenance::default(),
        files: vec![file("a/one", 0, b"one"), file("a/three", 3, b"three"), file("b", 0, b"one"), file("c", 0, b"")],
        chunks: vec![raw(b"onethree")],
        entries: vec![path("a"), path("b"), path("c")],
        attributes: BTreeMap::from([("owner".into(), "team-a".into())]),
    }
}

fn key() -> PrivateKey {
    PrivateKey::from_seed(1)
}

fn policy() -> Policy {
    Policy::parse(&format!(
        "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n[[signer]]\nname = \"builder\"\nkey = \"{}\"\n\
         families = [\"*\"]\nclass = \"host-code\"\n",
        key().public()
    ))
    .unwrap()
}

fn admit(envelope: Bytes) -> Result<Admitted, ManifestError> {
    SignedManifest::admit(envelope, &policy(), UnixTime::from_seconds(NOW))
}

/// Signs bytes that no honest signer would: what is refused here is refused although the signature fits.
fn signed_body(body: Vec<u8>) -> Bytes {
    Envelope::sign(MANIFEST_TYPE, body.into(), &[&key()]).encode()
}

#[test]
fn a_signed_manifest_is_admitted_and_keeps_its_bytes() {
    let signed = SignedManifest::sign(draft(), &key()).unwrap();
    let admitted = admit(signed.envelope().clone()).unwrap();
    assert_eq!(*admitted, signed);
    assert_eq!(admitted.signers(), ["builder"]);
    assert_eq!(admitted.manifest().size(), 11);
    assert_eq!(admitted.manifest().wire_size(), 8);
}

#[test]
fn what_is_parsed_already_is_judged_by_the_policy_of_now() {
    let signed = Arc::new(SignedManifest::sign(draft(), &key()).unwrap());
    let now = UnixTime::from_seconds(NOW);
    let admitted = signed.readmit(&policy(), now).unwrap();
    assert_eq!((&*admitted, admitted.signers()), (&*signed, &["builder".to_owned()][..]));
    let revoked = Policy::parse(&format!(
        "version = 2\nexpires = \"2030-01-01T00:00:00Z\"\n[revoked]\nartifacts = [\"{}\"]\n[[signer]]\nname = \"builder\"\n\
         key = \"{}\"\nfamilies = [\"*\"]\nclass = \"host-code\"\n",
        signed.id(),
        key().public()
    ));
    assert!(matches!(signed.readmit(&revoked.unwrap(), now), Err(ManifestError::Refused(_))));
    let other = Arc::new(SignedManifest::sign(draft(), &PrivateKey::from_seed(2)).unwrap());
    assert!(matches!(other.readmit(&policy(), now), Err(ManifestError::Refused(_))));
}

#[test]
fn golden_bytes_of_a_manifest_body() {
    let body = wire::encode(&Manifest::new(draft()).unwrap());
    let hex = data_encoding::HEXLOWER.encode(&body);
    let expected = concat!(
        "0801",                               // schema 1
        "12096469726563746f7279",             // family "directory"
        "1803",                               // class host-code
        "220f0a05746f7263681206322e31332e30", // fact torch = 2.13.0
        "2a077375626a656374",                 // subject "subject"
        "3001",                               // generation 1
        "3880a4a7da06",                       // created
        "4a00",                               // provenance, empty
        "522b0a05612f6f6e6520032a20",         // file a/one of 3 bytes and its digest
        "d33fb48ab5adff269ae172b29a6913ff04f6f266207a7a8e976f2ecd571d4492",
        "522f0a07612f746872656520052a20", // file a/three of 5 bytes and its digest
        "dbec0e689fb63bd729147727129d854e9d590ab620a18bbbcb3317d268d6fd72",
        "3003", // at offset 3
    );
    assert!(hex.starts_with(expected), "{hex}");
    assert!(
        hex.ends_with(concat!(
            "10081808", // chunk of 8 bytes, encoded and decoded, raw
            "620161",
            "620162",
            "620163",                             // entries a, b, c
            "6a0f0a056f776e657212067465616d2d61", // attribute owner = team-a
        )),
        "{hex}"
    );
    assert_eq!(ArtifactId::of(&body).to_string(), GOLDEN_ARTIFACT_ID);
    assert_eq!(Manifest::new(draft()).unwrap().content_id().to_string(), GOLDEN_CONTENT_ID);
}

const GOLDEN_ARTIFACT_ID: &str = "d8dc5eaf2e978db3697befcab829d07eaa64b1d1f0995321223230bfe873c363";
const GOLDEN_CONTENT_ID: &str = "3e307e376a4b5c60716fff31ea5cb6a21ceca8c0fbf99460e04a2e2000f84621";

#[test]
fn every_flipped_bit_of_a_signed_manifest_is_refused() {
    let bytes = SignedManifest::sign(draft(), &key()).unwrap().envelope().clone();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(admit(damaged.into()).is_err(), "bit {bit} flipped and still admitted");
    }
}

#[test]
fn unknown_fields_and_other_spellings_are_refused_even_when_signed() {
    let body = wire::encode(&draft());
    let mut unknown = body.clone();
    unknown.extend_from_slice(&[0xf8, 0x01, 0x01]); // field 31, varint 1
    assert_eq!(admit(signed_body(unknown)).unwrap_err(), ManifestError::NotCanonical);
    let mut repeated = body.clone();
    repeated.extend_from_slice(&[0x08, 0x01]); // schema once more
    assert_eq!(admit(signed_body(repeated)).unwrap_err(), ManifestError::NotCanonical);
    let mut long = vec![0x08, 0x81, 0x00]; // schema 1 as an overlong varint
    long.extend_from_slice(&body[2..]);
    assert_eq!(admit(signed_body(long)).unwrap_err(), ManifestError::NotCanonical);
}

#[test]
fn a_body_of_millions_of_empty_records_is_refused_before_it_is_parsed() {
    let body = [0x52, 0x00].repeat(200_001);
    let expected = ManifestError::TooMany { what: "files", limit: 200_000 };
    assert_eq!(admit(signed_body(body)).unwrap_err(), expected);
    let huge = Bytes::from(vec![0; crate::artifact::MAX_ENVELOPE + 1]);
    assert!(matches!(admit(huge), Err(ManifestError::TooLarge(_))));
}

#[test]
fn every_lie_about_files_chunks_and_entries_is_refused_by_its_kind() {
    type Lie = (&'static str, fn(&mut Draft), fn(&ManifestError) -> bool);
    let lies: &[Lie] = &[
        ("no files", |d| d.files.clear(), |e| matches!(e, ManifestError::Empty)),
        ("file twice", |d| d.files[1].path = path("a/one"), |e| matches!(e, ManifestError::FileOrder(_))),
        ("unsorted", |d| d.files.swap(0, 1), |e| matches!(e, ManifestError::FileOrder(_))),
        ("file is a directory", |d| d.files[0].path = path("a"), |e| matches!(e, ManifestError::FileAndDirectory(_))),
        ("case", |d| d.files[0].path = path("a/THREE"), |e| matches!(e, ManifestError::CaseCollision(_))),
        ("past the end", |d| d.files[1].size = 6, |e| matches!(e, ManifestError::FilePlace(_))),
        ("offset overflows", |d| d.files[1].offset = u64::MAX, |e| matches!(e, ManifestError::FilePlace(_))),
        ("overlap", |d| d.files[1].offset = 2, |e| matches!(e, ManifestError::FilePlace(_))),
        (
            "same place, other digest",
            |d| d.files[2].digest = Digest::of(b"x"),
            |e| matches!(e, ManifestError::FilePlace(_)),
        ),
        ("empty file at an offset", |d| d.files[3].offset = 1, |e| matches!(e, ManifestError::FilePlace(_))),
        ("missing chunk", |d| d.chunks.clear(), |e| matches!(e, ManifestError::FilePlace(_))),
        ("unused chunk", |d| d.chunks.push(raw(b"x")), |e| matches!(e, ManifestError::UnusedChunk(1))),
        ("empty chunk", |d| d.chunks[0].decoded_len = 0, |e| matches!(e, ManifestError::ChunkLength(0))),
        (
            "huge chunk",
            |d| d.chunks[0].decoded_len = MAX_CHUNK as u32 + 1,
            |e| matches!(e, ManifestError::ChunkLength(0)),
        ),
        ("raw of another length", |d| d.chunks[0].encoded_len = 7, |e| matches!(e, ManifestError::ChunkLength(0))),
        ("zstd that grows", |d| d.chunks[0].codec = Codec::Zstd, |e| matches!(e, ManifestError::ChunkLength(0))),
        ("no entry", |d| drop(d.entries.pop()), |e| matches!(e, ManifestError::NoEntry(_))),
        ("empty entry", |d| d.entries.push(path("d")), |e| matches!(e, ManifestError::Entry(_))),
        ("nested entry", |d| d.entries.insert(1, path("a/one")), |e| matches!(e, ManifestError::Entry(_))),
        ("long subject", |d| d.subject = "s".repeat(4097), |e| matches!(e, ManifestError::Text)),
        (
            "escape in attribute",
            |d| drop(d.attributes.insert("a".into(), "\u{1b}[31m".into())),
            |e| matches!(e, ManifestError::Text),
        ),
        (
            "attributes without end",
            |d| d.attributes = (0..=MAX_ATTRIBUTES).map(|n| (n.to_string(), String::new())).collect(),
            |e| matches!(e, ManifestError::TooMany { what: "attributes", .. }),
        ),
    ];
    for (name, lie, expected) in lies {
        let mut draft = draft();
        lie(&mut draft);
        let error = admit(signed_body(wire::encode(&draft))).expect_err(name);
        assert!(expected(&error), "{name}: {error}");
        assert!(SignedManifest::sign(draft, &key()).is_err(), "{name}: signed");
    }
}

#[test]
fn hostile_paths_are_refused_even_when_signed() {
    let body = wire::encode(&draft());
    let needle = b"a/three";
    let at = body.windows(needle.len()).position(|w| w == needle).unwrap();
    for hostile in [b"../thre", b"/etc/pw", b"a/../..", b"a//hree", b"a/\0hree"] {
        let mut body = body.clone();
        body[at..at + needle.len()].copy_from_slice(hostile);
        let error = admit(signed_body(body)).unwrap_err();
        assert!(matches!(error, ManifestError::Path { .. }), "{error}");
    }
}

#[test]
fn a_file_across_chunks_must_begin_with_one_and_fill_all_but_the_last() {
    let big = vec![7u8; MAX_CHUNK + 10];
    let mut draft = draft();
    draft.files = vec![file("a", 0, &big)];
    draft.entries = vec![path("a")];
    draft.chunks = vec![raw(&big[..MAX_CHUNK]), raw(&big[MAX_CHUNK..])];
    assert!(Manifest::new(draft.clone()).is_ok());
    draft.chunks = vec![raw(&big[..MAX_CHUNK - 1]), raw(&big[MAX_CHUNK - 1..])];
    assert!(matches!(Manifest::new(draft), Err(ManifestError::FilePlace(_))));
}

#[test]
fn spans_of_a_file_cover_it_once_in_order() {
    let manifest = Manifest::new(draft()).unwrap();
    let spans: Vec<Span> = manifest.spans(&manifest.files[1]).collect();
    assert_eq!(spans, [Span { chunk: 0, in_chunk: 3..8, in_file: 0 }]);
    assert_eq!(manifest.spans(&manifest.files[3]).count(), 0);
}

proptest! {
    #[test]
    fn whatever_parses_encodes_to_the_same_bytes(noise in prop::collection::vec(any::<(usize, u8)>(), 1..4)) {
        let mut body = wire::encode(&draft());
        for (at, byte) in noise {
            let len = body.len();
            body[at % len] = byte;
        }
        if let Ok(draft) = wire::decode(&body) {
            prop_assert_eq!(wire::encode(&draft), body);
        }
    }

    #[test]
    fn what_generated_code_reads_and_writes_again_the_same_is_read(
        at in any::<prop::sample::Index>(),
        cut in 0usize..4,
        noise in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let mut body = wire::encode(&draft());
        let at = at.index(body.len());
        let end = (at + cut).min(body.len());
        body.splice(at..end, noise);
        let same = pb::Manifest::decode(&body[..]).ok().filter(|message| message.encode_to_vec() == body);
        match (wire::decode(&body), same) {
            (Ok(_), same) => prop_assert!(same.is_some()),
            (Err(ManifestError::Malformed | ManifestError::NotCanonical), Some(message)) => {
                let sorted = |pairs: &[pb::Pair]| pairs.windows(2).all(|two| two[0].key < two[1].key);
                let fits = sorted(&message.facts) && sorted(&message.attributes) && message.provenance.is_some();
                prop_assert!(!fits || message.chunks.iter().any(|chunk| !(0..=1).contains(&chunk.codec)));
            }
            (Err(_), _) => {}
        }
    }
}

#[test]
fn a_compile_time_that_cannot_be_is_as_if_it_were_not_told() {
    let time = |text: &str| {
        let attributes = BTreeMap::from([(COMPILE_SECONDS.to_owned(), text.to_owned())]);
        let signed = SignedManifest::sign(Draft { attributes, ..draft() }, &key()).unwrap();
        signed.manifest().compile_time()
    };
    assert_eq!(time("12.5"), Some(Duration::from_millis(12_500)));
    for bad in ["", "soon", "-1", "NaN", "inf", "1e300", "86401"] {
        assert_eq!(time(bad), None, "{bad}");
    }
}

/// Signed by those of these seeds.
fn signed_by(seeds: &[u8]) -> SignedManifest {
    let keys: Vec<PrivateKey> = seeds.iter().map(|seed| PrivateKey::from_seed(*seed)).collect();
    let body = Manifest::new(draft()).unwrap().draft.encode().unwrap();
    let envelope = Envelope::sign(MANIFEST_TYPE, body, &keys.iter().collect::<Vec<_>>()).encode();
    SignedManifest::decode_unverified(envelope).unwrap()
}

/// Knows the signers of these seeds, and revokes those.
fn policy_of(signers: &[u8], revoked: &[u8]) -> Policy {
    let public = |seed: &u8| PrivateKey::from_seed(*seed).public();
    let signer = |seed| {
        let key = public(seed);
        format!("[[signer]]\nname = \"{seed}\"\nkey = \"{key}\"\nfamilies = [\"*\"]\nclass = \"host-code\"\n")
    };
    let signers: String = signers.iter().map(signer).collect();
    let revoked: Vec<String> = revoked.iter().map(|seed| format!("\"{}\"", public(seed))).collect();
    let head = "version = 1\nexpires = \"2030-01-01T00:00:00Z\"\n";
    Policy::parse(&format!("{head}{signers}[revoked]\nkeys = [{}]\n", revoked.join(", "))).unwrap()
}

#[test]
fn signatures_that_nobody_made_save_nothing_from_revocation_and_condemn_nothing() {
    let id = |seed| PrivateKey::from_seed(seed).public().id();
    let one = signed_by(&[1]);
    for claimed in [id(2), id(9), KeyId::of(b"nobody")] {
        let with_junk = one.with_junk_of(claimed);
        assert_eq!((with_junk.id(), with_junk.signer()), (one.id(), claimed));
        assert!(!with_junk.is_revoked(&policy_of(&[1, 2], &[])));
        assert!(with_junk.is_revoked(&policy_of(&[1, 2], &[1])), "its only signer is revoked");
        assert!(with_junk.is_revoked(&policy_of(&[2], &[1])), "and has left the policy");
    }
    assert!(!one.with_junk_of(id(2)).is_revoked(&policy_of(&[1, 2], &[2])), "one that did not sign is revoked");
    assert!(!signed_by(&[1, 2]).is_revoked(&policy_of(&[1, 2], &[1])), "another signer stands for it");
    assert!(one.with_junk_of(id(2)).is_signed_by(&PrivateKey::from_seed(1).public()));
    assert!(!one.with_junk_of(id(2)).is_signed_by(&PrivateKey::from_seed(2).public()));
}

#[test]
fn what_two_have_signed_is_of_use_to_whoever_trusts_one_of_them() {
    let now = UnixTime::from_seconds(NOW);
    let first = SignedManifest::admit(signed_by(&[1, 2]).envelope().clone(), &policy_of(&[1], &[]), now).unwrap();
    // As the first hands it on.
    let second = SignedManifest::admit(first.envelope().clone(), &policy_of(&[2], &[]), now).unwrap();
    assert_eq!([first.signers(), second.signers()], [["1"], ["2"]]);
    assert_eq!(second.keys(), [PrivateKey::from_seed(2).public().id()]);
}
