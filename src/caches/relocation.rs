//! Files that name their own place: the place is a token in the artifact, so that every node has the same bytes.
//!
//! Triton lists a kernel's members in `__grp__<name>.json` by absolute paths, and loads whatever lies there. A group in an
//! artifact names `[WARMD_ROOT]/<its own directory>/<member>` and nothing else: anybody who could make it point elsewhere
//! would choose what the engine loads.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::CacheFamily;
use crate::artifact::RelPath;

/// Stands for the root that an artifact is installed into.
const ROOT: &str = "[WARMD_ROOT]";

/// Bytes of the largest group, in an artifact and on a disk; those of Triton have about 1,200.
pub const MAX_GROUP: u64 = 64 * 1024;

/// How files are made independent of where they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relocation {
    None,
    /// Triton's `__grp__*.json`: the root in `child_paths` is a token in the artifact.
    TritonGroups,
}

/// A group cannot be moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error("is no group of Triton: {0}")]
    Malformed(String),
    #[error("is larger than {MAX_GROUP} bytes")]
    TooLarge,
    #[error("points to `{0}`, outside of its own directory")]
    Elsewhere(String),
    #[error("lists `{0}`, which is not there")]
    Missing(String),
    #[error("is to be installed into `{0}`, which is not UTF-8")]
    Root(String),
}

/// As Triton writes it. What newer versions add is not understood, so it is not moved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    /// By file name.
    child_paths: BTreeMap<String, String>,
}

impl Relocation {
    /// Of a family by its name in a manifest. What is not known stays as it is.
    pub fn of(family: &str) -> Self {
        CacheFamily::by_name(family).map_or(Self::None, |family| family.relocation)
    }

    /// Whether the file's bytes in an artifact differ from those on a disk.
    pub fn changes(self, file: &RelPath) -> bool {
        let name = file.file_name();
        self == Self::TritonGroups && name.starts_with("__grp__") && name.ends_with(".json")
    }
}

/// The bytes that a group has in an artifact. `is_own` tells whether a directory is the one that `file` lies in.
pub fn normalise(
    group: &[u8],
    file: &RelPath,
    is_own: impl Fn(&Path) -> bool,
    is_member: impl Fn(&RelPath) -> bool,
) -> Result<Vec<u8>, GroupError> {
    let directory = directory(file)?;
    let mut group = parse(group)?;
    let mut last_own: Option<String> = None;
    for (name, path) in &mut group.child_paths {
        let elsewhere = || GroupError::Elsewhere(path.clone());
        let (parent, file_name) = path.rsplit_once('/').ok_or_else(elsewhere)?;
        // Most members name the same directory: it is looked at once.
        if file_name != name || (last_own.as_deref() != Some(parent) && !is_own(Path::new(parent))) {
            return Err(elsewhere());
        }
        check_member(&directory, name, &is_member)?;
        last_own = Some(parent.to_owned());
        *path = format!("{ROOT}/{directory}/{name}");
    }
    encode(&group)
}

/// The bytes that a group has below `root`. Refuses everything but what [`normalise`] makes.
pub fn expand(
    group: &[u8],
    file: &RelPath,
    root: &Path,
    is_member: impl Fn(&RelPath) -> bool,
) -> Result<Vec<u8>, GroupError> {
    let directory = directory(file)?;
    let root = root.to_str().ok_or_else(|| GroupError::Root(root.to_string_lossy().into_owned()))?;
    let mut parsed = parse(group)?;
    for (name, path) in &mut parsed.child_paths {
        if *path != format!("{ROOT}/{directory}/{name}") {
            return Err(GroupError::Elsewhere(path.clone()));
        }
        check_member(&directory, name, &is_member)?;
    }
    // Two readers of JSON may differ about bytes that say the same thing in another way.
    if encode(&parsed)? != group {
        return Err(GroupError::Malformed("not in canonical form".to_owned()));
    }
    for (name, path) in &mut parsed.child_paths {
        *path = format!("{root}/{directory}/{name}");
    }
    encode(&parsed)
}

fn directory(file: &RelPath) -> Result<RelPath, GroupError> {
    file.parent().ok_or_else(|| GroupError::Malformed("it lies in no directory of its own".to_owned()))
}

/// A member is a file of the same directory, by a plain name.
fn check_member(directory: &RelPath, name: &str, is_member: impl Fn(&RelPath) -> bool) -> Result<(), GroupError> {
    let missing = || GroupError::Missing(name.to_owned());
    let path = RelPath::new(&format!("{directory}/{name}")).map_err(|_| missing())?;
    if !name.contains('/') && is_member(&path) { Ok(()) } else { Err(missing()) }
}

fn parse(group: &[u8]) -> Result<Group, GroupError> {
    if group.len() as u64 > MAX_GROUP {
        return Err(GroupError::TooLarge);
    }
    serde_json::from_slice(group).map_err(|error| GroupError::Malformed(error.to_string()))
}

