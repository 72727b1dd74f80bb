//! What the server keeps across a restart: hints, so that lookups find holders before these have announced again.
//!
//! Nothing here is needed for correctness, and nothing is waited for by a request: a change marks a key, and a task writes
//! the present value of marked keys about once a second. The server epoch is not kept: a store that was rolled back looks
//! like any other, so only a new epoch at each start surely makes every agent announce again.
//!
//! Where several servers share one store, that store is the truth instead: see [`shared`].

mod file;
pub(super) mod shared;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use super::registry::{Changes, Registry};
use crate::digest::ArtifactId;
use crate::identity::NodeId;
use crate::protocol::metadata::{Announcement, Held};
pub use file::BackendError;
use file::FileStore;

/// Keys written in one transaction.
const BATCH: usize = 1_000;

/// A node's record, or one of its holdings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) node: NodeId,
    pub(super) artifact: Option<ArtifactId>,
}

/// The value of a key now; `None` deletes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    Node(Announcement),
    Holding(Held),
}

/// Where hints are kept.
#[derive(Debug)]
pub(super) enum Backend {
    Memory,
    File(FileStore),
}

impl Backend {
    /// With the nodes that it remembers, each with all that it held.
    pub(super) fn open(data: Option<&Path>) -> Result<(Self, Vec<Announcement>), BackendError> {
        match data {
            None => Ok((Self::Memory, Vec::new())),
            Some(directory) => {
                let (store, nodes) = FileStore::open(directory)?;
                Ok((Self::File(store), nodes))
            }
        }
    }

    /// Blocks for as long as the disk does.
    pub(super) fn write(&self, batch: &[(Key, Option<Value>)]) -> Result<(), BackendError> {
        match self {
            Self::Memory => Ok(()),
            Self::File(store) => store.write(batch),
        }
    }

    fn keeps(&self) -> bool {
        match self {
            Self::Memory => false,
            Self::File(_) => true,
        }
    }
}

/// Keys whose value on disk is out of date. Bounded by the registry's tables: a key is in it once.
#[derive(Debug)]
pub(super) struct Marked {
    keys: HashSet<Key>,
    keeps: bool,
}

impl Marked {
    pub(super) fn of(backend: &Backend) -> Self {
        Self { keys: HashSet::new(), keeps: backend.keeps() }
    }

    pub(super) fn mark(&mut self, changes: &Changes) {
        if self.keeps {
            self.keys.extend(changes.nodes.iter().map(|node| Key { node: *node, artifact: None }));
            let holdings = changes.holdings.iter();
            self.keys.extend(holdings.map(|(node, artifact)| Key { node: *node, artifact: Some(*artifact) }));
        }
    }

    pub(super) fn mark_again(&mut self, batch: Vec<(Key, Option<Value>)>) {
        self.keys.extend(batch.into_iter().map(|(key, _)| key));
    }

    /// Up to a batch of marked keys with their values now.
    pub(super) fn take(&mut self, registry: &Registry) -> Vec<(Key, Option<Value>)> {
        let keys: Vec<_> = self.keys.iter().take(BATCH).copied().collect();
        keys.into_iter()
            .inspect(|key| {
                self.keys.remove(key);
            })
            .map(|key| (key, value(registry, key)))
            .collect()
    }
}

fn value(registry: &Registry, key: Key) -> Option<Value> {
    match key.artifact {
        None => registry.node(key.node).map(Value::Node),
        Some(artifact) => registry.holding(key.node, artifact).map(Value::Holding),
    }
}

/// A record with its CRC32C (big endian) before it.
fn frame(bytes: &[u8]) -> Vec<u8> {
    [crc32c::crc32c(bytes).to_be_bytes().as_slice(), bytes].concat()
}

fn unframe(framed: &[u8]) -> Option<&[u8]> {
    let (crc, bytes) = framed.split_at_checked(4)?;
    (crc == crc32c::crc32c(bytes).to_be_bytes()).then_some(bytes)
}

/// Puts remembered nodes into an empty registry; those that do not fit are left out. They have one lease to renew.
pub(super) fn restore(registry: &mut Registry, nodes: &[Announcement], now: Duration) {
    let mut left_out = 0usize;
    for node in nodes {
        left_out += usize::from(registry.restore(node, now).is_err());
    }
    tracing::info!(nodes = nodes.len() - left_out, left_out, "restored hints from the store");
}
