//! Revocation of session texts. A text names a token id and a generation of its address. Ids 0 to 254 can be revoked one
//! by one; 255 is for short-lived texts, which go with all others when the generation is raised.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::super::denied::Denied;
use crate::adapters::Address;
use crate::durable;

/// Addresses with a revocation. More are refused: none may be forgotten.
const MAX_ADDRESSES: usize = 100_000;

/// A revocation did not happen as it should. `Display` names the file.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("read the revoked sessions in {path}: without them revoked texts would count again", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} holds no list of revoked sessions", path = path.display())]
    Content { path: PathBuf },
    /// It holds until the process ends, and not after.
    #[error("write the revoked sessions to {path}: what was revoked now counts again after a restart", path = path.display())]
    NotKept { path: PathBuf, source: io::Error },
    #[error("token 255 stands for all short-lived texts and cannot be revoked alone: revoke all of the address")]
    Ephemeral,
    #[error("{MAX_ADDRESSES} addresses have revocations already")]
    Full,
}

/// Which of an address's session texts one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(u8);

impl TokenId {
    /// All short-lived texts.
    pub const EPHEMERAL: Self = Self(255);

    pub const fn new(id: u8) -> Self {
        Self(id)
    }

    pub fn is_ephemeral(self) -> bool {
        self == Self::EPHEMERAL
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    generation: u64,
    /// Of this generation.
    #[serde(default)]
    revoked: BTreeSet<TokenId>,
}

type Records = BTreeMap<Address, Record>;

/// What was revoked, on disk and in memory. Reads never wait for the disk.
#[derive(Debug)]
pub struct Sessions {
    path: PathBuf,
    /// Held while the file is written, so that an older state never replaces a newer one.
    writing: Mutex<()>,
    records: Mutex<Records>,
}

impl Sessions {
    /// A file that is there and cannot be read is an error.
    pub(super) fn open(path: &Path) -> Result<Self, SessionError> {
        let text = durable::read_record(path).map_err(|source| SessionError::Read { path: path.to_owned(), source })?;
        let content = |_| SessionError::Content { path: path.to_owned() };
        let records = text.map(|text| serde_json::from_str(&text).map_err(content)).transpose()?.unwrap_or_default();
        Ok(Self { path: path.to_owned(), writing: Mutex::default(), records: Mutex::new(records) })
    }

    pub(super) fn check(&self, address: &Address, generation: u64, token: TokenId) -> Result<(), Denied> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let valid = match records.get(address) {
            Some(record) => record.generation == generation && !record.revoked.contains(&token),
            None => generation == 0,
        };
        if valid { Ok(()) } else { Err(Denied::Revoked) }
    }

    /// What a new session text of `address` must name.
    pub fn generation(&self, address: &Address) -> u64 {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.get(address).map_or(0, |record| record.generation)
    }

    /// Revokes one session of the present generation, at once and for good. Waits for the disk.
    pub fn revoke(&self, address: Address, token: TokenId) -> Result<(), SessionError> {
        if token.is_ephemeral() {
            return Err(SessionError::Ephemeral);
        }
        self.change(address, |record| {
            record.revoked.insert(token);
        })
    }

    /// Revokes all sessions of `address`, at once and for good; new ones name the next generation, which is returned.
    /// Waits for the disk.
    pub fn revoke_all(&self, address: Address) -> Result<u64, SessionError> {
        let mut generation = 0;
        self.change(address, |record| {
            record.generation = record.generation.saturating_add(1);
            record.revoked.clear();
            generation = record.generation;
        })?;
        Ok(generation)
    }

    /// In memory first: what is revoked ends now even if the disk is full.
    fn change(&self, address: Address, change: impl FnOnce(&mut Record)) -> Result<(), SessionError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let records = {
            let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
            if records.len() >= MAX_ADDRESSES && !records.contains_key(&address) {
                return Err(SessionError::Full);
            }
            change(records.entry(address).or_default());
            records.clone()
        };
        let not_kept = |source| SessionError::NotKept { path: self.path.clone(), source };
        let text = serde_json::to_string(&records).map_err(|error| not_kept(error.into()))?;
        durable::replace_record(&self.path, &text, 0o600).map_err(not_kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Address = Address::from_array([7; 20]);
    const OTHER: Address = Address::from_array([8; 20]);

    #[test]
    fn one_session_is_revoked_and_its_sisters_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(&dir.path().join("s")).unwrap();
        sessions.revoke(WHO, TokenId::new(3)).unwrap();
        assert_eq!(sessions.check(&WHO, 0, TokenId::new(3)), Err(Denied::Revoked));
        assert_eq!(sessions.check(&WHO, 0, TokenId::new(4)), Ok(()));
        assert_eq!(sessions.check(&OTHER, 0, TokenId::new(3)), Ok(()));
        assert!(matches!(sessions.revoke(WHO, TokenId::EPHEMERAL), Err(SessionError::Ephemeral)));
    }

    #[test]
    fn all_are_revoked_by_the_next_generation_and_nobody_may_sign_for_one_to_come() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(&dir.path().join("s")).unwrap();
        assert_eq!(sessions.check(&WHO, 1, TokenId::EPHEMERAL), Err(Denied::Revoked));
        assert_eq!(sessions.revoke_all(WHO).unwrap(), 1);
        assert_eq!(sessions.generation(&WHO), 1);
        assert_eq!(sessions.check(&WHO, 0, TokenId::EPHEMERAL), Err(Denied::Revoked));
        assert_eq!(sessions.check(&WHO, 1, TokenId::EPHEMERAL), Ok(()));
        assert_eq!(sessions.check(&OTHER, 0, TokenId::EPHEMERAL), Ok(()));
    }

    #[test]
    fn revocations_survive_a_restart_and_a_damaged_list_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let sessions = Sessions::open(&path).unwrap();
        sessions.revoke_all(OTHER).unwrap();
        sessions.revoke(WHO, TokenId::new(3)).unwrap();
        let again = Sessions::open(&path).unwrap();
        assert_eq!(again.check(&WHO, 0, TokenId::new(3)), Err(Denied::Revoked));
        assert_eq!(again.generation(&OTHER), 1);
        let text = std::fs::read_to_string(&path).unwrap().replace("generation", "generatiom");
        std::fs::write(&path, text).unwrap();
        assert!(matches!(Sessions::open(&path), Err(SessionError::Read { .. })));
    }

    #[test]
    fn a_revocation_that_cannot_be_written_holds_in_memory_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(&dir.path().join("none/s")).unwrap();
        assert!(matches!(sessions.revoke(WHO, TokenId::new(3)), Err(SessionError::NotKept { .. })));
        assert_eq!(sessions.check(&WHO, 0, TokenId::new(3)), Err(Denied::Revoked));
    }
}
