//! What hooks and operators ask of the node's agent.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{CONNECTION_WINDOW, MAX_FRAME, MAX_MESSAGE, STREAM_WINDOW};
use crate::digest::{ArtifactId, IdentityId};
use crate::protocol::pb::agent_client::AgentClient;
use crate::protocol::pb::{
    ArchiveBytes, ChunkData, EvictRequest, ExportRequest, FindReply, FindRequest, GcReply, GcRequest, ImportReply,
    InspectReply, InspectRequest, ListArtifactsReply, ListArtifactsRequest, NearbyReply, NearbyRequest, PublishEvent,
    PublishRequest, PushReply, PushRequest, ReadChunksRequest, StartReport, StatusReply, StatusRequest, VerifyEvent,
    VerifyRequest, WarmEvent, WarmRequest,
};

/// The agent was not reached or said no.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no agent answers on {socket}: is `warmd agent` running, and is this its `local.socket`?", socket = socket.display())]
    Unreachable { socket: PathBuf, source: tonic::transport::Error },
    #[error("{}", .0.message())]
    Refused(Box<tonic::Status>),
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// A connection to the agent. Clones share it.
#[derive(Debug, Clone)]
pub struct Client(AgentClient<Channel>);

impl Client {
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The authority is not looked at: the connector knows where to go.
        let channel = Endpoint::from_static("http://agent.local")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .connect_with_connector(connector)
            .await
            .map_err(|source| ClientError::Unreachable { socket: socket.to_owned(), source })?;
        Ok(Self(AgentClient::new(channel).max_decoding_message_size(MAX_MESSAGE)))
    }

    pub async fn publish(&self, request: PublishRequest) -> Result<Streaming<PublishEvent>, ClientError> {
        Ok(self.0.clone().publish(request).await?.into_inner())
    }

    pub async fn push(
        &self,
        requests: impl futures_util::Stream<Item = PushRequest> + Send + 'static,
    ) -> Result<Streaming<PushReply>, ClientError> {
        Ok(self.0.clone().push(requests).await?.into_inner())
    }

    pub async fn warm(&self, request: WarmRequest) -> Result<Streaming<WarmEvent>, ClientError> {
        Ok(self.0.clone().warm(request).await?.into_inner())
    }

    pub async fn find(&self, identities: &[IdentityId]) -> Result<FindReply, ClientError> {
        let identities = identities.iter().map(|identity| bytes::Bytes::copy_from_slice(identity.as_bytes())).collect();
        Ok(self.0.clone().find(FindRequest { identities }).await?.into_inner())
    }

    pub async fn nearby(&self, request: NearbyRequest) -> Result<NearbyReply, ClientError> {
        Ok(self.0.clone().nearby(request).await?.into_inner())
    }

    pub async fn read_chunks(&self, id: ArtifactId, indices: Vec<u32>) -> Result<Streaming<ChunkData>, ClientError> {
        let request = ReadChunksRequest { artifact_id: bytes::Bytes::copy_from_slice(id.as_bytes()), indices };
        Ok(self.0.clone().read_chunks(request).await?.into_inner())
    }

    pub async fn status(&self) -> Result<StatusReply, ClientError> {
        Ok(self.0.clone().status(StatusRequest {}).await?.into_inner())
    }

    pub async fn list(&self, request: ListArtifactsRequest) -> Result<ListArtifactsReply, ClientError> {
        Ok(self.0.clone().list(request).await?.into_inner())
    }

    /// Bytes freed.
    pub async fn evict(&self, id: ArtifactId) -> Result<u64, ClientError> {
        let request = EvictRequest { artifact_id: bytes::Bytes::copy_from_slice(id.as_bytes()) };
        Ok(self.0.clone().evict(request).await?.into_inner().freed_bytes)
    }

    pub async fn inspect(&self, id: ArtifactId) -> Result<InspectReply, ClientError> {
        let request = InspectRequest { artifact_id: bytes::Bytes::copy_from_slice(id.as_bytes()) };
        Ok(self.0.clone().inspect(request).await?.into_inner())
    }

    pub async fn report_start(&self, report: StartReport) -> Result<(), ClientError> {
        self.0.clone().report_start(report).await?;
        Ok(())
    }

    /// One artifact, or all of the store.
    pub async fn verify(&self, id: Option<ArtifactId>) -> Result<Streaming<VerifyEvent>, ClientError> {
        let artifact_id = id.map(|id| bytes::Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default();
        Ok(self.0.clone().verify(VerifyRequest { artifact_id }).await?.into_inner())
    }

    pub async fn gc(&self) -> Result<GcReply, ClientError> {
        Ok(self.0.clone().gc(GcRequest {}).await?.into_inner())
    }

    pub async fn export(&self, id: ArtifactId) -> Result<Streaming<ArchiveBytes>, ClientError> {
        let request = ExportRequest { artifact_id: bytes::Bytes::copy_from_slice(id.as_bytes()) };
        Ok(self.0.clone().export(request).await?.into_inner())
    }

    pub async fn import(
        &self,
        archive: impl futures_util::Stream<Item = ArchiveBytes> + Send + 'static,
    ) -> Result<ImportReply, ClientError> {
        Ok(self.0.clone().import(archive).await?.into_inner())
    }
}
