//! Programs that are run for what they print, and are gone afterwards with all they started. [`Program::run`] is for short
//! ones, bounded in time and output; [`Program::lines`] for one that goes on printing.
//!
//! A program is the leader of its own process group. The group is killed when the leader ends, when the deadline passes,
//! when there is too much output, and when the run is dropped: what a program leaves in the background does not survive.

mod lines;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

pub use self::lines::Lines;

/// How long a killed program may take to be gone.
const REAPING: Duration = Duration::from_secs(1);

/// Bytes of standard error that are kept: the last ones.
const MAX_COMPLAINT: usize = 4096;

/// Characters of a line that are told.
const MAX_LINE: usize = 200;

/// A program to run. Its standard input is empty.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    deadline: Duration,
    max_output: usize,
}

/// What a program that ended by itself left behind.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub complaint: Complaint,
}

/// The end of what a program wrote to standard error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Complaint(Vec<u8>);

/// A program did not run to its end. The texts name the program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("cannot run {program}: {source}", program = program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("{program} did not end within {deadline:?}{complaint}", program = program.display())]
    TimedOut { program: PathBuf, deadline: Duration, complaint: Complaint },
    #[error("{program} printed more than {limit} bytes", program = program.display())]
    TooMuch { program: PathBuf, limit: usize },
    #[error("{program}: {source}", program = program.display())]
    Io { program: PathBuf, source: io::Error },
}

impl Program {
    /// With an empty environment, ten seconds and a mebibyte.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            deadline: Duration::from_secs(10),
            max_output: 1024 * 1024,
        }
    }

    pub fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds variables; nothing is inherited.
    pub fn environment<T: Into<OsString>>(mut self, variables: impl IntoIterator<Item = (T, T)>) -> Self {
        self.environment.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Bytes of standard output.
    pub fn max_output(mut self, bytes: usize) -> Self {
        self.max_output = bytes;
        self
    }

    /// Runs it. What its exit status means is for the caller to say.
    pub async fn run(&self) -> Result<Output, ProgramError> {
        let failed = |source| ProgramError::Io { program: self.path.clone(), source };
        let mut group = Group::start(self, Stdio::piped())?;
        let (Some(mut stdout), Some(stderr)) = (group.child.stdout.take(), group.child.stderr.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let (mut printed, mut complaint) = (Vec::new(), Complaint::default());
        let work = async {
            let ended = async {
                group.ended().await?;
                // Others may hold the pipes: they end here, so that the reading does.
                group.kill();
                Ok(())
            };
            let read = read_all(&mut stdout, &mut printed, self.max_output);
            tokio::try_join!(ended, read, complaint.read(stderr)).map(|((), (), ())| ())
        };
        let outcome = tokio::time::timeout(self.deadline, work).await;
        group.kill();
        // A process that waits for a broken device cannot be killed: the runtime reaps it when it can.
        let reaped = tokio::time::timeout(REAPING, group.child.wait()).await;
        let program = self.path.clone();
        match (outcome, reaped) {
            (Ok(Err(error)), _) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(ProgramError::TooMuch { program, limit: self.max_output })
            }
            (Ok(Err(error)), _) | (Ok(Ok(())), Ok(Err(error))) => Err(failed(error)),
            (Ok(Ok(())), Ok(Ok(status))) => Ok(Output { status, stdout: printed, complaint }),
            _ => Err(ProgramError::TimedOut { program, deadline: self.deadline, complaint }),
        }
    }
}

/// A running leader and those that it started.
#[derive(Debug)]
struct Group {
    child: Child,
    leader: Pid,
    pidfd: OwnedFd,
}

impl Group {
    fn start(program: &Program, stderr: Stdio) -> Result<Self, ProgramError> {
        let failed = |source| ProgramError::Start { program: program.path.clone(), source };
        let child = Command::new(&program.path)
            .args(&program.arguments)
            .env_clear()
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let leader = leader.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        match pidfd_open(leader, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, leader, pidfd }),
            Err(errno) => {
                // That it has ended already is as good.
                let _ = kill_process_group(leader, Signal::KILL);
                Err(failed(errno.into()))
            }
        }
    }

    /// Completes when the leader has ended, and leaves it unreaped: its number cannot become another's before the rest
    /// of the group is killed.
    async fn ended(&self) -> io::Result<()> {
        // Listening begins before the first look, so that no end is missed.
        let mut changes = signal(SignalKind::child())?;
        let how = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        while waitid(WaitId::PidFd(self.pidfd.as_fd()), how)?.is_none() {
            changes.recv().await;
        }
        Ok(())
    }

    fn kill(&self) {
        // A reaped leader has no id any more, and its number may be another group's.
        if self.child.id().is_some() {
            // That it has ended already is as good.
            let _ = kill_process_group(self.leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `FileTooLarge` beyond `limit` bytes.
async fn read_all(from: &mut (impl AsyncRead + Unpin), into: &mut Vec<u8>, limit: usize) -> io::Result<()> {
    let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    from.take(bound).read_to_end(into).await?;
    if into.len() > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
}

impl Complaint {
    async fn read(&mut self, mut from: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut block = [0; MAX_COMPLAINT];
        loop {
            let read = from.read(&mut block).await?;
            if read == 0 {
                return Ok(());
            }
            self.0.extend_from_slice(&block[..read]);
            self.0.drain(..self.0.len().saturating_sub(MAX_COMPLAINT));
        }
    }

    /// The last line that is not empty: its first characters, with control characters escaped.
    pub fn last_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.0);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
        Some(line.chars().take(MAX_LINE).flat_map(escaped).collect())
    }
}

/// `: the last line`, or nothing.
impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last_line() {
            Some(line) => write!(f, ": {line}"),
            None => Ok(()),
        }
    }
}

