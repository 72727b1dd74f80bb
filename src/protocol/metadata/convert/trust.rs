//! Documents of trust. Their signatures are for whoever takes them.

use bytes::Bytes;
use prost::Message;

use super::{Result, decode, limited};
use crate::identity::trust::{Documents, FRESHNESS_TYPE, Known, MAX_ROOTS, ROOT_TYPE};
use crate::identity::{Envelope, POLICY_TYPE};
use crate::protocol::ProtocolError;
use crate::protocol::metadata::pb;

impl TryFrom<pb::TrustKnown> for Known {
    type Error = ProtocolError;
    fn try_from(known: pb::TrustKnown) -> Result<Self> {
        Ok(Self { root: known.root, policy: known.policy, issued: known.issued_s })
    }
}

impl From<Known> for pb::TrustKnown {
    fn from(known: Known) -> Self {
        Self { root: known.root, policy: known.policy, issued_s: known.issued }
    }
}

impl From<&Documents> for pb::TrustDocuments {
    fn from(documents: &Documents) -> Self {
        let encode = |envelope: &Option<Envelope>| envelope.as_ref().map_or_else(Bytes::new, Envelope::encode);
        Self {
            roots: documents.roots.iter().map(Envelope::encode).collect(),
            policy: encode(&documents.policy),
            freshness: encode(&documents.freshness),
        }
    }
}

impl TryFrom<pb::TrustDocuments> for Documents {
    type Error = ProtocolError;
    fn try_from(documents: pb::TrustDocuments) -> Result<Self> {
        trust_documents(documents.roots, documents.policy, documents.freshness)
    }
}

/// Documents as envelopes in binary form, empty for none.
pub fn trust_documents(roots: Vec<Bytes>, policy: Bytes, freshness: Bytes) -> Result<Documents> {
    limited(&roots, "roots", MAX_ROOTS)?;
    let one = |payload_type, bytes: Bytes, field| {
        Envelope::decode(payload_type, bytes).map_err(|_| ProtocolError::Invalid(field))
    };
    let some = |payload_type, bytes: Bytes, field| match bytes.is_empty() {
        true => Ok(None),
        false => one(payload_type, bytes, field).map(Some),
    };
    Ok(Documents {
        roots: roots.into_iter().map(|root| one(ROOT_TYPE, root, "roots")).collect::<Result<_>>()?,
        policy: some(POLICY_TYPE, policy, "policy")?,
        freshness: some(FRESHNESS_TYPE, freshness, "freshness")?,
    })
}

/// As on the wire.
pub fn encode_trust(documents: &Documents) -> Vec<u8> {
    pb::TrustDocuments::from(documents).encode_to_vec()
}

/// Not more than a message may have: the caller bounds the bytes.
pub fn decode_trust(bytes: &[u8]) -> Result<Documents> {
    decode::<pb::TrustDocuments>(bytes)?.try_into()
}