fn encode(group: &Group) -> Result<Vec<u8>, GroupError> {
    let bytes = serde_json::to_vec(group).map_err(|error| GroupError::Malformed(error.to_string()))?;
    if bytes.len() as u64 > MAX_GROUP { Err(GroupError::TooLarge) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file() -> RelPath {
        RelPath::new("0/KEY/__grp__add.json").unwrap()
    }

    fn group(children: &[(&str, &str)]) -> Vec<u8> {
        let child_paths = children.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect();
        encode(&Group { child_paths }).unwrap()
    }

    fn is_member(path: &RelPath) -> bool {
        ["0/KEY/add.cubin", "0/KEY/add.json"].contains(&path.as_str())
    }

    fn moved(children: &[(&str, &str)]) -> Result<Vec<u8>, GroupError> {
        expand(&group(children), &file(), Path::new("/new"), is_member)
    }

    fn taken(children: &[(&str, &str)]) -> Result<Vec<u8>, GroupError> {
        normalise(&group(children), &file(), |directory| directory == Path::new("/old/0/KEY"), is_member)
    }

    #[test]
    fn golden_bytes_of_a_group_on_its_way() {
        let normal = taken(&[("add.json", "/old/0/KEY/add.json"), ("add.cubin", "/old//0/KEY/add.cubin")]).unwrap();
        let text =
            r#"{"child_paths":{"add.cubin":"[WARMD_ROOT]/0/KEY/add.cubin","add.json":"[WARMD_ROOT]/0/KEY/add.json"}}"#;
        assert_eq!(String::from_utf8(normal.clone()).unwrap(), text);
        let expanded = expand(&normal, &file(), Path::new("/new"), is_member).unwrap();
        assert_eq!(String::from_utf8(expanded).unwrap(), text.replace("[WARMD_ROOT]", "/new"));
    }

    #[test]
    fn a_group_that_points_outside_of_its_directory_is_not_published() {
        for path in ["/old/0/OTHER/add.cubin", "/etc/add.cubin", "add.cubin", "/old/0/KEY/../KEY2/add.cubin"] {
            assert_eq!(taken(&[("add.cubin", path)]), Err(GroupError::Elsewhere(path.to_owned())));
        }
        let other = "/old/0/KEY/other.cubin";
        assert_eq!(taken(&[("add.cubin", other)]), Err(GroupError::Elsewhere(other.to_owned())));
        assert_eq!(taken(&[("gone.ptx", "/old/0/KEY/gone.ptx")]), Err(GroupError::Missing("gone.ptx".to_owned())));
    }

    #[test]
    fn a_group_that_would_redirect_the_loader_is_refused() {
        for path in [
            "/etc/passwd",
            "/new/0/KEY/add.cubin",
            "[WARMD_ROOT]/0/OTHER/add.cubin",
            "[WARMD_ROOT]/0/KEY/../KEY/add.cubin",
            "[WARMD_ROOT]/0/KEY/./add.cubin",
            "[WARMD_ROOT]/0/KEY/add.json",
            "[WARMD_ROOT]//0/KEY/add.cubin",
            "x[WARMD_ROOT]/0/KEY/add.cubin",
            "[WARMD_ROOT]/add.cubin",
            "",
        ] {
            assert_eq!(moved(&[("add.cubin", path)]), Err(GroupError::Elsewhere(path.to_owned())));
        }
        for name in ["../../../etc/passwd", "unlisted.cubin", "sub/add.cubin", "..", ""] {
            let path = format!("[WARMD_ROOT]/0/KEY/{name}");
            assert_eq!(moved(&[(name, &path)]), Err(GroupError::Missing(name.to_owned())));
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let path = "[WARMD_ROOT]/0/KEY/add.cubin";
        for text in [
            format!(r#"{{"child_paths":{{"add.cubin":"/etc/passwd","add.cubin":"{path}"}}}}"#),
            format!(r#"{{"child_paths": {{"add.cubin":"{path}"}}}}"#),
            format!(r#"{{"child_paths":{{"add.cubin":"{path}"}}}} "#),
            format!(r#"{{"child_paths":{{"add.cubin":"{path}"}},"more":1}}"#),
            format!(r#"{{"child_paths":{{"add\u002ecubin":"{path}"}}}}"#),
            String::new(),
        ] {
            let refused = expand(text.as_bytes(), &file(), Path::new("/new"), is_member);
            assert!(matches!(refused, Err(GroupError::Malformed(_))), "{text}: {refused:?}");
        }
        let large = vec![b' '; MAX_GROUP as usize + 1];
        assert_eq!(expand(&large, &file(), Path::new("/new"), is_member), Err(GroupError::TooLarge));
    }

    #[test]
    fn a_group_outside_of_a_directory_belongs_to_no_kernel() {
        let top = RelPath::new("__grp__add.json").unwrap();
        assert!(matches!(expand(&group(&[]), &top, Path::new("/new"), is_member), Err(GroupError::Malformed(_))));
    }

    #[test]
    fn only_groups_of_families_with_triton_kernels_change() {
        let other = RelPath::new("0/KEY/add.json").unwrap();
        assert!(Relocation::of("triton").changes(&file()) && !Relocation::of("triton").changes(&other));
        for family in ["deep-gemm", "directory", "unheard-of"] {
            assert!(!Relocation::of(family).changes(&file()));
        }
    }

    proptest! {
        #[test]
        fn a_group_comes_back_as_it_was_wherever_it_is_installed(
            names in prop::collection::btree_set("[a-z\"\\\\é.]{1,6}x", 0..6),
            root in "/[a-z\" é]{1,8}(/[a-z]{1,4}){0,3}",
        ) {
            let is_member = |path: &RelPath| names.contains(path.file_name());
            let child_paths = names.iter().map(|name| (name.clone(), format!("/old/0/KEY/{name}"))).collect();
            let original = encode(&Group { child_paths }).unwrap();
            let own = |root: String| move |directory: &Path| directory == Path::new(&format!("{root}/0/KEY"));
            let Ok(normal) = normalise(&original, &file(), own("/old".to_owned()), is_member) else {
                // A backslash is in no path of an artifact.
                prop_assert!(names.iter().any(|name| name.contains('\\')));
                return Ok(());
            };
            let installed = expand(&normal, &file(), Path::new(&root), is_member).unwrap();
            prop_assert_eq!(normalise(&installed, &file(), own(root), is_member).unwrap(), normal);
        }
    }
}
