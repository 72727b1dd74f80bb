//! What starts of engines on this node were like, as their pods report it, for `/metrics` and for the node's own report. A
//! pod is not trusted: a number that cannot be is refused with the whole report, and labels come from closed sets.

mod history;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub(super) use self::history::History;
use crate::caches::CacheFamily;
use crate::protocol::pb;
use crate::protocol::report::{REASON, Text};

const MAX_FAMILIES: usize = 64;
const MAX_COUNT: u32 = 1_000_000;
const MAX_TIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A family that this agent does not know.
const OTHER: &str = "other";

/// A report that cannot be true.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StartError {
    #[error("`outcome` is none that this agent knows")]
    Outcome,
    #[error("`{0}` is not a time in seconds, at most {max}", max = MAX_TIME.as_secs())]
    Time(&'static str),
    #[error("`{0}` is over {MAX_COUNT}")]
    Count(&'static str),
    #[error("more than {MAX_FAMILIES} families")]
    Families,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    Ready,
    Crashed,
    Clean,
    Unknown,
}

/// One start, checked.
#[derive(Debug, PartialEq)]
pub(super) struct Start {
    outcome: Outcome,
    /// Where it is known.
    ready: Option<Duration>,
    hook: Duration,
    budget: Duration,
    families: Vec<FamilyStart>,
}

#[derive(Debug, PartialEq)]
struct FamilyStart {
    family: &'static str,
    artifacts: [(Artifacts, u32); 2],
    entries: [(Entries, u32); 4],
    saved: Duration,
    reason: Text<REASON>,
}

impl TryFrom<pb::StartReport> for Start {
    type Error = StartError;
    fn try_from(report: pb::StartReport) -> Result<Self, StartError> {
        let outcome = match report.outcome() {
            pb::StartOutcome::Ready => Outcome::Ready,
            pb::StartOutcome::Crashed => Outcome::Crashed,
            pb::StartOutcome::Clean => Outcome::Clean,
            pb::StartOutcome::Unknown => Outcome::Unknown,
            pb::StartOutcome::Unspecified => return Err(StartError::Outcome),
        };
        if report.families.len() > MAX_FAMILIES {
            return Err(StartError::Families);
        }
        let ready = time("ready_seconds", report.ready_seconds)?;
        Ok(Self {
            outcome,
            ready: Some(ready).filter(|ready| !ready.is_zero()),
            hook: time("hook_seconds", report.hook_seconds)?,
            budget: time("budget_seconds", report.budget_seconds)?,
            families: report.families.into_iter().map(FamilyStart::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<pb::FamilyStart> for FamilyStart {
    type Error = StartError;
    fn try_from(start: pb::FamilyStart) -> Result<Self, StartError> {
        Ok(Self {
            family: CacheFamily::by_name(&start.family).map_or(OTHER, |family| family.name),
            artifacts: [
                (Artifacts::Offered, count("offered", start.offered)?),
                (Artifacts::Quarantined, count("quarantined", start.quarantined)?),
            ],
            entries: [
                (Entries::Installed, count("installed", start.installed)?),
                (Entries::Existing, count("existing", start.existing)?),
                (Entries::Made, count("made", start.made)?),
                (Entries::Used, count("used", start.used)?),
            ],
            saved: time("saved_seconds", start.saved_seconds)?,
            reason: Text::cut(&start.reason),
        })
    }
}

/// NaN, infinities and negative numbers are no times.
fn time(name: &'static str, seconds: f64) -> Result<Duration, StartError> {
    let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= MAX_TIME);
    time.ok_or(StartError::Time(name))
}

fn count(name: &'static str, count: u32) -> Result<u32, StartError> {
    if count <= MAX_COUNT { Ok(count) } else { Err(StartError::Count(name)) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Artifacts {
    Offered,
    Quarantined,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Entries {
    Installed,
    Existing,
    Made,
    Used,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyLabel {
    family: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ArtifactLabels {
    family: &'static str,
    result: Artifacts,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EntryLabels {
    family: &'static str,
    result: Entries,
}

/// Sums over all starts.
#[derive(Debug, Clone)]
pub(super) struct StartMetrics {
    starts: Family<OutcomeLabel, Counter>,
    over_budget: Counter,
    ready: Histogram,
    hook: Histogram,
    artifacts: Family<ArtifactLabels, Counter>,
    entries: Family<EntryLabels, Counter>,
    saved: Family<FamilyLabel, Counter<f64, AtomicU64>>,
}

impl StartMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            starts: Family::default(),
            over_budget: Counter::default(),
            // 1 s to 68 min, and 50 ms to 102 s.
            ready: Histogram::new(exponential_buckets(1.0, 2.0, 13)),
            hook: Histogram::new(exponential_buckets(0.05, 2.0, 12)),
            artifacts: Family::default(),
            entries: Family::default(),
            saved: Family::default(),
        };
        registry.register("warmd_starts", "Starts of engines by how they ended", metrics.starts.clone());
        let help = "Starts for which warmd took longer than its budget";
        registry.register("warmd_starts_over_budget", help, metrics.over_budget.clone());
        let help = "Time from the start of an engine until it was ready";
        registry.register("warmd_start_ready_seconds", help, metrics.ready.clone());
        let help = "Time that warmd took before an engine was started";
        registry.register("warmd_start_hook_seconds", help, metrics.hook.clone());
        registry.register("warmd_start_artifacts", "Artifacts that starts were offered", metrics.artifacts.clone());
        registry.register("warmd_start_entries", "Cache entries by what starts did with them", metrics.entries.clone());
        let help = "Compilation that starts were spared, by its publishers' measure, in seconds";
        registry.register("warmd_start_saved_seconds", help, metrics.saved.clone());
        metrics
    }

    pub(super) fn count(&self, start: &Start) {
        self.starts.get_or_create(&OutcomeLabel { outcome: start.outcome }).inc();
        self.over_budget.inc_by(u64::from(start.hook > start.budget));
        self.hook.observe(start.hook.as_secs_f64());
        if let Some(ready) = start.ready {
            self.ready.observe(ready.as_secs_f64());
        }
        for FamilyStart { family, artifacts, entries, saved, .. } in &start.families {
            for (result, count) in *artifacts {
                self.artifacts.get_or_create(&ArtifactLabels { family, result }).inc_by(count.into());
            }
            for (result, count) in *entries {
                self.entries.get_or_create(&EntryLabels { family, result }).inc_by(count.into());
            }
            self.saved.get_or_create(&FamilyLabel { family }).inc_by(saved.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> pb::StartReport {
        let family = pb::FamilyStart { family: "vllm-aot".to_owned(), installed: 19, ..Default::default() };
        pb::StartReport {
            outcome: pb::StartOutcome::Ready.into(),
            ready_seconds: 19.1,
            hook_seconds: 1.0,
            budget_seconds: 30.0,
            families: vec![family],
        }
    }

    fn refused(change: impl FnOnce(&mut pb::StartReport)) -> StartError {
        let mut report = report();
        change(&mut report);
        Start::try_from(report).unwrap_err()
    }

    #[test]
    fn a_report_with_a_number_that_cannot_be_is_refused_whole() {
        for seconds in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1, 1e9, 1e300] {
            assert_eq!(refused(|report| report.ready_seconds = seconds), StartError::Time("ready_seconds"));
            assert_eq!(refused(|report| report.hook_seconds = seconds), StartError::Time("hook_seconds"));
            assert_eq!(refused(|report| report.budget_seconds = seconds), StartError::Time("budget_seconds"));
            let saved = |report: &mut pb::StartReport| report.families[0].saved_seconds = seconds;
            assert_eq!(refused(saved), StartError::Time("saved_seconds"));
        }
        assert_eq!(refused(|report| report.families[0].installed = u32::MAX), StartError::Count("installed"));
        assert_eq!(refused(|report| report.families[0].used = MAX_COUNT + 1), StartError::Count("used"));
        assert_eq!(refused(|report| report.families = vec![Default::default(); 65]), StartError::Families);
        assert_eq!(refused(|report| report.outcome = 0), StartError::Outcome);
        assert_eq!(refused(|report| report.outcome = 99), StartError::Outcome);
        assert!(Start::try_from(report()).is_ok());
    }

    #[test]
    fn names_that_a_pod_makes_up_become_one_label() {
        let mut registry = Registry::default();
        let metrics = StartMetrics::register(&mut registry);
        for made_up in ["x\"} 1\nwarmd_starts_total 99", "y", ""] {
            let mut report = report();
            made_up.clone_into(&mut report.families[0].family);
            metrics.count(&Start::try_from(report).unwrap());
        }
        let text = crate::telemetry::encode(&registry);
        assert!(text.contains(r#"warmd_start_entries_total{family="other",result="Installed"} 57"#), "{text}");
        assert!(!text.contains("} 1\nwarmd") && !text.contains("99"), "{text}");
    }

    #[test]
    fn a_start_that_did_not_become_ready_has_no_time_of_readiness() {
        let mut registry = Registry::default();
        let metrics = StartMetrics::register(&mut registry);
        let crashed = pb::StartReport {
            outcome: pb::StartOutcome::Crashed.into(),
            ready_seconds: 0.0,
            hook_seconds: 31.0,
            ..report()
        };
        metrics.count(&Start::try_from(crashed).unwrap());
        let text = crate::telemetry::encode(&registry);
        assert!(text.contains("warmd_start_ready_seconds_count 0"), "{text}");
        assert!(text.contains("warmd_starts_over_budget_total 1"), "{text}");
    }
}
