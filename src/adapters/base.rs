//! The model that an adapter was trained on: its name, and its weights where they are on this node.

mod weights;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use weights::{BaseError, BaseWeights};

const MAX_NAME: usize = 512;

/// How the cache of a model hub names its directories: `models--org--name/snapshots/<revision>`.
const HUB_PREFIX: &str = "models--";

/// The text is no name of a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no model name: use 1 to {MAX_NAME} bytes without control characters, among them a letter or a digit")]
pub struct InvalidBaseModel(String);

/// A model's name as somebody wrote it: an id on a hub, a directory, or what an engine serves it as.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseModel(Box<str>);

impl BaseModel {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both texts name the same model.
    pub fn matches(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }

    /// The model without organisation or directory, in lower case, and without separators but for those between digits:
    /// `org/Qwen3.5-0.8B` and `qwen3_5-0.8b` are one model, `1.5B` and `15B` are two.
    pub fn canonical(&self) -> String {
        let name = self.last_component();
        let bytes = name.as_bytes();
        let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
        let mut canonical = String::with_capacity(name.len());
        for (at, c) in name.char_indices() {
            if c.is_alphanumeric() {
                canonical.extend(c.to_lowercase());
            } else if digit(at.checked_sub(1)) && digit(Some(at + c.len_utf8())) {
                canonical.push('-');
            }
        }
        canonical
    }

    fn last_component(&self) -> &str {
        let has_name = |part: &&str| part.chars().any(char::is_alphanumeric);
        let mut components = self.0.rsplit('/').filter(has_name);
        let hub = self.0.split('/').find_map(|part| part.strip_prefix(HUB_PREFIX));
        match hub.and_then(|repository| repository.rsplit("--").next()).filter(|part| has_name(part)) {
            Some(name) => name,
            None => components.next().unwrap_or(&self.0),
        }
    }
}

impl FromStr for BaseModel {
    type Err = InvalidBaseModel;
    fn from_str(text: &str) -> Result<Self, InvalidBaseModel> {
        let fits =
            text.len() <= MAX_NAME && !text.chars().any(char::is_control) && text.chars().any(char::is_alphanumeric);
        if fits { Ok(Self(text.into())) } else { Err(InvalidBaseModel(super::json::shown(text))) }
    }
}

impl fmt::Display for BaseModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for BaseModel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for BaseModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        a.parse::<BaseModel>().unwrap().matches(&b.parse().unwrap())
    }

    #[test]
    fn organisation_directory_case_and_separators_do_not_matter() {
        assert!(same("Qwen/Qwen3.5-0.8B", "qwen3_5-0.8b"));
        assert!(same("meta-llama/Llama-3.1-8B", "/models/llama3.1-8b/"));
        let snapshot = "/hf/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a04d12100db370d81485cdf75e47ca";
        assert!(same("Qwen/Qwen3-0.6B", snapshot));
    }

    #[test]
    fn sizes_that_differ_in_a_dot_only_are_different_models() {
        assert!(!same("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-15B"));
        assert!(!same("qwen3_5-0.8b", "qwen3_5-2b"));
        assert!(!same("acme/tiny", "acme/tiny-chat"));
    }

    #[test]
    fn a_name_of_nothing_or_with_control_characters_is_none() {
        for text in ["", "/", "..", "a\nb", &"x".repeat(513)] {
            assert!(text.parse::<BaseModel>().is_err(), "{text:?}");
        }
    }
}
