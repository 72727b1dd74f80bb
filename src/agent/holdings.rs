//! Tells the directory what the store holds: compares the store with what was told, and tells the difference.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::directory::Directory;
use super::trust::Trust;
use crate::digest::ArtifactId;
use crate::lifecycle::Doubling;
use crate::protocol::metadata::{Held, Load, Summary};
use crate::store::{Artifact, State, Store};
use crate::transfer::Provider;

/// While something is being fetched, what is already here is told: soon at first, because others who began at the same
/// time wait for it.
pub const TELL_AGAIN: Doubling = Doubling::new(Duration::from_millis(10), Duration::from_millis(800));

/// Otherwise the store tells of its changes; this catches what it might not.
const WHEN_QUIET: Duration = Duration::from_secs(10);

pub(super) struct Holdings {
    store: Store,
    directory: Arc<Directory>,
    provider: Arc<Provider>,
    trust: Arc<Trust>,
    /// Chunks held of each artifact, as told.
    told: Mutex<HashMap<ArtifactId, u32>>,
}

impl Holdings {
    pub(super) fn new(
        store: Store,
        directory: Arc<Directory>,
        provider: Arc<Provider>,
        trust: Arc<Trust>,
    ) -> Arc<Self> {
        Arc::new(Self { store, directory, provider, trust, told: Mutex::default() })
    }

    pub(super) async fn run(self: Arc<Self>) {
        let mut changes = self.store.subscribe();
        let mut policy = self.trust.changes();
        let mut again = TELL_AGAIN;
        loop {
            let fetching = self.tell();
            if !fetching {
                again.reset();
            }
            let pause = if fetching { again.step() } else { WHEN_QUIET };
            let changed = async {
                tokio::select! {
                    changed = changes.changed() => changed,
                    changed = policy.changed() => changed,
                }
            };
            if let Ok(Err(_)) = tokio::time::timeout(pause, changed).await {
                return;
            }
        }
    }

    /// Tells at once what there is to tell, and waits until a server has taken it.
    pub(super) async fn settle(&self, deadline: Duration) {
        self.tell();
        if !self.directory.settled(deadline).await {
            tracing::warn!("nobody took the announcement yet; it is sent again until somebody does");
        }
    }

    /// True while an artifact is partial.
    fn tell(&self) -> bool {
        let artifacts = self.store.list();
        let hidden: HashSet<ArtifactId> =
            artifacts.iter().filter(|artifact| self.trust.hides(artifact)).map(|artifact| artifact.id()).collect();
        if !self.provider.is_enabled() {
            return false;
        }
        let (uploads, upload_slots) = self.provider.load();
        self.directory.set_load(Load { uploads, upload_slots });
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone: HashMap<ArtifactId, u32> = std::mem::take(&mut *told);
        let mut fetching = false;
        for artifact in artifacts {
            fetching |= artifact.state() == State::Partial;
            let held = u32::try_from(artifact.progress().chunks).unwrap_or(u32::MAX);
            let is_nothing = held == 0 && artifact.state() == State::Partial;
            if is_nothing || hidden.contains(&artifact.id()) {
                continue;
            }
            let before = gone.remove(&artifact.id());
            told.insert(artifact.id(), held);
            if before != Some(held) {
                let told = self.directory.hold(Held { artifact: Arc::new(summary(&artifact)), chunks_held: held });
                if let Err(error) = told {
                    tracing::warn!(artifact = %artifact.id(), %error, "not announced");
                }
            }
        }
        gone.into_keys().for_each(|id| self.directory.drop_artifact(id));
        fetching
    }
}

pub(super) fn summary(artifact: &Artifact) -> Summary {
    Summary::of(artifact.signed(), artifact.content_id())
}
