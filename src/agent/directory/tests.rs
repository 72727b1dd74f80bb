use super::*;
use crate::digest::{ContentId, IdentityId, KeyId};
use crate::identity::{PrivateKey, UnixTime};
use crate::protocol::metadata::{HolderInfo, Summary};

pub(in crate::agent) fn identity(seed: u8) -> IdentityId {
    IdentityId::from_array([seed; 32])
}

/// The one artifact of an identity, and its holders.
pub(in crate::agent) fn offer(of: u8, holders: &[u8]) -> Offer {
    let artifact = Summary {
        artifact: ArtifactId::from_array([of; 32]),
        identity: identity(of),
        content: ContentId::from_array([3; 32]),
        family: "triton".parse().unwrap(),
        subject: "s".into(),
        generation: 1,
        created: UnixTime::from_seconds(3),
        size: 300,
        wire_size: 100,
        files: 4,
        chunks: 5,
        signer: KeyId::from_array([4; 32]),
        compile_ms: 0,
    };
    let holder = |seed: &u8| HolderInfo {
        node: PrivateKey::from_seed(*seed).node_id(),
        endpoints: Arc::from(["127.0.0.1:4780".parse().unwrap()]),
        load: Load::default(),
        locality: Arc::default(),
        chunks_held: 5,
    };
    let holders: Vec<_> = holders.iter().map(holder).collect();
    let holder_count = holders.len() as u32;
    Offer { artifact: Arc::new(artifact), holders, holder_count }
}

#[test]
fn holders_of_one_artifact_are_put_together_each_once() {
    let mut offers = vec![offer(1, &[1, 2])];
    merge(&mut offers, vec![offer(1, &[2, 3]), offer(2, &[4])]);
    assert_eq!(offers, [offer(1, &[1, 2, 3]), offer(2, &[4])]);
}
