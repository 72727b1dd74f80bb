//! What the fleet is and does: leases and reports joined into keyed documents, and which of them are others than before.
//!
//! Reports are kept in the memory of the server that a node talks to, as long as the node is known. Servers that share a
//! store all know every lease and artifact; a node that reports to another of them has a document without its report.

mod feed;
pub mod findings;
mod reports;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

pub(super) use self::feed::Feed;
pub(super) use self::reports::{Reports, Told};
use super::registry::{Lease, Registry};
use super::server::Store;
use super::service::Directory;
use crate::digest::KeyId;
use crate::identity::{NodeId, NodeTls};
use crate::protocol::fleet::{
    Backend, Document, FleetPage, IdentityDocument, Key, MAX_DOCUMENT, MAX_DOCUMENTS, NodeDocument, ServerDocument,
};
use crate::protocol::report::{Text, UnixMillis};

/// Bytes of documents in a page, roughly: the last one may be over it.
const PAGE_BYTES: usize = 2 * 1024 * 1024;

/// Documents that are drawn at once: the directory is read meanwhile.
const BATCH: usize = 64;

/// What a document is made of, as the registry has it.
enum Drawn {
    Server(ServerDocument),
    Node(NodeId, Lease),
    Identity(IdentityDocument),
}

/// What a server is, whatever it knows.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) name: String,
    pub(super) cluster: Option<KeyId>,
    pub(super) backend: Backend,
    pub(super) started_at: UnixMillis,
}

impl About {
    pub(super) fn of(store: &Store, tls: &NodeTls) -> Self {
        let backend = match store {
            Store::Memory => Backend::Memory,
            Store::File(_) => Backend::File,
            Store::Shared(..) => Backend::Shared,
        };
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { name, cluster: tls.cluster(), backend, started_at: UnixMillis::now() }
    }
}

/// Documents that are others than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// To ask from, next time.
    pub version: u64,
    /// These are all documents that there are: what is not among them is gone.
    pub all: bool,
    /// `None`: it is gone.
    pub documents: Vec<(Key, Option<Bytes>)>,
}

/// A view of what a metadata server knows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fleet(pub(super) Arc<Directory>);

impl Fleet {
    /// All documents now.
    pub fn documents(&self) -> Vec<Document> {
        let (mut documents, mut after) = (Vec::new(), None);
        loop {
            let page = self.page(after);
            documents.extend(page.documents);
            after = documents.last().map(|document| document.key);
            if !page.more {
                return documents;
            }
        }
    }

    /// Documents behind a key, as many as fit a message.
    pub fn page(&self, after: Option<Key>) -> FleetPage {
        let mut keys = self.0.read(|registry, _| keys(registry, after));
        // Only the first of them, in order; all of them could be a million.
        let more = keys.len() > MAX_DOCUMENTS;
        if more {
            keys.select_nth_unstable(MAX_DOCUMENTS);
            keys.truncate(MAX_DOCUMENTS);
        }
        keys.sort_unstable();
        let mut page = FleetPage { documents: Vec::with_capacity(keys.len()), more };
        let mut bytes = 0;
        for batch in keys.chunks(BATCH) {
            if bytes > PAGE_BYTES {
                page.more = true;
                break;
            }
            let documents =
                self.render(batch).into_iter().filter_map(|(key, json)| Some(Document { key, json: json? }));
            page.documents.extend(documents.inspect(|document| bytes += document.json.len()));
        }
        page
    }

    /// What changed since a version; 0 asks for everything. Each document is there once, as it is now: whoever asks late
    /// gets no backlog.
    pub fn changes(&self, since: u64) -> Changes {
        let (version, keys) = self.0.feed.since(since);
        let Some(keys) = keys else {
            let documents = self.documents().into_iter().map(|Document { key, json }| (key, Some(json)));
            return Changes { version, all: true, documents: documents.collect() };
        };
        let documents = keys.chunks(BATCH).flat_map(|batch| self.render(batch)).collect();
        Changes { version, all: false, documents }
    }

    /// Told the newest version whenever something changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.feed.subscribe()
    }

    /// Those that are gone have no document. Nodes are not kept waiting while JSON is written.
    fn render(&self, keys: &[Key]) -> Vec<(Key, Option<Bytes>)> {
        let drawn: Vec<_> =
            self.0.read(|registry, now| keys.iter().map(|key| (*key, self.draw(*key, registry, now))).collect());
        drawn.into_iter().map(|(key, drawn)| (key, drawn.and_then(|drawn| self.write(drawn)))).collect()
    }

    fn draw(&self, key: Key, registry: &Registry, now: Duration) -> Option<Drawn> {
        Some(match key {
            Key::Server => Drawn::Server(self.server(registry, now)),
            Key::Node(node) => Drawn::Node(node, registry.lease(node, now)?),
            Key::Identity(digest) => Drawn::Identity(registry.identity(digest, now)?),
        })
    }

    fn write(&self, drawn: Drawn) -> Option<Bytes> {
        let json = match drawn {
            Drawn::Server(server) => serde_json::to_vec(&server),
            Drawn::Node(node, lease) => serde_json::to_vec(&self.node(node, &lease)),
            Drawn::Identity(identity) => serde_json::to_vec(&identity),
        };
        // What these types are made of cannot fail to be written.
        json.ok().filter(|json| json.len() <= MAX_DOCUMENT).map(Bytes::from)
    }

    fn node(&self, id: NodeId, lease: &Lease) -> NodeDocument {
        let told = self.0.reports.get(id);
        NodeDocument {
            id,
            state: lease.standing,
            seen_at: UnixMillis::now().before(lease.renewed),
            endpoint: lease.endpoints.first().map(|endpoint| Text::cut(&endpoint.to_string())),
            region: Text::cut(&lease.locality.region),
            zone: Text::cut(&lease.locality.zone),
            rack: Text::cut(&lease.locality.rack),
            skew_ms: told.as_ref().map(|told| told.skew_ms),
            report: told.and_then(|told| told.report()),
        }
    }

    fn server(&self, registry: &Registry, now: Duration) -> ServerDocument {
        let (about, counts) = (&self.0.about, registry.counts(now));
        ServerDocument {
            name: Text::cut(&about.name),
            version: Text::cut(env!("CARGO_PKG_VERSION")),
            cluster: about.cluster,
            epoch: Text::cut(&format!("{:016x}", registry.server_epoch().0)),
            backend: about.backend,
            started_at: about.started_at,
            nodes: counts.live_nodes(),
            ready: counts.ready,
            draining: counts.draining,
            artifacts: counts.artifacts,
            identities: counts.identities,
        }
    }
}

/// All keys behind one, in no order.
fn keys(registry: &Registry, after: Option<Key>) -> Vec<Key> {
    let identities = registry.identity_ids().map(Key::Identity);
    let nodes = registry.node_ids().map(Key::Node);
    let all = identities.chain(nodes).chain([Key::Server]);
    all.filter(|key| after.is_none_or(|after| *key > after)).collect()
}

/// Names in one line; only the first of many.
pub fn listed(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}
