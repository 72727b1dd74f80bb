//! What starts of engines on this node were like, as their pods report it, for `/metrics` and for the node's own report. A
//! pod is not trusted: a number that cannot be is refused with the whole report, and labels come from closed sets.

mod history;
mod report;

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

pub(super) use self::history::History;
use self::report::FamilyStart;
pub(super) use self::report::Start;
use crate::caches::FamilyName;
use crate::telemetry::{Registry, label, labels};

label! {
    enum Outcome {
        Ready,
        Crashed,
        Clean,
        Unknown,
    }
}

label! {
    /// What a start found of a family before its engine began.
    enum Verdict {
        Installed,
        /// It was in the cache root already.
        Existing,
        NotOffered,
        NoneFound,
        Transient,
        NoSpace,
        Untrusted,
        Incompatible,
        Quarantined,
    }
}

label! {
    enum Found {
        Hit,
        Miss,
    }
}

label! {
    /// Why a negative marker was left.
    enum Class {
        NoneFound,
        Transient,
        NoSpace,
        Untrusted,
        Incompatible,
        Quarantined,
    }
}

label! {
    /// What a negative marker did.
    enum Marked {
        /// An attempt failed and left it.
        Written,
        /// It spared an attempt.
        Obeyed,
    }
}

impl Verdict {
    fn found(self) -> Found {
        match self {
            Self::Installed | Self::Existing => Found::Hit,
            _ => Found::Miss,
        }
    }

    /// Of the marker that an attempt with this end leaves, if it leaves one.
    fn class(self) -> Option<Class> {
        match self {
            Self::Installed | Self::Existing | Self::NotOffered => None,
            Self::NoneFound => Some(Class::NoneFound),
            Self::Transient => Some(Class::Transient),
            Self::NoSpace => Some(Class::NoSpace),
            Self::Untrusted => Some(Class::Untrusted),
            Self::Incompatible => Some(Class::Incompatible),
            Self::Quarantined => Some(Class::Quarantined),
        }
    }
}

label! {
    enum Artifacts {
        Offered,
        Quarantined,
    }
}

label! {
    enum Entries {
        Installed,
        Existing,
        Made,
        Used,
    }
}

labels! {
    struct OutcomeLabel {
        outcome: Outcome,
    }
}

labels! {
    struct FamilyLabel {
        family: FamilyName,
    }
}

labels! {
    struct ArtifactLabels {
        family: FamilyName,
        result: Artifacts,
    }
}

labels! {
    struct LookLabels {
        family: FamilyName,
        result: Found,
        reason: Verdict,
    }
}

labels! {
    struct MarkerLabels {
        class: Class,
        event: Marked,
    }
}

labels! {
    struct EntryLabels {
        family: FamilyName,
        result: Entries,
    }
}

/// Sums over all starts.
#[derive(Debug, Clone)]
pub(super) struct StartMetrics {
    starts: Family<OutcomeLabel, Counter>,
    over_budget: Counter,
    ready: Histogram,
    hook: Histogram,
    looks: Family<LookLabels, Counter>,
    markers: Family<MarkerLabels, Counter>,
    artifacts: Family<ArtifactLabels, Counter>,
    entries: Family<EntryLabels, Counter>,
    saved: Family<FamilyLabel, Counter<f64, AtomicU64>>,
}

impl StartMetrics {
    pub(super) fn register(r: &mut Registry) -> Self {
        // 1 s to 68 min, and 50 ms to 102 s.
        let (ready, hook) = (exponential_buckets(1.0, 2.0, 13), exponential_buckets(0.05, 2.0, 12));
        Self {
            starts: r.add("warmd_starts_total", "Starts of engines by how they ended"),
            over_budget: r.add("warmd_starts_over_budget_total", "Starts for which warmd took longer than its budget"),
            ready: r.insert(
                "warmd_start_ready_seconds",
                "Time from the start of an engine until it was ready",
                Histogram::new(ready),
            ),
            hook: r.insert(
                "warmd_start_hook_seconds",
                "Time that warmd took before an engine was started",
                Histogram::new(hook),
            ),
            looks: r.add("warmd_start_families_total", "Families that starts have looked for: hit or miss, and why"),
            markers: r.add(
                "warmd_start_negative_markers_total",
                "Failed attempts that starts have left a marker of, and attempts that a marker has spared, by class",
            ),
            artifacts: r
                .add("warmd_start_artifacts_total", "Artifacts that starts were offered, and those in quarantine"),
            entries: r.add("warmd_start_entries_total", "Cache entries by what starts did with them"),
            saved: r.add(
                "warmd_start_saved_seconds_total",
                "Compilation that starts were spared, by its publishers' measure",
            ),
        }
    }

