//! What the kernel knows of this process, under the names that other programs use, and which build it is.
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Unit;

use super::{Bounded, Registry, labels, parts};

type Value = fn(&Process) -> Option<f64>;

const METRICS: [(&str, MetricType, &str, Value); 7] = [
    ("process_cpu_seconds_total", MetricType::Counter, "User and system CPU time", |process| process.cpu_seconds),
    ("process_resident_memory_bytes", MetricType::Gauge, "Memory in use, shared pages included", |process| {
        process.resident
    }),
    ("process_virtual_memory_bytes", MetricType::Gauge, "Size of the address space", |process| process.virtual_size),
    ("process_threads", MetricType::Gauge, "Threads", |process| process.threads),
    ("process_open_fds", MetricType::Gauge, "Open file descriptors", |process| process.open_fds),
    ("process_max_fds", MetricType::Gauge, "Most file descriptors that may be open", |process| process.max_fds),
    ("process_start_time_seconds", MetricType::Gauge, "Start of the process, in Unix time", |process| {
        process.start_time
    }),
];

labels! {
    struct BuildLabels {
        version: Bounded<&'static str>,
        commit: Bounded<&'static str>,
    }
}

pub(super) fn register(registry: &mut Registry) {
    let build: Family<BuildLabels, Gauge> = registry.add("warmd_build_info", "1; the build is in the labels");
    let commit = Bounded(env!("BUILD_COMMIT"));
    build.get_or_create(&BuildLabels { version: Bounded(env!("CARGO_PKG_VERSION")), commit }).set(1);
    let described = METRICS.map(|(name, kind, help, _)| (name, kind, help, &[][..]));
    registry.collect(&described, OfProcess);
}

#[derive(Debug)]
struct OfProcess;

impl Collector for OfProcess {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let process = Process::read();
        for (name, kind, help, value) in METRICS {
            let Some(value) = value(&process) else { continue };
            let (stem, unit) = parts(name);
            let unit = unit.map(|unit| Unit::Other(unit.to_owned()));
            let help = format!("{help}.");
            let metric = encoder.encode_descriptor(stem, &help, unit.as_ref(), kind)?;
            match kind {
                MetricType::Counter => ConstCounter::new(value).encode(metric)?,
                _ => ConstGauge::new(value).encode(metric)?,
            }
        }
        Ok(())
    }
}

/// As far as `/proc` tells; proc_pid_stat(5), proc_pid_status(5), proc_pid_limits(5).
#[derive(Debug, Default)]
struct Process {
    cpu_seconds: Option<f64>,
    start_time: Option<f64>,
    resident: Option<f64>,
    virtual_size: Option<f64>,
    threads: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
}

impl Process {
    fn read() -> Self {
        let text = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let (stat, status, limits) = (text("stat"), text("status"), text("limits"));
        // What follows the command, which may hold anything, begins with field 3.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let seconds = |field: usize| Some(fields.get(field - 3)?.parse::<f64>().ok()? / ticks);
        let kilobytes = |name: &str| Some(1024.0 * of_status(&status, name)?);
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
        Self {
            cpu_seconds: seconds(14).zip(seconds(15)).map(|(user, system)| user + system),
            start_time: seconds(22).and_then(since_epoch),
            resident: kilobytes("VmRSS"),
            virtual_size: kilobytes("VmSize"),
            threads: of_status(&status, "Threads"),
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|open| open.count() as f64),
            max_fds: limit.and_then(|limit| limit.parse().ok()),
        }
    }
}

fn of_status(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Unix time of a moment given in seconds since the machine has started.
fn since_epoch(since_boot: f64) -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    Some(boot + since_boot)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::telemetry::Format;

    #[test]
    fn a_process_tells_what_the_kernel_knows_of_it() {
        let text = Format::OpenMetrics.encode(&Registry::of_process());
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name}: {text}")).parse::<f64>().unwrap()
        };
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") < value("process_max_fds"));
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_threads") >= 1.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 86_400.0..now + 5.0).contains(&value("process_start_time_seconds")));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(text.contains(&format!("warmd_build_info{{version=\"{}\",commit=", env!("CARGO_PKG_VERSION"))));
    }
}
