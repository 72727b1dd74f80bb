//! FlashInfer's operators, built by ninja on the node (`flashinfer/jit/env.py`).
//!
//! Loading always runs ninja, which takes what is there only if paths, times to the nanosecond and its own two records
//! are as it left them, and if no package file is newer: same image, same directories, same times. Generated sources
//! belong to it, or they are generated anew and everything is built again. Where the wheel `flashinfer-jit-cache` is
//! installed nothing of this is needed.

use super::{CacheFamily, Unit};
use crate::caches::{Environment, Fact, Relocation};
use crate::identity::TrustClass;

/// CuTe DSL operators have a record of their own in place of ninja's.
const BUILT: &[&str] = &["*.so|*.o", "build.ninja|meta.json", ".ninja_log|meta.json", ".ninja_deps|meta.json"];

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "flashinfer-jit",
    about: "FlashInfer operators built on the node",
    class: TrustClass::HostCode,
    root: directory,
    units: &[
        Unit { path: "*/*/cached_ops/*/", holds: BUILT },
        Unit { path: "*/*/generated/*/", holds: &[] },
        Unit { path: "*/*/generated/*", holds: &[] },
        // Before 0.4 the version was no part of the path.
        Unit { path: "*/cached_ops/*/", holds: BUILT },
        Unit { path: "*/generated/*/", holds: &[] },
        Unit { path: "*/generated/*", holds: &[] },
    ],
    // A family of its own, and what NVIDIA serves.
    left: &["autotune", "cubins"],
    subject_depth: 0,
    relocation: Relocation::None,
    keep_mtime: true,
    facts: &[
        Fact::Machine,
        Fact::Libc,
        Fact::CpuIsa,
        Fact::GpuArch,
        Fact::PythonAbi,
        Fact::SitePackages,
        Fact::Torch,
        Fact::Cuda,
        Fact::Nvcc,
        Fact::CudaHome,
        Fact::Flashinfer,
        Fact::Image,
        Fact::CacheRoot,
    ],
    essential: &[Fact::Flashinfer, Fact::GpuArch, Fact::Image, Fact::SitePackages, Fact::CacheRoot],
    // 198 s for 22 files (LMCache CI notes); fused_moe is 30 min or more for hundreds of megabytes (flashinfer #4884).
    worth: 10.0,
};

pub(super) fn directory(environment: &Environment) -> Option<std::path::PathBuf> {
    let base = environment.path("FLASHINFER_WORKSPACE_BASE").or_else(|| environment.home());
    Some(base?.join(".cache/flashinfer"))
}

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::Fact;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    #[test]
    fn an_operator_travels_with_ninjas_records_and_its_generated_sources() {
        let below = |names: &[&str]| names.iter().map(|name| format!("0.7.2/90a/{name}")).collect::<Vec<_>>();
        let mut files = below(&[
            "cached_ops/sampling/build.ninja",
            "cached_ops/sampling/.ninja_log",
            "cached_ops/sampling/.ninja_deps",
            "cached_ops/sampling/sampling.cuda.o",
            "cached_ops/sampling/sampling.so",
            "cached_ops/moe_90_cute_dsl/meta.json",
            "cached_ops/moe_90_cute_dsl/moe.o",
            "cached_ops/torn/build.ninja",
            "cached_ops/torn/torn.so",
            "cached_ops/tmp/sampling.lock",
            "generated/batch_prefill/plan.cu",
        ]);
        files.extend(["autotune/v2/0a/manifest.json".to_owned(), "cubins/x.cubin".to_owned()]);
        let found = surveyed(&FAMILY, &files);
        let entries = ["cached_ops/moe_90_cute_dsl", "cached_ops/sampling", "generated/batch_prefill"];
        assert_eq!(found.entries, below(&entries));
        assert_eq!(found.files.len(), 8);
        let left = ["autotune".to_owned(), "cubins".to_owned()];
        assert_eq!(found.left, [&below(&["cached_ops/tmp", "cached_ops/torn"])[..], &left].concat());
    }

    #[test]
    fn the_layout_without_a_version_is_known_too() {
        let found = surveyed(&FAMILY, &["90/cached_ops/x/meta.json", "90/cached_ops/x/x.o", "90/generated/y.cu"]);
        assert_eq!(found.entries, ["90/cached_ops/x", "90/generated/y.cu"]);
    }

    #[test]
    fn times_are_kept_and_places_are_part_of_the_identity() {
        assert!(FAMILY.keep_mtime);
        for fact in [Fact::Image, Fact::CacheRoot, Fact::SitePackages] {
            assert!(FAMILY.facts.contains(&fact) && FAMILY.essential.contains(&fact));
        }
    }

    #[test]
    fn the_root_lies_below_the_workspace() {
        assert_eq!(
            roots(&FAMILY, &[&[HOME], &[HOME, ("FLASHINFER_WORKSPACE_BASE", "/w")]]),
            ["/home/u/.cache/flashinfer", "/w/.cache/flashinfer"]
        );
    }
}
