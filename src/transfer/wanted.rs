//! What this node fetches, as far as its serving half needs to know it: who asks here for a manifest that is on its way may
//! wait for it, and who asks for what this node wants, too, can be asked in turn. Bounded; names are hints.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::digest::ArtifactId;
use crate::protocol::peer::Neighbour;

const MAX_ARTIFACTS: usize = 256;

/// Neighbours of one artifact that the fetch has not taken over yet.
const MAX_MET: usize = 16;

/// What is wanted for longer is not waited for.
const SOON: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct Wanted(Mutex<HashMap<ArtifactId, Want>>);

#[derive(Debug)]
struct Want {
    since: Instant,
    /// Searches and fetches that are under way.
    running: u32,
    met: Vec<Neighbour>,
}

impl Want {
    fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= SOON
    }
}

impl Wanted {
    fn wants(&self) -> MutexGuard<'_, HashMap<ArtifactId, Want>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wanted until what is returned is dropped. Where there are too many, nobody hears of it.
    pub(super) fn begin(self: &Arc<Self>, artifact: ArtifactId, now: Instant) -> Option<Wanting> {
        let mut wants = self.wants();
        wants.retain(|_, want| want.running > 0 || !want.is_old(now));
        if wants.len() >= MAX_ARTIFACTS && !wants.contains_key(&artifact) {
            return None;
        }
        let want = wants.entry(artifact).or_insert_with(|| Want { since: now, running: 0, met: Vec::new() });
        want.since = now;
        want.running += 1;
        Some(Wanting { wanted: self.clone(), artifact, goes_on: false })
    }

    fn end(&self, artifact: &ArtifactId, goes_on: bool) {
        let mut wants = self.wants();
        if let Some(want) = wants.get_mut(artifact) {
            want.running = want.running.saturating_sub(1);
            if want.running == 0 && !goes_on {
                wants.remove(artifact);
            }
        }
    }

    /// It is looked for, and not for long.
    pub(super) fn comes_soon(&self, artifact: &ArtifactId, now: Instant) -> bool {
        self.wants().get(artifact).is_some_and(|want| !want.is_old(now))
    }

    /// `neighbour` fetches the artifact.
    pub(super) fn meet(&self, artifact: &ArtifactId, neighbour: Neighbour) {
        if let Some(want) = self.wants().get_mut(artifact)
            && want.met.len() < MAX_MET
            && want.met.iter().all(|met| met.node != neighbour.node)
        {
            want.met.push(neighbour);
        }
    }

    /// Those met since this was last asked.
    pub(super) fn take_met(&self, artifact: &ArtifactId) -> Vec<Neighbour> {
        self.wants().get_mut(artifact).map(|want| std::mem::take(&mut want.met)).unwrap_or_default()
    }
}

/// A search or a fetch that is under way.
#[derive(Debug)]
pub(super) struct Wanting {
    wanted: Arc<Wanted>,
    artifact: ArtifactId,
    goes_on: bool,
}

impl Wanting {
    /// The manifest is here and the chunks are fetched next: still wanted, but no longer than a while.
    pub(super) fn goes_on(mut self) {
        self.goes_on = true;
    }
}

impl Drop for Wanting {
    fn drop(&mut self) {
        self.wanted.end(&self.artifact, self.goes_on);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    fn neighbour(seed: u8) -> Neighbour {
        Neighbour { node: PrivateKey::from_seed(seed).node_id(), endpoint: "10.0.0.1:4780".parse().unwrap() }
    }

    #[test]
    fn who_asks_for_what_is_wanted_here_is_told_to_the_fetch_once() {
        let (wanted, id, now) = (Arc::new(Wanted::default()), ArtifactId::of(b"a"), Instant::now());
        wanted.meet(&id, neighbour(1));
        assert_eq!(wanted.take_met(&id), [], "not wanted yet");
        let wanting = wanted.begin(id, now);
        [1, 2, 1].into_iter().for_each(|seed| wanted.meet(&id, neighbour(seed)));
        assert_eq!(wanted.take_met(&id), [neighbour(1), neighbour(2)]);
        assert_eq!(wanted.take_met(&id), []);
        (0..=u8::MAX).for_each(|seed| wanted.meet(&id, neighbour(seed)));
        assert_eq!(wanted.take_met(&id).len(), MAX_MET);
        drop(wanting);
        wanted.meet(&id, neighbour(1));
        assert_eq!(wanted.take_met(&id), []);
    }

    #[test]
    fn what_is_wanted_comes_soon_until_it_has_taken_long() {
        let (wanted, now) = (Arc::new(Wanted::default()), Instant::now());
        let id = ArtifactId::of(b"a");
        let _wanting = wanted.begin(id, now);
        assert!(wanted.comes_soon(&id, now) && !wanted.comes_soon(&id, now + SOON));
    }

    #[test]
    fn the_table_is_bounded_and_never_forgets_what_is_under_way() {
        let (wanted, now) = (Arc::new(Wanted::default()), Instant::now());
        let id = |n: usize| ArtifactId::of(&n.to_be_bytes());
        let mut running: Vec<_> = (0..MAX_ARTIFACTS).map(|n| wanted.begin(id(n), now).unwrap()).collect();
        assert!(wanted.begin(id(MAX_ARTIFACTS), now + SOON).is_none());
        wanted.meet(&id(0), neighbour(1));
        assert_eq!(wanted.take_met(&id(0)), [neighbour(1)], "however long it takes");
        running.pop().unwrap().goes_on();
        assert!(wanted.begin(id(MAX_ARTIFACTS), now).is_none(), "its fetch is about to begin");
        assert!(wanted.begin(id(MAX_ARTIFACTS), now + SOON).is_some(), "its fetch never began");
    }

    #[test]
    fn what_two_want_is_wanted_until_both_have_ended() {
        let (wanted, id, now) = (Arc::new(Wanted::default()), ArtifactId::of(b"a"), Instant::now());
        let (search, fetch) = (wanted.begin(id, now), wanted.begin(id, now));
        drop(search);
        assert!(wanted.comes_soon(&id, now));
        drop(fetch);
        assert!(!wanted.comes_soon(&id, now) && wanted.wants().is_empty());
    }
}
