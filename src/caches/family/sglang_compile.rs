//! SGLang's piecewise compiled graphs: vLLM's older layout below a root of its own.

use super::{CacheFamily, Unit};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "sglang-compile",
    about: "graphs that SGLang compiled piece by piece",
    class: TrustClass::HostCode,
    root: |environment| {
        let caches = environment.path("SGLANG_CACHE_DIR").or_else(|| Some(environment.home()?.join(".cache/sglang")));
        Some(caches?.join("torch_compile_cache"))
    },
    units: &[Unit { path: "<10 hex>/rank_*/", holds: &[] }],
    left: &[],
    subject_depth: 1,
    relocation: Relocation::TritonGroups,
    keep_mtime: false,
    facts: &[
        Fact::Machine,
        Fact::Libc,
        Fact::CpuIsa,
        Fact::CpuFlags,
        Fact::Device,
        Fact::GpuName,
        Fact::PythonAbi,
        Fact::SitePackages,
        Fact::Torch,
        Fact::TorchGit,
        Fact::Cuda,
        Fact::Triton,
        Fact::Sglang,
        Fact::Image,
        Fact::Model,
        Fact::Revision,
    ],
    essential: &[Fact::Sglang, Fact::Torch, Fact::SitePackages, Fact::Model],
    worth: 0.5,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    #[test]
    fn a_ranks_directory_is_one_entry() {
        let found = surveyed(
            &FAMILY,
            &[
                "0123456789/rank_0_0/backbone/vllm_compile_cache.py",
                "0123456789/rank_0_0/backbone/computation_graph.py",
                "0123456789/rank_0_0/inductor_cache/yu/cyulfb.py",
                "0123456789/notes",
            ],
        );
        assert_eq!(found.subjects, ["0123456789"]);
        assert_eq!(found.entries, ["0123456789/rank_0_0"]);
        assert_eq!(found.left, ["0123456789/notes", "0123456789/rank_0_0/backbone/computation_graph.py"]);
    }

    #[test]
    fn the_root_lies_in_sglangs() {
        assert_eq!(
            roots(&FAMILY, &[&[HOME], &[("SGLANG_CACHE_DIR", "/s")]]),
            ["/home/u/.cache/sglang/torch_compile_cache", "/s/torch_compile_cache"]
        );
    }
}
