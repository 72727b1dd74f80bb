//! API keys: secrets of which only hashes are stored.
//!
//! ```toml
//! [[key]]
//! id = "ci-2027"                       # for logs and limits
//! hash = "sha256:<64 hex digits>"      # or "blake3:<64 hex digits>", of the secret's text
//! tenant = "team-a"
//! scopes = ["infer", "adapter:team-*"] # absent: infer
//! expires = "2027-06-01T00:00:00Z"     # absent: never
//! ```
//!
//! A key is replaced without a gap by listing the new one beside the old one until all clients have it.

use std::collections::HashMap;
use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer};

use super::caller::{Caller, Method};
use super::denied::Denied;
use super::scope::{MAX_SCOPES, Scope, Scopes, Tenant};
use crate::identity::UnixTime;

/// A longer file is no list of keys.
pub(super) const MAX_FILE: u64 = 32 * 1024 * 1024;

const MAX_KEYS: usize = 100_000;

/// The list cannot be used. `Display` names the key, never its hash.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeysError {
    #[error("{0}")]
    Syntax(String),
    #[error("more than {MAX_KEYS} keys")]
    TooMany,
    #[error("key `{0}` is listed twice")]
    DuplicateId(String),
    #[error("keys `{0}` and `{1}` have the same secret")]
    DuplicateSecret(String, String),
    #[error("key `{0}` has {1} scopes: expected 1 to {MAX_SCOPES}")]
    Scopes(String, usize),
    #[error("the operating system gave no random bytes: {0}")]
    Random(getrandom::Error),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// A name as those of tenants.
    id: Tenant,
    hash: Hash,
    tenant: Tenant,
    #[serde(default = "infer")]
    scopes: Vec<Scope>,
    expires: Option<UnixTime>,
}

impl Entry {
    fn caller(self) -> Caller {
        let scopes = Scopes::new(self.scopes);
        Caller::new(self.tenant, self.id.as_str(), Method::ApiKey, scopes).until(self.expires)
    }
}

fn infer() -> Vec<Scope> {
    vec![Scope::Infer]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Sha256,
    Blake3,
}

/// Of a secret: a byte for the algorithm, then the digest.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Hash([u8; 33]);

impl Hash {
    fn new(algorithm: Algorithm, digest: &[u8]) -> Option<Self> {
        let mut bytes = [algorithm as u8; 33];
        bytes[1..].copy_from_slice(<&[u8; 32]>::try_from(digest).ok()?);
        Some(Self(bytes))
    }

    fn of(algorithm: Algorithm, secret: &str) -> Option<Self> {
        match algorithm {
            Algorithm::Sha256 => {
                let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.as_bytes());
                Self::new(algorithm, digest.as_ref())
            }
            Algorithm::Blake3 => Self::new(algorithm, blake3::hash(secret.as_bytes()).as_bytes()),
        }
    }

    fn algorithm(&self) -> Algorithm {
        if self.0[0] == Algorithm::Sha256 as u8 { Algorithm::Sha256 } else { Algorithm::Blake3 }
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parse = || {
            let (kind, digits) = text.split_once(':')?;
            let algorithm = match kind {
                "sha256" => Algorithm::Sha256,
                "blake3" => Algorithm::Blake3,
                _ => return None,
            };
            Self::new(algorithm, &HEXLOWER.decode(digits.as_bytes()).ok()?)
        };
        parse().ok_or_else(|| serde::de::Error::custom("expected `sha256:` or `blake3:` and 64 lower-case hex digits"))
    }
}

/// All keys that count. Found by a digest that is keyed with random bytes of this process, so that the time of a look-up
/// tells nothing about the stored hashes.
pub struct ApiKeys {
    mask: [u8; 32],
    entries: HashMap<[u8; 32], (Hash, Caller)>,
    /// That the list has.
    algorithms: Vec<Algorithm>,
    /// Compared with where there is no entry.
    nobody: Hash,
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({})", self.entries.len())
    }
}

impl ApiKeys {
    pub fn parse(text: &str) -> Result<Self, ApiKeysError> {
        // The error's own text would repeat the line, hash and all.
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            ApiKeysError::Syntax(format!("line {line}: {}", error.message()))
        })?;
        if file.key.len() > MAX_KEYS {
            return Err(ApiKeysError::TooMany);
        }
        let mut mask = [0; 32];
        getrandom::fill(&mut mask).map_err(ApiKeysError::Random)?;
        let entries = HashMap::with_capacity(file.key.len());
        let mut keys = Self { mask, entries, algorithms: Vec::new(), nobody: Hash([0xff; 33]) };
        let mut ids = std::collections::HashSet::new();
        for entry in file.key {
            let id = entry.id.to_string();
            if entry.scopes.is_empty() || entry.scopes.len() > MAX_SCOPES {
                return Err(ApiKeysError::Scopes(id, entry.scopes.len()));
            }
            if !ids.insert(id.clone()) {
                return Err(ApiKeysError::DuplicateId(id));
            }
            let (place, algorithm) = (keys.place(&entry.hash), entry.hash.algorithm());
            if !keys.algorithms.contains(&algorithm) {
                keys.algorithms.push(algorithm);
            }
            if let Some((_, other)) = keys.entries.insert(place, (entry.hash, entry.caller())) {
                return Err(ApiKeysError::DuplicateSecret(other.key().to_owned(), id));
            }
        }
        Ok(keys)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn place(&self, hash: &Hash) -> [u8; 32] {
        *blake3::keyed_hash(&self.mask, &hash.0).as_bytes()
    }

    /// Unknown and wrong keys take the same way: for each algorithm of the list a hash, a look-up and a comparison.
    pub(super) fn find(&self, secret: &str, now: UnixTime) -> Result<Caller, Denied> {
        let mut found = None;
        for hash in self.algorithms.iter().filter_map(|algorithm| Hash::of(*algorithm, secret)) {
            let entry = self.entries.get(&self.place(&hash));
            let stored = entry.map_or(&self.nobody, |(stored, _)| stored);
            if verify_slices_are_equal(&stored.0, &hash.0).is_ok() {
                found = entry;
            }
        }
        let (_, caller) = found.ok_or(Denied::Unknown)?;
        if caller.expires().is_some_and(|expires| expires <= now) {
            return Err(Denied::Expired);
        }
        Ok(caller.clone())
    }
}

