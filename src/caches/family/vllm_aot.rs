//! vLLM's ahead-of-time compiled models, one artifact for each key (`vllm/compilation/decorators.py`).
//!
//! The key is a digest of the configuration, the environment and the software, so prefill and decode nodes, or nodes with
//! another `--max-num-batched-tokens`, have different ones. They are subjects of one identity: whoever runs the same stack
//! and model is offered all of them. Ranks of several nodes and what Inductor made on each can be merged.

use super::inductor::{self, inductor_units};
use super::{CacheFamily, Unit, vllm_cache_root};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "vllm-aot",
    about: "models that vLLM compiled ahead of time",
    class: TrustClass::HostCode,
    root: |environment| Some(vllm_cache_root(environment)?.join("torch_compile_cache/torch_aot_compile")),
    units: inductor_units!["<64 hex>/inductor_cache/", Unit { path: "<64 hex>/rank_*_*/", holds: &["model"] }],
    left: inductor::LEFT,
    subject_depth: 1,
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
        // To the patch: vLLM refuses others.
        Fact::Python,
        Fact::Torch,
        Fact::TorchGit,
        Fact::Cuda,
        Fact::Triton,
        Fact::Vllm,
        Fact::Model,
        Fact::Revision,
    ],
    essential: &[Fact::Vllm, Fact::Torch, Fact::Python, Fact::Model],
    // 65 s become 6 s with a model of about 11 MB (vLLM #37198).
    worth: 5.0,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, recorded, roots, surveyed};

    const A: &str = "f985d4c2590825d558b07caa7a963d3404c0bfd601b549d8f7929056e4e05d77";
    const B: &str = "0085d4c2590825d558b07caa7a963d3404c0bfd601b549d8f7929056e4e05d77";

    #[test]
    fn every_key_is_a_subject_with_its_ranks_and_its_inductor_files() {
        let below_a = [
            "rank_0_0/model",
            "rank_1_0/model",
            "rank_2_0/model.77.tmp",
            "inductor_cache/yu/cyulfb.py",
            "inductor_cache/locks/x.lock",
            "inductor_cache/triton/3/KEY/__grp__k.json",
            "inductor_cache/triton/3/KEY/k.cubin",
        ];
        let mut files: Vec<String> = below_a.iter().map(|file| format!("{A}/{file}")).collect();
        files.push(format!("{B}/rank_0_0/model"));
        files.push("scratch/rank_0_0/model".to_owned());
        let found = surveyed(&FAMILY, &files);
        let of_a = ["inductor_cache/triton/3/KEY", "inductor_cache/yu/cyulfb.py", "rank_0_0", "rank_1_0"];
        assert_eq!(found.subjects, [B, A]);
        let entries = [format!("{B}/rank_0_0")].into_iter().chain(of_a.iter().map(|entry| format!("{A}/{entry}")));
        assert_eq!(found.entries, entries.collect::<Vec<_>>());
        let left = ["inductor_cache/locks", "rank_2_0/model.77.tmp"].map(|path| format!("{A}/{path}"));
        assert_eq!(found.left, [&left[..], &["scratch".to_owned()]].concat());
    }

    #[test]
    fn what_a_real_engine_left_is_published_without_sources_and_locks() {
        let found = recorded(&FAMILY, "vllm-cpu-aot/torch_compile_cache/torch_aot_compile");
        assert_eq!(found.subjects, [A]);
        // 20 libraries, an autograd entry, a module, the model.
        assert_eq!(found.entries.len(), 23);
        assert!(found.files.contains(&format!("{A}/rank_0_0/model")));
        assert!(found.files.iter().all(|file| !file.ends_with(".lock") && !file.ends_with(".cpp")));
    }

    #[test]
    fn the_root_follows_vllms_own_variable_then_that_of_the_desktop() {
        let below = |root: &str| format!("{root}/torch_compile_cache/torch_aot_compile");
        let xdg = ("XDG_CACHE_HOME", "/xdg");
        assert_eq!(
            roots(&FAMILY, &[&[HOME], &[HOME, xdg], &[HOME, xdg, ("VLLM_CACHE_ROOT", "~/v")]]),
            [below("/home/u/.cache/vllm"), below("/xdg/vllm"), below("/home/u/v")]
        );
    }
}
