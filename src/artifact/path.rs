//! Paths inside an artifact: relative, normalised, UTF-8, and short enough for any file system.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest path and longest component in bytes, and most components.
const MAX_PATH: usize = 1024;
const MAX_COMPONENT: usize = 255;
const MAX_DEPTH: usize = 32;

/// Why a text is not a path inside an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("path is empty or has an empty component")]
    Empty,
    #[error("path is absolute")]
    Absolute,
    #[error("path has a `.` or `..` component")]
    Dots,
    #[error("path has a control character or a backslash")]
    Character,
    #[error("path is longer than {MAX_PATH} bytes")]
    TooLong,
    #[error("a path component is longer than {MAX_COMPONENT} bytes")]
    ComponentTooLong,
    #[error("path is deeper than {MAX_DEPTH} components")]
    TooDeep,
}

/// A checked relative path, `/` between components. Ordered by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Box<str>);

impl RelPath {
    pub fn new(text: &str) -> Result<Self, PathError> {
        if text.starts_with('/') {
            return Err(PathError::Absolute);
        }
        if text.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        if has_control_or_backslash(text) {
            return Err(PathError::Character);
        }
        let mut depth = 0;
        for component in text.split('/') {
            check_component(component)?;
            depth += 1;
        }
        if depth > MAX_DEPTH {
            return Err(PathError::TooDeep);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn components(&self) -> std::str::Split<'_, char> {
        self.0.split('/')
    }

    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The directory that holds it; `None` at the top.
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.into()))
    }

    /// The first `depth` components, or the whole path if it has no more.
    pub fn prefix(&self, depth: usize) -> Self {
        let end = self.0.match_indices('/').nth(depth.saturating_sub(1)).map_or(self.0.len(), |(at, _)| at);
        Self(self.0[..end].into())
    }

    /// `self` is `other`, or lies in directory `other`.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.strip_prefix(&*other.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

fn has_control_or_backslash(text: &str) -> bool {
    // Without an early end, so that many bytes are looked at in one step.
    let found = text.bytes().fold(false, |found, byte| found | byte.is_ascii_control() | (byte == b'\\'));
    // The rest of the control characters are two bytes long.
    found || !text.is_ascii() && text.chars().any(char::is_control)
}

fn check_component(component: &str) -> Result<(), PathError> {
    match component {
        "" => Err(PathError::Empty),
        "." | ".." => Err(PathError::Dots),
        _ if component.len() > MAX_COMPONENT => Err(PathError::ComponentTooLong),
        _ => Ok(()),
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_paths_are_refused_by_kind() {
        for (text, expected) in [
            ("", PathError::Empty),
            ("a//b", PathError::Empty),
            ("a/", PathError::Empty),
            ("/etc/passwd", PathError::Absolute),
            ("../x", PathError::Dots),
            ("a/./b", PathError::Dots),
            ("a/..", PathError::Dots),
            ("a\0b", PathError::Character),
            ("a\u{1b}[2J", PathError::Character),
            ("a\\b", PathError::Character),
        ] {
            assert_eq!(RelPath::new(text), Err(expected), "{text:?}");
        }
        assert_eq!(RelPath::new(&"a".repeat(256)), Err(PathError::ComponentTooLong));
        assert_eq!(RelPath::new(&["abcdefg"; 129].join("/")), Err(PathError::TooLong));
        assert_eq!(RelPath::new(&["a"; 33].join("/")), Err(PathError::TooDeep));
    }

    #[test]
    fn prefixes_and_containment_respect_component_boundaries() {
        let path = RelPath::new("triton/KEY/kernel.cubin").unwrap();
        assert_eq!(path.prefix(1).as_str(), "triton");
        assert_eq!(path.prefix(2).as_str(), "triton/KEY");
        assert_eq!(path.prefix(9), path);
        assert!(path.is_within(&path.prefix(2)));
        assert!(!path.is_within(&RelPath::new("triton/KE").unwrap()));
        assert_eq!(path.parent(), Some(path.prefix(2)));
        assert_eq!(path.file_name(), "kernel.cubin");
    }
}
