//! Answers of the probe that are kept: one file each, named by what was asked, valid while nothing changed that the
//! answer was read from.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Facts;
use super::watch::Watch;
use crate::digest::Digest;
use crate::durable;

/// No answer comes near this many bytes.
const MAX_RECORD: u64 = 1024 * 1024;

/// Answers that stay: the newest.
const MAX_RECORDS: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    key: Digest,
    state: Digest,
    watch: Watch,
    facts: Facts,
}

/// The answer to `key`. `None` if there is none, it is out of date, or it is damaged: then the probe is asked.
pub(super) fn read(directory: &Path, key: Digest) -> Option<Facts> {
    let path = path(directory, key);
    let text = match read_own(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "kept facts are not used");
            return None;
        }
    };
    let record = durable::parse_record(&text).and_then(|text| serde_json::from_str::<Record>(&text).ok());
    let Some(record) = record.filter(|record| record.key == key) else {
        tracing::warn!(path = %path.display(), "kept facts are damaged or of another version: not used");
        return None;
    };
    (record.watch.state()?.digest == record.state).then_some(record.facts)
}

/// Keeps an answer that was asked for at `began`. It is not kept if something changed since: the answer may be older than
/// the change.
pub(super) fn write(directory: &Path, key: Digest, facts: &Facts, watch: Watch, began: SystemTime) -> io::Result<()> {
    let Some(state) = watch.state().filter(|state| state.is_settled_before(began)) else { return Ok(()) };
    let record = Record { key, state: state.digest, watch, facts: facts.clone() };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    durable::replace_record(&path(directory, key), &serde_json::to_string(&record)?, 0o600)?;
    prune(directory)
}

fn path(directory: &Path, key: Digest) -> PathBuf {
    directory.join(format!("{key}.json"))
}

/// A file of this user that nobody else can have written.
fn read_own(path: &Path) -> io::Result<String> {
    // Neither a link nor a pipe is followed or waited for.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return refuse("not a file that only this user can write");
    }
    if meta.len() > MAX_RECORD {
        return refuse("larger than kept facts can be");
    }
    let mut text = String::new();
    file.take(MAX_RECORD).read_to_string(&mut text)?;
    Ok(text)
}

/// Removes all but the newest records.
fn prune(directory: &Path) -> io::Result<()> {
    let mut records: Vec<(SystemTime, PathBuf)> = fs::read_dir(directory)?
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|kind| kind == "json"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    records.sort_unstable();
    for (_, path) in records.iter().take(records.len().saturating_sub(MAX_RECORDS)) {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::super::{Fact, Known};
    use super::*;

    struct Kept {
        dir: tempfile::TempDir,
        key: Digest,
    }

    /// A record of one fact that was read from the file `source`.
    fn kept() -> Kept {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("source"), "1").unwrap();
        let kept = Kept { key: Digest::of(b"key"), dir };
        kept.write(SystemTime::now() + Duration::from_secs(60));
        kept
    }

    impl Kept {
        fn cache(&self) -> PathBuf {
            self.dir.path().join("a/b")
        }

        fn file(&self) -> PathBuf {
            path(&self.cache(), self.key)
        }

        fn write(&self, began: SystemTime) {
            let watch = Watch { files: vec![self.dir.path().join("source")], ..Watch::default() };
            write(&self.cache(), self.key, &facts(), watch, began).unwrap();
        }

        fn read(&self) -> Option<Facts> {
            read(&self.cache(), self.key)
        }
    }

    fn facts() -> Facts {
        let mut facts = Facts::default();
        facts.set(Fact::Torch, Known::Value("2.13.0".to_owned()));
        facts
    }

    #[test]
    fn an_answer_is_kept_for_its_user_until_something_changes() {
        let kept = kept();
        assert_eq!(kept.read(), Some(facts()));
        assert_eq!(kept.file().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(kept.cache().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(read(&kept.cache(), Digest::of(b"other")), None);
        fs::write(kept.dir.path().join("source"), "22").unwrap();
        assert_eq!(kept.read(), None);
    }

    #[test]
    fn an_answer_that_may_be_older_than_a_change_is_not_kept() {
        let kept = kept();
        fs::remove_file(kept.file()).unwrap();
        kept.write(SystemTime::now() - Duration::from_secs(60));
        assert!(!kept.file().exists());
    }

    #[test]
    fn damaged_foreign_and_moved_records_are_not_used() {
        let record = kept();
        let whole = fs::read(record.file()).unwrap();
        let damaged = [&whole[..whole.len() - 2], b"00000000 {}\n", b"", &[0xff; 40], &vec![b' '; 2 << 20]];
        for bytes in damaged {
            fs::write(record.file(), bytes).unwrap();
            assert_eq!(record.read(), None);
        }
        fs::write(record.file(), &whole).unwrap();
        assert_eq!(record.read(), Some(facts()));
        fs::copy(record.file(), path(&record.cache(), Digest::of(b"other"))).unwrap();
        assert_eq!(read(&record.cache(), Digest::of(b"other")), None);
        fs::set_permissions(record.file(), fs::Permissions::from_mode(0o622)).unwrap();
        assert_eq!(record.read(), None);
        fs::set_permissions(record.file(), fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(record.file(), record.dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(record.dir.path().join("elsewhere"), record.file()).unwrap();
        assert_eq!(record.read(), None);
    }

    #[test]
    fn old_records_go_when_there_are_too_many() {
        let record = kept();
        for n in 0..MAX_RECORDS {
            let file = fs::File::create(record.cache().join(format!("{n}.json"))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(n as u64)).unwrap();
        }
        record.write(SystemTime::now() + Duration::from_secs(60));
        assert_eq!(fs::read_dir(record.cache()).unwrap().count(), MAX_RECORDS);
        assert!(!record.cache().join("0.json").exists() && record.read().is_some());
    }
}
