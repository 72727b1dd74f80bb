//! What was seen from an engine's start on, added up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Cache, Evidence, Seen};

/// Paths that are remembered of each kind: a large model on a node of eight GPUs has a few dozen.
const MAX_PATHS: usize = 4096;

/// Processes whose seconds are added up.
const MAX_PROCESSES: usize = 1024;

/// Errors that are remembered: the first, which tend to be the cause, and the last.
const MAX_FIRST: usize = 8;
const MAX_LAST: usize = 8;

/// One compiled model, as vLLM names it below `torch_aot_compile`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AotSlot {
    /// 64 hexadecimal digits: vLLM's digest of everything that the compilation depends on.
    pub key: String,
    /// `rank_<rank>_<data parallel rank>`
    pub rank: String,
}

impl AotSlot {
    /// From the path of its `model` file.
    pub fn of(path: &Path) -> Option<Self> {
        let parts: Vec<&str> = path.iter().map(|part| part.to_str()).collect::<Option<_>>()?;
        let at = parts.iter().rposition(|part| *part == "torch_aot_compile")?;
        let (key, rank) = (parts.get(at + 1)?, parts.get(at + 2)?);
        let is_key = key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_key && rank.starts_with("rank_")).then(|| Self { key: (*key).to_owned(), rank: (*rank).to_owned() })
    }
}

/// What became of one AOT path.
#[derive(Debug, Default)]
struct Fate {
    loaded: bool,
    failed: Option<String>,
    saved: bool,
}

/// Seconds that one process told.
#[derive(Debug, Default)]
struct Compiling {
    totals: Duration,
    parts: Duration,
}

/// What an engine's log said, bounded. What was not printed is not known: most cache lookups are told only at debug levels.
#[derive(Debug, Default)]
pub struct StartLog {
    aot: BTreeMap<PathBuf, Fate>,
    piecewise: BTreeSet<PathBuf>,
    autotune: BTreeMap<PathBuf, (u64, u64)>,
    compiling: BTreeMap<String, Compiling>,
    told_compiling: Option<Duration>,
    graphs: Graphs,
    lookups: BTreeMap<Cache, (u64, u64)>,
    deep_gemm: Option<(u64, Duration)>,
    late_kernels: u64,
    weights: Option<Duration>,
    captured: Option<Duration>,
    initialized: Option<Duration>,
    started: bool,
    first_errors: Vec<String>,
    last_errors: VecDeque<String>,
    forgotten: u64,
}

/// Graphs of `torch.compile`, counted over all processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Graphs {
    /// Messages that graphs of a range came from the cache; each stands for all graphs of that range.
    pub ranges_loaded: u64,
    pub compiled: u64,
    pub stored: u64,
}

impl StartLog {
    /// Looks at one line; what it says, if anything.
    pub fn line(&mut self, line: &str) -> Option<Evidence> {
        let seen = Seen::in_line(line)?;
        let evidence = seen.evidence.clone();
        self.add(seen);
        Some(evidence)
    }

    pub fn add(&mut self, Seen { process, evidence }: Seen) {
        match evidence {
            Evidence::AotLoaded { path } => self.fate(path, |fate| fate.loaded = true),
            Evidence::AotFailed { path, reason } => self.fate(path, |fate| fate.failed = Some(reason)),
            Evidence::AotSaved { path } => self.fate(path, |fate| fate.saved = true),
            Evidence::PiecewiseDirectory { path } => self.directory(path),
            Evidence::AutotuneLoaded { configs, path } => self.autotuned(path, |counts| counts.0 = configs),
            Evidence::AutotuneSaved { new, path, .. } => self.autotuned(path, |counts| counts.1 += new),
            Evidence::TorchCompile { took } => self.spent(process, |compiling| &mut compiling.totals, took),
            Evidence::DynamoTransform { took } => self.spent(process, |compiling| &mut compiling.parts, took),
            Evidence::GraphCompiled { took, .. } => {
                self.graphs.compiled += 1;
                self.spent(process, |compiling| &mut compiling.parts, took);
            }
            Evidence::GraphsLoaded { .. } => self.graphs.ranges_loaded += 1,
            Evidence::GraphStored { .. } => self.graphs.stored += 1,
            Evidence::Lookup { cache, hit, .. } => {
                let counts = self.lookups.entry(cache).or_default();
                *(if hit { &mut counts.0 } else { &mut counts.1 }) += 1;
            }
            Evidence::DeepGemmWarmedUp { kernels, took } => self.deep_gemm = Some((kernels, took)),
            Evidence::KernelCompiledLate { .. } => self.late_kernels += 1,
            Evidence::WeightsLoaded { took } => self.weights = self.weights.max(Some(took)),
            Evidence::GraphsCaptured { took } => self.captured = self.captured.max(Some(took)),
            Evidence::EngineInitialized { took, compiling } => {
                self.initialized = self.initialized.max(Some(took));
                self.told_compiling = self.told_compiling.max(compiling);
            }
            Evidence::ServerStarted => self.started = true,
            Evidence::AotNotSaved { path, reason } => self.error(format!("not saved: {}: {reason}", path.display())),
            Evidence::OutOfMemory(text) | Evidence::Fatal(text) | Evidence::Exception(text) => self.error(text),
            Evidence::ArtifactsLoaded { .. }
            | Evidence::CompileCacheDisabled
            | Evidence::DeepGemmCompiling
            | Evidence::ServerStarting => {}
        }
    }

