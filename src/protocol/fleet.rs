//! What the fleet is and does, as keyed JSON documents: a page of them is sent by a metadata server, one at a time to a web
//! page, and all of them are what `warmd status --fleet` shows. Hints, like everything that nodes tell.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ProtocolError;
use super::metadata::pb;
use super::report::{NAME, NodeReport, Text, UnixMillis, VERSION};
use crate::artifact::Family;
use crate::digest::{ArtifactId, IdentityId, KeyId};
use crate::identity::NodeId;

/// Documents in one page.
pub const MAX_DOCUMENTS: usize = 1_000;
/// Bytes of one document.
pub const MAX_DOCUMENT: usize = 256 * 1024;
/// Artifacts of one identity, newest first, and holders of each, complete and partial ones.
pub const MAX_ARTIFACTS: usize = 32;
pub const MAX_HOLDERS: usize = 64;
pub const MAX_PARTIAL: usize = 16;
/// Bytes of a subject.
pub const SUBJECT: usize = 128;

/// What a document is about. In the order of the texts: `identity/<digest>`, `node/<id>`, `server`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Identity(IdentityId),
    Node(NodeId),
    Server,
}

impl Key {
    /// Behind all identities, before all nodes.
    pub const LAST_IDENTITY: Self = Self::Identity(IdentityId::from_array([0xff; 32]));
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(digest) => write!(f, "identity/{digest}"),
            Self::Node(node) => write!(f, "node/{node}"),
            Self::Server => f.write_str("server"),
        }
    }
}

impl FromStr for Key {
    type Err = ProtocolError;
    fn from_str(text: &str) -> Result<Self, ProtocolError> {
        let invalid = ProtocolError::Invalid("key");
        match text.split_once('/') {
            Some(("identity", digest)) => digest.parse().map(Self::Identity).map_err(|_| invalid),
            Some(("node", node)) => node.parse().map(Self::Node).map_err(|_| invalid),
            None if text == "server" => Ok(Self::Server),
            _ => Err(invalid),
        }
    }
}

/// A key and what there is to say of it, as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub key: Key,
    pub json: Bytes,
}

/// Documents in the order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FleetPage {
    pub documents: Vec<Document>,
    /// There are others behind the last one.
    pub more: bool,
}

/// Whether a node can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    Initializing,
    Ready,
    Draining,
    /// Its lease ran out, or it has said its last word.
    Stale,
}

/// `node/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDocument {
    pub id: NodeId,
    pub state: Standing,
    /// When its lease was renewed, as of this document.
    pub seen_at: UnixMillis,
    /// Where peers reach it: `ip:port`.
    pub endpoint: Option<Text<NAME>>,
    pub region: Text<NAME>,
    pub zone: Text<NAME>,
    pub rack: Text<NAME>,
    /// Milliseconds that its clock is ahead of the server's.
    pub skew_ms: Option<i64>,
    /// What it tells of itself; `None` if it has told this server nothing.
    #[serde(flatten)]
    pub report: Option<NodeReport>,
}

impl NodeDocument {
    /// For people: its name, or the beginning of its id.
    pub fn called(&self) -> String {
        let name = self.report.as_ref().map(|report| report.name.to_string()).filter(|name| !name.is_empty());
        name.unwrap_or_else(|| self.id.short())
    }
}

/// `identity/<digest>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityDocument {
    pub digest: IdentityId,
    pub family: Family,
    /// `None` where no manifest was looked at.
    pub facts: Option<BTreeMap<String, String>>,
    /// Newest first.
    pub artifacts: Vec<ArtifactDocument>,
}

/// An artifact and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactDocument {
    pub id: ArtifactId,
    pub subject: Text<SUBJECT>,
    /// Of all files.
    pub bytes: u64,
    pub signer: KeyId,
    /// When it was made, by its manifest.
    pub at: UnixMillis,
    /// Those that have all of it and can be asked, and in all, partial ones included.
    pub holders: Vec<NodeId>,
    pub partial: Vec<NodeId>,
    pub holder_count: u32,
}

