//! C++ headers that Inductor has precompiled for the kernels of a CPU engine: 7 s of each start.
//!
//! They lie beside Inductor's default directory, wherever its cache is (`_HEADER_DIR` in `torch/_inductor/codecache.py`).
//! The name of one covers the compiler, its options and the preprocessed text, in which the paths of all headers stand.

use super::{CacheFamily, Unit, inductor};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "inductor-headers",
    about: "precompiled C++ headers of torch.compile on a CPU",
    class: TrustClass::HostCode,
    root: |environment| Some(inductor::default_root(environment)?.join("precompiled_headers")),
    units: &[Unit { path: "*.h", holds: &[] }, Unit { path: "*.h.gch", holds: &[] }],
    left: &[],
    subject_depth: 0,
    relocation: Relocation::None,
    keep_mtime: false,
    facts: &[
        Fact::Machine,
        Fact::Libc,
        Fact::CpuIsa,
        Fact::CpuFlags,
        Fact::Compiler,
        Fact::PythonAbi,
        Fact::SitePackages,
        Fact::Torch,
        Fact::TorchGit,
    ],
    essential: &[Fact::Torch, Fact::Compiler],
    // 7 s for 149 MB, measured.
    worth: 0.05,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{roots, surveyed};

    #[test]
    fn headers_and_their_precompiled_forms_are_entries() {
        let found = surveyed(&FAMILY, &["c5xg.h", "c5xg.h.gch", "locks/c5xg.lock", "c7aa.cpp"]);
        assert_eq!(found.entries, ["c5xg.h", "c5xg.h.gch"]);
        assert_eq!(found.left, ["c7aa.cpp", "locks"]);
    }

    #[test]
    fn the_variable_of_inductors_cache_does_not_move_them() {
        assert_eq!(
            roots(&FAMILY, &[&[("USER", "u"), ("TORCHINDUCTOR_CACHE_DIR", "/i")]]),
            ["/tmp/torchinductor_u/precompiled_headers"]
        );
    }
}
