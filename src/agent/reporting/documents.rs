//! This node and what it holds, as the documents of a fleet of one: an agent shows them on a page of its own.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Reporter;
use crate::agent::holdings::summary;
use crate::identity::NodeId;
use crate::protocol::fleet::{ArtifactDocument, Document, IdentityDocument, Key, MAX_ARTIFACTS, MAX_DOCUMENTS};
use crate::protocol::report::{Text, UnixMillis};
use crate::store::{Artifact, State};

impl Reporter {
    /// Of artifacts those of the first [`MAX_DOCUMENTS`] identities.
    pub(in crate::agent) async fn documents(&self) -> Vec<Document> {
        let own = serde_json::to_vec(&self.document().await).map(Bytes::from);
        let (node, store) = (self.sources.node, self.sources.store.clone());
        let held = tokio::task::spawn_blocking(move || {
            let mut identities = BTreeMap::new();
            store.list().iter().for_each(|artifact| add(&mut identities, artifact, node));
            let json = |(key, document)| Some(Document { key, json: serde_json::to_vec(&document).ok()?.into() });
            identities.into_iter().filter_map(json).collect::<Vec<_>>()
        });
        let own = own.ok().map(|json| Document { key: Key::Node(node), json });
        own.into_iter().chain(held.await.unwrap_or_default()).collect()
    }
}

fn add(identities: &mut BTreeMap<Key, IdentityDocument>, artifact: &Artifact, node: NodeId) {
    let (manifest, told) = (artifact.manifest(), summary(artifact));
    let key = Key::Identity(told.identity);
    if identities.len() >= MAX_DOCUMENTS && !identities.contains_key(&key) {
        return;
    }
    let facts = manifest.identity.facts().iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let identity = identities.entry(key).or_insert_with(|| IdentityDocument {
        digest: told.identity,
        family: told.family.clone(),
        facts: Some(facts),
        artifacts: Vec::new(),
    });
    if identity.artifacts.len() >= MAX_ARTIFACTS {
        return;
    }
    let here = |state| if artifact.state() == state { vec![node] } else { Vec::new() };
    identity.artifacts.push(ArtifactDocument {
        id: told.artifact,
        subject: Text::cut(&told.subject),
        bytes: told.size,
        signer: told.signer,
        at: UnixMillis(told.created.seconds().saturating_mul(1000)),
        holders: here(State::Complete),
        partial: here(State::Partial),
        holder_count: 1,
    });
    identity.artifacts.sort_by_key(|artifact| std::cmp::Reverse(artifact.at));
}
