//! What vLLM found out about model classes: 0.9 KB that saves 10 s of each start (`vllm/model_executor/models/registry.py`).
//!
//! Each file tells the digest of the sources that it was made from, and vLLM ignores it where they differ.

use super::{CacheFamily, Unit, vllm_cache_root};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "modelinfos",
    about: "what vLLM knows about model classes",
    class: TrustClass::Data,
    root: |environment| Some(vllm_cache_root(environment)?.join("modelinfos")),
    units: &[Unit { path: "*.json", holds: &[] }],
    left: &[],
    subject_depth: 0,
    relocation: Relocation::None,
    keep_mtime: false,
    facts: &[Fact::Device, Fact::Vllm],
    essential: &[Fact::Vllm],
    // 10 s for 0.9 KB, measured.
    worth: 10_000.0,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, recorded, roots, surveyed};

    #[test]
    fn finished_files_are_entries() {
        let found = surveyed(&FAMILY, &["vllm-models-llama-LlamaForCausalLM.json", "tmpq8x_2v", "deep/x.json"]);
        assert_eq!(found.entries, ["vllm-models-llama-LlamaForCausalLM.json"]);
        assert_eq!(found.left, ["deep", "tmpq8x_2v"]);
    }

    #[test]
    fn what_real_engines_left_is_published() {
        for root in ["vllm-cpu-aot/modelinfos", "vllm-cpu-inductor/modelinfos"] {
            let found = recorded(&FAMILY, root);
            assert_eq!(found.files, ["vllm-model_executor-models-llama-LlamaForCausalLM.json"]);
        }
    }

    #[test]
    fn the_root_lies_in_vllms() {
        assert_eq!(roots(&FAMILY, &[&[HOME], &[]]), ["/home/u/.cache/vllm/modelinfos", "none"]);
    }
}
