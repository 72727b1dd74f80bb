//! Source identity: the facts that decide whether a family's entries can be reused. Its digest is the lookup key.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::MAX_FACTS;
use crate::digest::IdentityId;

const DOMAIN: &[u8] = b"warmd/identity/1";
const MAX_VALUE: usize = 4096;

/// Why facts do not make an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceIdentityError {
    #[error("`{0}` is no family name: use 1 to 64 of a-z, 0-9 and `-`")]
    Family(String),
    #[error("`{0}` is no fact name: use 1 to 64 of a-z, 0-9, `_`, `.` and `-`")]
    Name(String),
    #[error("fact `{0}` has an empty value: a fact that cannot be read is an error, not an empty text")]
    EmptyValue(String),
    #[error("fact `{0}` is longer than {MAX_VALUE} bytes or has control characters")]
    Value(String),
    #[error("{0} facts, allowed are {MAX_FACTS}")]
    TooMany(usize),
}

/// A kind of cache or artifact, such as `vllm-aot` or `lora`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Family(Arc<str>);

impl Family {
    /// Anything else that the user names: installed as it is, in class host-code.
    pub fn directory() -> Self {
        Self("directory".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Family {
    type Err = SourceIdentityError;
    fn from_str(text: &str) -> Result<Self, SourceIdentityError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
            return Err(SourceIdentityError::Family(text.chars().take(80).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Family {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Family and facts. Values are exact: two nodes reuse each other's entries only if every fact is equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceIdentity {
    family: Family,
    facts: BTreeMap<String, String>,
}

impl SourceIdentity {
    pub fn new(family: Family, facts: BTreeMap<String, String>) -> Result<Self, SourceIdentityError> {
        if facts.len() > MAX_FACTS {
            return Err(SourceIdentityError::TooMany(facts.len()));
        }
        for (name, value) in &facts {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c);
            if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
                return Err(SourceIdentityError::Name(name.chars().take(80).collect()));
            }
            if value.is_empty() {
                return Err(SourceIdentityError::EmptyValue(name.clone()));
            }
            if value.len() > MAX_VALUE || value.chars().any(char::is_control) {
                return Err(SourceIdentityError::Value(name.clone()));
            }
        }
        Ok(Self { family, facts })
    }

    pub fn family(&self) -> &Family {
        &self.family
    }

    pub fn facts(&self) -> &BTreeMap<String, String> {
        &self.facts
    }

    pub fn id(&self) -> IdentityId {
        IdentityId::of(&self.canonical_bytes())
    }

    /// Domain string, then family, keys and values in key order, each with its length in four bytes, big endian.
    fn canonical_bytes(&self) -> Vec<u8> {
        let mut out = DOMAIN.to_vec();
        let mut put = |text: &str| {
            let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        };
        put(self.family.as_str());
        for (name, value) in &self.facts {
            put(name);
            put(value);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity(facts: &[(&str, &str)]) -> Result<SourceIdentity, SourceIdentityError> {
        let facts = facts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        SourceIdentity::new(Family::directory(), facts)
    }

    #[test]
    fn golden_bytes_of_an_identity() {
        let identity = identity(&[("torch", "2.13.0"), ("gpu_name", "cpu")]).unwrap();
        assert_eq!(
            identity.canonical_bytes(),
            // domain, "directory", then the facts sorted by name
            b"warmd/identity/1\0\0\0\x09directory\0\0\0\x08gpu_name\0\0\0\x03cpu\0\0\0\x05torch\0\0\0\x062.13.0"
        );
        assert_eq!(identity.id().to_string(), IdentityId::of(&identity.canonical_bytes()).to_string());
    }

    #[test]
    fn unreadable_or_hostile_facts_are_errors_that_name_the_fact() {
        assert_eq!(identity(&[("torch", "")]), Err(SourceIdentityError::EmptyValue("torch".to_owned())));
        assert_eq!(identity(&[("torch", "2\n3")]), Err(SourceIdentityError::Value("torch".to_owned())));
        assert!(matches!(identity(&[("Torch", "2")]), Err(SourceIdentityError::Name(_))));
        assert!("vLLM".parse::<Family>().is_err());
        assert!("".parse::<Family>().is_err());
    }

    proptest! {
        #[test]
        fn different_facts_have_different_canonical_bytes(
            a in prop::collection::btree_map("[a-z]{1,3}", "[a-c=,]{1,4}", 0..4),
            b in prop::collection::btree_map("[a-z]{1,3}", "[a-c=,]{1,4}", 0..4),
        ) {
            let of = |facts: &BTreeMap<String, String>| {
                SourceIdentity::new(Family::directory(), facts.clone()).unwrap().canonical_bytes()
            };
            prop_assert_eq!(of(&a) == of(&b), a == b);
        }
    }
}
