//! Artifacts that this node does not install again, because the engine crashed with them and started without them.
//!
//! The list is below the caches' root and lives as long as that: with a root on the node's disk it is the node's, with one
//! in a pod's scratch volume it is the pod's.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::records::Records;
pub use super::records::RecordsError;
use crate::artifact::Admitted;
use crate::digest::{ArtifactId, IdentityId};
use crate::identity::UnixTime;

const FILE: &str = "quarantine.json";
const LOCK: &str = "quarantine.lock";

/// The newest stay.
const MAX_QUARANTINED: usize = 1024;

/// What an artifact is published as, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub artifact: ArtifactId,
    pub family: String,
    pub identity: IdentityId,
    pub subject: String,
    pub generation: u64,
    /// By the names of the policy that admitted it.
    pub signers: Vec<String>,
}

impl Release {
    pub fn of(admitted: &Admitted) -> Self {
        let manifest = admitted.manifest();
        Self {
            artifact: admitted.id(),
            family: manifest.identity.family().to_string(),
            identity: manifest.identity.id(),
            subject: manifest.subject.clone(),
            generation: manifest.generation,
            signers: admitted.signers().to_vec(),
        }
    }

    /// The same artifact, or an earlier generation of one of its signers.
    fn is_covered_by(&self, other: &Self) -> bool {
        let of_its_signer = self.signers.iter().any(|signer| other.signers.contains(signer));
        let of_its_line = self.identity == other.identity && self.subject == other.subject && of_its_signer;
        self.artifact == other.artifact || (of_its_line && self.generation <= other.generation)
    }
}

/// One that is not installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    #[serde(flatten)]
    pub release: Release,
    pub since: UnixTime,
    pub reason: String,
}

/// Why it is refused, and the way out.
impl std::fmt::Display for Quarantined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { release, since, reason } = self;
        let (id, generation) = (release.artifact, release.generation);
        write!(f, "generation {generation} and before are quarantined on this node since {since}: {reason}; ")?;
        write!(f, "`warmd quarantine clear {id}` to try again")
    }
}

/// An artifact that a start went without, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    #[serde(flatten)]
    pub release: Release,
    pub reason: String,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "artifact {}: {}", self.release.artifact.short(), self.reason)
    }
}

/// All that are not installed; newest last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quarantine(Vec<Quarantined>);

impl FromIterator<Quarantined> for Quarantine {
    fn from_iter<I: IntoIterator<Item = Quarantined>>(list: I) -> Self {
        Self(list.into_iter().collect())
    }
}

impl Quarantine {
    /// Of the caches below `root`.
    pub fn load(root: &Path) -> Result<Self, RecordsError> {
        match Records::find(root)? {
            Some(records) => Self::read(&records),
            None => Ok(Self::default()),
        }
    }

    fn read(records: &Records) -> Result<Self, RecordsError> {
        Ok(Self(records.read(FILE)?.unwrap_or_default()))
    }

    pub fn list(&self) -> &[Quarantined] {
        &self.0
    }

    /// A later generation of the same signer passes, and so does another signer's artifact.
    pub fn refuses(&self, release: &Release) -> Option<&Quarantined> {
        self.0.iter().rev().find(|quarantined| release.is_covered_by(&quarantined.release))
    }

    /// Adds to the list below `root`.
    pub(super) fn add(root: &Path, releases: Vec<Release>, reason: &str, now: UnixTime) -> Result<(), RecordsError> {
        let records = Records::make(root)?;
        let _lock = records.lock(LOCK)?;
        let Self(mut list) = Self::read(&records)?;
        list.retain(|known| !releases.iter().any(|release| release.artifact == known.release.artifact));
        list.extend(releases.into_iter().map(|release| Quarantined { release, since: now, reason: reason.to_owned() }));
        let surplus = list.len().saturating_sub(MAX_QUARANTINED);
        list.drain(..surplus);
        records.write(FILE, &list)
    }

