//! What a node gives to others.

use serde::{Deserialize, Serialize};

/// `[provide]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProvideConfig {
    /// False: this node only fetches. It announces nothing, and peers are refused.
    pub enabled: bool,
    /// Chunk requests served at once; more are answered Busy.
    pub upload_slots: u32,
    /// Upload cap in bytes a second over all peers. Absent: none.
    pub max_rate: Option<u64>,
    /// The same as a share of the fastest link of this node, above 0 and at most 1; the lower of both holds.
    pub link_share: Option<f64>,
    /// Connections that peers may have open with this node.
    pub max_connections: u32,
}

impl Default for ProvideConfig {
    fn default() -> Self {
        Self { enabled: true, upload_slots: 16, max_rate: None, link_share: None, max_connections: 1024 }
    }
}