/// A fresh secret, to be shown once, and its hash for the file.
pub struct NewKey {
    pub secret: String,
    /// `sha256:` and 64 hex digits.
    pub hash: String,
}

impl NewKey {
    /// 256 random bits.
    pub fn generate() -> Result<Self, ApiKeysError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(ApiKeysError::Random)?;
        let secret = format!("warmd-{}", data_encoding::BASE32_DNSSEC.encode(&bytes));
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.as_bytes());
        let hash = format!("sha256:{}", HEXLOWER.encode(digest.as_ref()));
        Ok(Self { secret, hash })
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1.
    const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const NOW: u64 = 1_800_000_000;

    fn now() -> UnixTime {
        UnixTime::from_seconds(NOW)
    }

    fn key(id: &str, hash: &str, more: &str) -> String {
        format!("[[key]]\nid = \"{id}\"\nhash = \"{hash}\"\ntenant = \"team\"\n{more}\n")
    }

    #[test]
    fn golden_hashes_of_published_vectors_open_the_door() {
        let blake3 = blake3::hash(b"abcd").to_string();
        let text = key("a", &format!("sha256:{SHA256_OF_ABC}"), "") + &key("b", &format!("blake3:{blake3}"), "");
        let keys = ApiKeys::parse(&text).unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys.find("abc", now()).unwrap().key(), "a");
        let caller = keys.find("abcd", now()).unwrap();
        assert_eq!((caller.key(), caller.tenant().as_str()), ("b", "team"));
        assert!(caller.scopes().permit_inference() && !caller.scopes().permit_admin());
    }

    #[test]
    fn an_unknown_key_a_wrong_key_and_the_hash_itself_get_one_answer() {
        let keys = ApiKeys::parse(&key("a", &format!("sha256:{SHA256_OF_ABC}"), "")).unwrap();
        for secret in ["abd", "", "a", SHA256_OF_ABC, &format!("sha256:{SHA256_OF_ABC}")] {
            assert_eq!(keys.find(secret, now()).unwrap_err(), Denied::Unknown);
        }
    }

    #[test]
    fn a_key_ends_at_its_hour_and_a_new_one_beside_it_goes_on() {
        let fresh = NewKey::generate().unwrap();
        let text = key("old", &format!("sha256:{SHA256_OF_ABC}"), "expires = \"2027-01-15T08:00:00Z\"");
        let keys = ApiKeys::parse(&(text + &key("new", &fresh.hash, ""))).unwrap();
        assert!(keys.find("abc", UnixTime::from_seconds(NOW - 1)).is_ok());
        assert_eq!(keys.find("abc", now()).unwrap_err(), Denied::Expired);
        assert_eq!(keys.find(&fresh.secret, now()).unwrap().key(), "new");
    }

    #[test]
    fn a_list_that_says_something_twice_or_wrongly_is_refused_and_its_hashes_are_not_shown() {
        let hash = format!("sha256:{SHA256_OF_ABC}");
        let other = format!("blake3:{SHA256_OF_ABC}");
        let refuse = |text: &str| ApiKeys::parse(text).unwrap_err().to_string();
        assert!(refuse(&(key("a", &hash, "") + &key("a", &other, ""))).contains("`a` is listed twice"));
        assert!(refuse(&(key("a", &hash, "") + &key("b", &hash, ""))).contains("same secret"));
        assert!(refuse(&key("a", &hash, "scopes = []")).contains("0 scopes"));
        for text in [
            key("a", &hash, "scope = [\"infer\"]"),
            key("a", &hash[..20], ""),
            key("a", SHA256_OF_ABC, ""),
            key("a", &hash, "scopes = [\"root\"]"),
            key("a b", &hash, ""),
        ] {
            let refusal = refuse(&text);
            assert!(refusal.starts_with("line ") && !refusal.contains(&SHA256_OF_ABC[..12]), "{refusal}");
        }
    }

    #[test]
    fn two_generated_keys_differ_and_say_nothing_in_logs() {
        let (one, two) = (NewKey::generate().unwrap(), NewKey::generate().unwrap());
        assert_ne!(one.secret, two.secret);
        assert_eq!(format!("{one:?}"), "NewKey");
    }
}
