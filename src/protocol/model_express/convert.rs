//! Generated types to domain types, checked, and back.

use bytes::{Bytes, BytesMut};
use prost::Message;

use super::{
    Identity, Known, Listed, MAX_ACCELERATOR, MAX_DOMAIN, MAX_LISTED, MAX_TOPOLOGY, Publication, Query, Registration,
    SourceStatus, StatusUpdate, pb,
};
use crate::protocol::ProtocolError;

impl TryFrom<i32> for SourceStatus {
    type Error = ProtocolError;
    fn try_from(value: i32) -> Result<Self, ProtocolError> {
        match pb::SourceStatus::try_from(value) {
            Ok(pb::SourceStatus::Initializing) => Ok(Self::Initializing),
            Ok(pb::SourceStatus::Ready) => Ok(Self::Ready),
            Ok(pb::SourceStatus::Stale) => Ok(Self::Stale),
            Ok(pb::SourceStatus::Unknown) | Err(_) => Err(ProtocolError::Invalid("status")),
        }
    }
}

impl From<SourceStatus> for pb::SourceStatus {
    fn from(status: SourceStatus) -> Self {
        match status {
            SourceStatus::Initializing => Self::Initializing,
            SourceStatus::Ready => Self::Ready,
            SourceStatus::Stale => Self::Stale,
        }
    }
}

impl TryFrom<pb::PublishMetadataRequest> for Publication {
    type Error = ProtocolError;
    fn try_from(request: pb::PublishMetadataRequest) -> Result<Self, ProtocolError> {
        let identity = Identity::try_from(request.identity.ok_or(ProtocolError::Missing("identity"))?)?;
        let key = Registration { source: identity.source_id(), worker: request.worker_id.parse()? };
        let metadata = request.worker.ok_or(ProtocolError::Missing("worker"))?;
        let head = pb::WorkerHead::decode(metadata.as_ref()).map_err(|_| ProtocolError::Invalid("worker"))?;
        if head.accelerator.len() > MAX_ACCELERATOR {
            return Err(ProtocolError::TooMany { field: "accelerator", limit: MAX_ACCELERATOR });
        }
        if head.topology.len() > MAX_TOPOLOGY {
            return Err(ProtocolError::TooMany { field: "topology", limit: MAX_TOPOLOGY });
        }
        if head.topology.iter().any(|(name, value)| name.len().max(value.len()) > MAX_DOMAIN) {
            return Err(ProtocolError::TooMany { field: "topology", limit: MAX_DOMAIN });
        }
        let status = match head.status {
            0 => SourceStatus::Initializing,
            status => status.try_into()?,
        };
        Ok(Self {
            key,
            identity,
            rank: head.worker_rank,
            status,
            accelerator: head.accelerator,
            topology: head.topology,
            // A slice would keep the whole request in memory.
            metadata: Bytes::copy_from_slice(&metadata),
        })
    }
}

impl TryFrom<pb::ListSourcesRequest> for Query {
    type Error = ProtocolError;
    fn try_from(request: pb::ListSourcesRequest) -> Result<Self, ProtocolError> {
        let identity = request.identity.map(Identity::try_from).transpose()?;
        let status = request.status_filter.map(SourceStatus::try_from).transpose();
        Ok(Self {
            source: identity.map(|identity| identity.source_id()),
            status: status.map_err(|_| ProtocolError::Invalid("status_filter"))?,
            model: request.model_name_filter,
            rank: request.worker_rank_filter,
            min_step: request.min_training_step,
            min_updated_at: request.min_updated_at,
            limit: request.limit.filter(|limit| *limit > 0).map(|limit| MAX_LISTED.min(limit as usize)),
        })
    }
}

impl TryFrom<&pb::GetMetadataRequest> for Registration {
    type Error = ProtocolError;
    fn try_from(request: &pb::GetMetadataRequest) -> Result<Self, ProtocolError> {
        Ok(Self { source: request.mx_source_id.parse()?, worker: request.worker_id.parse()? })
    }
}

impl TryFrom<pb::UpdateStatusRequest> for StatusUpdate {
    type Error = ProtocolError;
    fn try_from(request: pb::UpdateStatusRequest) -> Result<Self, ProtocolError> {
        Ok(Self {
            key: Registration { source: request.mx_source_id.parse()?, worker: request.worker_id.parse()? },
            rank: request.worker_rank,
            status: request.status.try_into()?,
            // No reason to lose a heartbeat.
            load: request.source_load.filter(|load| load.is_finite()),
        })
    }
}

impl From<Listed> for pb::SourceInstanceRef {
    fn from(listed: Listed) -> Self {
        Self {
            mx_source_id: listed.key.source.to_string(),
            worker_id: listed.key.worker.to_string(),
            model_name: listed.model,
            worker_rank: listed.rank,
            accelerator: listed.accelerator,
            updated_at: listed.updated_at,
            training_step: listed.step,
            layout_signature: listed.layout,
            topology: listed.topology,
            source_load: listed.load,
        }
    }
}

