//! LoRA adapters: a directory of two files, which engines parse and never run. Nothing else in it is part of one: what
//! training leaves beside them is often a pickle.
//!
//! Their root is whatever directory the user names, and what identifies them is not of the node but of the adapter
//! (`adapters::identity`).

use super::{CacheFamily, Unit};
use crate::caches::Relocation;
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "lora",
    about: "a LoRA adapter",
    class: TrustClass::Data,
    root: |_| None,
    units: &[Unit { path: "adapter_config.json", holds: &[] }, Unit { path: "adapter_model.safetensors", holds: &[] }],
    left: &[],
    subject_depth: 0,
    relocation: Relocation::None,
    keep_mtime: false,
    facts: &[],
    essential: &[],
    worth: 0.0,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, recorded, roots, surveyed};

    #[test]
    fn pickles_and_everything_else_beside_the_two_files_stay_behind() {
        let beside = ["adapter_model.bin", "optimizer.pt", "README.md", "checkpoint-5/adapter_config.json", "run.py"];
        let files = [&["adapter_config.json", "adapter_model.safetensors"][..], &beside].concat();
        let found = surveyed(&FAMILY, &files);
        assert_eq!(found.entries, ["adapter_config.json", "adapter_model.safetensors"]);
        assert_eq!(found.left.len(), beside.len());
    }

    #[test]
    fn what_the_training_library_wrote_is_published() {
        let found = recorded(&FAMILY, "adapters/dora");
        assert_eq!(found.files, ["adapter_config.json", "adapter_model.safetensors"]);
    }

    #[test]
    fn it_has_no_root_of_its_own() {
        assert_eq!(roots(&FAMILY, &[&[HOME]]), ["none"]);
    }
}
