//! The messages of the metadata server, and of agents that do without one, as domain types.
//!
//! What arrives is converted with `TryFrom` and refused if it breaks a limit of this page; what is sent is converted with
//! `From`. Repeated fields are counted on the raw bytes, before anything is allocated for them.

use std::time::Duration;

mod codec;
mod convert;
mod summary;
mod turns;
mod types;

#[cfg(test)]
pub(in crate::protocol) use codec::check;
pub(crate) use codec::{BoundedCodec, Repeated, Shaped};
pub use convert::trust::{decode_trust, encode_trust, trust_documents};
pub(in crate::protocol) use convert::{copy, decode, id, node};
pub use turns::in_turn;
pub use types::{
    AnnounceReply, Announcement, Closeness, Endpoint, Epoch, Found, Held, HolderInfo, Holdings, InvalidEndpoint, Load,
    Locality, Lookup, NodeState, Offer, Page, PageRequest, PageToken, Question, ServerEpoch, Summary, WatchEvent,
    WatchKind, Withdrawal,
};

/// Source identities in one lookup or watch.
pub const MAX_IDENTITIES: usize = 64;
/// Nodes that a lookup leaves out.
pub const MAX_EXCLUDE: usize = 64;
/// Endpoints of one node.
pub const MAX_ENDPOINTS: usize = 8;
/// Artifacts in one announcement; a node that holds more announces the rest in amending ones.
pub const MAX_HELD: usize = 10_000;
/// Artifacts in one reply, and holders of each.
pub const MAX_OFFERS: usize = 1_024;
pub const MAX_HOLDERS: usize = 64;
/// Artifacts that a node tells another of.
pub const MAX_HOLDINGS: usize = 256;
/// Artifacts in one page.
pub const MAX_PAGE: usize = 1_000;
/// Bytes of a subject, as in manifests, and of the name of a region, zone or rack.
pub const MAX_SUBJECT: usize = 4_096;
pub const MAX_PLACE: usize = 64;
/// Artifacts that were made later than this from now are not believed: how far the clocks of a cluster may differ.
pub const MAX_AHEAD: Duration = Duration::from_secs(86_400);
/// Largest message in bytes.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Generated from `proto/{metadata,discovery}.proto`.
#[expect(unreachable_pub, clippy::allow_attributes_without_reason, reason = "generated code")]
pub(crate) mod pb {
    tonic::include_proto!("metadata/warmd.v1");
}

#[cfg(test)]
mod tests;