impl Known {
    /// The answer about `key`.
    pub(crate) fn reply(self, key: &Registration) -> pb::GetMetadataResponse {
        // Of a field that is there twice, protobuf has the last value count.
        let status = pb::SourceStatus::from(self.status).into();
        let today = pb::WorkerHead { status, updated_at: self.updated_at, ..Default::default() };
        let mut worker = BytesMut::with_capacity(self.metadata.len() + today.encoded_len());
        worker.extend_from_slice(&self.metadata);
        worker.extend_from_slice(&today.encode_to_vec());
        pb::GetMetadataResponse {
            found: true,
            worker: Some(worker.freeze()),
            mx_source_id: key.source.to_string(),
            worker_id: key.worker.to_string(),
            identity: Some(self.identity.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::encoding::{WireType, encode_key, encode_varint};

    use super::*;
    use crate::protocol::model_express::MAX_WORKER_ID;

    fn request() -> pb::PublishMetadataRequest {
        let identity = pb::SourceIdentity { model_name: "m".to_owned(), ..Default::default() };
        let worker = pb::WorkerMetadata { worker_rank: 3, accelerator: "cuda".to_owned(), ..Default::default() };
        pb::PublishMetadataRequest {
            identity: Some(identity),
            worker: Some(worker.encode_to_vec().into()),
            worker_id: "0123abcd".to_owned(),
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut pb::PublishMetadataRequest)) -> ProtocolError {
        let mut request = request();
        change(&mut request);
        Publication::try_from(request).unwrap_err()
    }

    #[test]
    fn a_publication_is_complete_and_within_its_limits() {
        let told = Publication::try_from(request()).unwrap();
        assert_eq!((told.rank, told.accelerator.as_str(), told.status), (3, "cuda", SourceStatus::Initializing));
        assert_eq!(refused(|request| request.identity = None), ProtocolError::Missing("identity"));
        assert_eq!(refused(|request| request.worker = None), ProtocolError::Missing("worker"));
        assert_eq!(refused(|request| request.worker_id.clear()), ProtocolError::Missing("worker_id"));
        assert_eq!(refused(|request| request.worker_id = "a\n".to_owned()), ProtocolError::Invalid("worker_id"));
        let long = ProtocolError::TooMany { field: "worker_id", limit: MAX_WORKER_ID };
        assert_eq!(refused(|request| request.worker_id = "a".repeat(MAX_WORKER_ID + 1)), long);
        let worker = |head: pb::WorkerHead| refused(|request| request.worker = Some(head.encode_to_vec().into()));
        let accelerator = "a".repeat(MAX_ACCELERATOR + 1);
        let many = ProtocolError::TooMany { field: "accelerator", limit: MAX_ACCELERATOR };
        assert_eq!(worker(pb::WorkerHead { accelerator, ..Default::default() }), many);
        let topology = [("rack".to_owned(), "r".repeat(MAX_DOMAIN + 1))].into();
        let many = ProtocolError::TooMany { field: "topology", limit: MAX_DOMAIN };
        assert_eq!(worker(pb::WorkerHead { topology, ..Default::default() }), many);
        assert_eq!(worker(pb::WorkerHead { status: 9, ..Default::default() }), ProtocolError::Invalid("status"));
        assert_eq!(refused(|request| request.worker = Some(vec![0x0a].into())), ProtocolError::Invalid("worker"));
    }

    #[test]
    fn an_empty_worker_is_a_worker_of_rank_0() {
        let told =
            Publication::try_from(pb::PublishMetadataRequest { worker: Some(Bytes::new()), ..request() }).unwrap();
        assert_eq!((told.rank, told.status), (0, SourceStatus::Initializing));
    }

    #[test]
    fn what_the_server_does_not_know_goes_through_and_what_it_knows_better_is_replaced() {
        let mut worker = pb::WorkerMetadata { worker_rank: 3, status: 1, updated_at: 5, ..Default::default() };
        worker.source_payload = Some(pb::worker_metadata::SourcePayload::TensorSource(Default::default()));
        let mut bytes = worker.encode_to_vec();
        encode_key(1000, WireType::Varint, &mut bytes);
        encode_varint(77, &mut bytes);
        let told =
            Publication::try_from(pb::PublishMetadataRequest { worker: Some(bytes.clone().into()), ..request() });
        let told = told.unwrap();
        let (identity, metadata) = (told.identity, told.metadata);
        let known = Known { identity, metadata, status: SourceStatus::Ready, updated_at: 9_000 };
        let reply = known.reply(&told.key).worker.unwrap();
        assert!(reply.starts_with(&bytes));
        let expected = pb::WorkerMetadata { status: 2, updated_at: 9_000, ..worker };
        assert_eq!(pb::WorkerMetadata::decode(reply), Ok(expected));
    }

    #[test]
    fn a_query_without_sense_is_refused_instead_of_matching_everything() {
        let nameless = pb::ListSourcesRequest { identity: Some(Default::default()), ..Default::default() };
        assert_eq!(Query::try_from(nameless), Err(ProtocolError::Missing("identity.model_name")));
        for status in [0, 4, -1] {
            let request = pb::ListSourcesRequest { status_filter: Some(status), ..Default::default() };
            assert_eq!(Query::try_from(request), Err(ProtocolError::Invalid("status_filter")), "{status}");
        }
        for (limit, taken) in [(0, None), (7, Some(7)), (u32::MAX, Some(MAX_LISTED))] {
            let request = pb::ListSourcesRequest { limit: Some(limit), ..Default::default() };
            assert_eq!(Query::try_from(request).unwrap().limit, taken);
        }
    }

    #[test]
    fn a_load_that_is_no_number_does_not_cost_the_heartbeat() {
        let beat = |load| pb::UpdateStatusRequest {
            mx_source_id: "5a5f555570065064".to_owned(),
            worker_id: "w".to_owned(),
            status: 2,
            source_load: Some(load),
            ..Default::default()
        };
        assert_eq!(StatusUpdate::try_from(beat(f32::NAN)).unwrap().load, None);
        assert_eq!(StatusUpdate::try_from(beat(0.25)).unwrap().load, Some(0.25));
    }
}
