//! Anything else, if the user names the directory. Nobody can say what it holds, so it counts as host code.

use super::{CacheFamily, Unit};
use crate::caches::Relocation;
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "directory",
    about: "a directory that the user names",
    class: TrustClass::HostCode,
    root: |_| None,
    units: &[Unit { path: "*/", holds: &[] }, Unit { path: "*", holds: &[] }],
    left: &[],
    subject_depth: 0,
    relocation: Relocation::None,
    keep_mtime: false,
    facts: &[],
    essential: &[],
    worth: 0.0,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    #[test]
    fn every_name_at_the_top_is_an_entry() {
        let found = surveyed(&FAMILY, &["model/a", "model/b/c", "notes", "x.lock"]);
        assert_eq!(found.entries, ["model", "notes"]);
        assert_eq!(found.left, ["x.lock"]);
    }

    #[test]
    fn it_has_no_root_of_its_own() {
        assert_eq!(roots(&FAMILY, &[&[HOME]]), ["none"]);
    }
}
