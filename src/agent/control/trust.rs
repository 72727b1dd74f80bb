//! Documents of trust, for the pods of this node.

use bytes::Bytes;
use tonic::Status;

use super::super::trust::Trust;
use crate::identity::Envelope;
use crate::identity::trust::{Documents, Known};
use crate::protocol::pb;

pub(super) fn documents(trust: &Trust, known: pb::TrustKnown) -> Result<pb::TrustDocuments, Status> {
    let known = Known { root: known.root, policy: known.policy, issued: known.issued_s };
    let documents = trust.after(known);
    let Documents { roots, policy, freshness } = documents.ok_or_else(|| {
        Status::failed_precondition("this agent has no root document (`trust.root`): it hands on no policy")
    })?;
    let encode = |envelope: Option<Envelope>| envelope.map_or_else(Bytes::new, |envelope| envelope.encode());
    Ok(pb::TrustDocuments {
        roots: roots.iter().map(Envelope::encode).collect(),
        policy: encode(policy),
        freshness: encode(freshness),
    })
}
