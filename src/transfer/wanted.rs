//! What this node fetches, as far as its serving half needs to know it: who asks here for a manifest that is on its way may
//! wait for it, and who asks for what this node wants, too, can be asked in turn. Bounded; names are hints.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
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

    pub(super) fn begin(&self, artifact: ArtifactId, now: Instant) {
        let mut wants = self.wants();
        if wants.len() >= MAX_ARTIFACTS && !wants.contains_key(&artifact) {
            wants.retain(|_, want| !want.is_old(now));
        }
        if wants.len() < MAX_ARTIFACTS || wants.contains_key(&artifact) {
            wants.entry(artifact).or_insert_with(|| Want { since: now, met: Vec::new() }).since = now;
        }
    }

    pub(super) fn end(&self, artifact: &ArtifactId) {
        self.wants().remove(artifact);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    fn neighbour(seed: u8) -> Neighbour {
        Neighbour { node: PrivateKey::from_seed(seed).node_id(), endpoint: "10.0.0.1:4780".parse().unwrap() }
    }

    #[test]
    fn who_asks_for_what_is_wanted_here_is_told_to_the_fetch_once() {
        let (wanted, id, now) = (Wanted::default(), ArtifactId::of(b"a"), Instant::now());
        wanted.meet(&id, neighbour(1));
        assert_eq!(wanted.take_met(&id), [], "not wanted yet");
        wanted.begin(id, now);
        [1, 2, 1].into_iter().for_each(|seed| wanted.meet(&id, neighbour(seed)));
        assert_eq!(wanted.take_met(&id), [neighbour(1), neighbour(2)]);
        assert_eq!(wanted.take_met(&id), []);
        (0..=u8::MAX).for_each(|seed| wanted.meet(&id, neighbour(seed)));
        assert_eq!(wanted.take_met(&id).len(), MAX_MET);
        wanted.end(&id);
        wanted.meet(&id, neighbour(1));
        assert_eq!(wanted.take_met(&id), []);
    }

    #[test]
    fn what_is_wanted_comes_soon_until_it_has_taken_long_and_the_table_is_bounded() {
        let (wanted, now) = (Wanted::default(), Instant::now());
        let id = |n: usize| ArtifactId::of(&n.to_be_bytes());
        (0..=MAX_ARTIFACTS).for_each(|n| wanted.begin(id(n), now));
        assert!(wanted.comes_soon(&id(0), now) && !wanted.comes_soon(&id(MAX_ARTIFACTS), now));
        assert!(!wanted.comes_soon(&id(0), now + SOON));
        wanted.begin(id(MAX_ARTIFACTS), now + SOON);
        assert!(wanted.comes_soon(&id(MAX_ARTIFACTS), now + SOON), "the old ones made room");
    }
}
