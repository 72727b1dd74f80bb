//! Messages of the local API, checked on receipt and made on sending.

use bytes::Bytes;
use tonic::Status;

use super::fetching::{Failed, Near, Offers, Wanted, Wish};
use super::holdings::summary;
use super::publish::Published;
use crate::artifact::Admitted;
use crate::digest::{ArtifactId, IdentityId};
use crate::origin::Pushed;
use crate::protocol::metadata::Summary;
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

pub(super) fn found(offers: Offers) -> pb::FindReply {
    let held = offers.held.into_iter().map(|offer| pb::FoundArtifact {
        holders: offer.holder_count,
        here: offer.holders.is_empty(),
        ..found_artifact(&offer.artifact)
    });
    let in_origin =
        offers.in_origin.iter().map(|offer| pb::FoundArtifact { origin: true, ..found_artifact(&offer.artifact) });
    pb::FindReply { found: held.chain(in_origin).collect(), metadata_failure: offers.failure.unwrap_or_default() }
}

/// Without where it is.
fn found_artifact(artifact: &Summary) -> pb::FoundArtifact {
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
        compile_ms: artifact.compile_ms,
        content_id: Bytes::copy_from_slice(artifact.content.as_bytes()),
        ..Default::default()
    }
}

pub(super) fn wish(asked: pb::FamilyIdentity) -> Result<Wish, Status> {
    let family = asked.family.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
    let identity = IdentityId::try_from(&asked.identity[..])
        .map_err(|_| Status::invalid_argument("an identity is not 32 bytes"))?;
    let subject = (!asked.subject.is_empty()).then_some(asked.subject);
    Ok(Wish { family, identity, subject })
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
    info_of(&summary(artifact), Some(artifact))
}

/// Of an artifact that may be elsewhere; `here` is what this node has of it.
pub(super) fn info_of(summary: &Summary, here: Option<&Artifact>) -> pb::ArtifactInfo {
    pb::ArtifactInfo {
        artifact_id: id_bytes(&summary.artifact),
        content_id: Bytes::copy_from_slice(summary.content.as_bytes()),
        identity: Bytes::copy_from_slice(summary.identity.as_bytes()),
        family: summary.family.to_string(),
        subject: summary.subject.to_string(),
        generation: summary.generation,
        created_s: summary.created.seconds(),
        size: summary.size,
        wire_size: summary.wire_size,
        files: summary.files,
        chunks_held: here.map_or(0, |artifact| count(artifact.progress().chunks)),
        chunks: summary.chunks,
        signer: Bytes::copy_from_slice(summary.signer.as_bytes()),
        pinned: here.is_some_and(Artifact::is_pinned),
        revoked: here.is_some_and(Artifact::is_revoked),
    }
}

pub(super) fn pushing(bytes: u64, bytes_total: u64) -> pb::OriginPushEvent {
    let progress = pb::Progress { phase: "push".to_owned(), bytes, bytes_total, files: 0, holders: 0 };
    pb::OriginPushEvent { event: Some(pb::origin_push_event::Event::Progress(progress)) }
}

pub(super) fn pushed(pushed: Pushed) -> pb::OriginPushEvent {
    let Pushed { written_bytes, skipped_bytes } = pushed;
    let pushed = pb::OriginPushed { written_bytes, skipped_bytes };
    pb::OriginPushEvent { event: Some(pb::origin_push_event::Event::Pushed(pushed)) }
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
        revoked: swept.revoked.iter().map(id_bytes).collect(),
        freed_bytes: swept.freed_bytes,
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
