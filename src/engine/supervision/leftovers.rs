//! What an earlier life of warmd left running: found by a record, and killed before the next engine is started.
//!
//! A pid alone names nothing: another process may have it by now. Together with the time of its start it names a process of
//! this boot. A session's number is taken for as long as anything is in the session; so where one process of it is known
//! to be the engine's, all in it are. So are all in its control group, where it has one.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::getpid;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::super::process::Member;
use super::super::process::processes::{Kill, send};
use super::super::process::table::{self, Process, Table};
use super::cgroup;
use crate::durable;

/// What survivors get to end by themselves: the leader has had its SIGTERM when warmd died.
const GRACE: Duration = Duration::from_secs(2);

/// From the first look until survivors are reported: only a process stuck in the kernel takes so long.
const GIVE_UP: Duration = Duration::from_secs(10);

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// For one write. The record helps after a crash only: nothing waits longer for it.
const WRITE: Duration = Duration::from_secs(5);

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The engine before cannot be ended, so that no other may be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeftoverError {
    #[error("warmd {0} supervises this engine already: stop it first, or give each its own state directory")]
    Supervised(i32),
    #[error("an earlier engine is still there and cannot be killed: {0}")]
    Survives(String),
    #[error("look for what an earlier engine left: {0}")]
    Unseen(#[from] io::Error),
}

/// A process, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Id {
    pid: i32,
    /// Clock ticks since boot.
    begun: u64,
}

impl Id {
    fn own() -> io::Result<Self> {
        table::read(getpid().as_raw_nonzero().get()).map(|process| Self::of(&process))
    }

    fn of(process: &Process) -> Self {
        Self { pid: process.pid, begun: process.begun }
    }
}

/// One engine's processes, as far as they were seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    boot: String,
    supervisor: Id,
    /// The leader's pid.
    session: i32,
    members: Vec<Id>,
    /// Directory of its control group.
    cgroup: Option<PathBuf>,
}

impl Record {
    /// What lives of it; `grouped` are in its control group.
    fn survivors<'t>(&self, table: &'t Table, grouped: &[i32]) -> Vec<&'t Process> {
        let known = |process: &&Process| self.members.contains(&Id::of(process));
        let same_session = table.values().filter(known).any(|process| process.session == self.session);
        // The engine has a session of its own: whatever a record says, nothing beside warmd is it.
        let ours = table.get(&own_pid()).map(|own| own.session);
        let of_it = |process: &&Process| {
            known(process) || (same_session && process.session == self.session) || grouped.contains(&process.pid)
        };
        table.values().filter(of_it).filter(|process| !process.dead && Some(process.session) != ours).collect()
    }

    /// Whether another warmd still looks after it.
    fn is_supervised(&self, table: &Table) -> bool {
        let supervisor = table.get(&self.supervisor.pid).filter(|process| Id::of(process) == self.supervisor);
        supervisor.is_some_and(|process| !process.dead && process.pid != own_pid())
    }
}

fn own_pid() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// Remembers the processes of the engine there is, in a file too if there is a place for it.
#[derive(Debug)]
pub(super) struct Leftovers {
    path: Option<PathBuf>,
    known: Mutex<Option<Record>>,
}

impl Leftovers {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path, known: Mutex::new(None) }
    }

    /// Ends what there is of an earlier engine. May be dropped.
    pub(super) async fn clear(&self) -> Result<(), LeftoverError> {
        let known = self.lock().clone();
        let record = match known {
            Some(record) => Some(record),
            None => self.read().await,
        };
        let Some(record) = record else { return Ok(()) };
        if boot().await.is_some_and(|boot| boot == record.boot) {
            end(&record).await?;
        }
        self.forget().await;
        Ok(())
    }

    /// Once `leader` is started, and again and again: what its engine consists of changes.
    pub(super) async fn remember(&self, leader: i32, members: &[Member], cgroup: Option<&Path>) {
        let Some(boot) = boot().await else { return };
        let Ok(supervisor) = Id::own() else { return };
        let members = members.iter().map(|member| Id { pid: member.pid, begun: member.begun }).collect();
        let record = Record { boot, supervisor, session: leader, members, cgroup: cgroup.map(Path::to_owned) };
        if self.lock().replace(record.clone()).as_ref() == Some(&record) {
            return;
        }
        let Some(path) = self.path.clone() else { return };
        let write = move || durable::replace_record(&path, &serde_json::to_string(&record)?, 0o600);
        if let Err(error) = self.write(write).await {
            tracing::warn!(%error, "the engine's processes are not recorded: they are not found if warmd is killed");
        }
    }

    /// Nothing is left of it.
    pub(super) async fn forget(&self) {
        *self.lock() = None;
        let Some(path) = self.path.clone() else { return };
        let removed = self.write(move || std::fs::remove_file(path)).await;
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "remove the record of the engine's processes");
        }
    }

    async fn read(&self) -> Option<Record> {
        let path = self.path.clone()?;
        let read = move || durable::read_record(&path);
        match self.write(read).await.and_then(|text| Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(%error, "the record of an earlier engine is of no use: what that left is not found");
                None
            }
        }
    }

    async fn write<T: Send + 'static>(&self, io: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let done = timeout(WRITE, spawn_blocking(io)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        done.map_err(io::Error::other)?
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Record>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn boot() -> Option<String> {
    let boot = tokio::fs::read_to_string(BOOT_ID).await.ok()?;
    Some(boot.trim().to_owned())
}

