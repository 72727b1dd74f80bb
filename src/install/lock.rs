//! One install at a time in a cache root: `flock` on a file that is never unlinked, so the kernel frees it with its holder.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;

use super::CacheRoot;
use super::layout::LOCK;

/// A waiter looks this often: a dead holder costs it no more.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Digits of the longest pid, and a line end.
const MAX_HOLDER: usize = 24;

/// The lock was not obtained.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Go on without: the holder's commit stays safe, because it replaces nothing.
    #[error("another process installs into this cache root{}", holder.map_or_else(String::new, |pid| format!(" (pid {pid})")))]
    TimedOut { holder: Option<u32> },
    #[error("lock `{path}`: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Held until it is dropped or its process ends.
#[derive(Debug)]
pub struct InstallLock {
    _file: File,
}

pub(super) fn acquire(root: &CacheRoot, deadline: Instant) -> Result<InstallLock, LockError> {
    let failed = |errno: Errno| LockError::Io { path: root.control_path().join(LOCK), source: errno.into() };
    let file = root.control.open_or_create(LOCK, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LockError::TimedOut { holder: holder(&file) });
        }
        std::thread::sleep(left.min(LOOK_EVERY));
    }
    // Only a message depends on it: a disk too full for a pid may still be fit for a smaller install.
    let text = format!("{}\n", std::process::id());
    let _ = file.write_all_at(text.as_bytes(), 0).and_then(|()| file.set_len(text.len() as u64));
    Ok(InstallLock { _file: file })
}

fn holder(file: &File) -> Option<u32> {
    let mut buffer = [0; MAX_HOLDER];
    let read = file.read_at(&mut buffer, 0).ok()?;
    std::str::from_utf8(&buffer[..read]).ok()?.trim().parse().ok()
}
