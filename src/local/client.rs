//! What hooks and operators ask of the node's agent.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Streaming;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};

use super::chunks::Chunks;
use super::{CONNECTION_WINDOW, MAX_MESSAGE, MAX_SOCKET_PATH, STREAM_WINDOW};
use crate::digest::{ArtifactId, IdentityId};
use crate::identity::trust::{Documents, Known};
use crate::protocol::ProtocolError;
use crate::protocol::fleet::{Document, Fleet, Key};
use crate::protocol::metadata::trust_documents;
use crate::protocol::pb::agent_client::AgentClient;
use crate::protocol::pb::{
    ArchiveBytes, AuditEvent, AuditRequest, ConfigurationRequest, EvictRequest, ExportRequest, FindReply, FindRequest,
    FleetRequest, GcReply, GcRequest, ImportReply, InspectReply, InspectRequest, ListArtifactsReply,
    ListArtifactsRequest, NearbyReply, NearbyRequest, OriginHasRequest, OriginListReply, OriginListRequest,
    OriginPullRequest, OriginPushEvent, OriginPushRequest, PublishEvent, PublishRequest, PushReply, PushRequest,
    ReadChunksRequest, ServingReport, StartReport, StatusReply, StatusRequest, TrustDocuments, TrustKnown, VerifyEvent,
    VerifyRequest, WarmEvent, WarmRequest,
};
use crate::telemetry::trace::Propagate;

/// Nodes, and identities, that are taken of one fleet: more than a server has nodes, and all that anybody would look at.
const MAX_FLEET: usize = 50_000;

/// Which documents of a fleet are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FleetPart {
    /// Only this node, as it is now.
    Here,
    /// Nodes, and the server that knows them.
    Nodes,
    All,
}

/// The agent was not reached or said no.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no agent answers on {socket}: is `warmd agent` running, and is this its `local.socket`?", socket = socket.display())]
    Unreachable { socket: PathBuf, source: tonic::transport::Error },
    #[error("this user may not open {socket}: have the agent's `local.allow_uids` name this uid, and let it into the directory", socket = socket.display())]
    NotAllowed { socket: PathBuf },
    #[error("{socket} is too long for a socket: an agent's has at most {MAX_SOCKET_PATH} bytes", socket = .0.display())]
    TooLong(PathBuf),
    #[error("{}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("read chunks from the agent")]
    Chunks(#[source] io::Error),
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

fn unreachable(socket: &Path, source: tonic::transport::Error) -> ClientError {
    let mut causes = std::iter::successors(Some(&source as &dyn std::error::Error), |error| error.source());
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let socket = socket.to_owned();
    match causes.any(|error| error.downcast_ref().is_some_and(denied)) {
        true => ClientError::NotAllowed { socket },
        false => ClientError::Unreachable { socket, source },
    }
}

/// A connection to the agent. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    agent: AgentClient<InterceptedService<Channel, Propagate>>,
    socket: Arc<Path>,
}

