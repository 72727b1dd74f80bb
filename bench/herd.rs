//! A herd: many cold nodes want one artifact that one node has. A discrete-event simulation with the real decisions
//! (`transfer::plan`, `transfer::Search`, `transfer::Desk`, `metadata::registry`, and the pauses of the agents) over a
//! modelled network. No clock, no threads: a seed gives the same run each time.
//!
//! Modelled: network cards ([`network`]), latency by distance, handshakes one after the other at whoever accepts them, a
//! metadata server that answers one call after the other, nodes that die without a word, nodes with a slow card. Not
//! modelled: loss and the start of congestion control, disks, and CPU beyond what is named here.

#[path = "herd/agent.rs"]
mod agent;
#[path = "herd/directory.rs"]
mod directory;
#[path = "herd/holder.rs"]
mod holder;
#[path = "herd/network.rs"]
mod network;
#[path = "herd/world.rs"]
mod world;

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use warmd::protocol::metadata::Locality;

use world::World;

/// Node 0 has the artifact; all others want it.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Encoded bytes of each chunk, and of the envelope.
    pub(crate) chunk_lens: Vec<u32>,
    pub(crate) manifest: u64,
    pub(crate) pullers: usize,
    /// Bytes per second of each node's network card, each way.
    pub(crate) card: f64,
    /// Bytes per second of all nodes together, where they are on one machine.
    pub(crate) machine: Option<f64>,
    /// The pullers begin within this time.
    pub(crate) within: Duration,
    pub(crate) zones: usize,
    pub(crate) racks_per_zone: usize,
    /// Share of the pullers that die while they fetch.
    pub(crate) deaths: f64,
    /// Share of the pullers whose card has a tenth of the rate.
    pub(crate) stragglers: f64,
    /// Pullers serve what they have.
    pub(crate) swarming: bool,
    pub(crate) seed: u64,
}

impl Setup {
    pub(crate) fn size(&self) -> u64 {
        self.chunk_lens.iter().map(|len| u64::from(*len)).sum()
    }

    /// The time that the best schedule needs for the chunks when all cards are alike: the first holder sends one copy, and
    /// the last chunk then doubles its holders in each round (Mundinger, Weber and Weiss, 2008,
    /// doi:10.1007/s10951-007-0017-9).
    pub(crate) fn ideal(&self) -> Duration {
        let rounds = (self.pullers as f64).log2().ceil() / self.chunk_lens.len().max(1) as f64;
        Duration::from_secs_f64(self.size() as f64 * (1.0 + rounds) / self.card)
    }

    /// The first holder is well, and the shares are exact.
    fn fate(&self, node: usize, rng: &mut SmallRng) -> Fate {
        let draw: f64 = rng.random_range(0.0..1.0);
        match node {
            0 => Fate::Healthy,
            _ if draw < self.deaths => Fate::Dies,
            _ if draw < self.deaths + self.stragglers => Fate::Straggles,
            _ => Fate::Healthy,
        }
    }

    fn place(&self, node: usize) -> Locality {
        let zone = node % self.zones.max(1);
        let rack = node / self.zones.max(1) % self.racks_per_zone.max(1);
        Locality { region: "region".to_owned(), zone: format!("zone-{zone}"), rack: format!("rack-{zone}-{rack}") }
    }
}

/// What a puller was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Healthy,
    Straggles,
    Dies,
}

/// How long it took a puller, from its look-up, until it was so far; `None` if it never was.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Marks {
    pub(crate) manifest: Option<Duration>,
    pub(crate) first_chunk: Option<Duration>,
    /// Half of the chunks.
    pub(crate) half: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    /// Of each puller, and how long it took; `None` if it never had everything.
    pub(crate) pullers: Vec<(Fate, Option<Duration>)>,
    /// Of each puller.
    pub(crate) marks: Vec<Marks>,
    /// Bytes of chunks that each node sent, node 0 first; cut streams included.
    pub(crate) sent: Vec<f64>,
    /// When node 0 had sent each chunk once.
    pub(crate) seeded: Duration,
    /// Bytes of manifests that node 0 sent.
    pub(crate) manifests: u64,
    /// Bytes of chunks between zones.
    pub(crate) between_zones: f64,
    pub(crate) busy: u64,
    /// Calls to the metadata server.
    pub(crate) calls: u64,
    pub(crate) events: u64,
}

impl Outcome {
    /// Times of the healthy pullers, ascending; seconds.
    pub(crate) fn times(&self) -> Vec<f64> {
        let healthy = self.pullers.iter().filter(|(fate, _)| *fate == Fate::Healthy);
        let mut times: Vec<f64> = healthy.map(|(_, time)| time.map_or(f64::INFINITY, |t| t.as_secs_f64())).collect();
        times.sort_by(f64::total_cmp);
        times
    }

    /// The time within which this part of the healthy pullers is done, seconds.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let times = self.times();
        let at = (times.len() as f64 * part).ceil() as usize;
        times.get(at.clamp(1, times.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
    }

    /// When the last healthy puller was so far, seconds.
    pub(crate) fn last(&self, mark: impl Fn(&Marks) -> Option<Duration>) -> f64 {
        let healthy = self.pullers.iter().zip(&self.marks).filter(|((fate, _), _)| *fate == Fate::Healthy);
        healthy.map(|(_, marks)| mark(marks).map_or(f64::INFINITY, |t| t.as_secs_f64())).fold(0.0, f64::max)
    }

    /// The longest that a node with a slow card took, seconds; 0 without any.
    pub(crate) fn slowest_straggler(&self) -> f64 {
        let slow = self.pullers.iter().filter(|(fate, _)| *fate == Fate::Straggles);
        slow.map(|(_, time)| time.map_or(f64::INFINITY, |t| t.as_secs_f64())).fold(0.0, f64::max)
    }

    /// Pullers that live and never had everything.
    pub(crate) fn failed(&self) -> usize {
        self.pullers.iter().filter(|(fate, time)| *fate != Fate::Dies && time.is_none()).count()
    }
}

/// Runs until every living puller has everything, or for ten simulated minutes.
pub(crate) fn run(setup: &Setup) -> Outcome {
    World::new(setup).run()
}
