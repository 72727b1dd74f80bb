//! Kernels of quack, compiled by the CuTe DSL and loaded as objects (`quack/cache`). The directory is a digest of quack's
//! sources and of the versions below it.

use super::{CacheFamily, UNMEASURED, Unit, personal_temporary};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

/// Of both libraries that cache objects of the CuTe DSL.
pub(super) const UNITS: &[Unit] = &[Unit { path: "*/*.o", holds: &[] }, Unit { path: "*/*.so", holds: &[] }];

/// Not linked yet.
pub(super) const LEFT: &[&str] = &["*.link.o"];

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "quack",
    about: "quack kernels",
    class: TrustClass::HostCode,
    root: |environment| environment.path("QUACK_CACHE_DIR").or_else(|| personal_temporary(environment, "quack_cache")),
    units: UNITS,
    left: LEFT,
    subject_depth: 0,
    relocation: Relocation::None,
    keep_mtime: false,
    facts: &[
        Fact::Machine,
        Fact::Libc,
        Fact::CpuIsa,
        Fact::GpuArch,
        Fact::PythonAbi,
        Fact::Cuda,
        Fact::CutlassDsl,
        Fact::TvmFfi,
        Fact::Quack,
    ],
    essential: &[Fact::Quack, Fact::GpuArch],
    worth: UNMEASURED,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{roots, surveyed};

    #[test]
    fn finished_objects_are_entries() {
        let found = surveyed(
            &FAMILY,
            &["0a1b/c.o", "0a1b/d.so", "0a1b/c.lock", "0a1b/e.link.o", "0a1b/e.tmp.so", "first_call_c.lock"],
        );
        assert_eq!(found.entries, ["0a1b/c.o", "0a1b/d.so"]);
        assert_eq!(found.left, ["0a1b/c.lock", "0a1b/e.link.o", "0a1b/e.tmp.so", "first_call_c.lock"]);
    }

    #[test]
    fn its_own_variable_comes_first() {
        let user = ("USER", "u");
        assert_eq!(roots(&FAMILY, &[&[user], &[user, ("QUACK_CACHE_DIR", "/q")]]), ["/tmp/u/quack_cache", "/q"]);
    }
}
