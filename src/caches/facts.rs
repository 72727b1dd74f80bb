//! Facts: what a node is and runs, as far as it decides whether a cache entry made elsewhere can be used here.
//!
//! A [`Probe`] reads them with the engine's own Python and keeps the answer while nothing changes that it was read from.
//! Three are the caller's: [`Fact::Model`] and [`Fact::Revision`] are on the command line, [`Fact::CacheRoot`] is a
//! directory of each family.

mod gpu;
mod interpreter;
mod probe;
mod record;
mod sources;
mod watch;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use gpu::name_of_gpu;
pub use interpreter::{Interpreter, InterpreterError};
pub use probe::{Probe, ProbeError, Probed};

/// Bytes of a value or a reason: identities take no longer ones.
const MAX_TEXT: usize = 4096;

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

            fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)*
                    _ => None,
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
    /// The extensions that a compiler may use with `-march=native`, as Inductor calls it: more than [`Fact::CpuIsa`]
    /// names. In no key either.
    CpuFlags = "cpu_flags",
    /// `cuda`, `rocm` or `cpu`: what the engine computes on.
    Device = "device",
    /// As torch says it, which is what Inductor hashes.
    GpuName = "gpu_name",
    /// The compute capability, `9.0`; on ROCm `gfx942`.
    GpuArch = "gpu_arch",
    SmCount = "sm_count",
    /// `3.11.7`
    Python = "python",
    /// `cpython-311`
    PythonAbi = "python_abi",
    /// The directory that Python imports the engine from, not resolved: keys contain it as it is. More than one where the
    /// packages are scattered, `:` between them.
    SitePackages = "site_packages",
    Torch = "torch",
    TorchGit = "torch_git",
    /// The runtime that torch was built for: `13.0`, or `hip 6.4.1`.
    Cuda = "cuda",
    /// `release 12.9, V12.9.41`
    Nvcc = "nvcc",
    CudaHome = "cuda_home",
    CuBlas = "cublas",
    CuDnn = "cudnn",
    /// The first line of `--version` of the C++ compiler that Inductor finds.
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
    /// The package of kernels built in advance: with it FlashInfer compiles next to nothing.
    FlashinferJitCache = "flashinfer_jit_cache",
    Tilelang = "tilelang",
    DeepGemm = "deep_gemm",
    /// A digest of the include directory's files, and where it is.
    DeepGemmInclude = "deep_gemm_include",
    CutlassDsl = "cutlass_dsl",
    TvmFfi = "tvm_ffi",
    Quack = "quack",
    /// A digest of the CuTe sources that are part of vLLM, or the package's version.
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

impl Serialize for Fact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Fact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| serde::de::Error::custom(format!("`{}` is no fact", name.escape_debug())))
    }
}

/// What is known of a fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Known {
    Value(String),
    /// The thing does not exist here, such as the GPU's name on a node that has none, or a package that is not installed.
    Absent(String),
    /// It should be there and could not be read: where it was looked for, and what went wrong.
    Failed(String),
}

impl Known {
    /// A value that identities can hold: trimmed, neither empty nor too long, without control characters. Any other is
    /// [`Known::Failed`], and reasons are made fit to be printed.
    pub fn checked(self) -> Self {
        match self {
            Self::Value(value) => match value.trim() {
                "" => Self::Failed("the value is empty".to_owned()),
                value if value.len() > MAX_TEXT => Self::Failed(format!("the value is longer than {MAX_TEXT} bytes")),
                value if value.chars().any(char::is_control) => {
                    Self::Failed(format!("the value has control characters: {}", printable(value)))
                }
                value => Self::Value(value.to_owned()),
            },
            Self::Absent(reason) => Self::Absent(printable(&reason)),
            Self::Failed(reason) => Self::Failed(printable(&reason)),
        }
    }
}

/// The first 500 characters, control characters escaped.
fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.trim().chars().take(500).map(escape).collect()
}

/// What is known of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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

    /// Those that should be known and are not.
    pub fn failed(&self) -> impl Iterator<Item = Fact> {
        self.iter().filter(|(_, known)| matches!(known, Known::Failed(_))).map(|(fact, _)| fact)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Fact, &Known)> {
        self.0.iter().map(|(fact, known)| (*fact, known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_has_a_name_of_its_own_that_leads_back_to_it() {
        for fact in Fact::ALL {
            assert_eq!(Fact::named(fact.name()), Some(*fact));
        }
    }

    #[test]
    fn facts_are_json_and_back() {
        let mut facts = Facts::default();
        facts.set(Fact::Torch, Known::Value("2.13.0".to_owned()));
        facts.set(Fact::GpuName, Known::Absent("no GPU".to_owned()));
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(text, r#"{"gpu_name":{"absent":"no GPU"},"torch":{"value":"2.13.0"}}"#);
        assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
        assert!(serde_json::from_str::<Facts>(r#"{"colour":{"value":"red"}}"#).is_err());
    }

    #[test]
    fn a_value_that_no_identity_can_hold_is_a_failure() {
        let value = |text: &str| Known::Value(text.to_owned()).checked();
        assert_eq!(value(" 9.0\n"), Known::Value("9.0".to_owned()));
        assert!(matches!(value("a\x1b[31mb"), Known::Failed(why) if why.ends_with("a\\u{1b}[31mb")));
        assert!(matches!(value(" "), Known::Failed(_)));
        assert!(matches!(value(&"x".repeat(MAX_TEXT + 1)), Known::Failed(_)));
        assert_eq!(Known::Absent("no\nGPU".to_owned()).checked(), Known::Absent("no\\nGPU".to_owned()));
    }
}
