//! Agents and file systems that never answer.

use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::{Pid, Signal, kill_process};

use super::super::exec::{Pod, served};
use super::super::harness::cluster::{Cluster, DEADLINE};
use super::{code_7, make, root};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_never_answers_costs_the_budget_and_no_more() {
    let cluster = Cluster::without_server();
    let pod = Pod::new(&cluster, "a");
    let socket = pod.dir.path().join("deaf.sock");
    // The kernel accepts for it.
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let pod = pod.with("--socket", socket.to_str().unwrap()).with("--budget", "10s");
    let ran = pod.run(&code_7(), "\0").await;
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    assert!(ran.stderr.contains("cold start: the agent did not answer within "), "{}", ran.stderr);
    assert!(ran.stderr.contains("see its log, or give it more time with --budget"), "{}", ran.stderr);
}

/// Whoever reads it waits, as for a file system that hangs.
fn hanging(file: &Path) {
    make(file.parent().unwrap());
    mknodat(CWD, file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_hangs_holds_up_neither_the_start_nor_the_end() {
    let cluster = Cluster::without_server();
    let pod = Pod::new(&cluster, "a").with("--budget", "1s");
    hanging(&root(&pod).join(".warmd/quarantine.json"));
    let ran = pod.run(&code_7(), "\0").await;
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    assert!(ran.stderr.contains("no record of earlier starts within 1s"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_start_that_hangs_on_a_file_system() {
    let cluster = Cluster::without_server();
    let pod = Pod::new(&cluster, "a").with("--budget", "1h");
    let file = root(&pod).join(".warmd/quarantine.json");
    hanging(&file);
    let engine = code_7();
    let command = served(&engine);
    let mut child = pod.start(&command);
    let ended = async {
        // Fails until somebody reads; nothing is ever written.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        let _writer = loop {
            match rustix::fs::open(&file, flags, Mode::empty()) {
                Ok(writer) => break writer,
                Err(_) => drop(tick.tick().await),
            }
        };
        kill_process(Pid::from_raw(child.id().unwrap() as i32).unwrap(), Signal::TERM).unwrap();
        child.wait().await.unwrap().code()
    };
    let code = tokio::time::timeout(DEADLINE, ended).await.expect("`warmd exec` does not end");
    assert_eq!(code, Some(128 + 15));
}
