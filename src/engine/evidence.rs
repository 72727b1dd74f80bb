//! What an engine's log says about its caches.
//!
//! The texts are those of vLLM 0.16 to 0.33, of the libraries that print beside it (PyTorch, FlashInfer, uvicorn), and of
//! SGLang where it says the same things. A line counts only from the beginning of its message on: what a user's prompt
//! holds does not, also where prompts are logged.

mod line;
mod start_log;

use std::path::PathBuf;
use std::time::Duration;

pub use start_log::{AotSlot, Graphs, StartLog};

use line::Message;

/// Which cache was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cache {
    /// Inductor's compiled graphs. Told only at `TORCH_LOGS=torch._inductor.codecache`.
    FxGraph,
    /// Told only at `TORCH_LOGS=torch._functorch._aot_autograd.autograd_cache`.
    AotAutograd,
    /// vLLM's `modelinfos`. Told only at `VLLM_LOGGING_LEVEL=DEBUG`.
    ModelInfo,
}

/// What one line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// A compiled model was loaded as it was: no compilation.
    AotLoaded {
        path: PathBuf,
    },
    /// It was there and could not be used; the engine compiles again.
    AotFailed {
        path: PathBuf,
        reason: String,
    },
    /// It was compiled and written.
    AotSaved {
        path: PathBuf,
    },
    AotNotSaved {
        path: PathBuf,
        reason: String,
    },
    /// The rest of an AOT artifact: its compiled graphs.
    ArtifactsLoaded {
        artifacts: u64,
        submodules: u64,
    },
    /// vLLM's directory for graphs that are compiled piece by piece.
    PiecewiseDirectory {
        path: PathBuf,
    },
    /// vLLM keeps no compiled graphs at all.
    CompileCacheDisabled,
    /// Compiled graphs came from that directory. `range` is as printed: `(1, 2048)`, or a shape.
    GraphsLoaded {
        range: String,
        took: Duration,
    },
    GraphStored {
        range: String,
    },
    GraphCompiled {
        range: String,
        took: Duration,
    },
    DynamoTransform {
        took: Duration,
    },
    /// All of `torch.compile`, in one process; also told when everything came from a cache.
    TorchCompile {
        took: Duration,
    },
    /// A cache was asked for one entry.
    Lookup {
        cache: Cache,
        hit: bool,
        entry: String,
    },
    /// All DeepGEMM kernels that the model could ask for are there.
    DeepGemmWarmedUp {
        kernels: u64,
        took: Duration,
    },
    /// SGLang compiles DeepGEMM kernels.
    DeepGemmCompiling,
    /// FlashInfer's autotuner read its results, instead of measuring.
    AutotuneLoaded {
        configs: u64,
        path: PathBuf,
    },
    /// `new` of them were measured in this start.
    AutotuneSaved {
        configs: u64,
        new: u64,
        path: PathBuf,
    },
    /// A kernel was compiled while a request waited: no cache and no warm-up had it.
    KernelCompiledLate {
        library: String,
        kernel: String,
    },
    WeightsLoaded {
        took: Duration,
    },
    GraphsCaptured {
        took: Duration,
    },
    /// `compiling` is part of `took`; vLLM tells it from 0.17 on, unless it was nothing.
    EngineInitialized {
        took: Duration,
        compiling: Option<Duration>,
    },
    /// The model is up, and the server is about to listen.
    ServerStarting,
    ServerStarted,
    OutOfMemory(String),
    /// The engine says that it is at its end, or the runtime says it of a process.
    Fatal(String),
    /// The last line of a Python traceback.
    Exception(String),
}

/// What one line says, and which of the engine's processes said it, such as `Worker_TP0 pid=79`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub process: Option<String>,
    pub evidence: Evidence,
}

impl Seen {
    /// `line` is without colours and line end.
    pub fn in_line(line: &str) -> Option<Self> {
        let message = Message::of(line);
        let evidence = in_text(&message.text)?;
        Some(Self { process: message.process.map(|process| process.into_owned()), evidence })
    }
}

