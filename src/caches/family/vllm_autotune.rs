//! FlashInfer's tactics as vLLM keeps them, by the digest of its configuration
//! (`vllm/model_executor/warmup/flashinfer_autotune_cache.py`). A directory that the user names has no version and
//! architecture in between.

use super::{CacheFamily, Unit, flashinfer_autotune, vllm_cache_root};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "vllm-autotune",
    about: "tactics that FlashInfer's autotuner chose for vLLM",
    class: TrustClass::Data,
    root: |environment| {
        let own = environment.directory("VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR");
        own.or_else(|| Some(vllm_cache_root(environment)?.join("flashinfer_autotune_cache")))
    },
    units: &[Unit { path: "<64 hex>/*.json", holds: &[] }, Unit { path: "*/*/<64 hex>/*.json", holds: &[] }],
    left: &[],
    subject_depth: 0,
    relocation: Relocation::None,
    keep_mtime: false,
    facts: flashinfer_autotune::FACTS,
    essential: &[Fact::Vllm, Fact::Flashinfer, Fact::GpuName],
    // 15 to 30 s for some kilobytes, as users report.
    worth: 1_000.0,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    const KEY: &str = "f985d4c2590825d558b07caa7a963d3404c0bfd601b549d8f7929056e4e05d77";

    #[test]
    fn results_of_every_rank_are_entries_in_both_layouts() {
        let files = [
            format!("0.7.2/90a/{KEY}/autotune_configs_dp0_rank0.json"),
            format!("0.7.2/90a/{KEY}/.autotune_configs_dp0_rank1.json.ab12.tmp"),
            format!("{KEY}/autotune_configs.json"),
        ];
        let found = surveyed(&FAMILY, &files);
        assert_eq!(found.entries, [&*files[0], &*files[2]]);
        assert_eq!(found.left, [&*files[1]]);
    }

    #[test]
    fn its_own_variable_comes_before_vllms_root() {
        assert_eq!(
            roots(&FAMILY, &[&[HOME], &[HOME, ("VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR", "~/a")]]),
            ["/home/u/.cache/vllm/flashinfer_autotune_cache", "/home/u/a"]
        );
    }
}
