//! What came of the artifacts that pods of this node have asked for, and why manifests were not taken.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::Failed;
use crate::caches::FamilyName;
use crate::telemetry::{Registry, label, labels};

label! {
    pub(in crate::agent) enum Outcome {
        /// It was here already.
        Here,
        Fetched,
        NoneFound,
        NoSpace,
        Untrusted,
        Transient,
    }
}

label! {
    pub(super) enum Refusal {
        /// The trust policy does not take its signers, or there is no policy.
        Policy,
        Malformed,
        /// A holder or the origin sent another one than was asked for.
        OtherArtifact,
        /// It is of another identity than the directory has said.
        OtherIdentity,
    }
}

labels! {
    struct OutcomeLabels {
        family: FamilyName,
        outcome: Outcome,
    }
}

labels! {
    struct RefusalLabel {
        reason: Refusal,
    }
}

/// Of one agent.
#[derive(Debug, Clone)]
pub(in crate::agent) struct FetchingMetrics {
    wanted: Family<OutcomeLabels, Counter>,
    refused: Family<RefusalLabel, Counter>,
}

impl FetchingMetrics {
    pub(in crate::agent) fn register(r: &mut Registry) -> Self {
        Self {
            wanted: r.add(
                "warmd_wanted_artifacts_total",
                "Artifacts that processes of this node have asked for, by family and what came of it",
            ),
            refused: r.add("warmd_manifests_refused_total", "Manifests that were not taken, by reason"),
        }
    }

    pub(in crate::agent) fn count(&self, family: &str, outcome: Outcome) {
        self.wanted.get_or_create(&OutcomeLabels { family: FamilyName::of(family), outcome }).inc();
    }

    pub(super) fn refuse(&self, reason: Refusal) {
        self.refused.get_or_create(&RefusalLabel { reason }).inc();
    }
}

impl From<&Failed> for Outcome {
    fn from(failed: &Failed) -> Self {
        match failed.class {
            "none-found" => Self::NoneFound,
            "no-space" => Self::NoSpace,
            "untrusted" => Self::Untrusted,
            _ => Self::Transient,
        }
    }
}
