//! The messages of ModelExpress's metadata service as domain types; `proto/model_express.proto` describes the calls.
//!
//! Strangers speak it, in plaintext: repeated fields are counted before anything is allocated for them, and what breaks a
//! limit of this page is refused.

mod convert;
mod identity;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use super::ProtocolError;
use super::metadata::{Repeated, Shaped};
pub use identity::{Identity, SourceId};

/// Largest message in bytes. What a worker says of itself is a few KiB where workers exchange their tensors' addresses
/// themselves, and about 1 MiB where the server keeps them.
pub const MAX_MESSAGE: usize = 8 * 1024 * 1024;
/// Bytes of an identity as a message, and its extra parameters.
pub const MAX_IDENTITY: usize = 16 * 1024;
pub const MAX_PARAMETERS: usize = 64;
/// Bytes of a worker's id, and of the name of its accelerator.
pub const MAX_WORKER_ID: usize = 128;
pub const MAX_ACCELERATOR: usize = 64;
/// Domains of a worker's topology, and bytes of each name and value.
pub const MAX_TOPOLOGY: usize = 16;
pub const MAX_DOMAIN: usize = 256;
/// Workers in one answer.
pub const MAX_LISTED: usize = 1_000;

/// Generated from `proto/model_express.proto`.
#[expect(unreachable_pub, clippy::allow_attributes_without_reason, reason = "generated code")]
pub(crate) mod pb {
    tonic::include_proto!("model_express/model_express.p2p");
}

const IDENTITY: &[Repeated] = &[Repeated::new(10, "extra_parameters", MAX_PARAMETERS, &[])];
const LISTED: &[Repeated] = &[Repeated::new(9, "topology", MAX_TOPOLOGY, &[])];
const WORKER: &[Repeated] = &[Repeated::new(11, "topology", MAX_TOPOLOGY, &[])];

impl Shaped for pb::PublishMetadataRequest {
    const SHAPE: &'static [Repeated] =
        &[Repeated::new(1, "identity", 1, IDENTITY), Repeated::new(2, "worker", 1, WORKER)];
}
impl Shaped for pb::ListSourcesRequest {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "identity", 1, IDENTITY)];
}
impl Shaped for pb::GetMetadataRequest {}
impl Shaped for pb::UpdateStatusRequest {}
impl Shaped for pb::PublishMetadataResponse {}
impl Shaped for pb::ListSourcesResponse {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "instances", MAX_LISTED, LISTED)];
}
impl Shaped for pb::GetMetadataResponse {
    const SHAPE: &'static [Repeated] = &[Repeated::new(5, "identity", 1, IDENTITY)];
}
impl Shaped for pb::UpdateStatusResponse {}

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceStatus {
    Initializing,
    Ready,
    /// Nothing can be taken from it, for now or for ever: a heartbeat that says READY brings it back.
    Stale,
}

/// A process with weights in one accelerator's memory, named by itself: 1 to 128 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(Arc<str>);

impl FromStr for WorkerId {
    type Err = ProtocolError;
    fn from_str(text: &str) -> Result<Self, ProtocolError> {
        match text {
            "" => Err(ProtocolError::Missing("worker_id")),
            text if text.len() > MAX_WORKER_ID => {
                Err(ProtocolError::TooMany { field: "worker_id", limit: MAX_WORKER_ID })
            }
            text if text.chars().any(char::is_control) => Err(ProtocolError::Invalid("worker_id")),
            text => Ok(Self(text.into())),
        }
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One worker's registration for one identity. Workers of one identity stand side by side.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Registration {
    pub source: SourceId,
    pub worker: WorkerId,
}

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    pub key: Registration,
    pub identity: Identity,
    pub rank: u32,
    pub status: SourceStatus,
    /// Empty if it does not say.
    pub accelerator: String,
    pub topology: HashMap<String, String>,
    /// A whole `WorkerMetadata`, byte for byte.
    pub metadata: Bytes,
}

/// A heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusUpdate {
    pub key: Registration,
    pub rank: u32,
    pub status: SourceStatus,
    pub load: Option<f32>,
}

/// Which workers to list; what is absent matches all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Query {
    pub source: Option<SourceId>,
    pub status: Option<SourceStatus>,
    pub model: Option<String>,
    pub rank: Option<u32>,
    pub min_step: Option<u64>,
    /// Unix milliseconds.
    pub min_updated_at: Option<i64>,
    /// 1 to [`MAX_LISTED`].
    pub limit: Option<usize>,
}

/// A worker as it is listed.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    pub key: Registration,
    pub model: String,
    pub rank: u32,
    pub accelerator: String,
    pub updated_at: i64,
    pub step: Option<u64>,
    pub layout: Option<String>,
    pub topology: HashMap<String, String>,
    pub load: Option<f32>,
}

/// All that is known of one worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    pub identity: Identity,
    pub metadata: Bytes,
    pub status: SourceStatus,
    pub updated_at: i64,
}
