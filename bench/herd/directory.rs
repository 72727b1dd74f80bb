//! The metadata server: the real registry behind a queue.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use warmd::digest::{ArtifactId, ContentId, IdentityId, KeyId};
use warmd::identity::{NodeId, UnixTime};
use warmd::metadata::registry::{Config, Herds, Registry};
use warmd::protocol::metadata::{
    Announcement, Endpoint, Epoch, Held, HolderInfo, Load, Locality, Lookup, NodeState, ServerEpoch, Summary,
};

/// One call, everything included. `cargo bench -- metadata` measures more than 20,000 look-ups a second on two cores, those
/// of the clients included: at most 0.1 ms of a core, here on one of eight cores as handshakes are.
const CALL: Duration = Duration::from_nanos(12_500);

/// Holders asked for, as the agents do.
const WANT: u32 = 16;

const EPOCH: ServerEpoch = ServerEpoch(1);

pub(super) struct Directory {
    registry: Registry,
    herds: Herds,
    summary: Arc<Summary>,
    free_at: Duration,
    rng: SmallRng,
    pub(super) calls: u64,
}

impl Directory {
    pub(super) fn new(chunks: u32, seed: u64) -> Self {
        let summary = Summary {
            artifact: ArtifactId::of(b"herd"),
            identity: IdentityId::of(b"herd"),
            content: ContentId::of(b"herd"),
            family: warmd::artifact::Family::directory(),
            subject: "".into(),
            generation: 1,
            created: UnixTime::from_seconds(1),
            size: 1,
            wire_size: 1,
            files: 1,
            chunks,
            signer: KeyId::of(b"herd"),
            compile_ms: 0,
        };
        let registry = Registry::new(Config::default(), EPOCH);
        let rng = SmallRng::seed_from_u64(seed);
        Self { registry, herds: Herds::default(), summary: Arc::new(summary), free_at: Duration::ZERO, rng, calls: 0 }
    }

    pub(super) fn artifact(&self) -> ArtifactId {
        self.summary.artifact
    }

    /// The herd begins: what was told before cost nothing.
    pub(super) fn open(&mut self) {
        (self.free_at, self.calls) = (Duration::ZERO, 0);
    }

    /// When a call that comes now is answered.
    fn turn(&mut self, now: Duration) -> Duration {
        self.calls += 1;
        self.free_at = self.free_at.max(now) + CALL;
        self.free_at
    }

    pub(super) fn announce(
        &mut self,
        node: NodeId,
        locality: &Arc<Locality>,
        sequence: u64,
        load: (u32, u32),
        chunks_held: u32,
        now: Duration,
    ) {
        let at = self.turn(now);
        let held = Held { artifact: self.summary.clone(), chunks_held };
        // A node that has just started has nothing and says so.
        let held = if chunks_held > 0 { vec![held] } else { Vec::new() };
        let endpoint: Option<Endpoint> = "10.0.0.1:4780".parse().ok();
        let told = Announcement {
            node,
            epoch: Epoch(1),
            sequence,
            state: NodeState::Ready,
            endpoints: endpoint.into_iter().collect(),
            load: Load { uploads: load.0, upload_slots: load.1 },
            locality: locality.clone(),
            held,
            full: sequence == 1,
            server_epoch: Some(EPOCH),
        };
        // Two messages of one node never overtake each other here, so nothing is refused.
        let taken = self.registry.announce(&told, at);
        debug_assert!(taken.is_ok(), "{taken:?}");
        self.registry.take_changes();
    }

    /// The answer, and when it is sent.
    pub(super) fn lookup(&mut self, by: NodeId, near: &Locality, now: Duration) -> (Duration, Vec<HolderInfo>) {
        let at = self.turn(now);
        let lookup =
            Lookup { identities: vec![self.summary.identity], want: Some(WANT), near: near.clone(), exclude: vec![by] };
        let mut found = self.registry.lookup(&lookup, at, &mut self.rng);
        self.herds.join(&self.registry, &lookup, by, &mut found, at, &mut self.rng);
        (at, found.offers.into_iter().flat_map(|offer| offer.holders).collect())
    }
}

/// Ids of nodes: any bytes that are a public key.
pub(super) fn node_ids(count: usize, rng: &mut SmallRng) -> Vec<NodeId> {
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        ids.extend(NodeId::from_bytes(&bytes).ok());
    }
    ids
}
