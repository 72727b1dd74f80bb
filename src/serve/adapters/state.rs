//! Words for where an adapter is.

use serde::Serialize;

use crate::telemetry::label;

label! {
    /// Of an alias, as clients and operators see it.
    #[derive(PartialOrd, Ord, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum State {
        /// Wanted, and not found in the fleet so far; or known, and never loaded.
        Absent,
        /// Waits for its turn.
        Queued,
        Fetching,
        Checking,
        Preparing,
        /// On disk, and not wanted in the engine.
        Prepared,
        Registering,
        Ready,
        /// No new request gets it; it is leaving the engine.
        Draining,
        /// Left this node; somebody else has it.
        Offloaded,
        Failed,
    }
}

impl State {
    pub(super) const ALL: [Self; 11] = [
        Self::Absent,
        Self::Queued,
        Self::Fetching,
        Self::Checking,
        Self::Preparing,
        Self::Prepared,
        Self::Registering,
        Self::Ready,
        Self::Draining,
        Self::Offloaded,
        Self::Failed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Queued => "queued",
            Self::Fetching => "fetching",
            Self::Checking => "checking",
            Self::Preparing => "preparing",
            Self::Prepared => "prepared",
            Self::Registering => "registering",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Offloaded => "offloaded",
            Self::Failed => "failed",
        }
    }
}

label! {
    /// Why an adapter left.
    pub(super) enum Eviction {
        /// A newer version is served.
        Superseded,
        Idle,
        Quota,
        Operator,
    }
}

/// Where one version is, as far as the engine goes. Times are the table's turns, which tell any two changes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The engine has not got it since then.
    Disk {
        since: u64,
    },
    Registering {
        epoch: u64,
    },
    /// The engine has had it since then.
    Ready {
        epoch: u64,
        since: u64,
    },
    Unregistering {
        epoch: u64,
    },
}

impl Place {
    pub(super) fn is_ready(&self, epoch: Option<u64>) -> bool {
        matches!(self, Self::Ready { epoch: ours, .. } if Some(*ours) == epoch)
    }
}
