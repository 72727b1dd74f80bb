//! How many of each repeated field the messages of the local API may have; `proto/agent.proto` describes the calls.
//!
//! Any pod of the node may ask, and a few bytes on the wire can stand for hundreds in memory: fields are counted before
//! anything is allocated for them.

use super::metadata::{MAX_IDENTITIES, MAX_PAGE, Repeated, Shaped};
use super::pb;
use crate::artifact::{MAX_ATTRIBUTES, MAX_CHUNKS, MAX_FACTS};
use crate::identity::trust::MAX_ROOTS;
use crate::protocol::fleet::MAX_DOCUMENTS;
use crate::protocol::report::MAX_START_FAMILIES;

/// Events of the audit log in one call.
pub const MAX_AUDIT_EVENTS: usize = 64;

/// In the report of a start: artifacts, signers of each, and what a number may be.
pub const MAX_START_ARTIFACTS: usize = 512;
pub const MAX_START_SIGNERS: usize = 8;
pub const MAX_START_COUNT: u32 = 1_000_000;

/// Names in one answer that were left out of an artifact.
pub const MAX_SKIPPED: usize = 100;

/// Artifacts in one answer of an agent about an identity, or digests in a report: more than a store has of them.
const MAX_TOLD: usize = 100_000;
const MAX_DIGESTS: usize = 1_000_000;

/// Of each family, under other identities and as variants of its own.
const MAX_NEARBY: usize = 16 * MAX_IDENTITIES;

/// Artifacts in the list of an origin.
const MAX_IN_ORIGIN: usize = 10_000;

const PUBLISHED: &[Repeated] = &[Repeated::new(10, "skipped", MAX_SKIPPED, &[])];
const NEARBY: &[Repeated] = &[
    Repeated::new(9, "facts", MAX_FACTS, &[]),
    Repeated::new(10, "attributes", MAX_ATTRIBUTES, &[]),
    Repeated::new(11, "signers", MAX_TOLD, &[]),
];
const START_ARTIFACT: &[Repeated] = &[Repeated::new(2, "signers", MAX_START_SIGNERS, &[])];
const REPORT: &[Repeated] = &[
    Repeated::new(3, "corrupt", MAX_DIGESTS, &[]),
    Repeated::new(4, "missing", MAX_DIGESTS, &[]),
    Repeated::new(5, "incomplete_artifacts", MAX_TOLD, &[]),
];

impl Shaped for pb::PublishRequest {
    const SHAPE: &'static [Repeated] =
        &[Repeated::new(4, "facts", MAX_FACTS, &[]), Repeated::new(6, "attributes", MAX_ATTRIBUTES, &[])];
}
impl Shaped for pb::PublishEvent {
    const SHAPE: &'static [Repeated] = &[Repeated::new(2, "published", 1, PUBLISHED)];
}
impl Shaped for pb::PushRequest {}
impl Shaped for pb::PushReply {
    const SHAPE: &'static [Repeated] = &[Repeated::new(2, "published", 1, PUBLISHED)];
}
impl Shaped for pb::FindRequest {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "identities", MAX_IDENTITIES, &[])];
}
impl Shaped for pb::FindReply {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "found", MAX_TOLD, &[])];
}
impl Shaped for pb::NearbyRequest {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "families", MAX_IDENTITIES, &[])];
}
impl Shaped for pb::NearbyReply {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "artifacts", MAX_NEARBY, NEARBY)];
}
impl Shaped for pb::ReadChunksRequest {
    const SHAPE: &'static [Repeated] = &[Repeated::new(2, "indices", MAX_CHUNKS, &[])];
}
impl Shaped for pb::StatusReply {
    const SHAPE: &'static [Repeated] = &[
        Repeated::new(4, "endpoints", MAX_TOLD, &[]),
        Repeated::new(12, "signers", MAX_TOLD, &[]),
        Repeated::new(13, "transfers", MAX_TOLD, &[]),
    ];
}
impl Shaped for pb::TrustDocuments {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "roots", MAX_ROOTS, &[])];
}
impl Shaped for pb::ListArtifactsReply {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "artifacts", MAX_PAGE, &[])];
}
impl Shaped for pb::VerifyEvent {
    const SHAPE: &'static [Repeated] = &[Repeated::new(2, "report", 1, REPORT)];
}
impl Shaped for pb::GcReply {
    const SHAPE: &'static [Repeated] = &[
        Repeated::new(2, "abandoned", MAX_TOLD, &[]),
        Repeated::new(3, "evicted", MAX_TOLD, &[]),
        Repeated::new(5, "revoked", MAX_TOLD, &[]),
    ];
}
impl Shaped for pb::StartReport {
    const SHAPE: &'static [Repeated] = &[
        Repeated::new(5, "families", MAX_START_FAMILIES, &[]),
        Repeated::new(6, "artifacts", MAX_START_ARTIFACTS, START_ARTIFACT),
    ];
}
impl Shaped for pb::FleetReply {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "documents", MAX_DOCUMENTS, &[])];
}
impl Shaped for pb::AuditRequest {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "events", MAX_AUDIT_EVENTS, &[])];
}
impl Shaped for pb::OriginListReply {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "artifacts", MAX_IN_ORIGIN, &[])];
}

