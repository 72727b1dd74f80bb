//! Modules that TVM FFI built with ninja on the node, as SGLang has them (`tvm_ffi/cpp/extension.py`). The same holds as
//! for FlashInfer's operators: same image, same directories, same times.

use super::{CacheFamily, UNMEASURED, Unit};
use crate::caches::{Fact, Relocation};
use crate::identity::TrustClass;

pub(super) static FAMILY: CacheFamily = CacheFamily {
    name: "tvm-ffi",
    about: "TVM FFI modules built on the node",
    class: TrustClass::HostCode,
    root: |environment| {
        environment.directory("TVM_FFI_CACHE_DIR").or_else(|| Some(environment.home()?.join(".cache/tvm-ffi")))
    },
    units: &[Unit { path: "*/", holds: &["*.so|*.o", "build.ninja", ".ninja_log", ".ninja_deps"] }],
    left: &[],
    subject_depth: 0,
    relocation: Relocation::None,
    keep_mtime: true,
    facts: &[
        Fact::Machine,
        Fact::Libc,
        Fact::CpuIsa,
        Fact::GpuArch,
        Fact::PythonAbi,
        Fact::SitePackages,
        Fact::Cuda,
        Fact::Nvcc,
        Fact::CudaHome,
        Fact::Compiler,
        Fact::TvmFfi,
        Fact::Image,
        Fact::CacheRoot,
    ],
    essential: &[Fact::TvmFfi, Fact::SitePackages, Fact::Image, Fact::CacheRoot],
    worth: UNMEASURED,
};

#[cfg(test)]
mod tests {
    use super::FAMILY;
    use crate::caches::family::tests::{HOME, roots, surveyed};

    #[test]
    fn a_module_travels_with_ninjas_records_and_without_its_lock() {
        let built = ["build.ninja", ".ninja_log", ".ninja_deps", "main.cpp", "cpp_0.o", "m.so", "lock"];
        let mut files: Vec<String> = built.iter().map(|name| format!("m_0a1b/{name}")).collect();
        files.push("n_2c3d/build.ninja".to_owned());
        let found = surveyed(&FAMILY, &files);
        assert_eq!(found.entries, ["m_0a1b"]);
        assert_eq!(found.files.len(), 6);
        assert_eq!(found.left, ["m_0a1b/lock", "n_2c3d"]);
    }

    #[test]
    fn its_own_variable_comes_first() {
        assert_eq!(
            roots(&FAMILY, &[&[HOME], &[HOME, ("TVM_FFI_CACHE_DIR", "~/t")]]),
            ["/home/u/.cache/tvm-ffi", "/home/u/t"]
        );
    }
}
