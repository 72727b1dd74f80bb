use std::path::Path;

use super::*;
use crate::artifact::{Chunk, Codec, Draft, File, Provenance, RelPath, content_id};
use crate::digest::Digest;
use crate::identity::UnixTime;

fn release() -> Release {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters/dora");
    let source = Source::open(&directory, None).unwrap();
    let mut release = Release::of(&source, "sql".parse().unwrap(), "ignored/other".parse().unwrap());
    release.owner = Some("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed".parse().unwrap());
    release.provenance = Some("job 7 of training.example".to_owned());
    release
}

/// One byte for each file.
fn files(paths: &[&str]) -> Vec<File> {
    let file = |(at, path): (usize, &&str)| {
        let path = RelPath::new(path).unwrap();
        File { path, executable: false, mtime_ns: 0, size: 1, digest: Digest::of(&[at as u8]), offset: at as u64 }
    };
    paths.iter().enumerate().map(file).collect()
}

fn draft(paths: &[&str]) -> Draft {
    let files = files(paths);
    let release = Release { content: content_id(&files), ..release() };
    let bytes: Vec<u8> = (0..paths.len() as u8).collect();
    let len = bytes.len() as u32;
    Draft {
        identity: release.identity().unwrap(),
        class: TrustClass::Data,
        subject: release.alias.to_string(),
        generation: 1,
        created: UnixTime::from_seconds(1),
        expires: None,
        provenance: Provenance::default(),
        entries: files.iter().map(|file| file.path.clone()).collect(),
        files,
        chunks: vec![Chunk { digest: Digest::of(&bytes), encoded_len: len, decoded_len: len, codec: Codec::Raw }],
        attributes: release.attributes(),
    }
}

fn read(change: impl FnOnce(&mut Draft)) -> Result<Release, ReleaseError> {
    let mut draft = draft(&[CONFIG, WEIGHTS]);
    change(&mut draft);
    Release::read(&Manifest::new(draft).unwrap())
}

#[test]
fn what_is_signed_is_what_is_read() {
    let expected = Release { content: content_id(&files(&[CONFIG, WEIGHTS])), ..release() };
    assert_eq!(read(|_| {}), Ok(expected.clone()));
    assert_eq!((expected.rank, expected.dora, expected.base.as_str()), (4, true, "acme/Tiny-Llama-0.1B"));
}

#[test]
fn an_adapter_is_looked_up_by_base_model_and_alias_and_nothing_else() {
    let release = release();
    let one = release.identity().unwrap();
    assert_eq!(one.facts().keys().collect::<Vec<_>>(), [FACT_ALIAS, FACT_BASE_MODEL]);
    let elsewhere = Release { base: "/models/tiny_llama-0.1b".parse().unwrap(), ..release.clone() };
    assert_eq!(elsewhere.identity().unwrap(), one);
    let next = Release { content: ContentId::of(b"x"), owner: None, ..release.clone() };
    assert_eq!(next.identity().unwrap(), one);
    let renamed = Release { alias: "other".parse().unwrap(), ..release };
    assert_ne!(renamed.identity().unwrap(), one);
}

#[test]
fn a_pickle_or_a_stray_file_makes_it_no_adapter() {
    for stray in ["adapter_model.bin", "evil.py", "sub/adapter_config.json"] {
        let mut paths = vec![CONFIG, WEIGHTS, stray];
        paths.sort_unstable();
        let error = Release::read(&Manifest::new(draft(&paths)).unwrap()).unwrap_err();
        assert!(
            matches!(&error, ReleaseError::Kind(KindError::Stray { path, .. }) if path.as_str() == stray),
            "{error}"
        );
    }
    let half = Manifest::new(draft(&[CONFIG])).unwrap();
    assert_eq!(Release::read(&half), Err(ReleaseError::Missing(WEIGHTS)));
}

#[test]
fn an_adapter_signed_as_code_is_refused() {
    assert_eq!(read(|draft| draft.class = TrustClass::HostCode), Err(ReleaseError::Class(TrustClass::HostCode)));
}

#[test]
fn an_identity_that_names_another_alias_or_model_is_refused() {
    let other = |base: &str, alias: &str| identity(&base.parse().unwrap(), &alias.parse().unwrap()).unwrap();
    let wrong = read(|draft| draft.identity = other("acme/Tiny-Llama-0.1B", "other"));
    assert!(matches!(wrong, Err(ReleaseError::Alias { .. })));
    let wrong = read(|draft| draft.identity = other("acme/other", "sql"));
    assert!(matches!(wrong, Err(ReleaseError::Base { .. })));
}

#[test]
fn a_signer_that_may_use_one_name_cannot_put_another_into_the_attributes() {
    assert!(matches!(read(|draft| draft.subject = "mine".to_owned()), Err(ReleaseError::Subject { .. })));
}

#[test]
fn attributes_are_checked_one_by_one() {
    for (name, value) in
        [(ALIAS, "../x"), (OWNER, "me"), (RANK, "8.0"), (RANK, "0"), (RANK, "-1"), (DORA, "yes"), (BASE_MODEL, "")]
    {
        let wrong = read(|draft| _ = draft.attributes.insert(name.to_owned(), value.to_owned()));
        assert!(matches!(wrong, Err(ReleaseError::Attribute { name: found, .. }) if found == name), "{name} {value}");
    }
    let long = read(|draft| _ = draft.attributes.insert(PROVENANCE.to_owned(), "x".repeat(3000)));
    assert!(matches!(long, Err(ReleaseError::Attribute { name: PROVENANCE, .. })));
    for name in [ALIAS, BASE_MODEL, RANK, DORA] {
        assert_eq!(read(|draft| _ = draft.attributes.remove(name)), Err(ReleaseError::NoAttribute(name)));
    }
    assert!(read(|draft| _ = draft.attributes.insert("colour".to_owned(), "red".to_owned())).is_ok());
}
