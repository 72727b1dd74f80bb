//! The serving side of a node: what `transfer::Provider` does around its desk.

use std::collections::BTreeMap;
use std::time::Duration;

use warmd::protocol::peer::Neighbour;
use warmd::transfer::plan::RequestId;
use warmd::transfer::{Ask, MANIFEST_WAIT, NotNow, What};

use super::network::{Cargo, Key};
use super::world::{Answer, Event, World};

/// How long a holder waits for news before it answers, as `transfer::Provider` does.
const HAVE_WAIT: Duration = Duration::from_millis(200);

impl World<'_> {
    fn answer(&mut self, holder: usize, to: usize, answer: Answer) {
        self.send(holder, to, Event::Answered { from: holder, answer });
    }

    /// Takes a slot for the stream.
    fn slot(&mut self, holder: usize, key: Key, what: What<'_>) -> Result<(), NotNow> {
        let now = self.instant();
        let by = self.nodes[key.0].id;
        // Addresses play no part here: nodes are found by their ids.
        let endpoint = if self.setup.swarming { "10.0.0.1:4780".parse().ok() } else { None };
        let reachable = endpoint.map(|endpoint| Neighbour { node: by, endpoint });
        let ask = Ask { artifact: self.directory.artifact(), by, reachable, what };
        let slot = self.nodes[holder].desk.ask(&ask, now, &mut self.rng)?;
        self.nodes[holder].slots.insert(key, slot);
        Ok(())
    }

    /// Gives the stream's slot back.
    pub(super) fn leave(&mut self, holder: usize, key: Key) {
        let now = self.instant();
        if let Some(slot) = self.nodes[holder].slots.remove(&key) {
            let node = &mut self.nodes[holder];
            node.queue.retain(|(waiting, _)| *waiting != key);
            node.desk.end(slot, now);
            self.take_turns(holder);
        }
    }

    fn wait_turn(&mut self, holder: usize, key: Key, parts: Vec<(u32, u64)>) {
        self.nodes[holder].queue.push((key, parts));
        self.take_turns(holder);
    }

    /// Sends what its turn has come for.
    pub(super) fn take_turns(&mut self, holder: usize) {
        let now = self.instant();
        let mut again = None;
        for (key, parts) in std::mem::take(&mut self.nodes[holder].queue) {
            let node = &mut self.nodes[holder];
            let wait = node.slots.get(&key).and_then(|slot| node.desk.begin(slot, now));
            if let Some(at) = wait {
                node.queue.push((key, parts));
                again = again.into_iter().chain([at]).min();
                continue;
            }
            if let (to, Cargo::Chunks(request)) = key {
                self.answer(holder, to, Answer::First(RequestId(request)));
            }
            self.network.open(holder, key, parts);
        }
        if let Some(at) = again {
            self.at(self.since_epoch(at), holder, Event::Turn);
        }
    }

    /// Who asks here for an artifact that this node fetches, too, is somebody to ask.
    fn meet(&mut self, holder: usize, by: usize) {
        let (now, id) = (self.instant(), self.nodes[by].id);
        if self.setup.swarming {
            self.nodes[holder].puller.meet(id, now);
        }
    }

    pub(super) fn asked_manifest(&mut self, holder: usize, by: usize) {
        if !self.nodes[holder].has_manifest {
            if !self.nodes[holder].puller.is_searching() {
                return self.answer(holder, by, Answer::NoManifest);
            }
            self.nodes[holder].manifest_for.push(by);
            return self.at(self.now + MANIFEST_WAIT, holder, Event::NoManifestYet { by });
        }
        let key = (by, Cargo::Manifest(holder));
        match self.slot(holder, key, What::Manifest) {
            Ok(()) => self.wait_turn(holder, key, vec![(0, self.setup.manifest)]),
            Err(NotNow::Busy(busy)) => {
                self.outcome.busy += 1;
                self.answer(holder, by, Answer::ManifestBusy(busy));
            }
            Err(NotNow::Given(_)) => {}
        }
    }

    pub(super) fn manifest_came(&mut self, holder: usize) {
        let waiting = std::mem::take(&mut self.nodes[holder].manifest_for);
        waiting.into_iter().for_each(|by| self.asked_manifest(holder, by));
    }

    pub(super) fn no_manifest_yet(&mut self, holder: usize, by: usize) {
        let waiting = &mut self.nodes[holder].manifest_for;
        if let Some(at) = waiting.iter().position(|other| *other == by) {
            waiting.swap_remove(at);
            self.answer(holder, by, Answer::NoManifest);
        }
    }

    pub(super) fn asked_have(&mut self, holder: usize, by: usize, known: Option<u32>) {
        self.meet(holder, by);
        let node = &mut self.nodes[holder];
        if let Some(known) = known.filter(|known| node.have.count() <= *known as usize) {
            node.listeners.insert(by, (known, self.now));
            return self.at(self.now + HAVE_WAIT, holder, Event::NoNews { by, since: self.now });
        }
        let have = node.has_manifest.then(|| node.have.clone());
        self.answer(holder, by, Answer::Have(have));
    }

    pub(super) fn tell_listeners(&mut self, holder: usize) {
        let count = self.nodes[holder].have.count();
        let (told, waiting) = std::mem::take(&mut self.nodes[holder].listeners)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, (known, _))| count > *known as usize);
        self.nodes[holder].listeners = waiting;
        told.into_keys().for_each(|by| self.asked_have(holder, by, None));
    }

    pub(super) fn no_news(&mut self, holder: usize, by: usize, since: Duration) {
        if self.nodes[holder].listeners.get(&by).is_some_and(|(_, at)| *at == since) {
            self.nodes[holder].listeners.remove(&by);
            self.asked_have(holder, by, None);
        }
    }

    pub(super) fn asked(&mut self, holder: usize, by: usize, request: RequestId, indices: &[u32], fresh: bool) {
        let node = &self.nodes[holder];
        if !indices.iter().all(|index| node.have.get(*index as usize)) {
            return self.answer(holder, by, Answer::NotFound(request));
        }
        let key = (by, Cargo::Chunks(request.0));
        let what = What::Chunks { count: self.setup.chunk_lens.len(), indices, fresh };
        let answer = match self.slot(holder, key, what) {
            Ok(()) => {
                let lens = &self.setup.chunk_lens;
                let parts = indices.iter().map(|index| (*index, u64::from(lens[*index as usize]))).collect();
                return self.wait_turn(holder, key, parts);
            }
            Err(NotNow::Busy(busy)) => {
                self.outcome.busy += 1;
                Answer::Busy(request, busy)
            }
            Err(NotNow::Given(given)) => Answer::Given(request, given),
        };
        self.answer(holder, by, answer);
    }
}
