//! What every scenario shares: machine facts, interleaved runs, medians, and the report as a table and as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

pub(crate) const MIB: f64 = 1_048_576.0;
pub(crate) const GIB: u64 = 1 << 30;

/// One measured run. `values` holds what only this row has, by the name that the report shows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) wire_bytes: Option<u64>,
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) values: BTreeMap<&'static str, f64>,
}

pub(crate) struct Contestant<'a> {
    pub(crate) name: String,
    pub(crate) run: Box<dyn FnMut() -> Result<Sample> + 'a>,
}

impl<'a> Contestant<'a> {
    pub(crate) fn new(name: impl Into<String>, run: impl FnMut() -> Result<Sample> + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// In the order of the runs; never empty.
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    pub(crate) fn seconds(&self) -> f64 {
        median(self.samples.iter().map(|sample| sample.seconds))
    }

    fn best(&self) -> f64 {
        self.samples.iter().map(|sample| sample.seconds).fold(f64::INFINITY, f64::min)
    }

    fn bytes(&self) -> u64 {
        self.samples[0].bytes
    }

    pub(crate) fn wire_bytes(&self) -> Option<f64> {
        let known: Vec<f64> =
            self.samples.iter().filter_map(|sample| sample.wire_bytes.map(|bytes| bytes as f64)).collect();
        (!known.is_empty()).then(|| median(known.into_iter()))
    }

    fn cpu_seconds(&self) -> Option<f64> {
        let known: Vec<f64> = self.samples.iter().filter_map(|sample| sample.cpu_seconds).collect();
        (!known.is_empty()).then(|| median(known.into_iter()))
    }

    pub(crate) fn values(&self) -> BTreeMap<&'static str, f64> {
        let names: Vec<&'static str> = self.samples.iter().flat_map(|sample| sample.values.keys().copied()).collect();
        let value = |name| median(self.samples.iter().filter_map(|sample| sample.values.get(name).copied()));
        names.into_iter().map(|name| (name, value(name))).collect()
    }
}

/// Runs every contestant once per round, so that a busy minute of the machine hits all of them.
pub(crate) fn interleave(runs: usize, mut contestants: Vec<Contestant<'_>>) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> =
        contestants.iter().map(|contestant| Row { name: contestant.name.clone(), samples: Vec::new() }).collect();
    for round in 0..runs {
        // Every other round runs backwards: what a row leaves in caches and free pages does not always meet the same one.
        let forwards = 0..contestants.len();
        let order: Vec<usize> = if round % 2 == 0 { forwards.collect() } else { forwards.rev().collect() };
        for at in order {
            back_memory();
            let sample = (contestants[at].run)().with_context(|| contestants[at].name.clone())?;
            rows[at].samples.push(sample);
        }
    }
    Ok(rows)
}

/// Free pages that a virtual machine has handed back to its host are slow to touch again, by a factor of five and more, and hit
/// whoever comes first. Touched and freed just before a row runs, they are there for it.
fn back_memory() {
    const BACKED: usize = 3 << 29;
    drop(std::hint::black_box(vec![1u8; BACKED]));
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

/// Rows of all scenarios that ran, and the targets that were checked.
pub(crate) struct Report {
    facts: Value,
    sections: Vec<(String, Vec<Row>)>,
    checks: Vec<Check>,
}

struct Check {
    what: String,
    value: f64,
    target: String,
    met: bool,
}

impl Report {
    pub(crate) fn new(dir: &Path, runs: usize) -> Self {
        Self { facts: facts(dir, runs), sections: Vec::new(), checks: Vec::new() }
    }

    /// Adds the rows and returns their table as Markdown. The ratio is to the fastest of the section.
    pub(crate) fn add(&mut self, section: &str, rows: Vec<Row>) -> String {
        let best = rows.iter().map(Row::seconds).fold(f64::INFINITY, f64::min);
        let mut table = format!(
            "\n### {section}\n\n| row | median s | best s | x fastest | MB/s | wire MB | CPU s/GiB | more |\n|---|---|---|---|---|---|---|---|\n"
        );
        for row in &rows {
            let or_dash = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
            };
            let per_gib = row.cpu_seconds().map(|seconds| seconds / row.bytes() as f64 * GIB as f64);
            let more: Vec<String> = row.values().iter().map(|(name, value)| format!("{name} {value:.2}")).collect();
            table += &format!(
                "| {} | {:.3} | {:.3} | {:.2} | {:.0} | {} | {} | {} |\n",
                row.name,
                row.seconds(),
                row.best(),
                row.seconds() / best,
                row.bytes() as f64 / row.seconds() / 1e6,
                or_dash(row.wire_bytes().map(|bytes| bytes / 1e6), 1),
                or_dash(per_gib, 2),
                more.join(", "),
            );
        }
        self.sections.push((section.to_owned(), rows));
        table
    }

    pub(crate) fn at_least(&mut self, what: impl Into<String>, value: f64, target: f64) -> String {
        self.check(what.into(), value, format!(">= {target}"), value >= target)
    }

    pub(crate) fn at_most(&mut self, what: impl Into<String>, value: f64, target: f64) -> String {
        self.check(what.into(), value, format!("<= {target}"), value <= target)
    }

    fn check(&mut self, what: String, value: f64, target: String, met: bool) -> String {
        let line = format!("- {}: {what}: {value:.3} (target {target})", if met { "met" } else { "MISSED" });
        self.checks.push(Check { what, value, target, met });
        line
    }

    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "name": row.name, "median_seconds": row.seconds(), "best_seconds": row.best(), "bytes": row.bytes(),
                "wire_bytes": row.wire_bytes(), "cpu_seconds": row.cpu_seconds(), "values": row.values(),
                "seconds": row.samples.iter().map(|sample| sample.seconds).collect::<Vec<_>>(),
            })
        };
        let sections: Vec<Value> = self
            .sections
            .iter()
            .map(|(name, rows)| json!({ "section": name, "rows": rows.iter().map(row).collect::<Vec<_>>() }))
            .collect();
        let checks: Vec<Value> = self
            .checks
            .iter()
            .map(|check| json!({ "what": check.what, "value": check.value, "target": check.target, "met": check.met }))
            .collect();
        json!({ "facts": self.facts, "sections": sections, "checks": checks, "load_at_end": load() })
    }

    /// Writes `bench/out/<name>-<unix seconds>.json` and returns its path.
    pub(crate) fn save(&self, name: &str) -> Result<PathBuf> {
        let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/out");
        fs::create_dir_all(&out)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let path = out.join(format!("{name}-{now}.json"));
        fs::write(&path, serde_json::to_vec_pretty(&self.json())?)?;
        Ok(path)
    }

    pub(crate) fn facts_line(&self) -> String {
        self.facts.to_string()
    }
}

