//! Kernels of humming (`humming/jit`). The key covers paths and modification times of the package's headers, so only
//! nodes of one image can share them.

use super::{CacheFamily, UNMEASURED, Unit};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "humming",
    about: "humming kernels and launchers",
    class: TrustClass::HostCode,
    root: |environment| {
        environment.path("HUMMING_CACHE_DIR").or_else(|| Some(environment.home()?.join(".humming/cache")))
    },
    units: &[
        Unit { path: "launcher/*/", holds: &[] },
        Unit { path: "launcher/*", holds: &[] },
        Unit { path: "*/", holds: &["kernel.cubin"] },
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
        Fact::SitePackages,
        Fact::Cuda,
        Fact::Nvcc,
        Fact::Humming,
        Fact::Image,
    ],
    essential: &[Fact::Humming, Fact::GpuArch, Fact::SitePackages, Fact::Image],
    worth: UNMEASURED,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    #[test]
    fn kernels_with_their_cubin_and_launchers_are_entries() {
        let found = surveyed(
            &FAMILY,
            &[
                "0a1b/kernel.cubin",
                "0a1b/kernel.cu",
                "0a1b/signature.txt",
                "0a1b/cmdline.json",
                "0a1b/stderr.log",
                "2c3d/kernel.cu",
                "launcher/4e5f/launcher.so",
            ],
        );
        assert_eq!(found.entries, ["0a1b", "launcher/4e5f"]);
        assert_eq!(found.left, ["0a1b/stderr.log", "2c3d"]);
    }

    #[test]
    fn its_own_variable_comes_first() {
        assert_eq!(roots(&FAMILY, &[&[HOME], &[HOME, ("HUMMING_CACHE_DIR", "/h")]]), ["/home/u/.humming/cache", "/h"]);
    }
}
