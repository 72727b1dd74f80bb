//! Kernels of the CuTe DSL as MLIR bytecode, which is compiled on loading (`cutlass/base_dsl/cache_helpers.py`).
//!
//! The key covers the DSL's own variables, among them the cache directory.

use super::{CacheFamily, UNMEASURED, Unit, personal_temporary};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "cute-dsl",
    about: "CuTe DSL kernels",
    class: TrustClass::HostCode,
    root: |environment| {
        let own = environment.path("CUTE_DSL_CACHE_DIR");
        own.or_else(|| personal_temporary(environment, "cutlass_python_cache"))
    },
    units: &[Unit { path: "*.mlir", holds: &[] }],
    left: &[],
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
        Fact::CacheRoot,
    ],
    essential: &[Fact::CutlassDsl, Fact::GpuArch, Fact::CacheRoot],
    worth: UNMEASURED,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{roots, surveyed};

    #[test]
    fn bytecode_files_are_entries() {
        let found = surveyed(&FAMILY, &["cute_dsl_0a1b.mlir", "tmp.pid_7_8/cute_dsl_2c3d.mlir", "readme"]);
        assert_eq!(found.entries, ["cute_dsl_0a1b.mlir"]);
        assert_eq!(found.left, ["readme", "tmp.pid_7_8"]);
    }

    #[test]
    fn the_default_lies_among_the_users_temporary_files() {
        let user = ("USER", "u");
        assert_eq!(
            roots(&FAMILY, &[&[user], &[user, ("TMPDIR", "/s")], &[user, ("CUTE_DSL_CACHE_DIR", "/c")]]),
            ["/tmp/u/cutlass_python_cache", "/s/u/cutlass_python_cache", "/c"]
        );
    }
}
