//! Whether a manifest is what its family's name says: a signer that is trusted with one kind must not bring another.

use std::path::Path;

use super::{CONTROL, CacheFamily, GroupError, MAX_GROUP, Place, Relocation, expand};
use crate::artifact::{File, Manifest, RelPath};
use crate::identity::TrustClass;

/// A manifest is none of its family.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// A policy that trusts a signer with data would let it sign code.
    #[error("{family} is {class}, but the manifest says {claimed}")]
    Class { family: &'static str, class: TrustClass, claimed: TrustClass },
    #[error("`{path}` is no part of {family}")]
    Stray { family: &'static str, path: RelPath },
    #[error("`{entry}` lacks {missing}, without which {family} cannot use it")]
    Unfinished { family: &'static str, entry: RelPath, missing: &'static str },
    #[error("`{0}` is for warmd itself: no artifact has it")]
    Reserved(RelPath),
    #[error("`{path}` does not belong to `{subject}`, which the manifest is about")]
    Subject { path: RelPath, subject: String },
    #[error("`{path}` has a time, which {family} does not keep")]
    Time { family: &'static str, path: RelPath },
    #[error("`{path}` {source}")]
    Group { path: RelPath, source: GroupError },
}

/// Holds of every manifest that [`super::snapshot_subject`] made. Families that nobody knows, and directories that the
/// user named, hold what they like.
pub fn check_kind(manifest: &Manifest) -> Result<(), KindError> {
    let Some(family) = known(manifest) else {
        return Ok(());
    };
    if family.class > manifest.class {
        return Err(KindError::Class { family: family.name, class: family.class, claimed: manifest.class });
    }
    // Sorted, so that the files of an entry are neighbours.
    for files in manifest.files.chunk_by(|a, b| manifest.entry_of(&a.path) == manifest.entry_of(&b.path)) {
        let stray = |path: &RelPath| KindError::Stray { family: family.name, path: path.clone() };
        let Some(entry) = manifest.entry_of(&files[0].path) else {
            return Err(stray(&files[0].path));
        };
        let mut unit = None;
        for file in files {
            let Place::Entry { entry: own, unit: of, subject, .. } = family.place(file.path.as_str()) else {
                return Err(stray(&file.path));
            };
            if own != entry.as_str() {
                return Err(stray(&file.path));
            }
            // A signer's scope names subjects: what it brings for one must be none of another's.
            if family.subject_depth > 0 && subject != manifest.subject {
                return Err(KindError::Subject { path: file.path.clone(), subject: manifest.subject.clone() });
            }
            unit = Some(of);
        }
        let names = files.iter().map(|file| file.path.as_str().get(entry.as_str().len() + 1..).unwrap_or(""));
        if let Some(missing) = unit.and_then(|unit| unit.lacks(names)) {
            return Err(KindError::Unfinished { family: family.name, entry: entry.clone(), missing });
        }
    }
    Ok(())
}

/// For who is about to sign what somebody else captured: [`check_kind`], and whatever else is so in every manifest that
/// [`super::snapshot_subject`] made. The content is for [`check_file`].
pub fn check_captured(manifest: &Manifest) -> Result<(), KindError> {
    let is_reserved = |path: &&RelPath| path.components().next().is_some_and(|top| top.eq_ignore_ascii_case(CONTROL));
    if let Some(entry) = manifest.entries.iter().find(is_reserved) {
        return Err(KindError::Reserved(entry.clone()));
    }
    check_kind(manifest)?;
    let Some(family) = known(manifest) else {
        return Ok(());
    };
    if family.class != manifest.class {
        return Err(KindError::Class { family: family.name, class: family.class, claimed: manifest.class });
    }
    for file in &manifest.files {
        let path = || file.path.clone();
        if file.mtime_ns != 0 && !family.keep_mtime {
            return Err(KindError::Time { family: family.name, path: path() });
        }
        if file.size > MAX_GROUP && family.relocation.changes(&file.path) {
            return Err(KindError::Group { path: path(), source: GroupError::TooLarge });
        }
    }
    Ok(())
}

/// Whether a file that names its own place can be installed anywhere; others hold what they like.
pub fn check_file(manifest: &Manifest, file: &File, content: &[u8]) -> Result<(), KindError> {
    if !Relocation::of(manifest.identity.family().as_str()).changes(&file.path) {
        return Ok(());
    }
    let is_listed = |path: &RelPath| manifest.files.binary_search_by(|other| other.path.cmp(path)).is_ok();
    let expanded = expand(content, &file.path, Path::new("/"), is_listed);
    expanded.map(drop).map_err(|source| KindError::Group { path: file.path.clone(), source })
}

fn known(manifest: &Manifest) -> Option<&'static CacheFamily> {
    CacheFamily::known(manifest.identity.family())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::artifact::{Draft, File, Provenance, SourceIdentity};
    use crate::digest::Digest;
    use crate::identity::UnixTime;

    /// Of empty files; entries are the first `depth` components.
    fn manifest(family: &str, class: TrustClass, depth: usize, paths: &[&str]) -> Manifest {
        Manifest::new(draft(family, class, depth, paths)).unwrap()
    }

    fn draft(family: &str, class: TrustClass, depth: usize, paths: &[&str]) -> Draft {
        let path = |path: &&str| RelPath::new(path).unwrap();
        let file = |path| File { path, executable: false, mtime_ns: 0, size: 0, digest: Digest::of(b""), offset: 0 };
        let paths: BTreeSet<RelPath> = paths.iter().map(path).collect();
        let entries: BTreeSet<RelPath> = paths.iter().map(|path| path.prefix(depth)).collect();
        Draft {
            identity: SourceIdentity::new(family.parse().unwrap(), BTreeMap::new()).unwrap(),
            class,
            subject: String::new(),
            generation: 1,
            created: UnixTime::from_seconds(1),
            expires: None,
            provenance: Provenance::default(),
            files: paths.into_iter().map(file).collect(),
            chunks: Vec::new(),
            entries: entries.into_iter().collect(),
            attributes: BTreeMap::new(),
        }
    }

    #[test]
    fn whole_entries_in_their_place_are_what_the_family_has() {
        let kernel = ["cache/kernel.a.0/kernel.cu", "cache/kernel.a.0/kernel.cubin"];
        assert_eq!(check_kind(&manifest("deep-gemm", TrustClass::DeviceCode, 2, &kernel)), Ok(()));
        assert_eq!(check_kind(&manifest("modelinfos", TrustClass::HostCode, 1, &["a.json", "b.json"])), Ok(()));
    }

    #[test]
    fn code_signed_as_data_is_refused() {
        let error = check_kind(&manifest("triton", TrustClass::Data, 1, &["KEY/k.so"])).unwrap_err();
        assert!(matches!(error, KindError::Class { class: TrustClass::HostCode, claimed: TrustClass::Data, .. }));
    }

    #[test]
    fn files_that_the_family_does_not_have_are_refused() {
        for path in ["evil.py", "a.json/evil.so", "x.json.tmp"] {
            let error = check_kind(&manifest("modelinfos", TrustClass::Data, 1, &["ok.json", path])).unwrap_err();
            assert!(matches!(&error, KindError::Stray { path: stray, .. } if stray.as_str() == path), "{error}");
        }
        // Entries of another depth would be renamed apart from their members.
        let apart = manifest("triton", TrustClass::HostCode, 2, &["KEY/__grp__k.json", "KEY/k.cubin"]);
        assert!(matches!(check_kind(&apart), Err(KindError::Stray { .. })));
    }

    #[test]
    fn an_entry_that_would_crash_the_engine_is_refused() {
        let error = check_kind(&manifest("deep-gemm", TrustClass::DeviceCode, 2, &["cache/kernel.a.0/kernel.cu"]));
        assert!(matches!(error, Err(KindError::Unfinished { missing: "kernel.cubin", .. })));
    }

    #[test]
    fn what_nobody_knows_and_what_the_user_names_is_free() {
        for family in ["unheard-of", "directory"] {
            assert_eq!(check_kind(&manifest(family, TrustClass::Data, 1, &["any/thing.lock"])), Ok(()));
        }
    }

    #[test]
    fn entries_of_another_subject_than_the_manifest_is_about_are_refused() {
        let (key, other) = ("a".repeat(64), "b".repeat(64));
        let (model, stray) = (format!("{key}/rank_0_0/model"), format!("{other}/rank_0_0/model"));
        let class = CacheFamily::by_name("vllm-aot").unwrap().class;
        let check = |paths: &[&str]| {
            let draft = draft("vllm-aot", class, 2, paths);
            check_kind(&Manifest::new(Draft { subject: key.clone(), ..draft }).unwrap())
        };
        assert_eq!(check(&[&model]), Ok(()));
        assert!(matches!(check(&[&model, &stray]), Err(KindError::Subject { path, .. }) if path.as_str() == stray));
    }

    #[test]
    fn what_was_captured_has_the_class_the_subject_and_the_times_of_its_family() {
        let kernel = ["cache/kernel.a.0/kernel.cu", "cache/kernel.a.0/kernel.cubin"];
        let gemm = || draft("deep-gemm", TrustClass::DeviceCode, 2, &kernel);
        let check = |draft| check_captured(&Manifest::new(draft).unwrap());
        assert_eq!(check(gemm()), Ok(()));
        let higher = Draft { class: TrustClass::HostCode, ..gemm() };
        assert!(matches!(check(higher), Err(KindError::Class { claimed: TrustClass::HostCode, .. })));
        let mut timed = gemm();
        timed.files[0].mtime_ns = 1;
        assert!(matches!(check(timed), Err(KindError::Time { .. })));

        let (key, other) = ("a".repeat(64), "b".repeat(64));
        let model = format!("{key}/rank_0_0/model");
        let class = CacheFamily::by_name("vllm-aot").unwrap().class;
        let of = |subject: &str| {
            let subject = subject.to_owned();
            check(Draft { subject, ..draft("vllm-aot", class, 2, &[&model]) })
        };
        assert_eq!(of(&key), Ok(()));
        assert!(matches!(of(&other), Err(KindError::Subject { .. })));
    }

    #[test]
    fn no_artifact_has_what_is_for_warmd_itself() {
        for path in [".warmd/lock", ".WarmD/lock"] {
            let manifest = manifest("directory", TrustClass::HostCode, 1, &[path, "other"]);
            assert!(matches!(check_captured(&manifest), Err(KindError::Reserved(_))));
        }
    }

    #[test]
    fn a_group_that_no_node_could_install_is_refused() {
        let triton = manifest("triton", TrustClass::HostCode, 1, &["KEY/__grp__k.json", "KEY/k.cubin"]);
        let group = triton.files.iter().find(|file| file.path.file_name() == "__grp__k.json").unwrap();
        let of = |child: &str| check_file(&triton, group, format!("{{\"child_paths\":{{{child}}}}}").as_bytes());
        assert_eq!(of("\"k.cubin\":\"[WARMD_ROOT]/KEY/k.cubin\""), Ok(()));
        for child in ["\"k.cubin\":\"/etc/k.cubin\"", "\"x.so\":\"[WARMD_ROOT]/KEY/x.so\""] {
            assert!(matches!(of(child), Err(KindError::Group { .. })), "{child}");
        }
        assert!(matches!(check_file(&triton, group, b""), Err(KindError::Group { .. })));
        let member = triton.files.iter().find(|file| file.path.file_name() == "k.cubin").unwrap();
        assert_eq!(check_file(&triton, member, b"anything"), Ok(()));
    }
}
