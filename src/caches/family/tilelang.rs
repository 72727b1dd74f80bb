//! TileLang's kernels (`tilelang/cache/kernel_cache.py`). It compares every file with a manifest of its own when it loads
//! a kernel, and removes and rebuilds what does not fit.

use super::{CacheFamily, UNMEASURED, Unit};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "tilelang",
    about: "TileLang kernels",
    class: TrustClass::HostCode,
    root: |environment| {
        environment.path("TILELANG_CACHE_DIR").or_else(|| Some(environment.home()?.join(".tilelang/cache")))
    },
    units: &[
        Unit { path: "*/*/kernels/*/", holds: &["manifest.json", "params.json"] },
        Unit { path: "*/*/cuda-binaries/*/", holds: &["metadata.json"] },
    ],
    left: &[],
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
        Fact::Nvcc,
        Fact::Tilelang,
    ],
    essential: &[Fact::Tilelang, Fact::GpuArch],
    worth: UNMEASURED,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    #[test]
    fn kernels_with_their_manifest_are_entries() {
        let below = |names: &[&str]| names.iter().map(|name| format!("0.1.12/linux-x86_64/{name}")).collect::<Vec<_>>();
        let found = surveyed(
            &FAMILY,
            &below(&[
                "kernels/0a1b/device_kernel.cu",
                "kernels/0a1b/host_kernel.cu",
                "kernels/0a1b/kernel_lib.so",
                "kernels/0a1b/params.json",
                "kernels/0a1b/manifest.json",
                "kernels/2c3d/params.json",
                ".staging/4e5f/params.json",
                "cuda-binaries/6a7b/metadata.json",
                "cuda-binaries/6a7b/kernel.cubin",
            ]),
        );
        assert_eq!(found.entries, below(&["cuda-binaries/6a7b", "kernels/0a1b"]));
        assert_eq!(found.left, below(&[".staging", "kernels/2c3d"]));
    }

    #[test]
    fn its_own_variable_comes_first() {
        assert_eq!(
            roots(&FAMILY, &[&[HOME], &[HOME, ("TILELANG_CACHE_DIR", "/t")]]),
            ["/home/u/.tilelang/cache", "/t"]
        );
    }
}
