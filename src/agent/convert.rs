//! Messages of the local API, checked on receipt and made on sending.

use bytes::Bytes;
use tonic::Status;

use super::fetching::{Failed, Near, Wanted, Wish};
use super::publish::Published;
use crate::artifact::Admitted;
use crate::digest::{ArtifactId, IdentityId};
use crate::protocol::metadata::Offer;
use crate::protocol::pb;
use crate::store::{Artifact, Report, Swept};
use crate::transfer::{Fetched, Progress};

pub(super) fn artifact_id(bytes: &[u8]) -> Result<ArtifactId, Status> {
    ArtifactId::try_from(bytes).map_err(|_| Status::invalid_argument("`artifact_id` is not 32 bytes"))
}

fn id_bytes(id: &ArtifactId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

pub(super) fn published(published: Published, skipped: Vec<String>) -> pb::Published {
    pb::Published {
        artifact_id: id_bytes(&published.artifact),
        content_id: Bytes::copy_from_slice(published.content.as_bytes()),
        identity: Bytes::copy_from_slice(published.identity.as_bytes()),
        generation: published.generation,
        files: count(published.files),
        size: published.size,
        wire_size: published.wire_size,
        new_wire_size: published.new_wire_size,
        unchanged: published.unchanged,
        skipped,
        warning: published.warning.unwrap_or_default(),
    }
}

pub(super) fn reading(bytes: u64, bytes_total: u64) -> pb::PublishEvent {
    let progress = pb::Progress { phase: "read".to_owned(), bytes, bytes_total, files: 0, holders: 0 };
    pb::PublishEvent { event: Some(pb::publish_event::Event::Progress(progress)) }
}

pub(super) fn found(offers: Vec<Offer>, unreachable: Option<String>) -> pb::FindReply {
    let found = offers.into_iter().map(|offer| {
        let artifact = offer.artifact;
        pb::FoundArtifact {
            artifact_id: id_bytes(&artifact.artifact),
            identity: Bytes::copy_from_slice(artifact.identity.as_bytes()),
            subject: artifact.subject.to_string(),
            generation: artifact.generation,
            created_s: artifact.created.seconds(),
            size: artifact.size,
            wire_size: artifact.wire_size,
            files: artifact.files,
            signer: Bytes::copy_from_slice(artifact.signer.as_bytes()),
            holders: offer.holder_count,
            here: offer.holders.is_empty(),
            compile_ms: artifact.compile_ms,
            content_id: Bytes::copy_from_slice(artifact.content.as_bytes()),
        }
    });
    pb::FindReply { found: found.collect(), metadata_failure: unreachable.unwrap_or_default() }
}

pub(super) fn wish(asked: pb::FamilyIdentity) -> Result<Wish, Status> {
    let family = asked.family.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
    let identity = IdentityId::try_from(&asked.identity[..])
        .map_err(|_| Status::invalid_argument("an identity is not 32 bytes"))?;
    Ok(Wish { family, identity })
}

pub(super) fn nearby(near: Vec<Near>, unreachable: Option<String>) -> pb::NearbyReply {
    let artifacts = near.into_iter().map(|near| {
        let artifact = near.offer.artifact;
        let (described, failure) = match near.described {
            Ok(described) => (described, String::new()),
            Err(failed) => (Default::default(), failed.detail),
        };
        pb::NearbyArtifact {
            artifact_id: id_bytes(&artifact.artifact),
            family: artifact.family.to_string(),
            identity: Bytes::copy_from_slice(artifact.identity.as_bytes()),
            subject: artifact.subject.to_string(),
            generation: artifact.generation,
            created_s: artifact.created.seconds(),
            holders: near.offer.holder_count,
            artifacts: count(near.artifacts),
            facts: described.facts.into_iter().collect(),
            attributes: described.attributes.into_iter().collect(),
            signers: described.signers,
            failure,
        }
    });
    pb::NearbyReply { artifacts: artifacts.collect(), metadata_failure: unreachable.unwrap_or_default() }
}

pub(super) fn offer(wanted: &[Wanted]) -> pb::WarmEvent {
    let holders = wanted.iter().map(Wanted::holders).max().unwrap_or(0);
    warm(pb::warm_event::Event::Offer(pb::WarmOffer { artifacts: count(wanted.len()), holders: count(holders) }))
}

pub(super) fn manifest(admitted: &Admitted) -> pb::WarmEvent {
    warm(pb::warm_event::Event::Manifest(pb::WarmManifest {
        artifact_id: id_bytes(&admitted.id()),
        envelope: admitted.envelope().clone(),
    }))
}

pub(super) fn progress(progress: Progress) -> pb::WarmEvent {
    warm(pb::warm_event::Event::Progress(pb::Progress {
        phase: "fetch".to_owned(),
        bytes: progress.bytes,
        bytes_total: progress.bytes_total,
        files: 0,
        holders: progress.holders,
    }))
}

pub(super) fn landed(id: ArtifactId, fetched: Fetched) -> pb::WarmEvent {
    warm(pb::warm_event::Event::Done(pb::WarmDone {
        artifact_id: id_bytes(&id),
        wire_bytes: fetched.wire_bytes,
        reused_bytes: fetched.reused_bytes,
        holders: fetched.holders,
        failure: String::new(),
        failure_class: String::new(),
    }))
}

/// Of one artifact, or of the whole attempt.
pub(super) fn failed(id: Option<ArtifactId>, failed: Failed) -> pb::WarmEvent {
    warm(pb::warm_event::Event::Done(pb::WarmDone {
        artifact_id: id.map(|id| id_bytes(&id)).unwrap_or_default(),
        failure: failed.detail,
        failure_class: failed.class.to_owned(),
        ..Default::default()
    }))
}

fn warm(event: pb::warm_event::Event) -> pb::WarmEvent {
    pb::WarmEvent { event: Some(event) }
}

pub(super) fn info(artifact: &Artifact) -> pb::ArtifactInfo {
    let manifest = artifact.manifest();
    pb::ArtifactInfo {
        artifact_id: id_bytes(&artifact.id()),
        content_id: Bytes::copy_from_slice(artifact.content_id().as_bytes()),
        identity: Bytes::copy_from_slice(artifact.identity().as_bytes()),
        family: manifest.identity.family().to_string(),
        subject: manifest.subject.clone(),
        generation: manifest.generation,
        created_s: manifest.created.seconds(),
        size: manifest.size(),
        wire_size: manifest.wire_size(),
        files: count(manifest.files.len()),
        chunks_held: count(artifact.progress().chunks),
        chunks: count(manifest.chunks.len()),
        signer: Bytes::copy_from_slice(artifact.signed().signer().as_bytes()),
        pinned: artifact.is_pinned(),
    }
}

pub(super) fn report(report: &Report) -> pb::VerifyEvent {
    let digests = |all: &[crate::digest::Digest]| all.iter().map(|d| Bytes::copy_from_slice(d.as_bytes())).collect();
    let event = pb::verify_event::Event::Report(pb::VerifyReport {
        checked_chunks: report.checked_chunks,
        checked_bytes: report.checked_bytes,
        corrupt: digests(&report.corrupt),
        missing: digests(&report.missing),
        incomplete_artifacts: report.incomplete.iter().map(|(id, _)| id_bytes(id)).collect(),
    });
    pb::VerifyEvent { event: Some(event) }
}

pub(super) fn hashed(bytes: u64, bytes_total: u64) -> pb::VerifyEvent {
    let progress = pb::Progress { phase: "verify".to_owned(), bytes, bytes_total, files: 0, holders: 0 };
    pb::VerifyEvent { event: Some(pb::verify_event::Event::Progress(progress)) }
}

pub(super) fn swept(swept: &Swept) -> pb::GcReply {
    pb::GcReply {
        orphan_chunks: swept.orphans,
        abandoned: swept.abandoned.iter().map(id_bytes).collect(),
        evicted: swept.evicted.iter().map(id_bytes).collect(),
        freed_bytes: swept.freed_bytes,
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
