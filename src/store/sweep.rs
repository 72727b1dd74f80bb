//! Cleaning up, and checking what is there.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;

use super::chunks::{self, Verdict};
use super::{Artifact, State, Store, StoreError};
use crate::artifact::Chunk;
use crate::digest::{ArtifactId, Digest};
use crate::durable;
use crate::identity::UnixTime;

/// What a clean-up removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Chunks of no artifact.
    pub orphans: u64,
    /// Partial artifacts that nobody went on fetching.
    pub abandoned: Vec<ArtifactId>,
    /// Artifacts that the trust policy revokes.
    pub revoked: Vec<ArtifactId>,
    /// Artifacts removed to make room.
    pub evicted: Vec<ArtifactId>,
    pub freed_bytes: u64,
}

/// What [`Store::verify`] found. Corrupt chunks are deleted by then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub checked_chunks: u64,
    pub checked_bytes: u64,
    /// Chunks that did not hold what their name says.
    pub corrupt: Vec<Digest>,
    /// Chunks whose files had vanished.
    pub missing: Vec<Digest>,
    /// Artifacts that lack chunks now, and how many.
    pub incomplete: Vec<(ArtifactId, usize)>,
    /// False if it was interrupted.
    pub finished: bool,
}

impl Store {
    /// Removes what is revoked, chunks of no artifact, and partial artifacts that nobody goes on fetching, then evicts what is
    /// over the limits. What is pinned or in use stays.
    pub fn gc(&self, now: UnixTime) -> Result<Swept, StoreError> {
        let change = self.change();
        let mut swept = Swept::default();
        let age = self.shared.config.partial_max_age;
        let dead = |artifact: &&Arc<Artifact>| {
            artifact.state() == State::Partial && !artifact.is_pinned() && artifact.last_used().after(age) < now
        };
        let abandoned: Vec<ArtifactId> = self.artifacts().values().filter(dead).map(|artifact| artifact.id()).collect();
        for id in abandoned {
            // Somebody may hold it again.
            if let Ok(freed) = self.remove_within(&change, &id) {
                swept.abandoned.push(id);
                swept.freed_bytes += freed;
            }
        }
        let revoked = |artifact: &&Arc<Artifact>| artifact.is_revoked() && !artifact.is_pinned();
        let revoked: Vec<ArtifactId> =
            self.artifacts().values().filter(revoked).map(|artifact| artifact.id()).collect();
        for id in revoked {
            if let Ok(freed) = self.remove_within(&change, &id) {
                swept.revoked.push(id);
                swept.freed_bytes += freed;
            }
        }
        self.sweep_orphans(now, &mut swept);
        let excess = self.excess()?;
        self.evict(&change, excess, &mut swept);
        Ok(swept)
    }

    pub(super) fn sweep_orphans(&self, now: UnixTime, swept: &mut Swept) {
        let grace = self.shared.config.orphan_grace.as_secs();
        let before = UnixTime::from_seconds(now.seconds().saturating_sub(grace));
        let mut trash = Vec::new();
        let take = |digest: &Digest| trash.extend(self.take(&self.shared.layout.chunk(digest)));
        let (orphans, bytes) = self.shared.index.drop_orphans(before, take);
        chunks::empty(trash);
        swept.orphans += orphans;
        swept.freed_bytes += bytes;
        self.observe();
    }

    /// Hashes the chunks of one artifact, or all; after all of them the store is trusted on this boot. `progress` is told how
    /// many more bytes were read and can end it.
    pub fn verify(
        &self,
        artifact: Option<&ArtifactId>,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Report, StoreError> {
        let artifact = artifact.map(|id| self.get(id).ok_or(StoreError::NoArtifact(*id))).transpose()?;
        let digests = match &artifact {
            Some(artifact) => distinct(&artifact.manifest().chunks),
            None => self.shared.index.files().into_iter().map(|(digest, _)| digest).collect(),
        };
        let mut report = Report::default();
        report.finished = self.verify_chunks(&digests, progress, &mut report)?;
        let looked_at = artifact.as_ref().map_or_else(|| self.list(), |artifact| vec![artifact.clone()]);
        for artifact in looked_at.iter().filter(|artifact| !artifact.has_all()) {
            let lacks = artifact.manifest().chunks.len() - artifact.progress().chunks;
            report.incomplete.push((artifact.id(), lacks));
        }
        if artifact.is_none() && report.finished {
            self.record_boot();
        }
        Ok(report)
    }

    fn verify_chunks(
        &self,
        digests: &[Digest],
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
        report: &mut Report,
    ) -> Result<bool, StoreError> {
        for digest in digests {
            let Some(file) = self.shared.index.file(digest) else { continue };
            match self.check_chunk(digest, file)? {
                Verdict::Good => {}
                Verdict::Corrupt => report.corrupt.push(*digest),
                Verdict::Missing => report.missing.push(*digest),
            }
            report.checked_chunks += 1;
            report.checked_bytes += file.len;
            if progress(file.len).is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A full disk costs only another verification after the next start.
    pub(super) fn record_boot(&self) {
        let path = self.shared.layout.boot();
        if let Err(error) = durable::replace_record(&path, &self.shared.boot, 0o600) {
            tracing::warn!(path = %path.display(), %error, "record this boot");
        }
    }
}

/// In order of their first place.
pub(super) fn distinct(chunks: &[Chunk]) -> Vec<Digest> {
    let mut seen = std::collections::HashSet::with_capacity(chunks.len());
    chunks.iter().map(|chunk| chunk.digest).filter(|digest| seen.insert(*digest)).collect()
}
