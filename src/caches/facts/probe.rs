//! Asks the engine's Python, by a small program that imports nothing of the engine.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;

use super::sources::Sources;
use super::watch::Watch;
use super::{Fact, Facts, Interpreter, Known, gpu, printable, record};
use crate::caches::Environment;
use crate::digest::Digest;
use crate::lifecycle::child::{Output, Program, ProgramError};

/// The program, without Python's own names in it.
const PROGRAM: &str = concat!(
    include_str!("probe/packages.py"),
    include_str!("probe/host.py"),
    include_str!("probe/gpu.py"),
    include_str!("probe/engine.py"),
);

/// Set by the caller, never by the probe: they are about a command line or one family's directory.
const NOT_PROBED: [Fact; 5] = [Fact::Model, Fact::Revision, Fact::CacheRoot, Fact::Launch, Fact::TritonEnv];

/// Variables that the answers depend on; a prefix ends with `*`.
const RELEVANT: &[&str] = &[
    "ATEN_CPU_CAPABILITY",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
    "HOME",
    "LD_LIBRARY_PATH",
    "NVIDIA_VISIBLE_DEVICES",
    "PATH",
    "PYTHON*",
    "TORCHINDUCTOR_CPP_MARCH",
    "TORCHINDUCTOR_VEC_ISA_OK",
    "TRITON_PTXAS_BLACKWELL_PATH",
    "TRITON_PTXAS_PATH",
    "VIRTUAL_ENV",
];

/// The variables that Triton 3.7 puts into its keys (`get_cache_invalidating_env_vars`), and three of other versions.
const TRITON_HASHED: &[&str] = &[
    "ALLOW_LHS_TMEM_LAYOUT_CONVERSION",
    "AMDGCN_ENABLE_DUMP",
    "AMDGCN_USE_BUFFER_ATOMICS",
    "AMDGCN_USE_BUFFER_OPS",
    "DISABLE_FAST_REDUCTION",
    "DISABLE_LLVM_OPT",
    "DISABLE_MMA_V3",
    "DISABLE_MMA_V5",
    "DISABLE_PTXAS_OPT",
    "LLVM_ENABLE_TIMING",
    "LLVM_EXTRACT_DI_LOCAL_VARIABLES",
    "LLVM_IR_ENABLE_DUMP",
    "MLIR_DISABLE_MULTITHREADING",
    "MLIR_DUMP_PATH",
    "MLIR_ENABLE_DIAGNOSTICS",
    "MLIR_ENABLE_DUMP",
    "MLIR_ENABLE_REMARK",
    "MLIR_ENABLE_TIMING",
    "NVPTX_ENABLE_DUMP",
    "TRITON_DEFAULT_FP_FUSION",
    "TRITON_DISABLE_LINE_INFO",
    "TRITON_DISABLE_RESHAPE_ENCODING_INFERENCE",
    "TRITON_DUMP_MIR",
    "TRITON_ENABLE_ASAN",
    "TRITON_ENABLE_EXPERIMENTAL_CONSAN",
    "TRITON_ENABLE_LLVM_DEBUG",
    "TRITON_F32_DEFAULT",
    "TRITON_HIP_USE_ASYNC_COPY",
    "TRITON_HIP_USE_BLOCK_PINGPONG",
    "TRITON_HIP_USE_IN_THREAD_TRANSPOSE",
    "TRITON_LLVM_DEBUG_ONLY",
    "TRITON_OVERRIDE_ARCH",
    "TRITON_PARTITION_SCHEDULING_DUMP_DATA_ONLY",
    "TRITON_PARTITION_SCHEDULING_DUMP_LOOP_ONLY",
    "TRITON_PARTITION_SCHEDULING_ENABLE_DUMP_DOT",
    "TRITON_PREFER_TMEM_16x256_LAYOUT",
    "USE_IR_LOC",
];

/// What to ask, and how.
#[derive(Debug, Clone)]
pub struct Probe {
    pub interpreter: Interpreter,
    /// The engine's.
    pub environment: Environment,
    /// The interpreter and all that it starts are killed then.
    pub deadline: Duration,
    /// Directory of kept answers; `None`: ask, and keep nothing.
    pub cache: Option<PathBuf>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Probed {
    pub facts: Facts,
    pub took: Duration,
    /// Whether it is an earlier one, which still holds.
    pub kept: bool,
}

/// The facts could not be read. The texts name the interpreter and the way out.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("{0}: is --python (or WARMD_PYTHON) right?")]
    Start(ProgramError),
    #[error("{0}; give it more time, or see why that takes so long")]
    TimedOut(ProgramError),
    #[error("{python} failed ({status}){complaint}: is it the Python 3 that runs the engine? See --python", python = python.display())]
    Exited { python: PathBuf, status: std::process::ExitStatus, complaint: String },
    #[error("{python} did not print facts but `{said}`: is it the Python 3 that runs the engine? See --python", python = python.display())]
    Garbage { python: PathBuf, said: String },
    #[error("the thread that looks at files ended early")]
    Thread,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    facts: Facts,
    #[serde(default)]
    sources: BTreeMap<Fact, Sources>,
    watch: Watch,
}

impl Probe {
    /// `$XDG_CACHE_HOME/warmd/facts` or `~/.cache/warmd/facts`; `None` without a home.
    pub fn default_cache(environment: &Environment) -> Option<PathBuf> {
        let caches = environment.directory("XDG_CACHE_HOME").or_else(|| Some(environment.home()?.join(".cache")));
        Some(caches?.join("warmd/facts"))
    }

