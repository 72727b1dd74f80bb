//! A family as a label of metrics.

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

use super::CacheFamily;
use crate::telemetry::Label;

/// All families that this build does not know.
const OTHER: &str = "other";

/// The name of a family, from a closed set: names come from manifests and pods, and have no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FamilyName(&'static str);

impl FamilyName {
    pub fn of(name: &str) -> Self {
        Self(CacheFamily::by_name(name).map_or(OTHER, |family| family.name))
    }
}

impl Label for FamilyName {
    /// A node sees a few of them.
    const AT_FIRST: bool = false;

    fn all() -> Vec<Self> {
        CacheFamily::all().iter().map(|family| family.name).chain([OTHER]).map(Self).collect()
    }

    fn text(&self) -> String {
        self.0.to_owned()
    }
}

impl EncodeLabelValue for FamilyName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}
