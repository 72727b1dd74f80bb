//! A board that many write and many follow.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::board::{Board, BoardError, Changes, Cursor, Document, Key, Limits};

/// Shared by whoever knows something and the page's [`Server`](super::Server). Clones are the same board.
#[derive(Debug, Clone)]
pub struct LiveBoard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Tells this board's versions from those of one before.
    epoch: u64,
    board: Mutex<Board>,
    /// Of the role, as TOML.
    configuration: Mutex<Option<String>>,
    version: watch::Sender<u64>,
}

impl LiveBoard {
    pub fn new(limits: Limits) -> Self {
        let board = Board::new(limits);
        let version = watch::Sender::new(board.version());
        Self(Arc::new(Shared {
            epoch: rand::random(),
            board: Mutex::new(board),
            configuration: Mutex::default(),
            version,
        }))
    }

    /// What the role tells of its configuration: the whole as TOML, without secrets.
    pub fn configured(&self, toml: String) {
        *self.0.configuration.lock().unwrap_or_else(PoisonError::into_inner) = Some(toml);
    }

    pub(super) fn configuration(&self) -> Option<String> {
        self.0.configuration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Many changes together; readers are woken once.
    pub fn update<T>(&self, change: impl FnOnce(&mut Board) -> T) -> T {
        let mut board = self.lock();
        let done = change(&mut board);
        let now = board.version();
        drop(board);
        // Of two that changed it, the one that comes here late must not turn the version back.
        self.0.version.send_if_modified(|version| {
            let is_later = now > *version;
            *version = now.max(*version);
            is_later
        });
        done
    }

    /// Whether this changed anything.
    pub fn set(&self, key: &Key, document: Document) -> Result<bool, BoardError> {
        self.update(|board| board.set(key, document))
    }

    /// Whether there was such a document.
    pub fn remove(&self, key: &Key) -> bool {
        self.update(|board| board.remove(key))
    }

    /// All documents at one moment, with the version of it.
    pub(super) fn snapshot(&self) -> (u64, Vec<(Key, Document)>) {
        let board = self.lock();
        (board.version(), board.documents().map(|(key, document)| (key.clone(), document.clone())).collect())
    }

    pub(super) fn since(&self, cursor: Cursor, max_bytes: usize) -> Changes {
        self.lock().since(cursor, max_bytes)
    }

    pub(super) fn follow(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// A reader's place as text, for this board only.
    pub(super) fn mark(&self, cursor: Cursor) -> String {
        format!("{:016x}-{}", self.0.epoch, cursor.at())
    }

    /// What [`LiveBoard::mark`] said, or the start if that was another board or something else.
    pub(super) fn resume(&self, mark: &str) -> Cursor {
        let at = mark.split_once('-').filter(|(epoch, _)| *epoch == format!("{:016x}", self.0.epoch));
        at.and_then(|(_, at)| at.parse().ok()).map_or(Cursor::START, Cursor::resume)
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for LiveBoard {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}
