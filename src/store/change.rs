//! Changes to the set of artifacts: begun, sealed, published, pinned, removed. One at a time.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Artifact, Change, Held, Role, State, Store, StoreError, chunks, locked, open, sweep};
use crate::artifact::{Admitted, SignedManifest};
use crate::digest::ArtifactId;
use crate::durable;
use crate::identity::UnixTime;

impl Store {
    /// Starts fetching an artifact, or goes on with it. Before anything is written, room for what is missing is made sure
    /// of, by eviction if need be; while the result is held that room stays promised and the artifact stays.
    pub fn begin(&self, admitted: Admitted) -> Result<Held, StoreError> {
        let change = self.change();
        let id = admitted.id();
        let now = UnixTime::now();
        if let Some(held) = self.hold(&id) {
            self.make_room_within(&change, 0)?;
            self.touch(&held, now);
            return Ok(held);
        }
        // Added before room is made, so that chunks which it shares with others are not evicted with them.
        let artifact = self.add(Artifact::new(admitted.into_signed(), Role::Fetched, now), now);
        let held = Held::new(&artifact);
        if let Err(error) = self.make_room_within(&change, 0).and_then(|_| self.write_partial(&artifact)) {
            drop(held);
            self.forget(&artifact);
            return Err(error);
        }
        self.changed(&change);
        Ok(held)
    }

    /// Declares an artifact complete that has all its chunks. Syncs its manifest: nobody needs to wait for this.
    pub fn seal(&self, id: &ArtifactId) -> Result<(), StoreError> {
        let held = self.hold(id).ok_or(StoreError::NoArtifact(*id))?;
        self.complete(&held)
    }

    /// Adds an artifact that was built here, all chunks of which were put. Syncs its manifest.
    pub fn insert_published(&self, signed: SignedManifest) -> Result<Arc<Artifact>, StoreError> {
        // What the build took over from an older generation may be from before the last boot.
        for digest in sweep::distinct(&signed.manifest().chunks) {
            if let Some(file) = self.shared.index.file(&digest).filter(|file| !file.verified) {
                self.check_chunk(&digest, file)?;
            }
        }
        let (held, is_new) = self.hold_or_add(signed);
        let mark = self.shared.layout.publication(&held.id());
        // Only for people, so not synced.
        let marked = std::fs::write(&mark, b"").map_err(|error| self.write_error("write", &mark, 0, error));
        match marked.and_then(|()| self.complete(&held)) {
            Ok(()) => Ok(Arc::clone(&held)),
            Err(error) => {
                chunks::empty([mark]);
                if is_new {
                    chunks::empty([self.shared.layout.partial(&held.id())]);
                    let _change = self.change();
                    self.forget(&held);
                }
                Err(error)
            }
        }
    }

    fn hold_or_add(&self, signed: SignedManifest) -> (Held, bool) {
        let _change = self.change();
        if let Some(held) = self.hold(&signed.id()) {
            return (held, false);
        }
        let now = UnixTime::now();
        (Held::new(&self.add(Artifact::new(Arc::new(signed), Role::Published, now), now)), true)
    }

    /// The slow part, the sync, is no [`Change`]: whoever begins another artifact does not wait for it.
    fn complete(&self, held: &Held) -> Result<(), StoreError> {
        let _syncing = locked(&self.shared.syncing);
        if held.state() == State::Complete {
            return Ok(());
        }
        let layout = &self.shared.layout;
        let (path, partial) = (layout.manifest(&held.id()), layout.partial(&held.id()));
        let envelope = held.signed().envelope();
        lacks_nothing(held)?;
        // What was fetched is written already.
        let written = match durable::rename(&partial, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => durable::replace(&path, envelope, 0o600),
            renamed => renamed,
        };
        written.map_err(|error| self.write_error("write manifest", &path, envelope.len() as u64, error))?;
        open::set_last_used(&path, held.last_used());
        let change = self.change();
        // A chunk may have turned out to be damaged meanwhile.
        if let Err(incomplete) = lacks_nothing(held) {
            std::fs::rename(&path, &partial).map_err(|error| StoreError::io("move manifest", &path, error))?;
            return Err(incomplete);
        }
        held.set_state(State::Complete);
        self.changed(&change);
        Ok(())
    }

    pub(super) fn add(&self, artifact: Artifact, now: UnixTime) -> Arc<Artifact> {
        let artifact = Arc::new(artifact);
        self.shared.index.link(&artifact, now);
        self.artifacts_mut().insert(artifact.id(), artifact.clone());
        artifact
    }

