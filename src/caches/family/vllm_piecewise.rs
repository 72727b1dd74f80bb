//! vLLM's piecewise compiled graphs, one artifact for each key (`vllm/compilation/backends.py`).
//!
//! `<10 hex>/rank_<r>_<d>/<part>/` holds the artifacts of one part of the model and their index, which is written last and
//! not atomically. The unpacked format keeps Inductor's and Triton's directories beside the parts. The key covers paths
//! and contents of all traced sources, so the packages must lie in the same place.

use super::{CacheFamily, Unit, vllm_cache_root};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "vllm-piecewise",
    about: "graphs that vLLM compiled piece by piece",
    class: TrustClass::HostCode,
    root: |environment| Some(vllm_cache_root(environment)?.join("torch_compile_cache")),
    units: &[
        Unit { path: "<10 hex>/rank_*_*/inductor_cache/", holds: &[] },
        Unit { path: "<10 hex>/rank_*_*/triton_cache/", holds: &[] },
        Unit { path: "<10 hex>/rank_*_*/*/", holds: &["vllm_compile_cache.py"] },
    ],
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
        Fact::Vllm,
        Fact::Image,
        Fact::Model,
        Fact::Revision,
    ],
    essential: &[Fact::Vllm, Fact::Torch, Fact::SitePackages, Fact::Model],
    // About 45 s for 90 MB, before mega artifacts (vLLM #37198 and published samples).
    worth: 0.5,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    #[test]
    fn parts_with_their_index_are_entries_and_what_tells_of_the_node_stays() {
        let found = surveyed(
            &FAMILY,
            &[
                "635669ec8a/rank_0_0/backbone/artifact_compile_range_1_2048_subgraph_0",
                "635669ec8a/rank_0_0/backbone/vllm_compile_cache.py",
                "635669ec8a/rank_0_0/backbone/computation_graph.py",
                "635669ec8a/rank_0_0/backbone/cache_key_factors.json",
                "635669ec8a/rank_0_0/eagle_head/artifact_compile_range_1_8_subgraph_0",
                "635669ec8a/rank_0_0/triton_cache/KEY/__grp__k.json",
                "635669ec8a/rank_0_0/triton_cache/KEY/k.cubin",
                "torch_aot_compile/x/rank_0_0/model",
            ],
        );
        assert_eq!(found.subjects, ["635669ec8a"]);
        assert_eq!(found.entries, ["635669ec8a/rank_0_0/backbone", "635669ec8a/rank_0_0/triton_cache"]);
        assert_eq!(
            found.left,
            [
                "635669ec8a/rank_0_0/backbone/cache_key_factors.json",
                "635669ec8a/rank_0_0/backbone/computation_graph.py",
                "635669ec8a/rank_0_0/eagle_head",
                "torch_aot_compile",
            ]
        );
    }

    #[test]
    fn a_mega_artifacts_empty_shell_is_nothing() {
        let shell = ["computation_graph.py", "cache_key_factors.json"];
        let found = surveyed(&FAMILY, &shell.map(|name| format!("635669ec8a/rank_0_0/backbone/{name}")));
        assert!(found.subjects.is_empty());
    }

    #[test]
    fn the_root_lies_in_vllms() {
        assert_eq!(roots(&FAMILY, &[&[HOME]]), ["/home/u/.cache/vllm/torch_compile_cache"]);
    }
}
