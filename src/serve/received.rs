//! Which entries of a cache root came from the fleet: kept in its `.warmd`, so that whoever publishes later, in this
//! process or another, does not sign what somebody else has made and signed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::records::{Records, RecordsError};
use crate::artifact::RelPath;
use crate::caches::Entry;
use crate::digest::IdentityId;

const FILE: &str = "received.json";
const LOCK: &str = "received.lock";

/// Subjects of all identities; those that came last stay.
const MAX_SUBJECTS: usize = 1024;

/// Entries of one subject. Oldest last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    identity: IdentityId,
    subject: String,
    /// When each was verified, or found in place, in Unix milliseconds, rounded up.
    entries: BTreeMap<RelPath, u64>,
}

/// What came of one identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Received(BTreeMap<String, BTreeMap<RelPath, u64>>);

impl Received {
    /// Adds the entries of an artifact to the record of `root`. Blocking; waits for others who do the same.
    pub(super) fn add(
        root: &Path,
        identity: IdentityId,
        subject: &str,
        entries: &[RelPath],
        now: SystemTime,
    ) -> Result<(), RecordsError> {
        let records = Records::make(root)?;
        let _lock = records.lock(LOCK)?;
        let mut lines: Vec<Line> = records.read(FILE)?.unwrap_or_default();
        let at = lines.iter().position(|line| line.identity == identity && line.subject == subject);
        let mut line = match at {
            Some(at) => lines.remove(at),
            None => Line { identity, subject: subject.to_owned(), entries: BTreeMap::new() },
        };
        line.entries.extend(entries.iter().map(|entry| (entry.clone(), millis(now))));
        lines.insert(0, line);
        lines.truncate(MAX_SUBJECTS);
        records.write(FILE, &lines)
    }

    /// Blocking.
    pub(super) fn read(root: &Path, identity: &IdentityId) -> Result<Self, RecordsError> {
        let Some(records) = Records::find(root)? else { return Ok(Self::default()) };
        let lines: Vec<Line> = records.read(FILE)?.unwrap_or_default();
        let of_it = lines.into_iter().filter(|line| line.identity == *identity);
        Ok(Self(of_it.map(|line| (line.subject, line.entries)).collect()))
    }

    /// Whether `entry` is as it came. One that was written to since, or taken away and made again, is the engine's own.
    pub(super) fn has(&self, subject: &str, entry: &Entry) -> bool {
        let at = self.0.get(subject).and_then(|entries| entries.get(&entry.path));
        at.is_some_and(|at| entry.newest <= UNIX_EPOCH + Duration::from_millis(*at))
    }
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos().div_ceil(1_000_000)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    fn entry(text: &str, newest: SystemTime) -> Entry {
        Entry { path: path(text), newest }
    }

    #[test]
    fn an_entry_is_known_to_come_from_elsewhere_until_it_is_written_again() {
        let root = tempfile::tempdir().unwrap();
        let (here, other) = (IdentityId::of(b"here"), IdentityId::of(b"other"));
        assert_eq!(Received::read(root.path(), &here).unwrap(), Received::default());
        let now = UNIX_EPOCH + Duration::new(1_800_000_000, 1);
        Received::add(root.path(), here, "model", &[path("a")], now).unwrap();
        Received::add(root.path(), here, "model", &[path("b")], now + 9 * SECOND).unwrap();
        Received::add(root.path(), other, "model", &[path("c")], now).unwrap();
        let received = Received::read(root.path(), &here).unwrap();
        assert!(received.has("model", &entry("a", now)) && received.has("model", &entry("b", now + SECOND)));
        assert!(!received.has("model", &entry("a", now + SECOND)), "the engine has written it since");
        assert!(!received.has("model", &entry("c", now)), "that is of another identity");
        assert!(!received.has("other", &entry("a", now)));
    }

    #[test]
    fn the_subjects_that_came_first_leave_a_record_that_is_full() {
        let root = tempfile::tempdir().unwrap();
        let identity = IdentityId::of(b"here");
        let line = |n: usize| Line { identity, subject: n.to_string(), entries: BTreeMap::from([(path("a"), 0)]) };
        let full: Vec<Line> = (0..MAX_SUBJECTS).map(line).collect();
        Records::make(root.path()).unwrap().write(FILE, &full).unwrap();
        Received::add(root.path(), identity, "new", &[path("a")], UNIX_EPOCH).unwrap();
        let received = Received::read(root.path(), &identity).unwrap();
        assert!(received.has("new", &entry("a", UNIX_EPOCH)) && received.has("0", &entry("a", UNIX_EPOCH)));
        assert!(!received.has(&(MAX_SUBJECTS - 1).to_string(), &entry("a", UNIX_EPOCH)));
    }
}
