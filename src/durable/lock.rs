//! The right to be the one process that uses a directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags};

/// A file that this process has locked; its text is the process's id. It is never unlinked, so there is only one lock.
#[derive(Debug)]
pub struct Lock(File);

/// The lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// `pid` is for people.
    #[error("process {pid} has it")]
    Held { pid: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Lock {
    /// Waits for nobody. A symbolic link in the file's place is an error.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let no_follow =
            i32::try_from(OFlags::NOFOLLOW.bits()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_follow);
        let mut file = options.open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LockError::Held { pid: holder(&file) }),
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let pid = format!("{}\n", std::process::id());
        if let Err(error) = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(pid.as_bytes())) {
            // The lock holds without it, also on a full disk; only the message to others is poorer.
            tracing::warn!(path = %path.display(), %error, "write process id");
        }
        Ok(Self(file))
    }
}

impl Drop for Lock {
    /// Closing is not enough: a child that is being spawned has a copy of the file until it executes.
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "unlock");
        }
    }
}

/// It may be about to write it.
fn holder(file: &File) -> String {
    let mut holder = String::new();
    let known = file.take(16).read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
    if known { holder.trim().to_owned() } else { "(unknown)".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_had_once_names_its_holder_and_is_free_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::take(&path).unwrap();
        let LockError::Held { pid } = Lock::take(&path).unwrap_err() else { panic!("not held") };
        assert_eq!(pid, std::process::id().to_string());
        drop(lock);
        assert!(Lock::take(&path).is_ok());
    }
}
