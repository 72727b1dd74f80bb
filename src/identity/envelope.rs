//! DSSE 1.0.2 envelopes: signatures over the type and the exact bytes, so that nothing is ever re-serialised.
//! <https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md>
//!
//! Manifests travel in binary form (`proto/trust.proto`), policies in the standard's JSON form. Both hold the same thing.

use bytes::Bytes;
use data_encoding::BASE64;
use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};
use serde::{Deserialize, Serialize};

use super::key::{PrivateKey, PublicKey};
use super::pb;
use crate::digest::KeyId;

/// Numbers of fields.
const PAYLOAD: u32 = 2;
const SIGNATURES: u32 = 3;

/// More signatures than this on one envelope are refused.
pub const MAX_SIGNATURES: usize = 16;

/// Most bytes of an envelope in binary form beside its payload: the type, and as many signatures as there may be.
pub const MAX_AROUND: usize = 4096;

/// The bytes are not an envelope that we accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("not a signature envelope")]
    Malformed,
    #[error("envelope of type `{found}` where `{expected}` was expected")]
    WrongType { expected: &'static str, found: String },
    #[error("envelope has {0} signatures, allowed are 1 to {MAX_SIGNATURES}")]
    SignatureCount(usize),
}

/// One signature; `key_id` is a hint for choosing the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    pub key_id: KeyId,
    pub bytes: [u8; 64],
}