    pub(super) fn count(&self, start: &Start) {
        self.starts.get_or_create(&OutcomeLabel { outcome: start.outcome }).inc();
        self.over_budget.inc_by(u64::from(start.hook > start.budget));
        self.hook.observe(start.hook.as_secs_f64());
        if let Some(ready) = start.ready {
            self.ready.observe(ready.as_secs_f64());
        }
        for FamilyStart { family, artifacts, entries, saved, verdict, remembered, .. } in &start.families {
            let family = *family;
            if let Some(reason) = *verdict {
                self.looked(family, reason, *remembered);
            }
            for (result, count) in *artifacts {
                self.artifacts.get_or_create(&ArtifactLabels { family, result }).inc_by(count.into());
            }
            for (result, count) in *entries {
                self.entries.get_or_create(&EntryLabels { family, result }).inc_by(count.into());
            }
            self.saved.get_or_create(&FamilyLabel { family }).inc_by(saved.as_secs_f64());
        }
    }

    fn looked(&self, family: FamilyName, reason: Verdict, remembered: bool) {
        self.looks.get_or_create(&LookLabels { family, result: reason.found(), reason }).inc();
        if let Some(class) = reason.class() {
            let event = if remembered { Marked::Obeyed } else { Marked::Written };
            self.markers.get_or_create(&MarkerLabels { class, event }).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::report::StartError;
    use super::*;
    use crate::protocol::agent::MAX_START_COUNT;
    use crate::protocol::pb;

    fn report() -> pb::StartReport {
        let family = pb::FamilyStart { family: "vllm-aot".to_owned(), installed: 19, ..Default::default() };
        pb::StartReport {
            outcome: pb::StartOutcome::Ready.into(),
            ready_seconds: 19.1,
            hook_seconds: 1.0,
            budget_seconds: 30.0,
            families: vec![family],
            artifacts: Vec::new(),
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
        assert_eq!(refused(|report| report.families[0].used = MAX_START_COUNT + 1), StartError::Count("used"));
        assert_eq!(refused(|report| report.families = vec![Default::default(); 65]), StartError::Families);
        assert_eq!(refused(|report| report.outcome = 0), StartError::Outcome);
        let artifact = pb::StartArtifact { artifact_id: vec![7; 32].into(), signers: vec![vec![7; 32].into()] };
        let short = pb::StartArtifact { artifact_id: vec![7; 31].into(), ..artifact.clone() };
        for artifacts in [vec![artifact; 513], vec![short]] {
            assert_eq!(refused(|report| report.artifacts = artifacts), StartError::Artifacts);
        }
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
        assert!(text.contains(r#"warmd_start_entries_total{family="other",result="installed"} 57"#), "{text}");
        assert!(!text.contains("} 1\nwarmd") && !text.contains("99"), "{text}");
    }

    #[test]
    fn a_family_is_a_hit_or_a_miss_with_its_reason_and_a_marker_is_written_or_obeyed() {
        let mut registry = Registry::default();
        let metrics = StartMetrics::register(&mut registry);
        for (verdict, remembered) in [
            (pb::StartVerdict::Installed, false),
            (pb::StartVerdict::NotOffered, false),
            (pb::StartVerdict::Untrusted, false),
            (pb::StartVerdict::Untrusted, true),
        ] {
            let mut report = report();
            (report.families[0].verdict, report.families[0].remembered) = (verdict.into(), remembered);
            metrics.count(&Start::try_from(report).unwrap());
        }
        assert_eq!(refused(|report| report.families[0].verdict = 99), StartError::Verdict);
        let text = crate::telemetry::encode(&registry);
        for line in [
            r#"warmd_start_families_total{family="vllm-aot",result="hit",reason="installed"} 1"#,
            r#"warmd_start_families_total{family="vllm-aot",result="miss",reason="not_offered"} 1"#,
            r#"warmd_start_families_total{family="vllm-aot",result="miss",reason="untrusted"} 2"#,
            r#"warmd_start_negative_markers_total{class="untrusted",event="written"} 1"#,
            r#"warmd_start_negative_markers_total{class="untrusted",event="obeyed"} 1"#,
            r#"warmd_start_negative_markers_total{class="no_space",event="written"} 0"#,
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
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