/// `server`: the metadata server that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerDocument {
    pub name: Text<NAME>,
    pub version: Text<VERSION>,
    pub cluster: Option<KeyId>,
    /// 16 hexadecimal digits: it may be too large for a number in JSON.
    pub epoch: Text<16>,
    pub backend: Backend,
    pub started_at: UnixMillis,
    /// With a live lease.
    pub nodes: usize,
    pub ready: usize,
    pub draining: usize,
    pub artifacts: usize,
    pub identities: usize,
}

/// Where a server keeps its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    Memory,
    File,
    Shared,
}

/// All documents of a view.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Fleet {
    /// Why this is not the whole fleet; else empty.
    pub limited: String,
    pub server: Option<ServerDocument>,
    pub nodes: Vec<NodeDocument>,
    pub identities: Vec<IdentityDocument>,
}

impl Fleet {
    /// Takes in a document that came from elsewhere.
    pub fn add(&mut self, document: &Document) -> Result<(), ProtocolError> {
        fn read<'d, T: Deserialize<'d>>(json: &'d [u8]) -> Result<T, ProtocolError> {
            serde_json::from_slice(json).map_err(|_| ProtocolError::Invalid("json"))
        }
        match document.key {
            Key::Identity(_) => self.identities.push(read(&document.json)?),
            Key::Node(_) => self.nodes.push(read(&document.json)?),
            Key::Server => self.server = Some(read(&document.json)?),
        }
        Ok(())
    }

    /// For people: nodes of one name have the beginning of their id behind it.
    pub fn told_apart(mut self) -> Self {
        let mut nodes_of: BTreeMap<String, u32> = BTreeMap::new();
        self.nodes.iter().for_each(|node| *nodes_of.entry(node.called()).or_default() += 1);
        for node in &mut self.nodes {
            let (name, id) = (node.called(), node.id.short());
            if let Some(report) = node.report.as_mut().filter(|_| nodes_of[&name] > 1) {
                let name = Text::<{ NAME - NodeId::SHORT - 1 }>::cut(&name);
                report.name = Text::cut(&format!("{name}~{id}"));
            }
        }
        self
    }
}

impl Document {
    /// From a wire.
    pub fn new(key: &str, json: Bytes) -> Result<Self, ProtocolError> {
        if json.len() > MAX_DOCUMENT {
            return Err(ProtocolError::TooMany { field: "json", limit: MAX_DOCUMENT });
        }
        Ok(Self { key: key.parse()?, json })
    }
}

impl TryFrom<pb::FleetReply> for FleetPage {
    type Error = ProtocolError;
    fn try_from(reply: pb::FleetReply) -> Result<Self, ProtocolError> {
        if reply.documents.len() > MAX_DOCUMENTS {
            return Err(ProtocolError::TooMany { field: "documents", limit: MAX_DOCUMENTS });
        }
        let documents = reply.documents.into_iter().map(|document| Document::new(&document.key, document.json));
        let documents: Vec<Document> = documents.collect::<Result<_, _>>()?;
        let in_order = documents.is_sorted_by(|a, b| a.key < b.key);
        // Else asking for the rest would not end.
        if !in_order || (reply.more && documents.is_empty()) {
            return Err(ProtocolError::Invalid("documents"));
        }
        Ok(Self { documents, more: reply.more })
    }
}

impl FleetPage {
    pub(crate) fn reply(self, server_epoch: u64) -> pb::FleetReply {
        let document = |document: Document| pb::FleetDocument { key: document.key.to_string(), json: document.json };
        pb::FleetReply { server_epoch, documents: self.documents.into_iter().map(document).collect(), more: self.more }
    }
}

/// The place of a page: behind this key.
impl TryFrom<pb::FleetRequest> for Option<Key> {
    type Error = ProtocolError;
    fn try_from(request: pb::FleetRequest) -> Result<Self, ProtocolError> {
        if request.after.is_empty() { Ok(None) } else { request.after.parse().map(Some) }
    }
}
