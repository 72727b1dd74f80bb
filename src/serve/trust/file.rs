//! A policy of a file, which is read again when it is another one.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::time::timeout;

use crate::artifact::Stamp;
use crate::identity::{Policy, TrustConfig};
use crate::local::chain;

#[derive(Debug)]
pub(super) struct PolicyFile {
    config: TrustConfig,
    seen: RwLock<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// Of the file that was read last. One that could not be read is tried again: the reason may pass.
    stamp: Option<Stamp>,
    /// Why it was not read since.
    problem: Option<String>,
    /// The newest that could be used, whether anything may be installed by it or not; else why none could.
    policy: Result<Arc<Policy>, String>,
}

impl PolicyFile {
    /// Blocks.
    pub(super) fn read(config: TrustConfig) -> Self {
        // Before it is read: what is written meanwhile is read again.
        let stamp = stamp(&config);
        let policy = load(&config).map(Arc::new);
        let stamp = stamp.filter(|_| policy.is_ok());
        Self { config, seen: RwLock::new(Seen { stamp, problem: None, policy }) }
    }

    pub(super) fn policy(&self) -> Result<Arc<Policy>, String> {
        self.seen().policy.clone()
    }

    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.seen().stamp
    }

    /// If it is another file. An older version, or one that cannot be used, leaves the policy before in force, and is an error
    /// once.
    pub(super) async fn read_again(self: &Arc<Self>, left: Duration) -> Result<(), String> {
        let file = self.clone();
        let reading = tokio::task::spawn_blocking(move || file.read_now());
        let read = timeout(left, reading).await.map_err(|_| format!("{} is not read", self.shown()))?;
        read.map_err(|_| "the thread that reads the trust policy panicked".to_owned())?
    }

    fn read_now(&self) -> Result<(), String> {
        let stamp = stamp(&self.config);
        if stamp == self.stamp() {
            return Ok(());
        }
        let read = load(&self.config);
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let policy = match read {
            Ok(policy) => policy,
            Err(reason) if seen.policy.is_err() => {
                seen.policy = Err(reason);
                return Ok(());
            }
            Err(reason) => {
                let before = seen.problem.replace(reason.clone());
                return if before.as_ref() == Some(&reason) { Ok(()) } else { Err(reason) };
            }
        };
        (seen.stamp, seen.problem) = (stamp, None);
        let before = seen.policy.as_ref().map_or(0, |before| before.version);
        if policy.version < before {
            let found = policy.version;
            return Err(format!("{}: version {found} is older than {before}, which stays", self.shown()));
        }
        tracing::info!(version = policy.version, "trust policy read again");
        seen.policy = Ok(Arc::new(policy));
        Ok(())
    }

    fn seen(&self) -> RwLockReadGuard<'_, Seen> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self) -> String {
        self.config.policy.as_deref().map_or_else(String::new, |path| path.display().to_string())
    }
}

fn stamp(config: &TrustConfig) -> Option<Stamp> {
    let meta = |path: &Path| path.metadata().ok();
    config.policy.as_deref().and_then(meta).map(|meta| Stamp::of(&meta))
}

fn load(config: &TrustConfig) -> Result<Policy, String> {
    let policy = config.load(None).map_err(|error| format!("trust policy: {}", chain(&error)))?;
    policy.ok_or_else(|| "no trust policy: set `trust.policy`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn text(version: u64) -> String {
        format!("version = {version}\nexpires = \"2050-01-01T00:00:00Z\"\n")
    }

    /// Of the version in force, 0 without one.
    fn version(file: &PolicyFile) -> u64 {
        file.policy().map_or(0, |policy| policy.version)
    }

    #[test]
    fn another_file_is_taken_unless_it_is_older_or_of_no_use_which_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        let file = PolicyFile::read(TrustConfig { policy: Some(path.clone()), ..TrustConfig::default() });
        assert!(file.policy().unwrap_err().contains("policy.toml"), "{:?}", file.policy());
        write(&path, "version = ");
        file.read_now().unwrap();
        assert_eq!(version(&file), 0);
        for (given, in_force, refused) in [
            (text(2), 2, None),
            (text(1), 2, Some("older than 2")),
            ("version = ".to_owned(), 2, Some("trust policy: ")),
            (text(2), 2, None),
            (text(3), 3, None),
        ] {
            write(&path, &given);
            let read = file.read_now();
            assert_eq!(version(&file), in_force, "{given}");
            assert_eq!(read.is_err(), refused.is_some(), "{read:?}");
            assert!(refused.is_none_or(|told| read.unwrap_err().contains(told)), "{given}");
            file.read_now().expect("once");
        }
    }

    #[test]
    fn a_file_that_could_not_be_read_is_tried_again_though_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        write(&path, &text(1));
        let file = PolicyFile::read(TrustConfig { policy: Some(path.clone()), ..TrustConfig::default() });
        write(&path, &text(2));
        let (kept, away) = (dir.path().join("kept"), dir.path().join("away"));
        std::fs::rename(&path, &kept).unwrap();
        // What is there instead can be looked at, and not read.
        std::fs::create_dir(&path).unwrap();
        assert!(file.read_now().is_err() && file.read_now().is_ok() && version(&file) == 1);
        assert_ne!(file.stamp(), stamp(&file.config), "it counts as read");
        std::fs::rename(&path, away).unwrap();
        std::fs::rename(&kept, &path).unwrap();
        file.read_now().unwrap();
        assert_eq!(version(&file), 2);
    }
}
