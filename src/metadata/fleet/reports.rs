//! What nodes have told of themselves.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::identity::NodeId;
use crate::protocol::report::{NodeReport, UnixMillis};

/// The last report of a node, encoded: a tenth of what it takes up in memory otherwise.
#[derive(Debug, Clone)]
pub(in crate::metadata) struct Told {
    encoded: Bytes,
    /// Milliseconds that its clock is ahead of ours, by when it came: the way here counts as well.
    pub(in crate::metadata) skew_ms: i64,
}

impl Told {
    pub(in crate::metadata) fn new(report: &NodeReport, now: UnixMillis) -> Self {
        let ahead = i128::from(report.clock.0) - i128::from(now.0);
        let limit = i128::from(i64::MAX);
        let skew_ms = i64::try_from(ahead.clamp(-limit, limit)).unwrap_or(0);
        Self { encoded: report.encode().into(), skew_ms }
    }

    pub(super) fn report(&self) -> Option<NodeReport> {
        NodeReport::decode(&self.encoded).ok()
    }
}

/// By node; bounded by the nodes that the registry knows.
#[derive(Debug, Default)]
pub(in crate::metadata) struct Reports(Mutex<HashMap<NodeId, Told>>);

impl Reports {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Told>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::metadata) fn set(&self, node: NodeId, told: Told) {
        self.lock().insert(node, told);
    }

    pub(super) fn get(&self, node: NodeId) -> Option<Told> {
        self.lock().get(&node).cloned()
    }

    pub(in crate::metadata) fn forget(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let mut reports = self.lock();
        nodes.into_iter().for_each(|node| _ = reports.remove(&node));
    }

    pub(in crate::metadata) fn retain(&self, known: impl Fn(NodeId) -> bool) {
        self.lock().retain(|node, _| known(*node));
    }
}
