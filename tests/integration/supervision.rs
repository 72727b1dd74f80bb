//! An engine is kept running, and nothing of one outlives it.

mod cycles;
mod leftovers;
mod script;

use std::time::Duration;

use warmd::engine::{Command, Exit, State, SupervisionConfig, unhealthy};

use self::script::{Script, Supervised, config, shell};
use crate::harness::engine::{DEADLINE, FakeEngine, Kin, Step, eventually, is_alive, kill, own_proc};

const CORE: Kin = Kin { own_session: false, orphan: false, deaf: false, core: true };
const OUTSIDE: Kin = Kin { own_session: true, core: false, ..CORE };

#[tokio::test]
async fn a_killed_leader_takes_everything_along_and_the_engine_is_started_again() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Child(CORE), Step::Child(OUTSIDE), Step::Serve { unavailable: 1 }]);
    let script = Script::of(fake.command()).ready_at(fake.probe());
    let mut supervised = Supervised::start(config(), script).await;
    let (core, outside) = (supervised.pid("core ").await, supervised.pid("child ").await);
    let first = supervised.reach(State::Ready).await;
    // As after a power cut, nothing of the first is tidied up.
    std::fs::remove_file(fake.socket()).unwrap();
    kill(first.leader.unwrap());
    let second = supervised.until(|status| status.state == State::Ready && status.epoch == 2).await;
    assert!([first.leader.unwrap(), core, outside].iter().all(|pid| !is_alive(*pid)));
    assert_eq!((second.restarts, second.last_exit, second.reason), (1, Some(Exit::Signal(9)), None));
    assert!(second.leader != first.leader && second.since > first.since);
    let (epoch, end) = supervised.end().await;
    assert_eq!((epoch, end.asked, end.was_ready), (1, false, true));
    assert_eq!(end.reason.as_deref(), Some("the engine ended by itself: signal 9"));
    supervised.shutdown().await;
}

#[tokio::test]
async fn a_core_that_dies_is_a_crash_though_the_engine_exits_with_0() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Child(CORE)]);
    let mut supervised = Supervised::start(config(), Script::of(fake.command())).await;
    kill(supervised.pid("core ").await);
    let status = supervised.until(|status| status.epoch == 2 && status.state == State::Ready).await;
    assert_eq!((status.restarts, status.last_exit), (1, Some(Exit::Code(0))));
    supervised.shutdown().await;
}

#[tokio::test]
async fn a_stop_works_while_the_engine_starts_and_before_that() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Child(CORE)]);
    let mut supervised = Supervised::start(config(), Script::of(fake.command()).never_ready()).await;
    let core = supervised.pid("core ").await;
    let starting = supervised.reach(State::Starting).await;
    supervised.supervisor.stop();
    let stopped = supervised.reach(State::Stopped).await;
    assert!(!is_alive(starting.leader.unwrap()) && !is_alive(core));
    assert_eq!((stopped.leader, stopped.last_exit, stopped.reason), (None, Some(Exit::Code(0)), None));
    let (_, end) = supervised.end().await;
    assert!(end.asked && !end.was_ready && end.reason.is_none());
    let text = supervised.shutdown().await;
    assert!(text.contains("warmd_engine_starts_total{outcome=\"stopped\"} 1"), "{text}");

    let mut supervised = Supervised::start(config(), Script::of(fake.command()).never_prepared()).await;
    supervised.reach(State::Warming).await;
    supervised.supervisor.stop();
    assert_eq!(supervised.reach(State::Stopped).await.last_exit, None);
    supervised.supervisor.run();
    assert_eq!(supervised.reach(State::Warming).await.epoch, 2);
    supervised.shutdown().await;
}

