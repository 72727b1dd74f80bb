//! What clients call an adapter, and what the engine calls it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::PreparationId;

const MAX_ALIAS: usize = 128;

/// Hex digits of a served name's digest: 128 bits, which nobody finds two of.
const SERVED_DIGITS: usize = 32;

/// The text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error(
        "`{0}` is no adapter name: use 1 to {MAX_ALIAS} of A-Z, a-z, 0-9, `.`, `_` and `-`, beginning with a letter or a digit and without `..`"
    )]
    Alias(String),
    #[error("`{0}` is no served name: expected a name, `@` and {SERVED_DIGITS} hex digits")]
    Served(String),
}

/// The name that clients use. It never becomes a path; its alphabet is such that it could not do harm as one: no `/`,
/// no `..`, no `@`, nothing that needs escaping in JSON, URLs or logs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alias(Arc<str>);

impl Alias {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Alias {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = text.len() <= MAX_ALIAS
            && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && text.bytes().all(plain)
            && !text.contains("..");
        if fits { Ok(Self(text.into())) } else { Err(NameError::Alias(super::json::shown(text))) }
    }
}

/// The name that the engine knows: `alias@digest`. Other weights have another name, so that an engine which keys its
/// prefix cache by name can reuse nothing of them; the digest therefore covers how an adapter was prepared, too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServedName {
    alias: Alias,
    digits: Arc<str>,
}

impl ServedName {
    pub fn new(alias: Alias, prepared: &PreparationId) -> Self {
        let digits = prepared.digest().to_string()[..SERVED_DIGITS].into();
        Self { alias, digits }
    }

    pub fn alias(&self) -> &Alias {
        &self.alias
    }

    /// Whether this is what `prepared` is served as, under whatever alias.
    pub fn serves(&self, prepared: &PreparationId) -> bool {
        prepared.digest().to_string().starts_with(&*self.digits)
    }
}

impl FromStr for ServedName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let served = || NameError::Served(super::json::shown(text));
        let (alias, digits) = text.rsplit_once('@').ok_or_else(served)?;
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != SERVED_DIGITS || !digits.bytes().all(hex) {
            return Err(served());
        }
        Ok(Self { alias: alias.parse().map_err(|_| served())?, digits: digits.into() })
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ServedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.alias, self.digits)
    }
}

impl Serialize for Alias {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Alias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{ContentId, Digest};

    fn prepared(content: &[u8], policy: &[u8]) -> PreparationId {
        PreparationId { content: ContentId::of(content), policy: Digest::of(policy) }
    }

    #[test]
    fn names_that_people_give_are_aliases() {
        for text in ["sql", "Support-Bot_v2.1", "0", &"a".repeat(128)] {
            assert_eq!(text.parse::<Alias>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_that_could_be_paths_other_names_or_terminal_commands_are_refused() {
        let long = "a".repeat(129);
        for text in
            ["", "a/b", "..", "a..b", "/etc", "a@b", "-x", ".x", "a b", "a\n", "a\0", "\x1b[2J", "ä", "a\\b", &long]
        {
            let error = text.parse::<Alias>().unwrap_err();
            assert!(matches!(error, NameError::Alias(_)) && !error.to_string().contains('\x1b'), "{text:?}");
        }
    }

    #[test]
    fn a_served_name_changes_with_the_content_and_with_the_way_it_was_prepared() {
        let alias: Alias = "sql".parse().unwrap();
        let served = |content: &[u8], policy: &[u8]| ServedName::new(alias.clone(), &prepared(content, policy));
        let name = served(b"one", b"strip");
        assert_eq!(name, served(b"one", b"strip"));
        assert_ne!(name, served(b"two", b"strip"));
        assert_ne!(name, served(b"one", b"svd"));
        assert!(name.serves(&prepared(b"one", b"strip")) && !name.serves(&prepared(b"two", b"strip")));
    }

    #[test]
    fn a_served_name_is_read_back_and_nothing_else_is_one() {
        let name = ServedName::new("sql".parse().unwrap(), &prepared(b"one", b"strip"));
        assert_eq!(name.to_string().parse(), Ok(name.clone()));
        assert_eq!(name.alias().as_str(), "sql");
        let text = name.to_string();
        for wrong in
            ["sql", &text[..text.len() - 1], &text.to_uppercase(), &format!("x@{text}"), &text.replace("sql", "")]
        {
            assert!(matches!(wrong.parse::<ServedName>(), Err(NameError::Served(_))), "{wrong}");
        }
    }
}
