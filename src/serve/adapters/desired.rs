//! The file that says which adapters a node is to have.
//!
//! ```toml
//! [[adapter]]
//! alias = "sql"
//! pin = true        # stays in the engine, and is the first that a new engine gets
//! preload = true    # is loaded before anybody asks for it
//! digest = "..."    # only this content is served
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::adapters::Alias;
use crate::digest::ContentId;

/// Bytes: room for 10,000 adapters.
const MAX_FILE: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum DesiredError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: larger than {MAX_FILE} bytes", path = .0.display())]
    TooLarge(PathBuf),
    #[error("{path}: {why}", path = .path.display())]
    Syntax { path: PathBuf, why: String },
    #[error("{path}: `{alias}` is there twice", path = .path.display())]
    Twice { path: PathBuf, alias: Alias },
}

/// What is wanted of one adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) pin: bool,
    pub(super) preload: bool,
    pub(super) digest: Option<ContentId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    adapter: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    alias: Alias,
    #[serde(default)]
    pin: bool,
    #[serde(default)]
    preload: bool,
    digest: Option<ContentId>,
}

/// Tells one state of the file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

#[derive(Debug)]
pub(super) struct Desired {
    path: PathBuf,
    seen: Option<Stamp>,
}

impl Desired {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// What the file says, if it is not what was read last. Blocking. An error is told again only after another change.
    pub(super) fn poll(&mut self) -> Result<Option<BTreeMap<Alias, Wish>>, DesiredError> {
        let path = self.path.clone();
        let failed = |source| DesiredError::Io { path: path.clone(), source };
        let file = File::open(&self.path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let modified = (meta.mtime(), meta.mtime_nsec());
        let stamp = Stamp { inode: meta.ino(), bytes: meta.size(), modified };
        if self.seen.replace(stamp) == Some(stamp) {
            return Ok(None);
        }
        let mut text = String::new();
        file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_FILE {
            return Err(DesiredError::TooLarge(path));
        }
        parse(&self.path, &text).map(Some)
    }
}

fn parse(path: &Path, text: &str) -> Result<BTreeMap<Alias, Wish>, DesiredError> {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let document: Result<Document, String> = if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())
    } else {
        toml::from_str(text).map_err(|error| error.to_string())
    };
    let document = document.map_err(|why| DesiredError::Syntax { path: path.to_owned(), why })?;
    let mut wishes = BTreeMap::new();
    for Line { alias, pin, preload, digest } in document.adapter {
        if wishes.insert(alias.clone(), Wish { pin, preload, digest }).is_some() {
            return Err(DesiredError::Twice { path: path.to_owned(), alias });
        }
    }
    Ok(wishes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_when_it_has_changed_and_not_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapters.toml");
        let mut desired = Desired::new(path.clone());
        assert!(matches!(desired.poll(), Err(DesiredError::Io { .. })));
        std::fs::write(&path, "[[adapter]]\nalias = \"sql\"\npin = true\n").unwrap();
        let wishes = desired.poll().unwrap().unwrap();
        let pinned = Wish { pin: true, ..Wish::default() };
        assert_eq!(wishes, BTreeMap::from([("sql".parse().unwrap(), pinned)]));
        assert_eq!(desired.poll().unwrap(), None);
        std::fs::write(&path, "").unwrap();
        assert_eq!(desired.poll().unwrap(), Some(BTreeMap::new()));
    }

    #[test]
    fn json_says_the_same() {
        let digest = ContentId::of(b"weights");
        let text = format!(r#"{{"adapter":[{{"alias":"sql","preload":true,"digest":"{digest}"}}]}}"#);
        let wishes = parse(Path::new("adapters.json"), &text).unwrap();
        assert_eq!(wishes[&"sql".parse().unwrap()], Wish { pin: false, preload: true, digest: Some(digest) });
    }

    #[test]
    fn what_is_mistyped_or_said_twice_is_refused() {
        let twice = "[[adapter]]\nalias = \"sql\"\n[[adapter]]\nalias = \"sql\"\n";
        assert!(matches!(parse(Path::new("a.toml"), twice), Err(DesiredError::Twice { .. })));
        for text in ["[[adapters]]\n", "[[adapter]]\nalias = \"a/b\"\n", "[[adapter]]\nalias = \"a\"\npinned = true\n"]
        {
            assert!(matches!(parse(Path::new("a.toml"), text), Err(DesiredError::Syntax { .. })), "{text}");
        }
    }
}