fn in_text(text: &str) -> Option<Evidence> {
    let untagged = line::without_tag(text);
    aot(untagged)
        .or_else(|| graphs(untagged))
        .or_else(|| totals(untagged))
        .or_else(|| lookups(untagged))
        .or_else(|| kernels(text))
        .or_else(|| progress(text))
        .or_else(|| trouble(text))
}

fn aot(text: &str) -> Option<Evidence> {
    if let Some(path) = text.strip_prefix("Directly load AOT compilation from path ") {
        return Some(Evidence::AotLoaded { path: path.into() });
    }
    if let Some(path) = text.strip_prefix("saved AOT compiled function to ") {
        return Some(Evidence::AotSaved { path: path.into() });
    }
    let pair = |start: &str, middle: &str| text.strip_prefix(start)?.split_once(middle);
    if let Some((path, reason)) = pair("Compiling model again due to a load failure from ", ", reason: ")
        .or_else(|| pair("Cannot load aot compilation from path ", ", error: "))
    {
        return Some(Evidence::AotFailed { path: path.into(), reason: reason.to_owned() });
    }
    if let Some((path, reason)) = pair("unable to save AOT compiled function to ", ": ") {
        return Some(Evidence::AotNotSaved { path: path.into(), reason: reason.to_owned() });
    }
    let (artifacts, submodules) =
        pair("reconstructed serializable fn from standalone compile artifacts. num_artifacts=", " num_submods=")?;
    Some(Evidence::ArtifactsLoaded { artifacts: artifacts.parse().ok()?, submodules: submodules.parse().ok()? })
}

fn graphs(text: &str) -> Option<Evidence> {
    if let Some(path) = text.strip_prefix("Using cache directory: ") {
        let path = path.strip_suffix(" for vLLM's torch.compile")?.into();
        return Some(Evidence::PiecewiseDirectory { path });
    }
    if text == "vLLM's torch.compile cache is disabled." {
        return Some(Evidence::CompileCacheDisabled);
    }
    // Older versions name a shape where newer ones name a range.
    let range = |text: &str| text.trim_start_matches("compile range ").trim_start_matches("shape ").to_owned();
    if let Some(rest) = text.strip_prefix("Directly load the compiled graph(s) for ") {
        let (graph, took) = rest.split_once(" from the cache, took ")?;
        return Some(Evidence::GraphsLoaded { range: range(graph), took: seconds(took)? });
    }
    if let Some(rest) = text.strip_prefix("Cache the graph of ").or_else(|| text.strip_prefix("Cache the graph for ")) {
        return Some(Evidence::GraphStored { range: range(rest.strip_suffix(" for later use")?) });
    }
    let (graph, took) = text.strip_prefix("Compiling a graph for ")?.split_once(" takes ")?;
    Some(Evidence::GraphCompiled { range: range(graph), took: seconds(took)? })
}

fn totals(text: &str) -> Option<Evidence> {
    if let Some(took) = text.strip_prefix("Dynamo bytecode transform time: ") {
        return Some(Evidence::DynamoTransform { took: seconds(took)? });
    }
    if let Some(rest) = text.strip_prefix("torch.compile ") {
        // "took", before 0.18 "takes", and in some modes "and initial profiling/warmup run together took".
        let rest = rest.strip_suffix(" in total")?;
        let (_, took) = rest.rsplit_once("took ").or_else(|| rest.rsplit_once("takes "))?;
        return Some(Evidence::TorchCompile { took: seconds(took)? });
    }
    let (_, took) = text.strip_prefix("init engine ")?.split_once("took ")?;
    let compiling = took.split_once("(compilation: ").and_then(|(_, compiling)| seconds(compiling));
    Some(Evidence::EngineInitialized { took: seconds(took)?, compiling })
}

fn lookups(text: &str) -> Option<Evidence> {
    let inductor = [("fx graph cache ", Cache::FxGraph), ("AOTAutograd cache ", Cache::AotAutograd)];
    for (start, cache) in inductor {
        let Some((verdict, key)) = text.strip_prefix(start).and_then(|rest| rest.split_once(" for key ")) else {
            continue;
        };
        let hit = match verdict {
            "hit" => true,
            "miss" => false,
            _ => return None,
        };
        return Some(Evidence::Lookup { cache, hit, entry: key.to_owned() });
    }
    let lookup = |hit, class: &str| Evidence::Lookup { cache: Cache::ModelInfo, hit, entry: class.to_owned() };
    if let Some(rest) = text.strip_prefix("Loaded model info for class ") {
        return Some(lookup(true, rest.strip_suffix(" from cache")?));
    }
    let (class, _) = text.strip_prefix("Cache model info for class ")?.split_once(" miss.")?;
    Some(lookup(false, class))
}

