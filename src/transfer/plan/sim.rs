//! A discrete-event simulation of many nodes that fetch one artifact with real plans over a simple network.
//!
//! Each node has an uplink that serves its streams in turn, segment by segment, and a downlink with a queue; a stream stops
//! when too much of it is under way. Holders have upload slots and say Busy beyond them. No clock, no threads: a seed gives
//! the same run each time.

mod wire;
mod world;

use std::time::Duration;

use crate::identity::NodeId;

use super::PlanConfig;
use world::World;

/// What is wrong with a node, from the moment it has sent so many bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    /// It disappears and its connections break.
    Dies { after: u64 },
    /// It keeps its connections and sends nothing.
    Stalls { after: u64 },
    /// Each chunk from there on has wrong bytes.
    Lies { after: u64 },
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Bytes per second.
    pub(super) up: f64,
    pub(super) down: f64,
    pub(super) slots: usize,
    /// Has everything from the beginning; otherwise it fetches.
    pub(super) full: bool,
    pub(super) starts: Duration,
    pub(super) fault: Option<Fault>,
}

#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) chunk_lens: Vec<u32>,
    pub(super) nodes: Vec<Node>,
    /// One way.
    pub(super) latency: Duration,
    /// From the first verified chunk of a node until others hear of it.
    pub(super) discovery: Duration,
    /// How many others hear of a node.
    pub(super) fan_out: usize,
    pub(super) retry_after: Duration,
    pub(super) config: PlanConfig,
    pub(super) seed: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// When each node had everything; `None` if it never did. Holders from the beginning: zero.
    pub(super) finished: Vec<Option<Duration>>,
    /// Chunk bytes that each node sent, and received.
    pub(super) sent: Vec<u64>,
    pub(super) received: Vec<u64>,
    /// Encoded bytes of the artifact.
    pub(super) size: u64,
    /// Requests and chunk indices in them, over all nodes.
    pub(super) requests: usize,
    pub(super) indices: usize,
    /// Most streams that one node had open at once.
    pub(super) most_streams: usize,
}

impl Outcome {
    pub(super) fn all_finished(&self) -> bool {
        self.finished.iter().all(Option::is_some)
    }

    /// Of those that fetched, in seconds.
    pub(super) fn times(&self) -> Vec<f64> {
        let times = self.finished.iter().flatten().map(Duration::as_secs_f64);
        times.filter(|time| *time > 0.0).collect()
    }

    pub(super) fn slowest(&self) -> f64 {
        self.times().into_iter().fold(0.0, f64::max)
    }

    pub(super) fn mean(&self) -> f64 {
        self.times().iter().sum::<f64>() / self.times().len().max(1) as f64
    }

    /// Copies of the artifact that the node sent.
    pub(super) fn copies(&self, node: usize) -> f64 {
        self.sent[node] as f64 / self.size as f64
    }
}

/// Runs until every node has everything or nothing happens any more. `ids` gives each node its id.
pub(super) fn run(setup: &Setup, ids: impl Fn(usize) -> NodeId) -> Outcome {
    World::new(setup, ids).run()
}