/// A payload with signatures over it; nothing about it is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    payload_type: &'static str,
    payload: Bytes,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JsonEnvelope {
    payload_type: String,
    payload: String,
    signatures: Vec<JsonSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonSignature {
    keyid: String,
    sig: String,
}

impl Envelope {
    pub fn sign(payload_type: &'static str, payload: Bytes, keys: &[&PrivateKey]) -> Self {
        let message = pre_authentication_encoding(payload_type, &payload);
        let signatures =
            keys.iter().map(|key| Signature { key_id: key.public().id(), bytes: key.sign(&message) }).collect();
        Self { payload_type, payload, signatures }
    }

    /// Adds a signature over the same bytes; an older one by the same key is replaced.
    pub fn add_signature(&mut self, key: &PrivateKey) {
        let key_id = key.public().id();
        let bytes = key.sign(&pre_authentication_encoding(self.payload_type, &self.payload));
        self.signatures.retain(|signature| signature.key_id != key_id);
        self.signatures.push(Signature { key_id, bytes });
    }

    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Key ids as the envelope claims them.
    pub fn key_ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.signatures.iter().map(|signature| signature.key_id)
    }

    /// Those of `keys` that really signed; each counts once.
    pub fn verify<'k>(&self, keys: impl Iterator<Item = &'k PublicKey>) -> Vec<PublicKey> {
        let message = pre_authentication_encoding(self.payload_type, &self.payload);
        let signed = |key: &PublicKey| {
            let id = key.id();
            self.signatures.iter().any(|s| s.key_id == id && key.verify(&message, &s.bytes))
        };
        let mut found: Vec<PublicKey> = keys.filter(|key| signed(key)).copied().collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    pub fn encode(&self) -> Bytes {
        let (mut bytes, back) = (self.front(), self.back());
        bytes.reserve_exact(self.payload.len() + back.len());
        bytes.extend_from_slice(&self.payload);
        bytes.extend_from_slice(&back);
        bytes.into()
    }

    /// What is in front of the payload: the type, and the payload's length.
    fn front(&self) -> Vec<u8> {
        let payload_type = self.payload_type.to_owned();
        let mut front = pb::Envelope { payload_type, ..Default::default() }.encode_to_vec();
        if !self.payload.is_empty() {
            encode_key(PAYLOAD, WireType::LengthDelimited, &mut front);
            encode_varint(self.payload.len() as u64, &mut front);
        }
        front
    }

    /// What follows the payload: the signatures.
    fn back(&self) -> Vec<u8> {
        let message = |signature: &Signature| pb::Signature {
            key_id: Bytes::copy_from_slice(signature.key_id.as_bytes()),
            sig: Bytes::copy_from_slice(&signature.bytes),
        };
        pb::Envelope { signatures: self.signatures.iter().map(message).collect(), ..Default::default() }.encode_to_vec()
    }

    /// Whether [`Envelope::encode`] gives `bytes`, which this was read from: the payload itself need not be looked at.
    fn is_written_as(&self, bytes: &[u8]) -> bool {
        let (front, back) = (self.front(), self.back());
        let len = front.len() + self.payload.len() + back.len();
        bytes.len() == len && bytes.starts_with(&front) && bytes.ends_with(&back)
    }

    /// The payload shares memory with `bytes`. The caller bounds the length of `bytes` before reading them.
    pub fn decode(payload_type: &'static str, bytes: Bytes) -> Result<Self, EnvelopeError> {
        let count = count_signatures(&bytes)?;
        if count > MAX_SIGNATURES {
            return Err(EnvelopeError::SignatureCount(count));
        }
        let envelope = pb::Envelope::decode(bytes.clone()).map_err(|_| EnvelopeError::Malformed)?;
        let signatures = envelope.signatures.into_iter().map(|s| (s.key_id, s.sig));
        let envelope = Self::from_parts(payload_type, envelope.payload_type, envelope.payload, signatures)?;
        if envelope.is_written_as(&bytes) { Ok(envelope) } else { Err(EnvelopeError::Malformed) }
    }

    pub fn to_json(&self) -> String {
        let signatures = self
            .signatures
            .iter()
            .map(|s| JsonSignature { keyid: s.key_id.to_string(), sig: BASE64.encode(&s.bytes) })
            .collect();
        let json = JsonEnvelope {
            payload_type: self.payload_type.to_owned(),
            payload: BASE64.encode(&self.payload),
            signatures,
        };
        serde_json::to_string_pretty(&json).unwrap_or_default() + "\n"
    }

    pub fn from_json(payload_type: &'static str, text: &str) -> Result<Self, EnvelopeError> {
        let json: JsonEnvelope = serde_json::from_str(text).map_err(|_| EnvelopeError::Malformed)?;
        let base64 = |text: &str| BASE64.decode(text.as_bytes()).map(Bytes::from).map_err(|_| EnvelopeError::Malformed);
        let payload = base64(&json.payload)?;
        let mut signatures = Vec::with_capacity(json.signatures.len());
        for signature in &json.signatures {
            let key_id: KeyId = signature.keyid.parse().map_err(|_| EnvelopeError::Malformed)?;
            signatures.push((Bytes::copy_from_slice(key_id.as_bytes()), base64(&signature.sig)?));
        }
        Self::from_parts(payload_type, json.payload_type, payload, signatures.into_iter())
    }

    fn from_parts(
        expected: &'static str,
        found: String,
        payload: Bytes,
        signatures: impl ExactSizeIterator<Item = (Bytes, Bytes)>,
    ) -> Result<Self, EnvelopeError> {
        if found != expected {
            return Err(EnvelopeError::WrongType { expected, found: found.chars().take(100).collect() });
        }
        if signatures.len() == 0 || signatures.len() > MAX_SIGNATURES {
            return Err(EnvelopeError::SignatureCount(signatures.len()));
        }
        let signatures = signatures
            .map(|(key_id, sig)| {
                let key_id = KeyId::try_from(&key_id[..]).map_err(|_| EnvelopeError::Malformed)?;
                let bytes = sig[..].try_into().map_err(|_| EnvelopeError::Malformed)?;
                Ok(Signature { key_id, bytes })
            })
            .collect::<Result<_, EnvelopeError>>()?;
        Ok(Self { payload_type: expected, payload, signatures })
    }
}

/// Passes over the fields: two bytes on the wire can stand for more than sixty in memory.
fn count_signatures(mut bytes: &[u8]) -> Result<usize, EnvelopeError> {
    let mut count = 0;
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(|_| EnvelopeError::Malformed)?;
        if wire_type == WireType::LengthDelimited {
            let len = decode_varint(&mut bytes).map_err(|_| EnvelopeError::Malformed)?;
            let len = usize::try_from(len).ok().filter(|len| *len <= bytes.len()).ok_or(EnvelopeError::Malformed)?;
            bytes.advance(len);
        } else {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).map_err(|_| EnvelopeError::Malformed)?;
        }
        count += usize::from(tag == SIGNATURES);
    }
    Ok(count)
}

