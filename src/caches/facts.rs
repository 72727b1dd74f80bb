//! Facts: what a node is and runs, as far as it decides whether a cache entry made elsewhere can be used here.

use std::collections::BTreeMap;
use std::fmt;

macro_rules! facts {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The name of a fact. The list is closed: what is not here is in no identity.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fact {
            $($(#[$doc])* $variant,)*
        }

        impl Fact {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As in identities and in what the probe prints.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

facts! {
    /// `x86_64`, `aarch64`.
    Machine = "machine",
    /// `glibc 2.36`.
    Libc = "libc",
    /// The instruction set that torch compiles for, such as `avx512 avx512_vnni amx_tile`. In no key of vLLM or torch.
    CpuIsa = "cpu_isa",
    /// `cuda`, `rocm` or `cpu`: what the engine computes on.
    Device = "device",
    /// As torch says it, which is what Inductor hashes.
    GpuName = "gpu_name",
    /// `9.0`; with the suffix that kernels are built for where the library tells.
    GpuArch = "gpu_arch",
    SmCount = "sm_count",
    /// `3.11.7`
    Python = "python",
    /// `cpython-311`
    PythonAbi = "python_abi",
    /// The resolved site-packages directory.
    SitePackages = "site_packages",
    Torch = "torch",
    TorchGit = "torch_git",
    /// The CUDA or HIP runtime that torch was built for.
    Cuda = "cuda",
    /// `release 12.9, V12.9.41`
    Nvcc = "nvcc",
    CudaHome = "cuda_home",
    CuBlas = "cublas",
    CuDnn = "cudnn",
    /// `c++` as Inductor finds it.
    Compiler = "compiler",
    /// Version, and a digest of the compiler library: together what `triton_key` covers.
    Triton = "triton",
    Ptxas = "ptxas",
    /// The variables that Triton hashes, with their values.
    TritonEnv = "triton_env",
    Vllm = "vllm",
    /// A digest of vLLM's Python sources.
    VllmSource = "vllm_source",
    Sglang = "sglang",
    Flashinfer = "flashinfer",
    Tilelang = "tilelang",
    DeepGemm = "deep_gemm",
    /// A digest of the include directory's files, and where it is.
    DeepGemmInclude = "deep_gemm_include",
    CutlassDsl = "cutlass_dsl",
    TvmFfi = "tvm_ffi",
    Quack = "quack",
    FlashAttention = "flash_attention",
    Humming = "humming",
    /// The digest of the container image, as the operator gives it (`WARMD_IMAGE_DIGEST`), or one over the installed
    /// packages' RECORD files.
    Image = "image",
    /// The model as typed on the command line: vLLM hashes the text.
    Model = "model",
    Revision = "revision",
    /// The family's directory, for those whose keys contain it.
    CacheRoot = "cache_root",
    /// Of the whole command line and environment; see `caches::launch`.
    Launch = "launch",
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known of a fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    Value(String),
    /// The thing does not exist here, such as the GPU's name on a node that has none, or a package that is not installed.
    Absent(String),
    /// It should be there and could not be read: where it was looked for, and what went wrong.
    Failed(String),
}

/// What is known of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts(BTreeMap<Fact, Known>);

impl Facts {
    pub fn set(&mut self, fact: Fact, known: Known) {
        self.0.insert(fact, known);
    }

    pub fn get(&self, fact: Fact) -> Option<&Known> {
        self.0.get(&fact)
    }

    pub fn value(&self, fact: Fact) -> Option<&str> {
        match self.0.get(&fact) {
            Some(Known::Value(value)) => Some(value),
            _ => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Fact, &Known)> {
        self.0.iter().map(|(fact, known)| (*fact, known))
    }
}
