//! Triton's cache of kernels, and of the launchers that it builds for them (`triton/runtime/cache.py`).
//!
//! A directory for each key. The members of a kernel are listed in `__grp__<name>.json` by absolute paths, which is why it
//! is relocated; Triton writes that file last, so a directory without it is not finished. Launchers and utilities are
//! single `.so` files, timings of the autotuner single JSON files, both without a group.

use super::{CacheFamily, Unit};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

/// What makes a key's directory worth something.
pub(super) const KEY_HOLDS: &[&str] = &["__grp__*.json|*.so|*.autotune.json"];

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "triton",
    about: "Triton kernels and launchers",
    class: TrustClass::HostCode,
    root: |environment| {
        environment.path("TRITON_CACHE_DIR").or_else(|| {
            let home = environment.path("TRITON_HOME").or_else(|| environment.home());
            Some(home?.join(".triton/cache"))
        })
    },
    units: &[Unit { path: "*/", holds: KEY_HOLDS }],
    left: &[],
    subject_depth: 0,
    relocation: Relocation::TritonGroups,
    keep_mtime: false,
    facts: &[
        Fact::Machine,
        Fact::Libc,
        Fact::CpuIsa,
        Fact::GpuArch,
        Fact::PythonAbi,
        Fact::Triton,
        Fact::Ptxas,
        Fact::TritonEnv,
    ],
    essential: &[Fact::Triton, Fact::GpuArch],
    // 87 s for about 10 MB of Triton and TileLang (LMCache CI notes).
    worth: 8.0,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    const KEY: &str = "4KQ3BXJ5N6Y2DZTEF7GAMH3VWRLCOPSUI2QY4KQ3BXJ5N6Y2DZTE";

    #[test]
    fn kernels_with_their_group_launchers_and_timings_are_entries() {
        let kernel = ["add.source", "add.ttir", "add.ttgir", "add.llir", "add.ptx", "add.cubin", "add.json"];
        let mut files: Vec<String> = kernel.iter().map(|name| format!("{KEY}/{name}")).collect();
        files.push(format!("{KEY}/__grp__add.json"));
        files.push(format!("{KEY}/tmp.pid_7_0f2c/add.cubin"));
        files.push("LAUNCHER/__triton_launcher.cpython-311-x86_64-linux-gnu.so".to_owned());
        files.push("TIMED/add.autotune.json".to_owned());
        let found = surveyed(&FAMILY, &files);
        assert_eq!(found.entries, [KEY, "LAUNCHER", "TIMED"]);
        assert_eq!(found.files.len(), 10);
        assert_eq!(found.left, [format!("{KEY}/tmp.pid_7_0f2c")]);
    }

    #[test]
    fn a_kernel_without_its_group_is_not_published() {
        let found = surveyed(&FAMILY, &["HALF/add.source", "HALF/add.cubin", "stray"]);
        assert!(found.entries.is_empty());
        assert_eq!(found.left, ["HALF", "stray"]);
    }

    #[test]
    fn its_own_variable_comes_first_then_tritons_home() {
        let home = ("TRITON_HOME", "/scratch");
        assert_eq!(
            roots(&FAMILY, &[&[HOME], &[HOME, home], &[HOME, home, ("TRITON_CACHE_DIR", "/t")]]),
            ["/home/u/.triton/cache", "/scratch/.triton/cache", "/t"]
        );
    }
}
