//! Documents of trust. Their signatures are for whoever takes them.

use bytes::Bytes;
use prost::Message;

use super::{Result, decode, limited};
use crate::identity::trust::{
    Documents, FRESHNESS_TYPE, Known, MAX_FRESHNESS_BYTES, MAX_ROOT_BYTES, MAX_ROOTS, ROOT_TYPE,
};
use crate::identity::{Envelope, MAX_AROUND, MAX_POLICY_BYTES, POLICY_TYPE};
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
    let some = |kind: &Kind, bytes: Bytes| match bytes.is_empty() {
        true => Ok(None),
        false => kind.decode(bytes).map(Some),
    };
    Ok(Documents {
        roots: roots.into_iter().map(|root| ROOT.decode(root)).collect::<Result<_>>()?,
        policy: some(&POLICY, policy)?,
        freshness: some(&FRESHNESS, freshness)?,
    })
}

/// A kind of document: where it is in the message, its type, and the bytes that are signed at most.
struct Kind {
    field: &'static str,
    payload_type: &'static str,
    most: usize,
}

const ROOT: Kind = Kind { field: "roots", payload_type: ROOT_TYPE, most: MAX_ROOT_BYTES };
const POLICY: Kind = Kind { field: "policy", payload_type: POLICY_TYPE, most: MAX_POLICY_BYTES as usize };
const FRESHNESS: Kind = Kind { field: "freshness", payload_type: FRESHNESS_TYPE, most: MAX_FRESHNESS_BYTES };

impl Kind {
    fn decode(&self, bytes: Bytes) -> Result<Envelope> {
        let limit = self.most + MAX_AROUND;
        if bytes.len() > limit {
            return Err(ProtocolError::TooMany { field: self.field, limit });
        }
        Envelope::decode(self.payload_type, bytes).map_err(|_| ProtocolError::Invalid(self.field))
    }
}

/// As on the wire.
pub fn encode_trust(documents: &Documents) -> Vec<u8> {
    pb::TrustDocuments::from(documents).encode_to_vec()
}

/// Not more than a message may have: the caller bounds the bytes.
pub fn decode_trust(bytes: &[u8]) -> Result<Documents> {
    decode::<pb::TrustDocuments>(bytes)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn a_document_is_as_large_as_its_kind_may_be() {
        let sign = |payload_type, len| {
            Envelope::sign(payload_type, Bytes::from(vec![b'#'; len]), &[&PrivateKey::from_seed(1)]).encode()
        };
        let taken = |root: usize, policy: usize, freshness: usize| {
            let roots = vec![sign(ROOT_TYPE, root)];
            trust_documents(roots, sign(POLICY_TYPE, policy), sign(FRESHNESS_TYPE, freshness)).map(drop)
        };
        let policy = MAX_POLICY_BYTES as usize;
        assert_eq!(taken(MAX_ROOT_BYTES, policy, MAX_FRESHNESS_BYTES), Ok(()));
        let refused = |field, limit: usize| Err(ProtocolError::TooMany { field, limit: limit + MAX_AROUND });
        assert_eq!(taken(MAX_ROOT_BYTES + MAX_AROUND, policy, 1), refused("roots", MAX_ROOT_BYTES));
        assert_eq!(taken(1, policy + MAX_AROUND, 1), refused("policy", policy));
        assert_eq!(taken(1, 1, MAX_FRESHNESS_BYTES + MAX_AROUND), refused("freshness", MAX_FRESHNESS_BYTES));
    }
}