/// SIGTERM, SIGKILL, and waiting until nothing lives.
async fn end(record: &Record) -> Result<(), LeftoverError> {
    let begun = Instant::now();
    let mut told = Vec::new();
    loop {
        let table = table::all()?;
        if record.is_supervised(&table) {
            return Err(LeftoverError::Supervised(record.supervisor.pid));
        }
        let grouped = record.cgroup.as_deref().map(cgroup::processes).unwrap_or_default();
        let survivors = record.survivors(&table, &grouped);
        if survivors.is_empty() {
            if let Some(directory) = &record.cgroup {
                // Somebody's group below it may keep it.
                let _ = std::fs::remove_dir(directory);
            }
            return Ok(());
        }
        if begun.elapsed() >= GIVE_UP {
            return Err(LeftoverError::Survives(Names(&survivors).to_string()));
        }
        for process in survivors {
            let id = Id::of(process);
            if !told.contains(&id) {
                told.push(id);
                tracing::warn!(pid = id.pid, name = process.name, "ending what an earlier engine left running");
                send(process, Kill::Terminate);
            } else if begun.elapsed() >= GRACE {
                send(process, Kill::AtOnce);
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// `python (17), VLLM::EngineCor (18)`
struct Names<'a>(&'a [&'a Process]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, process) in self.0.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{} ({})", process.name, process.pid)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, session: i32, begun: u64) -> Process {
        Process { pid, parent: 1, session, begun, dead: false, name: "p".to_owned() }
    }

    fn table(processes: &[Process]) -> Table {
        processes.iter().map(|process| (process.pid, process.clone())).collect()
    }

    fn id(pid: i32, begun: u64) -> Id {
        Id { pid, begun }
    }

    /// A leader 20 with a core 21, and a helper 30 in a session of its own.
    fn record() -> Record {
        let members = vec![id(20, 100), id(21, 105), id(30, 110)];
        Record { boot: "b".to_owned(), supervisor: id(10, 50), session: 20, members, cgroup: None }
    }

    fn survivors(processes: &[Process]) -> Vec<i32> {
        record().survivors(&table(processes), &[]).iter().map(|process| process.pid).collect()
    }

    #[test]
    fn all_of_a_session_survives_if_one_of_it_is_known_even_as_a_ghost() {
        let late = process(25, 20, 900);
        assert_eq!(survivors(&[process(20, 20, 100), late.clone(), process(30, 30, 110)]), [20, 25, 30]);
        assert_eq!(survivors(&[process(21, 20, 105), late.clone()]), [21, 25]);
        let ghost = Process { dead: true, ..process(20, 20, 100) };
        assert_eq!(survivors(&[ghost, late]), [25]);
    }

    #[test]
    fn a_number_that_went_to_another_process_is_nobody_of_ours() {
        assert_eq!(survivors(&[process(20, 20, 101), process(21, 20, 106), process(30, 30, 111)]), [0; 0]);
        // A session of strangers with the same number, whose leader has ended.
        assert_eq!(survivors(&[process(40, 20, 500)]), [0; 0]);
    }

    #[test]
    fn what_is_in_the_control_group_is_of_the_engine_whatever_its_session_is() {
        let table = table(&[process(40, 40, 500), process(41, 41, 500)]);
        let survivors = record().survivors(&table, &[41, 99]);
        assert_eq!(survivors.iter().map(|process| process.pid).collect::<Vec<_>>(), [41]);
    }

    #[test]
    fn nothing_in_the_session_of_warmd_is_ended() {
        let table = table(&[process(own_pid(), 20, 7), process(21, 20, 105)]);
        assert!(record().survivors(&table, &[own_pid()]).is_empty());
    }

    #[test]
    fn an_engine_that_another_warmd_looks_after_is_left_alone() {
        assert!(record().is_supervised(&table(&[process(10, 10, 50)])));
        assert!(!record().is_supervised(&table(&[process(10, 10, 51)])));
        assert!(!record().is_supervised(&table(&[Process { dead: true, ..process(10, 10, 50) }])));
        let own = Record { supervisor: Id::own().unwrap(), ..record() };
        assert!(!own.is_supervised(&table(&[Process { begun: own.supervisor.begun, ..process(own_pid(), 1, 0) }])));
    }

    #[tokio::test]
    async fn a_damaged_record_and_one_of_an_earlier_boot_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine");
        let mut stranger = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = table::read(i32::try_from(stranger.id()).unwrap()).unwrap();
        let before = Record { session: process.session, members: vec![Id::of(&process)], ..record() };
        let text = serde_json::to_string(&before).unwrap();
        durable::replace_record(&path, &text, 0o600).unwrap();
        Leftovers::new(Some(path.clone())).clear().await.unwrap();
        assert!(!path.exists() && stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        std::fs::write(&path, &text).unwrap();
        let leftovers = Leftovers::new(Some(path.clone()));
        leftovers.clear().await.unwrap();
        assert!(path.exists(), "what is not understood is kept until an engine is recorded");
        leftovers.remember(1, &[], None).await;
        let reread = Leftovers::new(Some(path.clone())).read().await.unwrap();
        assert_eq!((reread.session, reread.supervisor), (1, Id::own().unwrap()));
        leftovers.forget().await;
        assert!(!path.exists());
    }
}