fn facts(dir: &Path, runs: usize) -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| {
            line.strip_prefix("model name").map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
        })
        .unwrap_or_default();
    json!({
        "cpu": cpu,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory_kib": read("/proc/meminfo").lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "rmem_max": read("/proc/sys/net/core/rmem_max"),
        "wmem_max": read("/proc/sys/net/core/wmem_max"),
        "file_system": file_system(dir),
        "load_at_start": load(),
        "runs": runs,
    })
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

/// Type of the file system that holds `dir`, by the longest mount point above it.
fn file_system(dir: &Path) -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let above = fields.filter(|(point, _)| dir.starts_with(point));
    above.max_by_key(|(point, _)| point.len()).map_or_else(String::new, |(_, kind)| kind.to_owned())
}

/// User and system time of the children that this process has waited for, in seconds. In steps of 10 ms.
pub(crate) fn children_cpu() -> f64 {
    cpu_fields("/proc/self/stat", 13)
}

/// User and system time of a living process, in seconds. In steps of 10 ms.
pub(crate) fn process_cpu(pid: u32) -> f64 {
    cpu_fields(&format!("/proc/{pid}/stat"), 11)
}

fn cpu_fields(path: &str, skip: usize) -> f64 {
    let stat = fs::read_to_string(path).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after_name.split_whitespace().skip(skip).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ, which Linux keeps at 100 on every machine that we run on.
    ticks as f64 / 100.0
}

/// Runs a shell command and returns its wall time and the CPU time of everything that it started.
pub(crate) fn shell(script: &str) -> Result<(f64, f64)> {
    let (cpu, begin) = (children_cpu(), Instant::now());
    let status = Command::new("bash").args(["-o", "pipefail", "-euc", script]).stdin(Stdio::null()).status()?;
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(status.success(), "{status}: {script}");
    Ok((seconds, children_cpu() - cpu))
}

/// A child that is killed and waited for when dropped.
pub(crate) struct Killed(pub(crate) Child);

impl Killed {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it ends by itself and returns its stdout.
    pub(crate) fn output(mut self) -> Result<String> {
        let mut text = String::new();
        if let Some(mut stdout) = self.0.stdout.take() {
            std::io::Read::read_to_string(&mut stdout, &mut text)?;
        }
        let status = self.0.wait()?;
        ensure!(status.success(), "{status}: {text}");
        Ok(text)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a program has written this file, and returns the text.
pub(crate) fn wait_for(file: &Path, limit: Duration) -> Result<String> {
    let begin = Instant::now();
    while begin.elapsed() < limit {
        if let Ok(text) = fs::read_to_string(file) {
            return Ok(text);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("{} did not appear within {limit:?}", file.display())
}

/// A loopback address that nobody listens at.
pub(crate) fn free_port() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// An empty directory at this path, whatever was there.
pub(crate) fn fresh(path: &Path) -> Result<()> {
    gone(path)?;
    Ok(fs::create_dir_all(path)?)
}

pub(crate) fn gone(path: &Path) -> Result<()> {
    let done = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match done {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Peak memory of a process above what it had when the watch began, in bytes.
pub(crate) struct Peak {
    /// Heap and stacks, sampled every 5 ms: what the process itself needs.
    pub(crate) anonymous: f64,
    /// All resident pages, mapped files too, which the kernel can drop at any time. The kernel's own high-water mark.
    pub(crate) total: f64,
}

pub(crate) struct Watch {
    pid: u32,
    idle: Peak,
    stop: Arc<AtomicBool>,
    sampler: std::thread::JoinHandle<f64>,
}

impl Watch {
    pub(crate) fn start(pid: u32) -> Result<Self> {
        // 5 resets the high-water mark, see proc_pid_clear_refs(5).
        fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        let idle = Peak { anonymous: status(pid, "RssAnon:"), total: status(pid, "VmRSS:") };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let sampler = std::thread::spawn(move || {
            let mut peak = 0.0_f64;
            while !stopped.load(Ordering::Relaxed) {
                peak = peak.max(status(pid, "RssAnon:"));
                std::thread::sleep(Duration::from_millis(5));
            }
            peak
        });
        Ok(Self { pid, idle, stop, sampler })
    }

    pub(crate) fn stop(self) -> Peak {
        self.stop.store(true, Ordering::Relaxed);
        let anonymous = self.sampler.join().unwrap_or(f64::NAN) - self.idle.anonymous;
        Peak { anonymous, total: status(self.pid, "VmHWM:") - self.idle.total }
    }
}

/// A field of /proc/<pid>/status, in bytes.
pub(crate) fn status(pid: u32, field: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok()).map_or(f64::NAN, |kib| kib * 1024.0)
}