/// PAE of the DSSE protocol: lengths in decimal ASCII, parts separated by one space.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {} {} ", payload_type.len(), payload_type, payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "application/vnd.warmd.test";

    fn signed(body: &'static [u8]) -> Envelope {
        Envelope::sign(TYPE, Bytes::from_static(body), &[&PrivateKey::from_seed(1)])
    }

    #[test]
    fn pae_is_the_one_of_the_dsse_specification() {
        assert_eq!(
            pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn both_forms_round_trip_and_verify() {
        let envelope = signed(b"body");
        let key = PrivateKey::from_seed(1).public();
        let binary = Envelope::decode(TYPE, envelope.encode()).unwrap();
        let json = Envelope::from_json(TYPE, &envelope.to_json()).unwrap();
        assert_eq!(binary, envelope);
        assert_eq!(json, envelope);
        assert_eq!(binary.verify([key].iter()), vec![key]);
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let bytes = signed(b"body").encode();
        let key = PrivateKey::from_seed(1).public();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let verified = Envelope::decode(TYPE, damaged.into()).map(|e| e.verify([key].iter())).unwrap_or_default();
            assert!(verified.is_empty(), "bit {bit} flipped and still verified");
        }
    }

    proptest! {
        #[test]
        fn what_decodes_is_what_would_be_encoded(
            at in any::<prop::sample::Index>(),
            cut in 0usize..3,
            noise in prop::collection::vec(any::<u8>(), 0..3),
            payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let envelope = Envelope::sign(TYPE, payload.into(), &[&PrivateKey::from_seed(1)]);
            let mut bytes = envelope.encode().to_vec();
            let at = at.index(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, noise);
            if let Ok(envelope) = Envelope::decode(TYPE, bytes.clone().into()) {
                prop_assert_eq!(envelope.encode(), bytes);
            }
        }
    }

    #[test]
    fn signatures_are_counted_before_anything_is_decoded() {
        let mut bytes = signed(b"body").encode().to_vec();
        bytes.extend([0x1a, 0].repeat(MAX_SIGNATURES));
        // Something that no decoder takes: nobody has come so far.
        bytes.extend([0x0a, 1, 0xff]);
        let refused = Envelope::decode(TYPE, bytes.into());
        assert_eq!(refused, Err(EnvelopeError::SignatureCount(MAX_SIGNATURES + 1)));
    }

    #[test]
    fn as_many_signatures_as_there_may_be_fit_around_a_payload() {
        let keys: Vec<PrivateKey> = (0..MAX_SIGNATURES as u8).map(PrivateKey::from_seed).collect();
        let payload = Bytes::from(vec![0; 1 << 20]);
        let envelope = Envelope::sign(TYPE, payload.clone(), &keys.iter().collect::<Vec<_>>());
        let bytes = envelope.encode();
        assert!(bytes.len() <= payload.len() + MAX_AROUND);
        assert_eq!(Envelope::decode(TYPE, bytes), Ok(envelope));
    }

    #[test]
    fn the_type_is_part_of_what_is_signed() {
        let bytes = signed(b"body").encode();
        let error = Envelope::decode("application/other", bytes).unwrap_err();
        assert!(matches!(error, EnvelopeError::WrongType { .. }));
    }

    #[test]
    fn a_second_signature_joins_the_first_and_a_repeated_one_replaces_it() {
        let mut envelope = signed(b"body");
        envelope.add_signature(&PrivateKey::from_seed(2));
        envelope.add_signature(&PrivateKey::from_seed(2));
        let keys = [PrivateKey::from_seed(1).public(), PrivateKey::from_seed(2).public()];
        assert_eq!(envelope.key_ids().count(), 2);
        assert_eq!(envelope.verify(keys.iter()).len(), 2);
    }

    #[test]
    fn golden_bytes_of_the_binary_form() {
        let bytes = signed(b"body").encode();
        // 0a 1a <type>  12 04 <payload>  1a 64 { 0a 20 <key id> 12 40 <signature> }
        assert_eq!(&bytes[..2], &[0x0a, 0x1a]);
        assert_eq!(&bytes[28..34], b"\x12\x04body");
        assert_eq!(&bytes[34..38], &[0x1a, 0x64, 0x0a, 0x20]);
        assert_eq!(&bytes[70..72], &[0x12, 0x40]);
        assert_eq!(bytes.len(), 136);
        // ed25519 signatures are deterministic, so the whole is.
        assert_eq!(
            blake3::hash(&bytes).to_hex().as_str(),
            "2e92cf452d9fe0b82e494da0f3c316ba54cff5407bc86d1026d5876bffc5b8b1"
        );
    }
}