#[tokio::test]
async fn an_engine_that_crashes_again_and_again_is_left_alone_for_long_and_says_why() {
    if !own_proc() {
        return;
    }
    let slow = SupervisionConfig { crash_loop_crashes: 3, backoff_most: Duration::from_secs(3600), ..config() };
    let mut supervised = Supervised::start(slow, Script::of(shell("exit 3")).never_ready()).await;
    let is_loop = |reason: &Option<String>| reason.as_ref().is_some_and(|reason| reason.starts_with("crash loop: 3"));
    let status = supervised.until(|status| status.state == State::Backoff && is_loop(&status.reason)).await;
    assert_eq!((status.epoch, status.restarts, status.last_exit), (3, 2, Some(Exit::Code(3))));
    assert!(status.reason.unwrap().ends_with("the engine ended by itself: exit code 3"));
    supervised.supervisor.restart();
    supervised.until(|status| status.state == State::Backoff && status.epoch == 4).await;
    supervised.supervisor.stop();
    supervised.reach(State::Stopped).await;
    let text = supervised.shutdown().await;
    assert!(text.contains("warmd_engine_starts_total{outcome=\"crashed\"} 4"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_started_is_told_and_ended_as_well() {
    if !own_proc() {
        return;
    }
    let command = Command { program: "warmd-no-such-program".into(), ..Default::default() };
    let mut supervised = Supervised::start(config(), Script::of(command)).await;
    let (epoch, end) = supervised.end().await;
    assert_eq!((epoch, end.asked, end.stopped), (1, false, None));
    assert!(end.reason.unwrap().contains("`warmd-no-such-program` was not found in PATH"));
    assert!(supervised.shutdown().await.contains("outcome=\"failed\""));
}

#[tokio::test]
async fn requests_under_way_are_waited_for_before_the_engine_is_told_to_end() {
    if !own_proc() {
        return;
    }
    let mut supervised = Supervised::start(config(), Script::of(shell("exec sleep 1000"))).await;
    let leader = supervised.reach(State::Ready).await.leader.unwrap();
    supervised.in_flight.send_replace(2);
    supervised.supervisor.stop();
    supervised.reach(State::Draining).await;
    supervised.in_flight.send_replace(1);
    assert!(is_alive(leader) && supervised.has_processes());
    supervised.in_flight.send_replace(0);
    supervised.reach(State::Stopped).await;
    assert!(!is_alive(leader) && supervised.end().await.1.asked);
    supervised.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_ends_with_the_deadline_though_requests_and_the_engine_do_not() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::BeDeaf, Step::Say("ready".to_owned())]);
    let mut supervised = Supervised::start(config(), Script::of(fake.command())).await;
    supervised.line("ready").await;
    let leader = supervised.reach(State::Ready).await.leader.unwrap();
    supervised.in_flight.send_replace(1);
    let status = supervised.shutdown_within(Duration::from_millis(100)).await;
    assert_eq!((status.state, status.leader, status.last_exit), (State::Stopped, None, Some(Exit::Signal(9))));
    assert!(!is_alive(leader));
}

#[tokio::test]
async fn dropping_a_supervisor_kills_its_engine() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::BeDeaf, Step::Child(CORE)]);
    let mut supervised = Supervised::start(config(), Script::of(fake.command())).await;
    let core = supervised.pid("core ").await;
    let leader = supervised.reach(State::Ready).await.leader.unwrap();
    let mut status = supervised.supervisor.status();
    let alone = supervised.give_up();
    while tokio::time::timeout(DEADLINE, status.changed()).await.unwrap().is_ok() {}
    eventually("the engine lives on", || !is_alive(core) && !is_alive(leader)).await;
    assert_eq!(status.borrow().state, State::Stopped);
    drop(alone);
}

#[tokio::test]
async fn an_engine_that_lives_and_does_not_answer_is_started_again() {
    if !own_proc() {
        return;
    }
    let script = Script::of(shell("exec sleep 1000")).dies_when_told();
    let mut supervised = Supervised::start(config(), script).await;
    supervised.reach(State::Ready).await;
    supervised.hang();
    supervised.until(|status| status.state == State::Ready && status.epoch == 2).await;
    assert_eq!(supervised.end().await.1.reason.as_deref(), Some("told"));
    supervised.shutdown().await;
}

#[tokio::test]
async fn an_engine_is_unhealthy_after_failures_in_a_row() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Say("no server".to_owned())]);
    let reason = unhealthy(&fake.probe(), Duration::from_millis(1), 3).await;
    assert!(reason.contains("failed 3 times in a row: connect"), "{reason}");
}
