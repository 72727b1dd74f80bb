//! What goes over wires, and the only place where generated types become domain types and back.
//!
//! `peer` is the QUIC protocol, `metadata`, `model_express` and `agent` are gRPC. Above this module only the rpc handlers
//! and clients name generated types. [`report`] is what a node tells of itself, and [`fleet`] what becomes of all reports.

pub mod agent;
pub mod fleet;
pub mod metadata;
pub mod model_express;
pub mod peer;
pub mod report;

/// Generated from `proto/{peer,metadata,agent}.proto`.
#[expect(unreachable_pub, clippy::allow_attributes_without_reason, reason = "generated code")]
pub(crate) mod pb {
    tonic::include_proto!("warmd.v1");
}

/// A message from outside that breaks its own rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    #[error("field `{0}` is invalid")]
    Invalid(&'static str),
    #[error("field `{field}` has more than {limit} elements or bytes")]
    TooMany { field: &'static str, limit: usize },
    #[error("frame is malformed")]
    Frame,
}