fn kernels(text: &str) -> Option<Evidence> {
    if let Some(rest) = text.strip_prefix("DeepGEMM warmup: ") {
        let (kernels, took) = line::finished_bar(rest)?;
        return Some(Evidence::DeepGemmWarmedUp { kernels, took });
    }
    if text.starts_with("Entering DeepGEMM JIT Pre-Compile session.") {
        return Some(Evidence::DeepGemmCompiling);
    }
    if let Some(rest) = text.strip_prefix("[Autotuner]: Loaded ") {
        let (configs, path) = rest.split_once(" configs from ")?;
        return Some(Evidence::AutotuneLoaded { configs: configs.parse().ok()?, path: path.into() });
    }
    if let Some(rest) = text.strip_prefix("[Autotuner]: Saved ") {
        let (configs, rest) = rest.split_once(" configs to ")?;
        let (path, counts) = rest.rsplit_once(" (")?;
        let (new, _) = counts.split_once(" new, ")?;
        let (configs, new) = (configs.parse().ok()?, new.parse().ok()?);
        return Some(Evidence::AutotuneSaved { configs, new, path: path.into() });
    }
    let (library, rest) = text.split_once(" JIT compilation during inference: ")?;
    let (kernel, _) = rest.split_once(". ")?;
    let library = library.strip_suffix(" kernel").unwrap_or(library);
    Some(Evidence::KernelCompiledLate { library: library.to_owned(), kernel: kernel.to_owned() })
}

fn progress(text: &str) -> Option<Evidence> {
    // SGLang prints the second of each pair.
    let took = |starts: [&str; 2]| starts.iter().find_map(|start| text.strip_prefix(start)).and_then(seconds);
    if let Some(took) = took(["Loading weights took ", "Load weight end. elapsed="]) {
        return Some(Evidence::WeightsLoaded { took });
    }
    if let Some(took) = took(["Graph capturing finished in ", "Capture cuda graph end. Time elapsed: "]) {
        return Some(Evidence::GraphsCaptured { took });
    }
    match text {
        "Available routes are:" => Some(Evidence::ServerStarting),
        "Application startup complete." | "The server is fired up and ready to roll!" => Some(Evidence::ServerStarted),
        _ => None,
    }
}

/// How a process or the engine says that this is its end.
const LAST_WORDS: [&str; 8] = [
    "EngineCore failed to start.",
    "EngineCore encountered a fatal error.",
    "EngineCore encountered an issue.",
    "AsyncLLM output_handler failed.",
    "WorkerProc failed to start.",
    "WorkerProc hit an exception.",
    "Fatal Python error: ",
    "Fatal glibc error: ",
];

/// How an executor begins to tell that one of its workers " died unexpectedly".
const WORKERS: [&str; 2] = ["Worker proc ", "RayWorkerProc "];

fn trouble(text: &str) -> Option<Evidence> {
    let begins_with_one_of = |starts: &[&str]| starts.iter().any(|start| text.starts_with(start));
    let died = begins_with_one_of(&WORKERS) && text.contains(" died unexpectedly");
    if died || begins_with_one_of(&LAST_WORDS) {
        return Some(Evidence::Fatal(text.to_owned()));
    }
    let name = text.split_once(": ").map_or(text, |(name, _)| name);
    if !line::is_exception(name) {
        return None;
    }
    let memory = name.ends_with("OutOfMemoryError") || text.contains(" out of memory");
    Some(if memory { Evidence::OutOfMemory(text.to_owned()) } else { Evidence::Exception(text.to_owned()) })
}

/// The number that `text` begins with.
fn seconds(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    Duration::try_from_secs_f64(text[..end].trim_end_matches('.').parse().ok()?).ok()
}

#[cfg(test)]
mod tests;