    /// A pinned artifact is neither evicted nor removed, also after a restart.
    pub fn pin(&self, id: &ArtifactId) -> Result<(), StoreError> {
        let _change = self.change();
        let artifact = self.get(id).ok_or(StoreError::NoArtifact(*id))?;
        let path = self.shared.layout.pin(id);
        durable::replace(&path, b"", 0o600).map_err(|error| self.write_error("write", &path, 0, error))?;
        artifact.pinned.store(true, Ordering::Release);
        Ok(())
    }

    pub fn unpin(&self, id: &ArtifactId) -> Result<(), StoreError> {
        let _change = self.change();
        let artifact = self.get(id).ok_or(StoreError::NoArtifact(*id))?;
        let path = self.shared.layout.pin(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("delete", &path, error)),
            _ => {
                artifact.pinned.store(false, Ordering::Release);
                Ok(())
            }
        }
    }

    /// Removes an artifact and the chunks that no other one uses. Returns the bytes of those.
    pub fn remove(&self, id: &ArtifactId) -> Result<u64, StoreError> {
        let change = self.change();
        self.remove_within(&change, id)
    }

    pub(super) fn remove_within(&self, change: &Change<'_>, id: &ArtifactId) -> Result<u64, StoreError> {
        let artifact = self.get(id).ok_or(StoreError::NoArtifact(*id))?;
        if artifact.is_pinned() {
            return Err(StoreError::Pinned(*id));
        }
        {
            // Holding takes the read lock: from here on nobody new can.
            let mut artifacts = self.artifacts_mut();
            if artifact.is_held() {
                return Err(StoreError::InUse(*id));
            }
            artifacts.remove(id);
        }
        // The manifest first: a process killed in between leaves chunks of no artifact, which gc finds.
        let layout = &self.shared.layout;
        let mut trash: Vec<PathBuf> = [layout.manifest(id), layout.partial(id), layout.publication(id)].into();
        trash = trash.iter().filter_map(|path| self.take(path)).collect();
        let freed = self.shared.index.unlink(&artifact, |digest| {
            trash.extend(self.take(&layout.chunk(digest)));
            true
        });
        chunks::empty(trash);
        artifact.set_state(State::Removed);
        self.changed(change);
        Ok(freed)
    }

    /// Undoes the linking of an artifact that could not be added; its chunks stay for the next attempt.
    fn forget(&self, artifact: &Arc<Artifact>) {
        self.artifacts_mut().remove(&artifact.id());
        self.shared.index.unlink(artifact, |_| false);
        artifact.set_state(State::Removed);
    }

    /// Complete artifacts that lost a chunk are partial again.
    pub(super) fn demote(&self, losers: &[Arc<Artifact>]) {
        if losers.is_empty() {
            return;
        }
        let change = self.change();
        let loses = |artifact: &&Arc<Artifact>| artifact.state() == State::Complete && !artifact.has_all();
        let mut demoted = false;
        // Looked at one by one: who has the chunk twice is in the list twice.
        for artifact in losers.iter().filter(loses) {
            let (from, to) = (self.manifest_path(artifact), self.shared.layout.partial(&artifact.id()));
            if let Err(error) = std::fs::rename(&from, &to) {
                // Harmless: what is had is looked up when the store is opened.
                tracing::warn!(path = %from.display(), %error, "move manifest");
            }
            artifact.set_state(State::Partial);
            demoted = true;
        }
        if demoted {
            self.changed(&change);
        }
    }

    /// Not synced: somebody is waiting for the transfer, and a torn manifest is known by its digest.
    fn write_partial(&self, artifact: &Artifact) -> Result<(), StoreError> {
        let (tmp, path) = (self.shared.layout.tmp_file(self.next()), self.shared.layout.partial(&artifact.id()));
        let envelope = artifact.signed().envelope();
        std::fs::write(&tmp, envelope).and_then(|()| std::fs::rename(&tmp, &path)).map_err(|error| {
            chunks::empty([tmp]);
            self.write_error("write manifest", &path, envelope.len() as u64, error)
        })
    }
}

fn lacks_nothing(artifact: &Artifact) -> Result<(), StoreError> {
    match artifact.manifest().chunks.len() - artifact.progress().chunks {
        0 => Ok(()),
        missing => Err(StoreError::Incomplete { id: artifact.id(), missing }),
    }
}