// Without repeated fields.
impl Shaped for pb::WarmRequest {}
impl Shaped for pb::WarmEvent {}
impl Shaped for pb::ChunkData {}
impl Shaped for pb::StatusRequest {}
impl Shaped for pb::ConfigurationRequest {}
impl Shaped for pb::ConfigurationReply {}
impl Shaped for pb::TrustKnown {}
impl Shaped for pb::ListArtifactsRequest {}
impl Shaped for pb::InspectRequest {}
impl Shaped for pb::InspectReply {}
impl Shaped for pb::EvictRequest {}
impl Shaped for pb::EvictReply {}
impl Shaped for pb::VerifyRequest {}
impl Shaped for pb::GcRequest {}
impl Shaped for pb::StartReported {}
impl Shaped for pb::ServingReport {}
impl Shaped for pb::ServingReported {}
impl Shaped for pb::FleetRequest {}
impl Shaped for pb::AuditReply {}
impl Shaped for pb::ExportRequest {}
impl Shaped for pb::ArchiveBytes {}
impl Shaped for pb::ImportReply {}
impl Shaped for pb::OriginPushRequest {}
impl Shaped for pb::OriginPushEvent {}
impl Shaped for pb::OriginPullRequest {}
impl Shaped for pb::OriginListRequest {}
impl Shaped for pb::OriginHasRequest {}
impl Shaped for pb::OriginHasReply {}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::protocol::ProtocolError;
    use crate::protocol::metadata::check;

    fn refused<M: Shaped>(message: &M) -> Option<&'static str> {
        match check(&message.encode_to_vec(), M::SHAPE) {
            Ok(()) => None,
            Err(ProtocolError::TooMany { field, .. }) => Some(field),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn more_events_than_one_call_may_tell_are_refused_before_they_are_decoded() {
        let events = |count| pb::AuditRequest { events: vec![pb::AuditEvent::default(); count] };
        assert_eq!(refused(&events(MAX_AUDIT_EVENTS)), None);
        assert_eq!(refused(&events(MAX_AUDIT_EVENTS + 1)), Some("events"));
    }

    #[test]
    fn requests_with_more_of_anything_than_is_answered_are_refused() {
        let identities = vec![bytes::Bytes::new(); MAX_IDENTITIES + 1];
        assert_eq!(refused(&pb::FindRequest { identities }), Some("identities"));
        let families = vec![pb::FamilyIdentity::default(); MAX_IDENTITIES + 1];
        assert_eq!(refused(&pb::NearbyRequest { families, budget_ms: 0 }), Some("families"));
        let pairs = |count| (0..count).map(|n| (n.to_string(), String::new())).collect();
        let facts = pb::PublishRequest { facts: pairs(MAX_FACTS + 1), ..Default::default() };
        assert_eq!(refused(&facts), Some("facts"));
        let attributes = pb::PublishRequest { attributes: pairs(MAX_ATTRIBUTES + 1), ..Default::default() };
        assert_eq!(refused(&attributes), Some("attributes"));
        let families = vec![pb::FamilyStart::default(); MAX_START_FAMILIES + 1];
        assert_eq!(refused(&pb::StartReport { families, ..Default::default() }), Some("families"));
        let artifacts = |count, signers| {
            let signers = vec![bytes::Bytes::new(); signers];
            let artifacts = vec![pb::StartArtifact { signers, ..Default::default() }; count];
            pb::StartReport { artifacts, ..Default::default() }
        };
        assert_eq!(refused(&artifacts(MAX_START_ARTIFACTS, MAX_START_SIGNERS)), None);
        assert_eq!(refused(&artifacts(MAX_START_ARTIFACTS + 1, 0)), Some("artifacts"));
        assert_eq!(refused(&artifacts(1, MAX_START_SIGNERS + 1)), Some("signers"));
    }

    #[test]
    fn an_event_that_is_told_twice_does_not_grow_beyond_its_limit() {
        let published = pb::Published { skipped: vec![String::new(); MAX_SKIPPED], ..Default::default() };
        let event = pb::PublishEvent { event: Some(pb::publish_event::Event::Published(published)) };
        let mut twice = event.encode_to_vec();
        assert_eq!(check(&twice, pb::PublishEvent::SHAPE), Ok(()));
        twice.extend(event.encode_to_vec());
        assert!(check(&twice, pb::PublishEvent::SHAPE).is_err());
    }
}
