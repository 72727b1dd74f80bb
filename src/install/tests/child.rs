//! This test binary run as a process of its own: to be killed, or with mounts that nobody else sees.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use super::*;

const ROLE: &str = "WARMD_TEST_ROLE";
pub(super) const ROOT: &str = "WARMD_TEST_ROOT";
pub(super) const CALLS: &str = "WARMD_TEST_CALLS";

#[test]
#[ignore = "other tests run it with a role"]
fn as_a_child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.as_str() {
        "install" => crash::install_until_killed(),
        "hold-lock" => locks::hold_until_killed(),
        "other-file-system" => roots::other_file_system(),
        "full-disk" => crash::full_disks(),
        other => panic!("no role {other}"),
    }
}

fn command(program: &Path, role: &str) -> Command {
    let mut command = Command::new(program);
    command.env(ROLE, role).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn arguments(command: &mut Command) -> &mut Command {
    command.args(["--exact", "install::tests::child::as_a_child", "--ignored", "--nocapture", "--test-threads=1"])
}

/// The command that plays `role`.
pub(super) fn of_role(role: &str) -> Command {
    let mut command = command(&std::env::current_exe().unwrap(), role);
    arguments(&mut command);
    command
}

/// Plays `role` to its end in a mount namespace of its own, where this machine allows one.
pub(super) fn in_own_mounts(role: &str) {
    let unshare = ["--map-root-user", "--mount", "--propagation", "private"];
    let allowed = Command::new("unshare").args(unshare).args(["mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        skip("this machine allows no mounts in a namespace of our own");
        return;
    }
    let mut command = command(Path::new("unshare"), role);
    command.args(unshare).arg(std::env::current_exe().unwrap());
    let output = arguments(&mut command).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{}", told(&output));
}

pub(super) fn mount_tmpfs(at: &Path, size: &str) {
    let options = format!("size={size},mode=0700");
    let output = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(at).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
}

pub(super) fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Killed with its owner.
pub(super) struct Killed(pub(super) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub(super) fn skip(why: &str) {
    eprintln!("skipped: {why}");
}