    /// The kept answer if it still holds, else a new one, which is kept if that is possible.
    pub async fn run(&self) -> Result<Probed, ProbeError> {
        let begun = Instant::now();
        let (cache, probe) = (self.cache.clone(), self.clone());
        let looked = blocking(move || {
            let key = probe.key();
            (key, cache.as_deref().and_then(|cache| record::read(cache, key)))
        });
        let (key, found) = looked.await?;
        let kept = found.is_some();
        let mut facts = match found {
            Some(facts) => facts,
            None => self.ask(key).await?,
        };
        self.add_environment(&mut facts);
        Ok(Probed { facts, took: begun.elapsed(), kept })
    }

    async fn ask(&self, key: Digest) -> Result<Facts, ProbeError> {
        let began = SystemTime::now();
        let output = match self.program().run().await {
            Ok(output) => output,
            Err(error @ ProgramError::TimedOut { .. }) => return Err(ProbeError::TimedOut(error)),
            Err(error) => return Err(ProbeError::Start(error)),
        };
        let Answer { mut facts, sources, watch } = self.parse(&output)?;
        for (fact, known) in blocking(move || read(&sources)).await? {
            facts.set(fact, known);
        }
        Self::check(&mut facts);
        // What failed may be mended by the next start without a trace in the files.
        if let Some(cache) = self.cache.clone().filter(|_| facts.failed().next().is_none()) {
            let answer = facts.clone();
            let written: io::Result<()> = blocking(move || record::write(&cache, key, &answer, watch, began)).await?;
            if let Err(error) = written {
                tracing::warn!(%error, "facts are not kept: the next start reads them again");
            }
        }
        Ok(facts)
    }

    fn program(&self) -> Program {
        let first = self.interpreter.first.iter().map(|first| first.as_os_str().to_owned());
        let variables = self.environment.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        Program::new(&self.interpreter.python)
            .arguments(&self.interpreter.options)
            .arguments(["-c", PROGRAM])
            .arguments(first)
            .environment(variables)
            .deadline(self.deadline)
    }

    fn parse(&self, output: &Output) -> Result<Answer, ProbeError> {
        let python = self.interpreter.python.clone();
        if !output.status.success() {
            let complaint = output.complaint.to_string();
            return Err(ProbeError::Exited { python, status: output.status, complaint });
        }
        // Start-up files of a site may print before the answer.
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.trim_end().lines().last().unwrap_or("");
        serde_json::from_str(last)
            .map_err(|_| ProbeError::Garbage { python, said: printable(&last.chars().take(100).collect::<String>()) })
    }

    /// What was asked for has an answer that an identity can hold, or a reason why not.
    fn check(facts: &mut Facts) {
        for fact in Fact::ALL.iter().filter(|fact| !NOT_PROBED.contains(fact)) {
            let known = facts.get(*fact).cloned();
            let known = known.unwrap_or_else(|| Known::Failed("the interpreter said nothing about it".to_owned()));
            facts.set(*fact, known.checked());
        }
    }

    /// What is in the environment needs no Python.
    fn add_environment(&self, facts: &mut Facts) {
        let set: Vec<String> =
            TRITON_HASHED.iter().filter_map(|name| Some(format!("{name}={}", self.environment.get(name)?))).collect();
        let known = match facts.get(Fact::Triton) {
            Some(Known::Value(_)) if set.is_empty() => Known::Absent("none of Triton's variables is set".to_owned()),
            Some(Known::Value(_)) => Known::Value(set.join(" ")),
            _ => Known::Absent("triton is not installed".to_owned()),
        };
        facts.set(Fact::TritonEnv, known.checked());
        if let Some(digest) = self.environment.get("WARMD_IMAGE_DIGEST") {
            facts.set(Fact::Image, Known::Value(digest.to_owned()).checked());
        }
    }

    /// Over what the answer depends on besides the files that the answer itself names.
    fn key(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("warmd 2026 probe");
        let mut put = |part: &[u8]| {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        };
        put(PROGRAM.as_bytes());
        put(self.interpreter.python.as_os_str().as_encoded_bytes());
        self.interpreter.options.iter().for_each(|option| put(option.as_bytes()));
        put(self.interpreter.first.as_deref().unwrap_or_else(|| Path::new("")).as_os_str().as_encoded_bytes());
        for (name, value) in self.environment.iter().filter(|(name, _)| is_relevant(name)) {
            put(name.as_bytes());
            put(value.as_bytes());
        }
        put(gpu::set_of_gpus().as_bytes());
        put(&processor());
        Digest::from_array(*hasher.finalize().as_bytes())
    }
}

fn is_relevant(name: &str) -> bool {
    RELEVANT.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *pattern,
    })
}

/// The flags of the first processor: a home directory may be shared by unequal nodes.
fn processor() -> Vec<u8> {
    use std::io::Read;
    // The kernel makes the text as it is read, and there may be hundreds of processors.
    let mut head = Vec::new();
    let read = std::fs::File::open("/proc/cpuinfo").and_then(|file| file.take(8192).read_to_end(&mut head));
    let text = String::from_utf8_lossy(&head);
    let flags = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    read.ok().and(flags).unwrap_or("").as_bytes().to_vec()
}

fn read(sources: &BTreeMap<Fact, Sources>) -> Vec<(Fact, Known)> {
    sources.iter().map(|(fact, sources)| (*fact, sources.read())).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ProbeError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ProbeError::Thread)
}

#[cfg(test)]
mod tests;
