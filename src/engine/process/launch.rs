//! From a command to a process.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, getppid, set_child_subreaper, set_parent_process_death_signal, setsid};
use tokio::sync::oneshot;

use super::processes::{Processes, Slot};
use super::{Command, StartError};

/// Where programs are looked for when `PATH` is not set.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A started leader and our ends of its pipes.
pub(super) struct Launched {
    pub(super) processes: Processes,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

pub(super) async fn launch(command: Command) -> Result<Launched, StartError> {
    let program = resolve(&command)?;
    // Before anything of this process is changed or forked.
    super::check()?;
    let slot = Slot::take().ok_or(StartError::AlreadyRunning)?;
    set_child_subreaper(Some(getpid())).map_err(io::Error::from)?;
    let (reply, answer) = oneshot::channel();
    // If nobody waits for the answer any more, it is dropped in the launcher, which kills what was started.
    let job: Job = Box::new(move || drop(reply.send(spawn(&command, &program, slot))));
    launcher()?.send(job).map_err(|_| io::Error::other("the launching thread has ended"))?;
    answer.await.map_err(io::Error::other)?
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread that forks engines. It lives as long as the process: the kernel sends the parent-death signal when the
/// *thread* ends that forked, and threads of a runtime come and go.
fn launcher() -> io::Result<SyncSender<Job>> {
    static JOBS: Mutex<Option<SyncSender<Job>>> = Mutex::new(None);
    let mut jobs = JOBS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(jobs) = &*jobs {
        return Ok(jobs.clone());
    }
    let (sender, receiver) = sync_channel::<Job>(1);
    std::thread::Builder::new().name("engine-launcher".to_owned()).spawn(move || {
        for job in receiver {
            job();
        }
    })?;
    Ok(jobs.insert(sender).clone())
}

fn spawn(command: &Command, program: &Path, slot: Slot) -> Result<Launched, StartError> {
    let failed = |source| failed(program, source);
    let mut child = prepare(command, program);
    child.stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::piped());
    in_own_session(&mut child);
    let mut child = child.spawn().map_err(failed)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH);
    match (
        pid.map_err(io::Error::from).and_then(|pid| Processes::new(pid, slot)),
        child.stdout.take(),
        child.stderr.take(),
    ) {
        (Ok(processes), Some(stdout), Some(stderr)) => {
            Ok(Launched { processes, stdout: stdout.into(), stderr: stderr.into() })
        }
        (watched, _, _) => {
            let _ = child.kill().and_then(|()| child.wait());
            Err(failed(watched.err().unwrap_or_else(|| io::Error::other("no pipes"))))
        }
    }
}

/// Makes this process the engine: nobody watches it, and its exit is this process's. Returns only if that fails.
pub fn replace_by(command: &Command) -> StartError {
    match resolve(command) {
        Ok(program) => failed(&program, prepare(command, &program).exec()),
        Err(error) => error,
    }
}

fn prepare(command: &Command, program: &Path) -> std::process::Command {
    let mut prepared = std::process::Command::new(program);
    // As a shell would: Python finds its environment by the name that it was called by.
    prepared.arg0(&command.program).args(&command.args);
    for name in &command.unset {
        prepared.env_remove(name);
    }
    prepared.envs(command.set.iter().map(|(name, value)| (name, value)));
    if let Some(directory) = &command.directory {
        prepared.current_dir(directory);
    }
    prepared
}

fn failed(program: &Path, source: io::Error) -> StartError {
    match source.kind() {
        // The file itself was found.
        io::ErrorKind::NotFound => StartError::NoInterpreter(program.to_owned()),
        _ => StartError::Spawn { program: program.display().to_string(), source },
    }
}

/// Two system calls between fork and exec: there is no safe way to have them made there. The alternative, a helper
/// program that makes them and then executes the engine, would show up in the process table and blur which of the two
/// could not be started.
#[expect(unsafe_code, reason = "a new session and the parent-death signal belong to the child")]
fn in_own_session(child: &mut std::process::Command) {
    let warmd = getpid();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. These are plain system calls; nothing
    // allocates and nothing takes a lock.
    unsafe { child.pre_exec(move || lead_session(warmd)) };
}

fn lead_session(warmd: Pid) -> io::Result<()> {
    setsid()?;
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have ended before the signal was asked for.
    if getppid() == Some(warmd) { Ok(()) } else { Err(Errno::SRCH.into()) }
}

