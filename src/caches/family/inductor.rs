//! Inductor's own cache, where vLLM does not keep it within its AOT directories (`torch/_inductor/codecache.py`).
//!
//! Everything is named by what it was made from, so entries of several nodes can be merged. C++ sources and locks are not
//! needed: with the `.so` files alone every graph hits (measured on a CPU engine).

use super::{CacheFamily, Unit};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

/// What lies below a directory that `TORCHINDUCTOR_CACHE_DIR` names; `$more` units come before.
macro_rules! inductor_units {
    ($below:literal $(, $more:expr)*) => {
        &[
            $($more,)*
            Unit { path: concat!($below, "fxgraph/*/*/*"), holds: &[] },
            Unit { path: concat!($below, "aotautograd/*/*"), holds: &[] },
            Unit { path: concat!($below, "cache/*"), holds: &[] },
            Unit { path: concat!($below, "triton/*/*/"), holds: crate::caches::family::triton::KEY_HOLDS },
            Unit { path: concat!($below, "quack/*/*"), holds: &[] },
            // Generated code, libraries and tuning results, by the second and third letter of their key.
            Unit { path: concat!($below, "??/*"), holds: &[] },
        ]
    };
}
pub(super) use inductor_units;

/// Sources that were compiled already.
pub(super) const LEFT: &[&str] = &["*.cpp"];

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "inductor",
    about: "graphs, generated code and libraries of torch.compile",
    class: TrustClass::HostCode,
    root: |environment| environment.path("TORCHINDUCTOR_CACHE_DIR").or_else(|| default_root(environment)),
    units: inductor_units![""],
    left: LEFT,
    subject_depth: 0,
    relocation: Relocation::TritonGroups,
    keep_mtime: false,
    facts: &[
        Fact::Machine,
        // The `.so` files of a CPU engine end the start if they cannot be loaded.
        Fact::Libc,
        Fact::CpuIsa,
        Fact::CpuFlags,
        Fact::Device,
        Fact::GpuName,
        Fact::PythonAbi,
        Fact::Torch,
        Fact::TorchGit,
        Fact::Cuda,
        Fact::Triton,
    ],
    essential: &[Fact::Torch],
    // 34 s for 2.7 MB on a CPU engine, measured.
    worth: 12.0,
};

/// `torch._inductor.runtime.cache_dir_utils.default_cache_dir`.
pub(super) fn default_root(environment: &crate::caches::Environment) -> Option<std::path::PathBuf> {
    let user: String = environment.user()?.chars().map(|c| if r#"\/:*?"<>|"#.contains(c) { '_' } else { c }).collect();
    Some(environment.temporary().join(format!("torchinductor_{user}")))
}

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, recorded, roots, surveyed};

    #[test]
    fn single_files_are_entries_and_kernels_whole_directories() {
        let found = surveyed(
            &FAMILY,
            &[
                "64/c64rlr.main.so",
                "64/c64rlr.main.cpp",
                "yu/cyulfb.py",
                "yu/cyulfb.best_config",
                "aotautograd/a446yu/smqlpv",
                "aotautograd/a446yu/.12.140.tmp",
                "fxgraph/uv/fuvriju/qgsbmf",
                "cache/44136fa355",
                "triton/0/KEY/__grp__k.json",
                "triton/0/KEY/k.cubin",
                "triton/1/HALF/k.cubin",
                "locks/c64rlr.lock",
                "precompiled_headers/c5xg.h.gch",
            ],
        );
        assert_eq!(
            found.entries,
            [
                "64/c64rlr.main.so",
                "aotautograd/a446yu/smqlpv",
                "cache/44136fa355",
                "fxgraph/uv/fuvriju/qgsbmf",
                "triton/0/KEY",
                "yu/cyulfb.best_config",
                "yu/cyulfb.py",
            ]
        );
        assert_eq!(
            found.left,
            ["64/c64rlr.main.cpp", "aotautograd/a446yu/.12.140.tmp", "locks", "precompiled_headers", "triton/1/HALF"]
        );
    }

    #[test]
    fn what_a_real_engine_left_is_published_without_sources_and_locks() {
        let found = recorded(&FAMILY, "vllm-cpu-inductor/inductor");
        // 20 libraries, a module, a graph, an autograd entry.
        assert_eq!(found.entries.len(), 23);
        assert_eq!(found.files, found.entries);
        assert_eq!(found.left.iter().filter(|path| path.ends_with(".cpp")).count(), 20);
        assert!(found.left.contains(&"locks".to_owned()) && found.left.len() == 21);
    }

    #[test]
    fn the_default_is_a_directory_of_the_user_among_temporary_files() {
        let user = ("USER", r"corp\jo");
        assert_eq!(
            roots(&FAMILY, &[&[user], &[user, ("TMPDIR", "/scratch")], &[HOME, ("TORCHINDUCTOR_CACHE_DIR", "/i")]]),
            ["/tmp/torchinductor_corp_jo", "/scratch/torchinductor_corp_jo", "/i"]
        );
    }
}
