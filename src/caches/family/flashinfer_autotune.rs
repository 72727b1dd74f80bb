//! Which tactics FlashInfer's autotuner chose: data, checked against the environment when read.

use super::{CacheFamily, Unit, flashinfer_jit};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

/// What FlashInfer writes into the files and compares.
pub(super) const FACTS: &[Fact] = &[
    Fact::GpuName,
    Fact::GpuArch,
    Fact::Cuda,
    Fact::Nvcc,
    Fact::CuBlas,
    Fact::CuDnn,
    Fact::Flashinfer,
    Fact::CutlassDsl,
];

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "flashinfer-autotune",
    about: "tactics that FlashInfer's autotuner chose",
    class: TrustClass::Data,
    root: |environment| {
        let own = environment.path("FLASHINFER_AUTOTUNE_CACHE_DIR");
        own.or_else(|| Some(flashinfer_jit::directory(environment)?.join("autotune")))
    },
    units: &[Unit { path: "*/*/manifest.json", holds: &[] }, Unit { path: "*/*/entries/*.json", holds: &[] }],
    left: &[],
    subject_depth: 0,
    relocation: Relocation::None,
    keep_mtime: false,
    facts: FACTS,
    essential: &[Fact::Flashinfer, Fact::GpuName],
    // 15 to 30 s for some kilobytes, as users report.
    worth: 1_000.0,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    #[test]
    fn every_result_is_an_entry() {
        let found = surveyed(
            &FAMILY,
            &["v2/0a1b/manifest.json", "v2/0a1b/entries/77.json", "v2/0a1b/.autotune_x.tmp", "v2/notes"],
        );
        assert_eq!(found.entries, ["v2/0a1b/entries/77.json", "v2/0a1b/manifest.json"]);
        assert_eq!(found.left, ["v2/0a1b/.autotune_x.tmp", "v2/notes"]);
    }

    #[test]
    fn its_own_variable_comes_before_the_workspace() {
        assert_eq!(
            roots(&FAMILY, &[&[HOME], &[HOME, ("FLASHINFER_AUTOTUNE_CACHE_DIR", "/a")]]),
            ["/home/u/.cache/flashinfer/autotune", "/a"]
        );
    }
}
