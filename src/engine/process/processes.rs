//! The leader and everything below it, as a value that cannot leak.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, WaitOptions, getpid, kill_process, kill_process_group, pidfd_open, pidfd_send_signal, waitpid,
};
use tokio::sync::watch;

use super::table::{self, Process, Table};
use super::{Exit, LOOK_EVERY, Member, Signal};

/// How long dropping may take.
const DROP_DEADLINE: Duration = Duration::from_secs(2);

/// The right to run an engine in this process.
#[derive(Debug)]
pub(super) struct Slot(());

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Slot {
    pub(super) fn take() -> Option<Self> {
        (!TAKEN.swap(true, Ordering::AcqRel)).then_some(Self(()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

/// How a process is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Kill {
    Terminate,
    AtOnce,
}

/// An engine's processes. Dropping it kills and reaps them. Nobody else waits for them.
pub(super) struct Processes {
    leader: Pid,
    pidfd: OwnedFd,
    begun: u64,
    exit: watch::Sender<Option<Exit>>,
    /// Nothing is left, or nothing that could be killed.
    released: bool,
    _slot: Slot,
}

impl Processes {
    /// `leader` is a child of this process that leads a session and that nobody has waited for.
    pub(super) fn new(leader: Pid, slot: Slot) -> io::Result<Self> {
        Ok(Self {
            leader,
            pidfd: pidfd_open(leader, PidfdFlags::empty())?,
            begun: table::read(number(leader))?.begun,
            exit: watch::Sender::new(None),
            released: false,
            _slot: slot,
        })
    }

    pub(super) fn leader(&self) -> i32 {
        number(self.leader)
    }

    pub(super) fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    pub(super) fn signal(&self, signal: Signal) -> bool {
        let signal = match signal {
            Signal::Terminate => rustix::process::Signal::TERM,
            Signal::Interrupt => rustix::process::Signal::INT,
            Signal::Hangup => rustix::process::Signal::HUP,
            Signal::User1 => rustix::process::Signal::USR1,
        };
        pidfd_send_signal(&self.pidfd, signal).is_ok()
    }

    /// The one place that waits for the leader.
    pub(super) fn reap_leader(&self) {
        self.exit.send_if_modified(|exit| {
            if exit.is_some() {
                return false;
            }
            *exit = match waitpid(Some(self.leader), WaitOptions::NOHANG) {
                Ok(None) => None,
                Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Some(Exit::Code(code)),
                    (None, Some(signal)) => Some(Exit::Signal(signal)),
                    (None, None) => None,
                },
                Err(Errno::INTR) => None,
                Err(error) => {
                    tracing::error!(%error, "the engine's exit code was taken by somebody else");
                    Some(Exit::Unseen)
                }
            };
            exit.is_some()
        });
    }

    /// Reaps what has ended, and sends to each process that is alive the signal that `decide` names for it; what was alive
    /// before, by process id. Empty only if two readings of the table in a row show nothing: one is not of a single moment,
    /// and could miss a process that is just changing parents.
    pub(super) fn pass(&self, mut decide: impl FnMut(&Member) -> Option<Kill>) -> io::Result<BTreeMap<i32, Member>> {
        let found = self.look(&mut decide)?;
        if found.is_empty() { self.look(&mut decide) } else { Ok(found) }
    }

    fn look(&self, decide: &mut impl FnMut(&Member) -> Option<Kill>) -> io::Result<BTreeMap<i32, Member>> {
        let table = table::all()?;
        let mut alive = BTreeMap::new();
        for process in self.members(&table)? {
            if process.dead && self.reap(&process) {
                continue;
            }
            let member = Member { pid: process.pid, begun: process.begun, name: process.name.clone() };
            if let Some(kill) = decide(&member) {
                send(&process, kill);
            }
            alive.insert(process.pid, member);
        }
        Ok(alive)
    }

    /// For after the last pass: no more is tried.
    pub(super) fn release(mut self) {
        self.released = true;
    }

    fn members(&self, table: &Table) -> io::Result<Vec<Process>> {
        let us = number(getpid());
        let root = table.get(&us).ok_or_else(|| io::Error::other("/proc is not of this process's namespace"))?;
        Ok(table::below(table, root, self.begun))
    }

    /// False if the kernel does not hand it out yet. What has another parent waits for that one, or to be adopted.
    fn reap(&self, process: &Process) -> bool {
        if process.pid == self.leader() {
            self.reap_leader();
            return self.exit.borrow().is_some();
        }
        match Pid::from_raw(process.pid) {
            Some(pid) if process.parent == number(getpid()) => {
                !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None))
            }
            _ => true,
        }
    }
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processes").field("leader", &self.leader()).finish_non_exhaustive()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_DEADLINE;
        while !self.released && Instant::now() < deadline {
            match self.pass(|_| Some(Kill::AtOnce)) {
                Ok(alive) if alive.is_empty() => break,
                Ok(_) => std::thread::sleep(LOOK_EVERY),
                Err(error) => {
                    tracing::error!(%error, "cannot see the engine's processes: only its process group is killed");
                    let _ = kill_process_group(self.leader, rustix::process::Signal::KILL);
                    std::thread::sleep(LOOK_EVERY);
                    break;
                }
            }
        }
        self.reap_leader();
    }
}

pub(in crate::engine) fn send(process: &Process, kill: Kill) {
    let signal = match kill {
        Kill::Terminate => rustix::process::Signal::TERM,
        Kill::AtOnce => rustix::process::Signal::KILL,
    };
    let Some(pid) = Pid::from_raw(process.pid) else { return };
    let sent = match pidfd_open(pid, PidfdFlags::empty()) {
        // The number may have gone to another process since the table was read.
        Ok(pidfd) if table::read(process.pid).is_ok_and(|now| now.begun == process.begun) => {
            pidfd_send_signal(&pidfd, signal)
        }
        Ok(_) | Err(Errno::SRCH) => Ok(()),
        // Such as too many open files. The number is a few microseconds old.
        Err(_) => kill_process(pid, signal),
    };
    if let Err(error) = sent
        && error != Errno::SRCH
    {
        tracing::warn!(pid = process.pid, name = process.name, %error, "cannot end a process of the engine");
    }
}

fn number(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}
