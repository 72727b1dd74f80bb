//! DeepGEMM's kernels as vLLM keeps them.
//!
//! Device code only. The key covers the compiler, its flags and the digest of the headers together with the path that they
//! lie in, so kernels of another installation prefix miss, all of them. A kernel's directory with one of its two files
//! missing ends the engine ("Corrupted JIT cache directory"), so it travels whole or not at all.

use super::{CacheFamily, Unit, vllm_cache_root};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) const UNITS: &[Unit] = &[Unit { path: "cache/kernel.*/", holds: &["kernel.cu", "kernel.cubin"] }];

pub(super) const FACTS: &[Fact] = &[Fact::GpuArch, Fact::Cuda, Fact::Nvcc, Fact::DeepGemm, Fact::DeepGemmInclude];

/// 400 s for 246 files of about 10 MB (LMCache CI notes).
pub(super) const WORTH: f64 = 40.0;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "deep-gemm",
    about: "DeepGEMM kernels",
    class: TrustClass::DeviceCode,
    root: |environment| {
        environment.path("DG_JIT_CACHE_DIR").or_else(|| Some(vllm_cache_root(environment)?.join("deep_gemm")))
    },
    units: UNITS,
    left: &[],
    subject_depth: 0,
    relocation: Relocation::None,
    keep_mtime: false,
    facts: FACTS,
    essential: &[Fact::Vllm, Fact::GpuArch, Fact::DeepGemmInclude],
    worth: WORTH,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    #[test]
    fn a_kernel_directory_without_its_cubin_is_not_published() {
        let found = surveyed(
            &FAMILY,
            &[
                "cache/kernel.sm90_fp8_gemm_1d2d.0a1b/kernel.cu",
                "cache/kernel.sm90_fp8_gemm_1d2d.0a1b/kernel.cubin",
                "cache/kernel.sm90_fp8_gemm_1d2d.2c3d/kernel.cu",
                "tmp/4e5f/kernel.cu",
            ],
        );
        assert_eq!(found.entries, ["cache/kernel.sm90_fp8_gemm_1d2d.0a1b"]);
        assert_eq!(found.left, ["cache/kernel.sm90_fp8_gemm_1d2d.2c3d", "tmp"]);
        assert!(found.why.contains("kernel.cubin"), "{}", found.why);
    }

    #[test]
    fn its_own_variable_comes_before_vllms_directory() {
        assert_eq!(
            roots(&FAMILY, &[&[HOME], &[HOME, ("DG_JIT_CACHE_DIR", "/dg")]]),
            ["/home/u/.cache/vllm/deep_gemm", "/dg"]
        );
    }
}