/// The file to execute, found as a shell in the child's directory with the child's `PATH` would.
fn resolve(command: &Command) -> Result<PathBuf, StartError> {
    let directory = command.directory.clone().unwrap_or_default();
    if !directory.as_os_str().is_empty() && !directory.is_dir() {
        return Err(StartError::NoDirectory(directory));
    }
    let directory = std::path::absolute(if directory.as_os_str().is_empty() { Path::new(".") } else { &directory })?;
    if command.program.as_bytes().contains(&b'/') {
        let file = directory.join(&command.program);
        return match (is_executable(&file), file.exists()) {
            (true, _) => Ok(file),
            (false, true) => Err(StartError::NotExecutable(file)),
            (false, false) => Err(StartError::Missing(file)),
        };
    }
    let path = search_path(command);
    let candidates = || env::split_paths(&path).map(|place| directory.join(place).join(&command.program));
    if let Some(file) = candidates().find(|file| is_executable(file)) {
        return Ok(file);
    }
    match candidates().find(|file| file.is_file()) {
        Some(file) => Err(StartError::NotExecutable(file)),
        None => Err(StartError::NotFound {
            program: command.program.to_string_lossy().into_owned(),
            path: path.to_string_lossy().into_owned(),
        }),
    }
}

fn search_path(command: &Command) -> OsString {
    match command.set.iter().rfind(|(name, _)| name == "PATH") {
        Some((_, path)) => path.into(),
        None => env::var_os("PATH").unwrap_or_else(|| OsStr::new(DEFAULT_PATH).to_owned()),
    }
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(directory: &Path, name: &str, mode: u32) {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn command(program: &str, path: &str, directory: &Path) -> Command {
        Command {
            program: program.into(),
            set: vec![("PATH".to_owned(), "/nowhere".to_owned()), ("PATH".to_owned(), path.to_owned())],
            directory: Some(directory.to_owned()),
            ..Default::default()
        }
    }

    #[test]
    fn a_name_is_looked_up_in_the_path_of_the_child_and_a_path_in_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        file(dir.path(), "a/vllm", 0o644);
        file(dir.path(), "b/vllm", 0o755);
        let path = format!("{0}/none:{0}/a:{0}/b", dir.path().display());
        assert_eq!(resolve(&command("vllm", &path, dir.path())).unwrap(), dir.path().join("b/vllm"));
        assert_eq!(resolve(&command("vllm", "none:b", dir.path())).unwrap(), dir.path().join("b/vllm"));
        assert_eq!(resolve(&command("b/vllm", "", dir.path())).unwrap(), dir.path().join("b/vllm"));
    }

    #[test]
    fn what_is_unset_is_not_inherited_unless_it_is_set_as_well() {
        let set = vec![("A".to_owned(), "1".to_owned())];
        let command = Command { set, unset: vec!["A".to_owned(), "B".to_owned()], ..Default::default() };
        let prepared = prepare(&command, Path::new("vllm"));
        let changes: Vec<_> = prepared.get_envs().collect();
        assert_eq!(changes, [(OsStr::new("A"), Some(OsStr::new("1"))), (OsStr::new("B"), None)]);
    }

    #[test]
    fn what_cannot_be_executed_is_told_apart_from_what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        file(dir.path(), "bin/vllm", 0o644);
        std::fs::create_dir(dir.path().join("bin/directory")).unwrap();
        let path = format!("{}/bin", dir.path().display());
        let refused = |program: &str| resolve(&command(program, &path, dir.path())).unwrap_err();
        assert!(matches!(refused("vllm"), StartError::NotExecutable(file) if file == dir.path().join("bin/vllm")));
        assert!(matches!(refused("bin/directory"), StartError::NotExecutable(_)));
        assert!(matches!(refused("bin/none"), StartError::Missing(file) if file == dir.path().join("bin/none")));
        let absent = refused("sglang");
        assert!(matches!(&absent, StartError::NotFound { program, .. } if program == "sglang"));
        assert!(absent.to_string().contains(&path), "{absent}");
        let nowhere = command("vllm", &path, &dir.path().join("gone"));
        assert!(matches!(resolve(&nowhere), Err(StartError::NoDirectory(_))));
    }
}
