//! The lease registry: a pure state machine. `now` is the time since the server started; no I/O, no clock, no randomness
//! of its own.
//!
//! ```text
//! INITIALIZING -> READY <-> DRAINING -> STALE        of one (node, epoch); every state may go to STALE, none leaves it
//! ```
//!
//! A node is offered while it is READY and its lease runs. A lapsed lease only hides what the node holds: its next message
//! brings all of it back, so a partition costs no re-announcement. After `forget` a lapsed or STALE node is removed. A higher
//! epoch of a node replaces everything of the lower, a lower one is refused. A full table is an error for whoever comes
//! last; nobody's entries are evicted for another's.
//!
//! Where several servers share a store, each has a registry that does the same: [`Registry::decide`] checks a change, the
//! store gives it its place in the order of all changes, [`Registry::apply`] does it everywhere.

mod herd;
mod nodes;
mod order;
mod query;
mod sample;
mod slab;
mod table;
mod view;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::digest::{ArtifactId, IdentityId};
use crate::identity::NodeId;
use crate::protocol::metadata::{Epoch, NodeState, ServerEpoch};
pub use herd::Herds;
use nodes::Node;
pub use order::{Change, Decision, Version};
use slab::Slab;
use table::Table;
pub use view::Lease;

/// Times and bounds of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How often nodes renew.
    pub heartbeat: Duration,
    /// How long a node is offered without renewing.
    pub lease: Duration,
    /// How long a lapsed or STALE node is remembered.
    pub forget: Duration,
    pub max_nodes: usize,
    pub max_artifacts_per_node: usize,
    /// (node, artifact) pairs in all; bounds memory, at about 100 bytes each and 400 for each distinct artifact.
    pub max_holdings: usize,
    pub max_identities: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            lease: Duration::from_secs(30),
            forget: Duration::from_secs(3600),
            max_nodes: 20_000,
            max_artifacts_per_node: 10_000,
            max_holdings: 1_000_000,
            max_identities: 200_000,
        }
    }
}

/// Why a message was not taken. Nothing of it was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("epoch {} of this node is over: the server knows epoch {}", .told.0, .known.0)]
    OldEpoch { told: Epoch, known: Epoch },
    #[error("this epoch of the node ended with STALE")]
    Ended,
    #[error("a node that is {from:?} cannot become {to:?}")]
    Transition { from: NodeState, to: NodeState },
    #[error("message {told} was overtaken by message {known}")]
    Overtaken { told: u64, known: u64 },
    #[error("no room: at most {limit} {what}")]
    Full { what: &'static str, limit: usize },
}

/// A holder of an artifact began or ceased to be offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub identity: IdentityId,
    pub artifact: ArtifactId,
    pub node: NodeId,
    pub added: bool,
}

/// What happened since it was last asked for, in order.
#[derive(Debug, Default)]
pub struct Changes {
    pub events: Vec<Event>,
    /// Nodes and holdings that are new, worth remembering afresh, or gone.
    pub nodes: Vec<NodeId>,
    pub holdings: Vec<(NodeId, ArtifactId)>,
    /// Nodes whose lease ran out, and those that came back.
    pub lapsed: Vec<NodeId>,
    pub returned: Vec<NodeId>,
    /// Of artifacts whose holders are others than before.
    pub identities: Vec<IdentityId>,
}

/// Sizes of the tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub initializing: usize,
    pub ready: usize,
    pub draining: usize,
    pub stale: usize,
    /// Nodes whose lease ran out.
    pub lapsed: usize,
    pub artifacts: usize,
    pub identities: usize,
    pub holdings: usize,
}

impl Counts {
    pub fn live_nodes(&self) -> usize {
        self.initializing + self.ready + self.draining
    }
}

/// Who holds what.
#[derive(Debug)]
pub struct Registry {
    config: Config,
    server_epoch: ServerEpoch,
    by_id: HashMap<NodeId, u32>,
    nodes: Slab<Node>,
    /// When something is to be done about a node: its lease lapses, or it is forgotten.
    deadlines: BTreeSet<(Duration, u32)>,
    table: Table,
    changes: Changes,
    /// Nodes are forgotten only when the order of changes says so.
    shared: bool,
}

impl Registry {
    pub fn new(config: Config, server_epoch: ServerEpoch) -> Self {
        Self {
            config,
            server_epoch,
            by_id: HashMap::new(),
            nodes: Slab::default(),
            deadlines: BTreeSet::new(),
            table: Table::default(),
            changes: Changes::default(),
            shared: false,
        }
    }

    /// One of several that apply the same changes.
    pub fn shared(config: Config, server_epoch: ServerEpoch) -> Self {
        Self { shared: true, ..Self::new(config, server_epoch) }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn server_epoch(&self) -> ServerEpoch {
        self.server_epoch
    }

    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Walks all nodes: for gauges, not for requests.
    pub fn counts(&self, now: Duration) -> Counts {
        let mut counts = Counts {
            artifacts: self.table.artifacts(),
            identities: self.table.identities(),
            holdings: self.table.holdings(),
            ..Counts::default()
        };
        for (_, node) in self.nodes.iter() {
            *match node.state {
                NodeState::Stale => &mut counts.stale,
                _ if node.lease_ends <= now => &mut counts.lapsed,
                NodeState::Initializing => &mut counts.initializing,
                NodeState::Ready => &mut counts.ready,
                NodeState::Draining => &mut counts.draining,
            } += 1;
        }
        counts
    }
}

#[cfg(test)]
pub(in crate::metadata) mod tests;
