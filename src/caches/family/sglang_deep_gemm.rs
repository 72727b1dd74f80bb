//! DeepGEMM's kernels as SGLang keeps them: it overrides `DG_JIT_CACHE_DIR` by a variable of its own.

use super::{CacheFamily, deep_gemm};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "sglang-deep-gemm",
    about: "DeepGEMM kernels of SGLang",
    class: TrustClass::DeviceCode,
    root: |environment| {
        environment.path("SGLANG_DG_CACHE_DIR").or_else(|| Some(environment.home()?.join(".cache/deep_gemm")))
    },
    units: deep_gemm::UNITS,
    left: &[],
    subject_depth: 0,
    relocation: Relocation::None,
    keep_mtime: false,
    facts: deep_gemm::FACTS,
    essential: &[Fact::Sglang, Fact::GpuArch, Fact::DeepGemmInclude],
    worth: deep_gemm::WORTH,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    #[test]
    fn kernels_are_entries_as_with_vllm() {
        let found = surveyed(&FAMILY, &["cache/kernel.x.0a/kernel.cu", "cache/kernel.x.0a/kernel.cubin"]);
        assert_eq!(found.entries, ["cache/kernel.x.0a"]);
    }

    #[test]
    fn deep_gemms_own_variable_is_overridden() {
        let ignored = ("DG_JIT_CACHE_DIR", "/dg");
        assert_eq!(
            roots(&FAMILY, &[&[HOME, ignored], &[HOME, ignored, ("SGLANG_DG_CACHE_DIR", "/s")]]),
            ["/home/u/.cache/deep_gemm", "/s"]
        );
    }
}
