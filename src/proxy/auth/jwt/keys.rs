//! The issuer's keys: a JSON Web Key set (RFC 7517, RFC 7518 section 6, RFC 8037 section 2).

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;

use super::Algorithm;
use crate::identity::PublicKey;

/// Bytes; a longer set is refused unread.
pub(super) const MAX_SET: u64 = 1024 * 1024;

const MAX_KEYS: usize = 128;

/// The text is no key set that could be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    #[error("not a JSON Web Key set: {0}")]
    Syntax(serde_json::Error),
    #[error("a key set of {0} keys: expected at most {MAX_KEYS}")]
    TooMany(usize),
    #[error("two keys for the same algorithm are called `{0}`")]
    Duplicate(String),
    #[error("none of the keys can verify EdDSA (Ed25519), ES256 or RS256 (2048 to 8192 bits)")]
    NoneUsable,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

#[derive(Debug)]
enum Material {
    Ed25519(PublicKey),
    P256(ParsedPublicKey),
    Rsa(PublicKeyComponents<Vec<u8>>),
}

/// A public key and the one algorithm that it is for.
#[derive(Debug)]
pub(super) struct Key {
    id: Option<String>,
    material: Material,
}

impl Key {
    fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Ed25519(_) => Algorithm::EdDSA,
            Material::P256(_) => Algorithm::ES256,
            Material::Rsa(_) => Algorithm::RS256,
        }
    }

    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Ed25519(key) => signature.try_into().is_ok_and(|signature| key.verify(message, signature)),
            Material::P256(key) => key.verify_sig(message, signature).is_ok(),
            Material::Rsa(key) => key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok(),
        }
    }
}

impl Entry {
    /// `None` for keys that are for something else, or of a kind that is not known: RFC 7517 section 5 has them ignored.
    fn read(self) -> Option<Key> {
        let verifies = self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|one| one == "verify"));
        if !verifies || self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let (name, material) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => {
                ("EdDSA", Material::Ed25519(PublicKey::from_bytes(&decode(self.x.as_ref())?).ok()?))
            }
            ("EC", Some("P-256")) => ("ES256", p256(&decode(self.x.as_ref())?, &decode(self.y.as_ref())?)?),
            ("RSA", None) => ("RS256", rsa(decode(self.n.as_ref())?, decode(self.e.as_ref())?)?),
            _ => return None,
        };
        let fits = self.alg.as_deref().is_none_or(|alg| alg == name || (name == "EdDSA" && alg == "Ed25519"));
        fits.then_some(Key { id: self.kid, material })
    }
}

fn decode(text: Option<&String>) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(text?.as_bytes()).ok()
}

fn p256(x: &[u8], y: &[u8]) -> Option<Material> {
    if x.len() != 32 || y.len() != 32 {
        return None;
    }
    let point = [&[4], x, y].concat();
    ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).ok().map(Material::P256)
}

fn rsa(n: Vec<u8>, e: Vec<u8>) -> Option<Material> {
    // Some issuers write the sign byte of ASN.1.
    let significant = |bytes: Vec<u8>| bytes.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
    let (n, e) = (significant(n), significant(e));
    let whole = (256..=1024).contains(&n.len()) && (1..=8).contains(&e.len());
    whole.then(|| Material::Rsa(PublicKeyComponents { n, e }))
}

/// What verifies the issuer's tokens. The empty set refuses all.
#[derive(Debug, Default)]
pub struct KeySet(Vec<Key>);

impl KeySet {
    pub fn parse(json: &[u8]) -> Result<Self, KeySetError> {
        let set: Set = serde_json::from_slice(json).map_err(KeySetError::Syntax)?;
        if set.keys.len() > MAX_KEYS {
            return Err(KeySetError::TooMany(set.keys.len()));
        }
        let keys: Vec<Key> = set.keys.into_iter().filter_map(Entry::read).collect();
        if keys.is_empty() {
            return Err(KeySetError::NoneUsable);
        }
        for (at, key) in keys.iter().enumerate() {
            let same = |other: &Key| other.id == key.id && other.algorithm() == key.algorithm();
            if let Some(id) = key.id.as_ref().filter(|_| keys[..at].iter().any(same)) {
                return Err(KeySetError::Duplicate(id.clone()));
            }
        }
        Ok(Self(keys))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// By id; a token without one is verified by the only key of its algorithm, if there is just one.
    pub(super) fn find(&self, algorithm: Algorithm, id: Option<&str>) -> Option<&Key> {
        let mut fitting = self.0.iter().filter(|key| key.algorithm() == algorithm);
        match id {
            Some(id) => fitting.find(|key| key.id.as_deref() == Some(id)),
            None => fitting.next().filter(|_| fitting.next().is_none()),
        }
    }
}
