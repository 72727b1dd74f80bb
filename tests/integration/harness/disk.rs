//! System calls of a running process that fail, as a bad disk makes them fail. Needs `strace`, and to be allowed to trace.

use std::process::Stdio;

use tempfile::NamedTempFile;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

use super::cluster::DEADLINE;
use super::engine::skipped;

/// While it lives, the process fares badly. `release` it: dropped, the process goes with it.
pub struct BadDisk {
    strace: Child,
    calls: NamedTempFile,
    _told: Lines<BufReader<ChildStderr>>,
}

impl BadDisk {
    /// In each thread of `process`, the calls of that names end with `error`: the first, and each `every`th after it. `None`,
    /// and why on standard error, where that cannot be had.
    pub async fn under(process: u32, calls: &str, error: &str, every: u32) -> Option<Self> {
        let output = NamedTempFile::new().unwrap();
        let spawned = Command::new("strace")
            .args(["-f", "-o", output.path().to_str().unwrap(), "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:error={error}:when=1+{every}"), "-p", &process.to_string()])
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let Ok(mut strace) = spawned else {
            skipped("calls that fail need strace");
            return None;
        };
        let mut told = BufReader::new(strace.stderr.take().unwrap()).lines();
        let attached = async {
            while let Some(line) = told.next_line().await.unwrap() {
                if line.contains(" attached") {
                    return true;
                }
            }
            false
        };
        if !tokio::time::timeout(DEADLINE, attached).await.expect("strace says nothing") {
            skipped("strace may not trace here");
            return None;
        }
        Some(Self { strace, calls: output, _told: told })
    }

    /// From here on all is well again. How many calls have failed.
    pub async fn release(mut self) -> usize {
        let pid = rustix::process::Pid::from_raw(self.strace.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        tokio::time::timeout(DEADLINE, self.strace.wait()).await.expect("strace does not let go").unwrap();
        std::fs::read_to_string(self.calls.path()).unwrap().matches("(INJECTED)").count()
    }
}