impl Client {
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let path = socket.to_owned();
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(ClientError::TooLong(path));
        }
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The authority is not looked at: the connector knows where to go.
        let channel = Endpoint::from_static("http://agent.local")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector(connector)
            .await
            .map_err(|source| unreachable(socket, source))?;
        let agent = AgentClient::with_interceptor(channel, Propagate).max_decoding_message_size(MAX_MESSAGE);
        Ok(Self { agent, socket: socket.into() })
    }

    pub async fn publish(&self, request: PublishRequest) -> Result<Streaming<PublishEvent>, ClientError> {
        Ok(self.agent.clone().publish(request).await?.into_inner())
    }

    pub async fn push(
        &self,
        requests: impl futures_util::Stream<Item = PushRequest> + Send + 'static,
    ) -> Result<Streaming<PushReply>, ClientError> {
        Ok(self.agent.clone().push(requests).await?.into_inner())
    }

    pub async fn warm(&self, request: WarmRequest) -> Result<Streaming<WarmEvent>, ClientError> {
        Ok(self.agent.clone().warm(request).await?.into_inner())
    }

    pub async fn find(&self, identities: &[IdentityId]) -> Result<FindReply, ClientError> {
        let identities = identities.iter().map(|identity| bytes::Bytes::copy_from_slice(identity.as_bytes())).collect();
        Ok(self.agent.clone().find(FindRequest { identities }).await?.into_inner())
    }

    pub async fn nearby(&self, request: NearbyRequest) -> Result<NearbyReply, ClientError> {
        Ok(self.agent.clone().nearby(request).await?.into_inner())
    }

    pub async fn read_chunks(&self, id: ArtifactId, indices: Vec<u32>) -> Result<Chunks, ClientError> {
        let request = ReadChunksRequest { artifact_id: bytes::Bytes::copy_from_slice(id.as_bytes()), indices };
        match Chunks::ask(&self.socket, &request).await? {
            Some(chunks) => Ok(chunks),
            None => Ok(Chunks::messages(self.agent.clone().read_chunks(request).await?.into_inner())),
        }
    }

    pub async fn status(&self) -> Result<StatusReply, ClientError> {
        Ok(self.agent.clone().status(StatusRequest {}).await?.into_inner())
    }

    /// The configuration in force, as TOML. It names files of secrets, and holds none.
    pub async fn configuration(&self) -> Result<String, ClientError> {
        Ok(self.agent.clone().configuration(ConfigurationRequest {}).await?.into_inner().toml)
    }

    /// What the fleet is and does.
    pub async fn fleet(&self, part: FleetPart) -> Result<Fleet, ClientError> {
        let bad = |error: ProtocolError| tonic::Status::data_loss(error.to_string());
        let mut fleet = Fleet::default();
        let mut after = if part == FleetPart::Nodes { Key::LAST_IDENTITY.to_string() } else { String::new() };
        loop {
            let request = FleetRequest { after: after.clone(), here: part == FleetPart::Here };
            let page = self.agent.clone().fleet(request).await?.into_inner();
            let is_last = !page.more || page.documents.is_empty() || fleet.nodes.len() >= MAX_FLEET;
            for document in page.documents {
                fleet.add(&Document::new(&document.key, document.json).map_err(bad)?).map_err(bad)?;
                after = document.key;
            }
            if !page.limited.is_empty() {
                fleet.limited = page.limited;
            }
            if is_last {
                return Ok(fleet);
            }
            if fleet.nodes.is_empty() && fleet.identities.len() >= MAX_FLEET {
                fleet.limited = format!("only the first {} identities are shown", fleet.identities.len());
                after = Key::LAST_IDENTITY.to_string();
            }
        }
    }

    /// Documents of trust that are newer than `known`. Nothing of them is verified.
    pub async fn trust(&self, known: Known) -> Result<Documents, ClientError> {
        let request = TrustKnown { root: known.root, policy: known.policy, issued_s: known.issued };
        let TrustDocuments { roots, policy, freshness } = self.agent.clone().trust(request).await?.into_inner();
        let documents = trust_documents(roots, policy, freshness);
        documents.map_err(|error| tonic::Status::data_loss(error.to_string()).into())
    }

    pub async fn list(&self, request: ListArtifactsRequest) -> Result<ListArtifactsReply, ClientError> {
        Ok(self.agent.clone().list(request).await?.into_inner())
    }

    /// Bytes freed.
    pub async fn evict(&self, id: ArtifactId) -> Result<u64, ClientError> {
        let request = EvictRequest { artifact_id: bytes::Bytes::copy_from_slice(id.as_bytes()) };
        Ok(self.agent.clone().evict(request).await?.into_inner().freed_bytes)
    }

    pub async fn inspect(&self, id: ArtifactId) -> Result<InspectReply, ClientError> {
        let request = InspectRequest { artifact_id: bytes::Bytes::copy_from_slice(id.as_bytes()) };
        Ok(self.agent.clone().inspect(request).await?.into_inner())
    }

    pub async fn report_start(&self, report: StartReport) -> Result<(), ClientError> {
        self.agent.clone().report_start(report).await?;
        Ok(())
    }

    /// The engine beside the agent serves: what its clients wait from one token to the next, and how many adapters it has, as
    /// far as either is known.
    pub async fn report_serving(
        &self,
        between_tokens: Option<Duration>,
        adapters: Option<u32>,
    ) -> Result<(), ClientError> {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let between_tokens_us = between_tokens.map_or(0, micros);
        self.agent.clone().report_serving(ServingReport { between_tokens_us, adapters }).await?;
        Ok(())
    }

    /// For the audit log of the node.
    pub async fn audit(&self, events: Vec<AuditEvent>) -> Result<(), ClientError> {
        self.agent.clone().audit(AuditRequest { events }).await?;
        Ok(())
    }

    /// One artifact, or all of the store.
    pub async fn verify(&self, id: Option<ArtifactId>) -> Result<Streaming<VerifyEvent>, ClientError> {
        let artifact_id = id.map(|id| bytes::Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default();
        Ok(self.agent.clone().verify(VerifyRequest { artifact_id }).await?.into_inner())
    }

    pub async fn gc(&self) -> Result<GcReply, ClientError> {
        Ok(self.agent.clone().gc(GcRequest {}).await?.into_inner())
    }

    pub async fn export(&self, id: ArtifactId) -> Result<Streaming<ArchiveBytes>, ClientError> {
        let request = ExportRequest { artifact_id: bytes::Bytes::copy_from_slice(id.as_bytes()) };
        Ok(self.agent.clone().export(request).await?.into_inner())
    }

    pub async fn import(
        &self,
        archive: impl futures_util::Stream<Item = ArchiveBytes> + Send + 'static,
    ) -> Result<ImportReply, ClientError> {
        Ok(self.agent.clone().import(archive).await?.into_inner())
    }

    /// Writes an artifact of this node to the origin.
    pub async fn origin_push(&self, id: ArtifactId) -> Result<Streaming<OriginPushEvent>, ClientError> {
        let request = OriginPushRequest { artifact_id: bytes::Bytes::copy_from_slice(id.as_bytes()) };
        Ok(self.agent.clone().origin_push(request).await?.into_inner())
    }

    /// Brings an artifact from the origin to this node, or the newest of each subject of an identity.
    pub async fn origin_pull(&self, id: &[u8; 32]) -> Result<Streaming<WarmEvent>, ClientError> {
        let request = OriginPullRequest { id: bytes::Bytes::copy_from_slice(id) };
        Ok(self.agent.clone().origin_pull(request).await?.into_inner())
    }

    /// Whether the origin has an artifact. Refused where there is no origin.
    pub async fn origin_has(&self, identity: &IdentityId, id: &ArtifactId) -> Result<bool, ClientError> {
        let request = OriginHasRequest {
            identity: bytes::Bytes::copy_from_slice(identity.as_bytes()),
            artifact_id: bytes::Bytes::copy_from_slice(id.as_bytes()),
        };
        Ok(self.agent.clone().origin_has(request).await?.into_inner().has)
    }

    /// What the origin has of a family; empty: of all.
    pub async fn origin_list(&self, family: &str) -> Result<OriginListReply, ClientError> {
        Ok(self.agent.clone().origin_list(OriginListRequest { family: family.to_owned() }).await?.into_inner())
    }
}