/// What programs print does not reach a terminal as it is.
fn escaped(c: char) -> impl Iterator<Item = char> {
    let escape = c.is_control().then(|| c.escape_default());
    let plain = (!c.is_control()).then_some(c);
    plain.into_iter().chain(escape.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    pub(super) fn shell(script: &str) -> Program {
        let environment = [("PATH".to_owned(), std::env::var("PATH").unwrap())];
        Program::new(Path::new("/bin/sh")).arguments(["-c", script]).environment(environment)
    }

    /// A named pipe that is at its end once every process that inherited its writing end has ended.
    pub(super) struct Witness(tempfile::TempDir);

    impl Witness {
        pub(super) fn new() -> Self {
            let witness = Self(tempfile::tempdir().unwrap());
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
            rustix::fs::mknodat(rustix::fs::CWD, witness.path(), kind, mode, 0).unwrap();
            witness
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("witness")
        }

        /// Says `here`, and starts a descendant that stays.
        pub(super) fn script(&self, then: &str) -> String {
            format!("exec 3>{}; echo here >&3; sleep 1000 & {then}", self.path().display())
        }

        /// Returns once the program runs.
        pub(super) async fn appears(&self) -> File {
            let path = self.path();
            let (file, line) = tokio::task::spawn_blocking(move || {
                let mut file = File::open(path).unwrap();
                let mut line = [0; 5];
                file.read_exact(&mut line).unwrap();
                (file, line)
            })
            .await
            .unwrap();
            assert_eq!(&line, b"here\n");
            file
        }
    }

    /// Blocks until every holder of the writing end is gone.
    pub(super) fn gone(mut file: File) -> bool {
        file.read_to_end(&mut Vec::new()).unwrap() == 0
    }

    #[tokio::test]
    async fn output_and_status_are_the_programs_own() {
        let output = shell("printf '%s' \"$WORD\"; echo so >&2; exit 3").environment([("WORD", "text")]).run().await;
        let output = output.unwrap();
        assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"text"[..], Some(3)));
        assert_eq!(output.complaint.to_string(), ": so");
        assert_eq!(shell("kill -9 $$").run().await.unwrap().status.signal(), Some(9));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = Program::new(Path::new("/no/such/program")).run().await.unwrap_err();
        assert!(matches!(error, ProgramError::Start { .. }));
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }

    #[tokio::test]
    async fn what_a_program_leaves_in_the_background_ends_with_it() {
        let witness = Witness::new();
        let script = witness.script("echo done");
        let program = shell(&script);
        let (output, file) = tokio::join!(program.run(), witness.appears());
        assert_eq!(output.unwrap().stdout, b"done\n");
        assert!(gone(file));
    }

    #[tokio::test]
    async fn the_deadline_ends_a_program_and_its_descendants_and_tells_its_last_words() {
        let witness = Witness::new();
        let script = witness.script("echo reading gpu >&2; wait");
        let program = shell(&script).deadline(Duration::from_secs(10));
        let (output, file) = tokio::join!(program.run(), witness.appears());
        let error = output.unwrap_err().to_string();
        assert!(error.contains("10s") && error.ends_with(": reading gpu"), "{error}");
        assert!(gone(file));
    }

    #[tokio::test]
    async fn too_much_output_ends_a_program() {
        let error = shell("while :; do echo line; done").max_output(1000).run().await.unwrap_err();
        assert!(matches!(error, ProgramError::TooMuch { limit: 1000, .. }), "{error}");
        assert_eq!(shell("printf 12345").max_output(5).run().await.unwrap().stdout, b"12345");
    }

    #[tokio::test]
    async fn a_run_that_is_dropped_ends_its_program() {
        let witness = Witness::new();
        let script = witness.script("wait");
        let program = shell(&script);
        let file = tokio::select! {
            ended = program.run() => panic!("it waits: {ended:?}"),
            file = witness.appears() => file,
        };
        assert!(gone(file));
    }

    #[tokio::test]
    async fn only_the_end_of_a_long_complaint_is_kept_and_escaped() {
        let script =
            "i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; printf 'bad\\033[31m end\\n\\n' >&2";
        let complaint = shell(script).run().await.unwrap().complaint;
        assert!(complaint.0.len() <= MAX_COMPLAINT);
        assert_eq!(complaint.last_line().unwrap(), "bad\\u{1b}[31m end");
    }
}
