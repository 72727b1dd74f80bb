//! Tells the metadata server what the store holds: compares the store with what was told, and tells the difference.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::digest::ArtifactId;
use crate::metadata::Announcer;
use crate::protocol::metadata::{Held, Load, Summary};
use crate::store::{Artifact, State, Store};
use crate::transfer::Provider;

/// While something is being fetched, what is already here is told this often.
const WHILE_FETCHING: Duration = Duration::from_millis(500);

/// Otherwise the store tells of its changes; this catches what it might not.
const WHEN_QUIET: Duration = Duration::from_secs(10);

pub(super) struct Holdings {
    store: Store,
    announcer: Arc<Announcer>,
    provider: Arc<Provider>,
    /// Chunks held of each artifact, as told.
    told: HashMap<ArtifactId, u32>,
}

impl Holdings {
    pub(super) fn new(store: Store, announcer: Arc<Announcer>, provider: Arc<Provider>) -> Self {
        Self { store, announcer, provider, told: HashMap::new() }
    }

    pub(super) async fn run(mut self) {
        let mut changes = self.store.subscribe();
        loop {
            let fetching = self.tell();
            let pause = if fetching { WHILE_FETCHING } else { WHEN_QUIET };
            if let Ok(Err(_)) = tokio::time::timeout(pause, changes.changed()).await {
                return;
            }
        }
    }

    /// True while an artifact is partial.
    fn tell(&mut self) -> bool {
        let (uploads, upload_slots) = self.provider.load();
        self.announcer.set_load(Load { uploads, upload_slots });
        let artifacts = self.store.list();
        let mut fetching = false;
        let mut gone: Vec<ArtifactId> = self.told.keys().copied().collect();
        for artifact in &artifacts {
            fetching |= artifact.state() == State::Partial;
            gone.retain(|id| *id != artifact.id());
            let held = u32::try_from(artifact.progress().chunks).unwrap_or(u32::MAX);
            let empty = held == 0 && artifact.state() == State::Partial;
            if !empty && self.told.get(&artifact.id()) != Some(&held) {
                self.told.insert(artifact.id(), held);
                self.announcer.hold(Held { artifact: Arc::new(summary(artifact)), chunks_held: held });
            }
        }
        for id in gone {
            self.told.remove(&id);
            self.announcer.drop_artifact(id);
        }
        fetching
    }
}

pub(super) fn summary(artifact: &Artifact) -> Summary {
    let manifest = artifact.manifest();
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    Summary {
        artifact: artifact.id(),
        identity: artifact.identity(),
        content: manifest.content_id(),
        family: manifest.identity.family().clone(),
        subject: manifest.subject.as_str().into(),
        generation: manifest.generation,
        created: manifest.created,
        size: manifest.size(),
        wire_size: manifest.wire_size(),
        files: count(manifest.files.len()),
        chunks: count(manifest.chunks.len()),
        signer: artifact.signed().signer(),
    }
}
