//! What tests of this module are made of.

use std::sync::Arc;

use crate::digest::{ArtifactId, ContentId, IdentityId, KeyId};
use crate::identity::{NodeId, PrivateKey, UnixTime};
use crate::protocol::metadata::{Held, Holdings, Load, Summary};

pub(super) fn node(seed: u8) -> NodeId {
    PrivateKey::from_seed(seed).node_id()
}

pub(super) fn held(artifact: u8, identity: u8, created: u64) -> Held {
    let artifact = Summary {
        artifact: ArtifactId::from_array([artifact; 32]),
        identity: IdentityId::from_array([identity; 32]),
        content: ContentId::from_array([3; 32]),
        family: "triton".parse().unwrap(),
        subject: "s".into(),
        generation: 1,
        created: UnixTime::from_seconds(created),
        size: 300,
        wire_size: 100,
        files: 4,
        chunks: 5,
        signer: KeyId::from_array([4; 32]),
        compile_ms: 0,
    };
    Held { artifact: Arc::new(artifact), chunks_held: 5 }
}

/// Of a node on this machine.
pub(super) fn holdings(held: Vec<Held>) -> Holdings {
    let endpoints = Arc::from(["127.0.0.1:4780".parse().unwrap()]);
    Holdings { endpoints, load: Load::default(), locality: Arc::default(), held }
}
