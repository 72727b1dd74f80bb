//! What `warmd serve` says before anything runs.

use std::process::Command;

/// What it ends with, and says.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmd"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WARMD_")) {
        command.env_remove(name);
    }
    let output = command.arg("serve").args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn without_a_command_both_ways_to_an_engine_are_named() {
    let (code, told) = refused(&[]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("--attach") && told.contains("COMMAND"), "{told}");
    let (code, told) = refused(&["--attach", "unix:/tmp/engine.sock", "--", "vllm", "serve", "m"]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("cannot be used with"), "{told}");
}

#[test]
fn a_policy_that_does_not_exist_is_an_error_before_an_engine_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let (policy, started) = (dir.path().join("no-policy.toml"), dir.path().join("started"));
    let policy = policy.to_str().unwrap();
    for engine in [&["--attach", "unix:/none.sock"][..], &["--", "touch", started.to_str().unwrap()]] {
        let state = dir.path().join("state");
        let own = ["--policy", policy, "--listen", "127.0.0.1:0", "--state-dir", state.to_str().unwrap()];
        let (code, told) = refused(&[&own[..], engine].concat());
        assert!(code.is_some_and(|code| code != 0), "{told}");
        assert!(told.contains(policy) && told.contains("--policy"), "{told}");
        assert!(!started.exists() && !state.exists());
    }
}
