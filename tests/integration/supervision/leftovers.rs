//! warmd is killed, and another life of it finds the engine that was left.

use std::path::Path;
use std::process::{Child, Stdio};

use warmd::engine::{Command, Probe, Serving, State};

use super::script::{Script, Supervised, config, shell};
use crate::harness::engine::{FakeEngine, Kin, Step, alone, is_alive, own_proc};
use crate::harness::lines::Lines;

const PROGRAM: &str = "WARMD_TEST_LIFE_PROGRAM";
const SOCKET: &str = "WARMD_TEST_LIFE_SOCKET";
const RECORD: &str = "WARMD_TEST_LIFE_RECORD";

#[tokio::test]
#[ignore = "the other half of the test below, which kills it"]
async fn life_that_is_killed() {
    let [Some(program), Some(socket), Some(record)] = [PROGRAM, SOCKET, RECORD].map(std::env::var_os) else { return };
    let args = vec!["serve".into(), "model".into(), "--uds".into(), socket.clone()];
    let command = Command { program, args, ..Default::default() };
    let serving = Serving { socket: Some(socket.into()), ..Default::default() };
    let probe = Probe::of_engine(&serving, &warmd::caches::Environment::default()).unwrap();
    let script = Script::of(command).ready_at(probe);
    let mut supervised = Supervised::recorded(config(), script, Some(record.into()), alone().await);
    let outside = supervised.pid("child ").await;
    let leader = supervised.reach(State::Ready).await.leader.unwrap();
    say(&format!("leader {leader}"));
    say(&format!("outside {outside}"));
    std::future::pending::<()>().await;
}

#[expect(clippy::print_stdout, reason = "the test that runs this one reads it")]
fn say(line: &str) {
    println!("\n{line}");
}

/// An earlier life with an engine that ignores SIGTERM.
struct Life {
    child: Child,
    leader: i32,
    outside: i32,
}

impl Life {
    fn begin(fake: &FakeEngine, record: &Path) -> Self {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "supervision::leftovers::life_that_is_killed", "--ignored"])
            .args(["--nocapture", "--test-threads=1"])
            .env(PROGRAM, fake.program())
            .env(SOCKET, fake.socket())
            .env(RECORD, record)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Lines::of(child.stdout.take().unwrap());
        let pid = |start: &str| lines.find(start, |line| line.strip_prefix(start)?.parse().ok());
        let (leader, outside) = (pid("leader "), pid("outside "));
        Self { child, leader, outside }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[tokio::test]
async fn an_engine_of_an_earlier_life_is_ended_first_and_one_that_is_looked_after_is_not() {
    if !own_proc() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let record = dir.path().join("engine");
    let outside = Kin { own_session: true, deaf: true, ..Kin::default() };
    let fake = FakeEngine::new(vec![Step::BeDeaf, Step::Child(outside), Step::Serve { unavailable: 0 }]);
    let alone = alone().await;
    let mut life = Life::begin(&fake, &record);
    let script = Script::of(shell("exec sleep 1000"));
    let mut supervised = Supervised::recorded(config(), script, Some(record.clone()), alone);
    let refused = supervised.until(|status| status.state == State::Backoff).await;
    let reason = refused.reason.unwrap();
    assert!(reason.starts_with(&format!("warmd {} supervises this engine already", life.child.id())), "{reason}");
    assert!(is_alive(life.leader) && record.exists());
    life.kill();
    assert!(is_alive(life.leader));
    supervised.reach(State::Ready).await;
    assert!(!is_alive(life.leader) && !is_alive(life.outside));
    assert!(record.exists());
    supervised.shutdown().await;
    assert!(!record.exists(), "a clean end leaves no record");
}
