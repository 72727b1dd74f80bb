//! Kernels of FlashAttention 4, compiled by the CuTe DSL and loaded as objects (`flash_attn/cute/cache_utils.py`); off
//! unless `FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED` is 1. Objects are written in place under a lock: those that are still
//! young may be half written.

use super::{CacheFamily, personal_temporary, quack};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "flash-attention",
    about: "FlashAttention 4 kernels",
    class: TrustClass::HostCode,
    root: |environment| {
        let own = environment.path("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR");
        own.or_else(|| personal_temporary(environment, "flash_attention_cute_dsl_cache"))
    },
    units: quack::UNITS,
    left: quack::LEFT,
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
        Fact::FlashAttention,
    ],
    essential: &[Fact::FlashAttention, Fact::GpuArch],
    // 2.5 s for a forward kernel (FlashAttention 4, table 4).
    worth: 10.0,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{roots, surveyed};

    #[test]
    fn objects_are_entries_and_locks_stay() {
        let found = surveyed(&FAMILY, &["0a1b/c.o", "0a1b/c.lock"]);
        assert_eq!((found.entries, found.left), (vec!["0a1b/c.o".to_owned()], vec!["0a1b/c.lock".to_owned()]));
    }

    #[test]
    fn its_own_variable_comes_first() {
        let user = ("USER", "u");
        assert_eq!(
            roots(&FAMILY, &[&[user], &[user, ("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", "/f")]]),
            ["/tmp/u/flash_attention_cute_dsl_cache", "/f"]
        );
    }
}