    /// Takes `artifact`, or all, off the list below `root`; what was taken off.
    pub fn clear(root: &Path, artifact: Option<&ArtifactId>) -> Result<Vec<Quarantined>, RecordsError> {
        let Some(records) = Records::find(root)? else { return Ok(Vec::new()) };
        let _lock = records.lock(LOCK)?;
        let Self(list) = Self::read(&records)?;
        let leaves = |one: &Quarantined| artifact.is_none_or(|artifact| one.release.artifact == *artifact);
        let (cleared, kept): (Vec<_>, Vec<_>) = list.into_iter().partition(leaves);
        match (cleared.is_empty(), kept.is_empty()) {
            (true, _) => {}
            (false, true) => records.remove(FILE)?,
            (false, false) => records.write(FILE, &kept)?,
        }
        Ok(cleared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(artifact: &str, signer: &str, generation: u64) -> Release {
        Release {
            artifact: ArtifactId::of(artifact.as_bytes()),
            family: "triton".to_owned(),
            identity: IdentityId::of(b"identity"),
            subject: "model".to_owned(),
            generation,
            signers: vec![signer.to_owned()],
        }
    }

    fn quarantine(releases: &[Release]) -> Quarantine {
        let one = |release: &Release| Quarantined {
            release: release.clone(),
            since: UnixTime::from_seconds(0),
            reason: "it crashed".to_owned(),
        };
        releases.iter().map(one).collect()
    }

    #[test]
    fn only_a_later_generation_or_another_signer_gets_past() {
        let quarantine = quarantine(&[release("bad", "ci", 7)]);
        let refused = |release: &Release| quarantine.refuses(release).is_some();
        assert!(refused(&release("bad", "ci", 7)));
        assert!(refused(&release("older", "ci", 6)));
        assert!(refused(&release("twin", "ci", 7)));
        assert!(!refused(&release("newer", "ci", 8)));
        assert!(!refused(&release("other", "lab", 1)));
        // The very same bytes are as bad under any name.
        assert!(refused(&release("bad", "lab", 9)));
        assert!(!refused(&Release { subject: "another".to_owned(), ..release("x", "ci", 1) }));
        assert!(!refused(&Release { identity: IdentityId::of(b"other"), ..release("x", "ci", 1) }));
        let both = Release { signers: vec!["lab".to_owned(), "ci".to_owned()], ..release("x", "", 7) };
        assert!(refused(&both));
    }

    #[test]
    fn the_list_is_kept_below_the_root_until_it_is_cleared() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(Quarantine::load(root).unwrap(), Quarantine::default());
        assert!(Quarantine::clear(root, None).unwrap().is_empty());
        assert!(std::fs::read_dir(root).unwrap().next().is_none(), "looking leaves nothing behind");
        let (a, b) = (release("a", "ci", 1), release("b", "ci", 2));
        let now = UnixTime::from_seconds(1_800_000_000);
        Quarantine::add(root, vec![a.clone()], "first", UnixTime::from_seconds(1)).unwrap();
        Quarantine::add(root, vec![a.clone(), b.clone()], "second", now).unwrap();
        let list = Quarantine::load(root).unwrap().0;
        assert_eq!(list.iter().map(|one| one.release.clone()).collect::<Vec<_>>(), [a.clone(), b.clone()]);
        assert!(list.iter().all(|one| one.since == now && one.reason == "second"));
        assert_eq!(Quarantine::clear(root, Some(&ArtifactId::of(b"none"))).unwrap(), []);
        assert_eq!(Quarantine::clear(root, Some(&a.artifact)).unwrap()[0].release, a);
        assert_eq!(Quarantine::load(root).unwrap().0[0].release, b);
        assert_eq!(Quarantine::clear(root, None).unwrap().len(), 1);
        assert_eq!(Quarantine::load(root).unwrap(), Quarantine::default());
    }

    #[test]
    fn the_oldest_leave_a_list_that_is_full() {
        let root = tempfile::tempdir().unwrap();
        let many = (0..MAX_QUARANTINED as u64).map(|n| release(&n.to_string(), "ci", n)).collect();
        Quarantine::add(root.path(), many, "", UnixTime::from_seconds(0)).unwrap();
        Quarantine::add(root.path(), vec![release("last", "ci", 0)], "", UnixTime::from_seconds(0)).unwrap();
        let list = Quarantine::load(root.path()).unwrap().0;
        assert_eq!(list.len(), MAX_QUARANTINED);
        assert_eq!(list[0].release.generation, 1);
        assert_eq!(list[MAX_QUARANTINED - 1].release.artifact, ArtifactId::of(b"last"));
    }

    #[test]
    fn a_refusal_names_the_reason_and_the_way_out() {
        let quarantine = quarantine(&[release("bad", "ci", 7)]);
        let text = quarantine.list()[0].to_string();
        let id = ArtifactId::of(b"bad");
        let expected = format!(
            "generation 7 and before are quarantined on this node since 1970-01-01T00:00:00Z: it crashed; `warmd quarantine clear {id}` to try again"
        );
        assert_eq!(text, expected);
    }
}
