//! The words of the conversation between nodes and metadata server.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::artifact::Family;
use crate::digest::{ArtifactId, ContentId, IdentityId, KeyId};
use crate::identity::{NodeId, UnixTime};

/// One life of an agent's process. A node's later life has the higher epoch and replaces everything of the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// One life of a metadata server's knowledge; never 0. Another value than before means: announce everything again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServerEpoch(pub u64);

/// `Initializing -> Ready <-> Draining -> Stale`; every state may end in `Stale`, which is never left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeState {
    Initializing,
    Ready,
    Draining,
    Stale,
}

impl NodeState {
    /// Whether a node that was `self` may say that it is `next`.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Initializing => true,
            Self::Ready | Self::Draining => next != Self::Initializing,
            Self::Stale => next == Self::Stale,
        }
    }
}

/// The address is none that a peer could be reached under.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an endpoint: expected `ip:port`, not unspecified, multicast, broadcast or link-local")]
pub struct InvalidEndpoint;

/// Where peers reach a node: a UDP address. Link-local ones are refused: cloud metadata services live there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint(SocketAddr);

impl Endpoint {
    pub fn new(addr: SocketAddr) -> Result<Self, InvalidEndpoint> {
        let ip = addr.ip().to_canonical();
        let local = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if addr.port() == 0 || ip.is_unspecified() || ip.is_multicast() || local {
            return Err(InvalidEndpoint);
        }
        Ok(Self(SocketAddr::new(ip, addr.port())))
    }

    pub fn addr(self) -> SocketAddr {
        self.0
    }

    /// Reaches only the machine that dials it.
    pub fn is_loopback(self) -> bool {
        self.0.ip().is_loopback()
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        Self::new(text.parse().map_err(|_| InvalidEndpoint)?)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Uploads in progress and how many the node allows at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub uploads: u32,
    pub upload_slots: u32,
}

impl Load {
    pub fn free_slots(self) -> u32 {
        self.upload_slots.saturating_sub(self.uploads)
    }
}

/// Where a node stands, and `[locality]` of the configuration file. An empty name means unknown, and unknown is near to
/// nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub rack: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closeness {
    SameRack,
    SameZone,
    SameRegion,
    Other,
}

impl Locality {
    pub fn closeness(&self, other: &Self) -> Closeness {
        let same = |a: &str, b: &str| !a.is_empty() && a == b;
        if !same(&self.region, &other.region) {
            Closeness::Other
        } else if !same(&self.zone, &other.zone) {
            Closeness::SameRegion
        } else if !same(&self.rack, &other.rack) {
            Closeness::SameZone
        } else {
            Closeness::SameRack
        }
    }
}

/// What a holder says of an artifact. A hint: only the signed manifest counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Summary {
    pub artifact: ArtifactId,
    pub identity: IdentityId,
    pub content: ContentId,
    pub family: Family,
    pub subject: Arc<str>,
    pub generation: u64,
    pub created: UnixTime,
    /// Decoded bytes of all files, and encoded bytes of all chunks.
    pub size: u64,
    pub wire_size: u64,
    pub files: u32,
    pub chunks: u32,
    pub signer: KeyId,
    /// Milliseconds that its publisher has spent on compiling it; 0 if it does not say.
    pub compile_ms: u32,
}

/// An artifact of which a node has some or all chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub artifact: Arc<Summary>,
    pub chunks_held: u32,
}

impl Held {
    pub fn is_full(&self) -> bool {
        self.chunks_held >= self.artifact.chunks
    }
}

/// What a node says of itself; renews its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    pub node: NodeId,
    pub epoch: Epoch,
    /// Grows with each message of an epoch.
    pub sequence: u64,
    pub state: NodeState,
    pub endpoints: Arc<[Endpoint]>,
    pub load: Load,
    pub locality: Arc<Locality>,
    /// New or changed; with `full`, in place of everything announced before.
    pub held: Vec<Held>,
    pub full: bool,
    /// The server life that the node has announced to; `None` before the first reply.
    pub server_epoch: Option<ServerEpoch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnnounceReply {
    pub server_epoch: ServerEpoch,
    pub lease: Duration,
    pub heartbeat: Duration,
    pub announce_in_full: bool,
    /// Another number whenever the documents of trust change; 0 for none.
    pub trust: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Withdrawal {
    pub node: NodeId,
    pub epoch: Epoch,
    pub sequence: u64,
    pub artifact: ArtifactId,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookup {
    pub identities: Vec<IdentityId>,
    /// Holders of each artifact; `None` is the server's default.
    pub want: Option<u32>,
    pub near: Locality,
    pub exclude: Vec<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderInfo {
    pub node: NodeId,
    pub endpoints: Arc<[Endpoint]>,
    pub load: Load,
    pub locality: Arc<Locality>,
    pub chunks_held: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub artifact: Arc<Summary>,
    pub holders: Vec<HolderInfo>,
    /// Holders in all, whatever their state.
    pub holder_count: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub server_epoch: ServerEpoch,
    /// In the order of the identities asked for, newest first within each.
    pub offers: Vec<Offer>,
    /// Older artifacts were left out to keep the reply small.
    pub truncated: bool,
}

/// What one agent asks another: what it has of some identities. No identity twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    pub identities: Vec<IdentityId>,
}

/// What a node says of itself when asked. A hint, like everything that is said of artifacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    pub endpoints: Arc<[Endpoint]>,
    pub load: Load,
    pub locality: Arc<Locality>,
    pub held: Vec<Held>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchKind {
    HolderAdded {
        identity: IdentityId,
        artifact: ArtifactId,
        node: NodeId,
    },
    HolderGone {
        identity: IdentityId,
        artifact: ArtifactId,
        node: NodeId,
    },
    /// Events were lost: look up again.
    Lagged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchEvent {
    pub server_epoch: ServerEpoch,
    pub kind: WatchKind,
}

/// A place in a listing; means something only to the server that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageToken(pub u32);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRequest {
    pub after: Option<PageToken>,
    pub size: Option<u32>,
    pub family: Option<Family>,
    pub subject: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub server_epoch: ServerEpoch,
    pub offers: Vec<Offer>,
    /// `None` on the last page.
    pub next: Option<PageToken>,
    /// Nodes with a live lease.
    pub nodes: u32,
}
