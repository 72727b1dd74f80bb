//! What the task tells others without being asked, and what it keeps for its next life.

use std::collections::HashSet;
use std::time::Instant;

use libp2p::PeerId;

use super::super::key::{Shards, key};
use super::super::memory;
use super::super::peer::dialable;
use super::Driver;

impl Driver {
    /// Which keys this node wants to be found under; those that are gone are withdrawn.
    pub(super) fn announce(&mut self) {
        let (identities, version) = self.shared.table().announced();
        self.metrics.announced.set(identities.len() as i64);
        let shard = Shards::for_table(self.routing_table()).of(&self.node);
        let wanted = identities.iter().map(|identity| key(identity, shard)).collect();
        for gone in self.publishing.want(&wanted, Instant::now()) {
            self.swarm.behaviour_mut().kad.stop_providing(&gone.to_vec().into());
        }
        self.version = version;
    }

    pub(super) fn publish(&mut self, now: Instant) {
        while let Some(key) = self.publishing.next(now) {
            if let Err(error) = self.swarm.behaviour_mut().kad.start_providing(key.to_vec().into()) {
                tracing::warn!(%error, "announce to other agents");
                self.publishing.ended(&key, true, now, &mut rand::rng());
            }
        }
        if self.publishing.untold() == 0 {
            let version = self.version;
            self.shared.published.send_if_modified(|published| std::mem::replace(published, version) != version);
        }
    }

    /// For the next start of this node: where those are found that it is connected with.
    pub(super) fn remember(&mut self) {
        let (mut addrs, swarm) = (Vec::new(), &mut self.swarm);
        let connected: HashSet<PeerId> = swarm.connected_peers().copied().collect();
        for bucket in swarm.behaviour_mut().kad.kbuckets() {
            let entries = bucket.iter().filter(|entry| connected.contains(entry.node.key.preimage()));
            addrs.extend(entries.filter_map(|entry| dialable(entry.node.value.first())));
        }
        self.shared.met.send_if_modified(|met| memory::add(met, addrs));
    }
}