    /// Compiled models that were loaded as they were.
    pub fn aot_loaded(&self) -> impl Iterator<Item = &Path> {
        self.aot.iter().filter(|(_, fate)| fate.loaded).map(|(path, _)| path.as_path())
    }

    /// Compiled models that were there and could not be used, with the engine's reason.
    pub fn aot_failed(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.aot.iter().filter_map(|(path, fate)| Some((path.as_path(), fate.failed.as_deref()?)))
    }

    /// Compiled models that this start made.
    pub fn aot_saved(&self) -> impl Iterator<Item = &Path> {
        self.aot.iter().filter(|(_, fate)| fate.saved).map(|(path, _)| path.as_path())
    }

    pub fn piecewise_directories(&self) -> impl Iterator<Item = &Path> {
        self.piecewise.iter().map(PathBuf::as_path)
    }

    /// FlashInfer's files: how many results were read from each, and how many were measured anew.
    pub fn autotuned_files(&self) -> impl Iterator<Item = (&Path, u64, u64)> {
        self.autotune.iter().map(|(path, (read, measured))| (path.as_path(), *read, *measured))
    }

    pub fn graphs(&self) -> Graphs {
        self.graphs
    }

    /// (hits, misses)
    pub fn lookups(&self, cache: Cache) -> (u64, u64) {
        self.lookups.get(&cache).copied().unwrap_or_default()
    }

    /// How long the start waited for `torch.compile`: as the engine says it; else the process that spent most, because
    /// processes compile side by side. Loading compiled graphs counts too.
    pub fn compiling(&self) -> Option<Duration> {
        let of_process =
            |compiling: &Compiling| if compiling.totals.is_zero() { compiling.parts } else { compiling.totals };
        self.told_compiling.or_else(|| self.compiling.values().map(of_process).max())
    }

    /// DeepGEMM kernels warmed up, and how long that took.
    pub fn deep_gemm(&self) -> Option<(u64, Duration)> {
        self.deep_gemm
    }

    /// Kernels compiled while a request waited.
    pub fn late_kernels(&self) -> u64 {
        self.late_kernels
    }

    /// Of the slowest process.
    pub fn weights(&self) -> Option<Duration> {
        self.weights
    }

    /// Of the slowest process.
    pub fn captured(&self) -> Option<Duration> {
        self.captured
    }

    /// `init engine ... took`: profiling, KV cache, warm-up, and compilation.
    pub fn initialized(&self) -> Option<Duration> {
        self.initialized
    }

    /// Whether the server said that it is up.
    pub fn started(&self) -> bool {
        self.started
    }

    /// Worth quoting when a start fails: the first and the last errors, in order.
    pub fn errors(&self) -> impl Iterator<Item = &str> {
        self.first_errors.iter().chain(&self.last_errors).map(String::as_str)
    }

    /// What was seen and is not in here, because there was too much of it.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn fate(&mut self, path: PathBuf, change: impl FnOnce(&mut Fate)) {
        if let Some(fate) = bounded(&mut self.aot, path, &mut self.forgotten) {
            change(fate);
        }
    }

    fn directory(&mut self, path: PathBuf) {
        if self.piecewise.len() >= MAX_PATHS && !self.piecewise.contains(&path) {
            self.forgotten += 1;
        } else {
            self.piecewise.insert(path);
        }
    }

    fn autotuned(&mut self, path: PathBuf, change: impl FnOnce(&mut (u64, u64))) {
        if let Some(counts) = bounded(&mut self.autotune, path, &mut self.forgotten) {
            change(counts);
        }
    }

    fn spent(&mut self, process: Option<String>, sum: impl FnOnce(&mut Compiling) -> &mut Duration, took: Duration) {
        let process = process.unwrap_or_default();
        if self.compiling.len() >= MAX_PROCESSES && !self.compiling.contains_key(&process) {
            self.forgotten += 1;
            return;
        }
        let sum = sum(self.compiling.entry(process).or_default());
        *sum = sum.saturating_add(took);
    }

    fn error(&mut self, text: String) {
        if self.first_errors.len() < MAX_FIRST {
            self.first_errors.push(text);
            return;
        }
        if self.last_errors.len() == MAX_LAST {
            self.last_errors.pop_front();
            self.forgotten += 1;
        }
        self.last_errors.push_back(text);
    }
}

/// The entry of `path`, unless it would be one too many.
fn bounded<'m, V: Default>(map: &'m mut BTreeMap<PathBuf, V>, path: PathBuf, forgotten: &mut u64) -> Option<&'m mut V> {
    if map.len() >= MAX_PATHS && !map.contains_key(&path) {
        *forgotten += 1;
        return None;
    }
    Some(map.entry(path).or_default())
}
