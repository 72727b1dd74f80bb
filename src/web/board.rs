//! What the page shows: documents by key, and what changed since somebody looked. A reader that comes late gets the latest
//! of each key, however much it missed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::IgnoredAny;

const MAX_KEY: usize = 200;

/// Bytes of one document: an identity's holders in a fleet of ten thousand nodes have room.
const MAX_DOCUMENT: usize = 1024 * 1024;

/// A document was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    #[error("`{0}` is no key: expected 1 to {MAX_KEY} letters, digits and any of - _ . : / @ + =")]
    Key(String),
    #[error("the document is no JSON: {0}")]
    Json(serde_json::Error),
    #[error("a document of {0} bytes: the page takes up to {MAX_DOCUMENT}")]
    TooLarge(usize),
    #[error("the page is full: {documents} documents of {bytes} bytes")]
    Full { documents: usize, bytes: usize },
}

/// Names a document, such as `node/ID`. Stands unescaped in JSON and in an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Key {
    type Err = BoardError;

    fn from_str(text: &str) -> Result<Self, BoardError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@+=".contains(&byte);
        match (1..=MAX_KEY).contains(&text.len()) && text.bytes().all(is_plain) {
            true => Ok(Self(text.into())),
            false => Err(BoardError::Key(text.chars().take(MAX_KEY).collect::<String>().escape_debug().to_string())),
        }
    }
}

/// JSON on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document(Bytes);

impl Document {
    pub fn new(value: &impl Serialize) -> Result<Self, BoardError> {
        Self::bounded(serde_json::to_vec(value).map_err(BoardError::Json)?.into())
    }

    /// Of JSON that somebody else wrote, on however many lines.
    pub fn from_json(text: Bytes) -> Result<Self, BoardError> {
        if text.len() > MAX_DOCUMENT {
            return Err(BoardError::TooLarge(text.len()));
        }
        if text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            let value: serde_json::Value = serde_json::from_slice(&text).map_err(BoardError::Json)?;
            return Self::new(&value);
        }
        serde_json::from_slice::<IgnoredAny>(&text).map_err(BoardError::Json)?;
        Ok(Self(text))
    }

    fn bounded(text: Bytes) -> Result<Self, BoardError> {
        if text.len() > MAX_DOCUMENT { Err(BoardError::TooLarge(text.len())) } else { Ok(Self(text)) }
    }

    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// How much a board holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub documents: usize,
    /// Of all documents together.
    pub bytes: usize,
    /// Keys remembered as removed, for readers that know them still. One that missed more than these starts over.
    pub removed: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { documents: 50_000, bytes: 256 << 20, removed: 10_000 }
    }
}

/// How far a reader has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// It knows all that happened up to here, of the keys that there are now.
    at: u64,
    /// When it started with nothing: what was removed before it never knew.
    began: u64,
}

impl Cursor {
    pub const START: Self = Self { at: 0, began: 0 };

    /// Of a reader that was at this [`Cursor::at`] before.
    pub fn resume(at: u64) -> Self {
        Self { at, began: at }
    }

    pub fn at(self) -> u64 {
        self.at
    }
}

/// What a reader has to do to know the same as the board, or the first part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// First forget everything.
    pub reset: bool,
    pub set: Vec<(Key, Document)>,
    pub removed: Vec<Key>,
    /// Where to go on.
    pub cursor: Cursor,
    /// There is more already.
    pub more: bool,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        !self.reset && self.set.is_empty() && self.removed.is_empty()
    }
}

/// Documents by key, each with the version at which it was set last.
#[derive(Debug)]
pub struct Board {
    limits: Limits,
    version: u64,
    versions: HashMap<Key, u64>,
    /// The last thing that happened to each key; no document where it was removed.
    changes: BTreeMap<u64, (Key, Option<Document>)>,
    removed: BTreeSet<u64>,
    /// Removals up to this version may be forgotten.
    horizon: u64,
    bytes: usize,
}

impl Board {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            // A reader's zero is always before.
            version: 1,
            versions: HashMap::new(),
            changes: BTreeMap::new(),
            removed: BTreeSet::new(),
            horizon: 0,
            bytes: 0,
        }
    }

    /// Grows with each change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Documents that there are.
    pub fn len(&self) -> usize {
        self.changes.len() - self.removed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, key: &Key) -> Option<&Document> {
        self.changes.get(self.versions.get(key)?)?.1.as_ref()
    }

    /// All documents, the one that was set last at the end.
    pub fn documents(&self) -> impl Iterator<Item = (&Key, &Document)> {
        self.changes.values().filter_map(|(key, document)| Some((key, document.as_ref()?)))
    }

    /// Whether this changed anything. A document for which there is no room leaves the one before where it is.
    pub fn set(&mut self, key: &Key, document: Document) -> Result<bool, BoardError> {
        let old = self.get(key);
        if old == Some(&document) {
            return Ok(false);
        }
        let documents = self.len() + usize::from(old.is_none());
        let bytes = self.bytes - old.map_or(0, |old| old.0.len()) + document.0.len();
        if documents > self.limits.documents || bytes > self.limits.bytes {
            return Err(BoardError::Full { documents: self.len(), bytes: self.bytes });
        }
        self.bytes = bytes;
        self.happened(key, Some(document));
        Ok(true)
    }

    /// Whether there was such a document.
    pub fn remove(&mut self, key: &Key) -> bool {
        let Some(old) = self.get(key) else { return false };
        self.bytes -= old.0.len();
        self.happened(key, None);
        self.removed.insert(self.version);
        while self.removed.len() > self.limits.removed {
            let Some(version) = self.removed.pop_first() else { break };
            if let Some((key, _)) = self.changes.remove(&version) {
                self.versions.remove(&key);
            }
            self.horizon = version;
        }
        true
    }

    /// Removes all that `stays` is false for.
    pub fn retain(&mut self, mut stays: impl FnMut(&Key) -> bool) {
        let gone: Vec<Key> = self.documents().filter(|(key, _)| !stays(key)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.remove(&key);
        }
    }

    fn happened(&mut self, key: &Key, document: Option<Document>) {
        self.version += 1;
        if let Some(before) = self.versions.insert(key.clone(), self.version) {
            self.changes.remove(&before);
            self.removed.remove(&before);
        }
        self.changes.insert(self.version, (key.clone(), document));
    }

    /// What happened after `cursor`, oldest first: one change at least, and no more once they have `max_bytes`.
    pub fn since(&self, cursor: Cursor, max_bytes: usize) -> Changes {
        let missed_removals = cursor.at.max(cursor.began) < self.horizon;
        let reset = cursor.at == 0 || cursor.at > self.version || missed_removals;
        let Cursor { at, began } = if reset { Cursor { at: 0, began: self.version } } else { cursor };
        let mut changes = Changes { reset, set: Vec::new(), removed: Vec::new(), cursor, more: false };
        let (mut bytes, mut end) = (0, self.version);
        for (version, (key, document)) in self.changes.range(at + 1..) {
            if bytes >= max_bytes.max(1) {
                changes.more = true;
                break;
            }
            bytes += key.0.len();
            match document {
                Some(document) => {
                    bytes += document.0.len();
                    changes.set.push((key.clone(), document.clone()));
                }
                None if reset => {}
                None => changes.removed.push(key.clone()),
            }
            end = *version;
        }
        changes.cursor = Cursor { at: if changes.more { end } else { self.version }, began };
        changes
    }
}

#[cfg(test)]
mod tests;
