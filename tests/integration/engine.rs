//! No process of an engine outlives it, nothing that it prints is lost, and it is ready when it says so.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use warmd::engine::{AotSlot, Command, Engine, Exit, Member, Output, Readiness, Signal, StartError, StartLog, wait};

use crate::exec::program_of;
use crate::harness::engine::{
    DEADLINE, Entry, FakeEngine, Kept, Kin, Running, Step, alone, eventually, flood, is_alive, kill, own_proc,
};
use crate::harness::lines::Lines;

const SHORT: Duration = Duration::from_millis(50);

const IN_SESSION: Kin = Kin { own_session: false, orphan: false, deaf: false, core: false };
const OUTSIDE: Kin = Kin { own_session: true, ..IN_SESSION };
const ADOPTED: Kin = Kin { own_session: true, orphan: true, ..IN_SESSION };
const CORE: Kin = Kin { core: true, ..IN_SESSION };

fn ready() -> Step {
    Step::Say("ready".to_owned())
}

fn pids(members: &[Member]) -> Vec<i32> {
    members.iter().map(|member| member.pid).collect()
}

#[tokio::test]
async fn an_engine_leads_a_session_and_only_it_sees_the_changed_environment() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Report { variable: "WARMD_FAKE_VARIABLE".to_owned() }]);
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().canonicalize().unwrap();
    let mut command = fake.command();
    command.set = vec![("WARMD_FAKE_VARIABLE".to_owned(), "a value".to_owned())];
    command.directory = Some(directory.clone());
    let mut running = Running::start(command).await.unwrap();
    let (leader, directory) = (running.engine.leader(), directory.display());
    let told = running.line("session ").await;
    assert_eq!(told, format!("{leader} pid {leader} directory {directory} WARMD_FAKE_VARIABLE=a value"));
    assert!(std::env::var("WARMD_FAKE_VARIABLE").is_err());
    running.engine.stop(DEADLINE).await;
}

#[tokio::test]
async fn many_await_the_end_and_a_code_is_told_from_a_signal() {
    if !own_proc() {
        return;
    }
    for (step, exit, shell) in
        [(Step::Exit(3), Exit::Code(3), 3), (Step::Exit(0), Exit::Code(0), 0), (Step::Raise(6), Exit::Signal(6), 134)]
    {
        let fake = FakeEngine::new(vec![step]);
        let mut running = fake.start().await;
        let (one, two) = tokio::join!(running.engine.exited(), running.engine.exited());
        assert_eq!((one, two, one.shell_code()), (exit, exit, shell));
        assert_eq!(running.engine.exited().await, exit);
        assert!(!running.engine.signal(Signal::Hangup));
        let stopped = running.engine.stop(DEADLINE).await;
        assert_eq!((stopped.exit, stopped.killed, stopped.left), (exit, vec![], vec![]));
    }
}

#[tokio::test]
async fn an_engine_that_ends_at_sigterm_is_not_killed() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Child(CORE), ready()]);
    let mut running = fake.start().await;
    let core = running.core().await;
    let stopped = running.engine.stop(DEADLINE).await;
    assert_eq!(
        (stopped.exit, stopped.terminated, stopped.killed, stopped.left),
        (Exit::Code(0), vec![], vec![], vec![])
    );
    assert!(stopped.output_complete && !is_alive(core));
    let again = running.engine.stop(DEADLINE).await;
    assert_eq!((again.exit, again.killed), (Exit::Code(0), vec![]));
}

#[tokio::test]
async fn what_ignores_sigterm_or_left_the_session_or_lost_its_parent_is_killed_and_named() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::BeDeaf, Step::Child(IN_SESSION), Step::Child(OUTSIDE), Step::Child(ADOPTED)]);
    let mut running = fake.start().await;
    let mut all = vec![running.engine.leader(), running.child().await, running.child().await, running.child().await];
    all.sort_unstable();
    assert_eq!(pids(&running.engine.members().unwrap()), all);
    let stopped = running.engine.stop(SHORT).await;
    assert_eq!(pids(&stopped.killed), all);
    assert!(stopped.killed.iter().all(|member| !member.name.is_empty()));
    assert_eq!((stopped.exit, stopped.left), (Exit::Signal(9), vec![]));
    assert!(all.iter().all(|pid| !std::fs::exists(format!("/proc/{pid}")).unwrap()), "a process was not reaped");
}

#[tokio::test]
async fn a_killed_core_ends_the_engine_with_code_0_and_what_it_leaves_gets_sigterm() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Child(OUTSIDE), Step::Child(CORE)]);
    let mut running = fake.start().await;
    let outside = running.child().await;
    let core = running.core().await;
    kill(core);
    assert_eq!(running.engine.exited().await, Exit::Code(0));
    assert!(is_alive(outside));
    let stopped = running.engine.stop(DEADLINE).await;
    assert_eq!(pids(&stopped.terminated), [outside]);
    assert_eq!((stopped.killed, stopped.left), (vec![], vec![]));
    let mut log = StartLog::default();
    for line in running.rest().await {
        log.line(&line);
    }
    assert_eq!(log.errors().collect::<Vec<_>>(), ["AsyncLLM output_handler failed."]);
}

#[tokio::test]
async fn what_outlives_its_leader_and_ignores_sigterm_is_killed_after_the_grace() {
    if !own_proc() {
        return;
    }
    let deaf = Kin { deaf: true, ..OUTSIDE };
    let fake = FakeEngine::new(vec![Step::Child(deaf)]);
    let mut running = fake.start().await;
    let child = running.child().await;
    let stopped = running.engine.stop(Duration::from_secs(5)).await;
    assert_eq!((stopped.exit, stopped.terminated), (Exit::Code(0), vec![]));
    assert_eq!(pids(&stopped.killed), [child]);
}

#[tokio::test]
async fn dropping_an_engine_kills_all_of_it() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::BeDeaf, Step::Child(IN_SESSION), Step::Child(ADOPTED)]);
    let mut running = fake.start().await;
    let all = [running.engine.leader(), running.child().await, running.child().await];
    let exited = running.engine.exited();
    drop(running);
    assert!(all.iter().all(|pid| !std::fs::exists(format!("/proc/{pid}")).unwrap()));
    assert_eq!(exited.await, Exit::Signal(9));
}

#[tokio::test]
async fn a_stop_that_was_given_up_can_be_hastened() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::BeDeaf, ready()]);
    let mut running = fake.start().await;
    running.line("ready").await;
    assert!(tokio::time::timeout(SHORT, running.engine.stop(DEADLINE)).await.is_err());
    assert!(is_alive(running.engine.leader()));
    let stopped = running.engine.stop(Duration::ZERO).await;
    assert_eq!((stopped.exit, stopped.killed.len()), (Exit::Signal(9), 1));
}

#[tokio::test]
async fn an_adopted_process_that_ends_is_reaped_while_the_engine_runs() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Child(ADOPTED)]);
    let mut running = fake.start().await;
    let adopted = running.child().await;
    kill(adopted);
    eventually("the orphan stays a zombie", || !std::fs::exists(format!("/proc/{adopted}")).unwrap()).await;
    assert!(is_alive(running.engine.leader()));
    running.engine.stop(DEADLINE).await;
}

#[tokio::test]
async fn signals_are_passed_on_to_the_leader() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![ready()]);
    let mut running = fake.start().await;
    running.line("ready").await;
    assert!(running.engine.signal(Signal::Hangup));
    running.line("got SIGHUP").await;
    assert!(running.engine.signal(Signal::User1));
    running.line("got SIGUSR1").await;
    assert!(running.engine.signal(Signal::Interrupt));
    assert_eq!(running.engine.exited().await, Exit::Code(0));
    running.engine.stop(DEADLINE).await;
}

#[tokio::test]
async fn a_second_engine_has_to_wait_until_the_first_is_gone() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::BeDeaf, ready()]);
    let mut running = fake.start().await;
    running.line("ready").await;
    let second = || Engine::start(fake.command(), Output::inherited(Arc::new(|_, _| ())));
    assert!(matches!(second().await, Err(StartError::AlreadyRunning)));
    running.engine.stop(Duration::ZERO).await;
    let mut second = second().await.unwrap();
    assert!(second.stop(Duration::ZERO).await.left.is_empty());
}

#[tokio::test]
async fn a_program_that_cannot_be_started_leaves_the_place_free() {
    if !own_proc() {
        return;
    }
    let alone = alone().await;
    let dir = tempfile::tempdir().unwrap();
    let broken = program_of(&dir.path().join("broken"), "#!/no/such/interpreter\n");
    for program in ["warmd-no-such-program".into(), broken] {
        for _ in 0..2 {
            let command = Command { program: program.clone().into(), ..Default::default() };
            let error = Engine::start(command, Output::inherited(Arc::new(|_, _| ()))).await.unwrap_err();
            assert!(matches!(error, StartError::NotFound { .. } | StartError::NoInterpreter(_)), "{error}");
            assert!(error.to_string().contains(&*program.to_string_lossy()), "{error}");
        }
    }
    drop(alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_arrive_unchanged_and_each_stream_where_it_belongs() {
    if !own_proc() {
        return;
    }
    let len = 5_000_000;
    let fake = FakeEngine::new(vec![
        Step::Complain("on standard error".to_owned()),
        Step::Say("begin".to_owned()),
        Step::Flood(len),
        Step::Exit(0),
    ]);
    let mut running = fake.start().await;
    running.engine.exited().await;
    assert!(running.engine.stop(DEADLINE).await.output_complete);
    let stdout = running.stdout.bytes();
    let begin = stdout.windows(6).position(|window| window == b"begin\n").unwrap() + 6;
    assert!(stdout[begin..] == flood(len), "{} bytes", stdout.len() - begin);
    assert_eq!(running.stderr.bytes(), b"on standard error\n");
}

#[tokio::test]
async fn a_process_that_holds_the_output_open_does_not_keep_it_from_ending() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Child(OUTSIDE), Step::Say("last words".to_owned()), Step::Exit(1)]);
    let mut running = fake.start().await;
    let holder = running.child().await;
    assert!(running.rest().await.iter().any(|line| line == "last words"));
    assert!(is_alive(holder));
    let stopped = running.engine.stop(Duration::ZERO).await;
    assert_eq!((stopped.exit, stopped.killed[0].pid), (Exit::Code(1), holder));
}

#[tokio::test]
async fn an_engine_is_ready_when_its_health_is_and_not_before() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Serve { unavailable: 2 }]);
    let mut running = fake.start().await;
    let readiness = wait(&fake.probe(), DEADLINE, running.engine.exited()).await;
    assert!(matches!(readiness, Readiness::Ready { .. }), "{readiness:?}");
    running.engine.stop(DEADLINE).await;
}

#[tokio::test]
async fn waiting_for_an_engine_ends_with_the_engine_or_with_the_deadline() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Exit(7)]);
    let mut running = fake.start().await;
    let readiness = wait(&fake.probe(), DEADLINE, running.engine.exited()).await;
    assert!(matches!(readiness, Readiness::Exited(Exit::Code(7))), "{readiness:?}");
    running.engine.stop(DEADLINE).await;
    drop(running);

    let fake = FakeEngine::new(vec![ready()]);
    let mut running = fake.start().await;
    let readiness = wait(&fake.probe(), SHORT, running.engine.exited()).await;
    assert!(matches!(readiness, Readiness::Deadline(_)), "{readiness:?}");
    running.engine.stop(DEADLINE).await;
}

#[tokio::test]
async fn an_engine_can_crash_right_after_it_was_ready() {
    if !own_proc() {
        return;
    }
    let fake = FakeEngine::new(vec![Step::Serve { unavailable: 0 }, Step::AwaitHealthy, Step::Raise(9)]);
    let mut running = fake.start().await;
    let readiness = wait(&fake.probe(), DEADLINE, running.engine.exited()).await;
    assert!(matches!(readiness, Readiness::Ready { .. }), "{readiness:?}");
    assert_eq!(running.engine.exited().await, Exit::Signal(9));
    running.engine.stop(DEADLINE).await;
}

#[tokio::test]
async fn the_log_of_a_start_tells_what_was_compiled_and_of_the_next_what_was_found() {
    if !own_proc() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let key = "348fd1f53f1288e7b7d4f92e3b1446d86243296fd5981cd7dd3f01f5b1fe1c3f".to_owned();
    let entries = [
        Entry::ModelInfo { class: "vllm.models.llama.Llama".to_owned() },
        Entry::Aot { key: key.clone(), rank: "rank_0_0".to_owned() },
        Entry::Piecewise { hash: "d8d288a9e4".to_owned() },
        Entry::Silent { path: "triton/K1/kernel.cubin".to_owned() },
    ];
    let cached = |entry: Entry| Step::Cache { root: "$VLLM_CACHE_ROOT".to_owned(), entry };
    let mut steps: Vec<Step> = entries.into_iter().map(cached).collect();
    steps.extend([Step::Serve { unavailable: 0 }, Step::Exit(0)]);
    let start = async || {
        let fake = FakeEngine::new(steps.clone());
        let mut command = fake.command();
        command.set = vec![("VLLM_CACHE_ROOT".to_owned(), root.path().display().to_string())];
        let mut running = Running::start(command).await.unwrap();
        let mut log = StartLog::default();
        for line in running.rest().await {
            log.line(&line);
        }
        log
    };
    let slot = |log: &StartLog| log.aot_loaded().filter_map(AotSlot::of).collect::<Vec<_>>();

    let cold = start().await;
    assert_eq!((slot(&cold).len(), cold.aot_saved().count(), cold.graphs().compiled), (0, 1, 1));
    assert_eq!(cold.lookups(warmd::engine::Cache::ModelInfo), (0, 1));
    assert!(root.path().join("triton/K1/kernel.cubin").is_file() && cold.started());

    let warm = start().await;
    assert_eq!(slot(&warm), [AotSlot { key, rank: "rank_0_0".to_owned() }]);
    assert_eq!((warm.aot_saved().count(), warm.graphs().compiled, warm.graphs().ranges_loaded), (0, 0, 1));
    assert_eq!(warm.lookups(warmd::engine::Cache::ModelInfo), (1, 0));

    let model = warm.aot_loaded().next().unwrap();
    std::fs::write(model, "").unwrap();
    let mended = start().await;
    assert_eq!(mended.aot_failed().map(|(path, _)| path).collect::<Vec<_>>(), [model]);
    assert_eq!(mended.aot_saved().collect::<Vec<_>>(), [model]);
}

const SUPERVISED: &str = "WARMD_TEST_SUPERVISED";

#[tokio::test]
#[ignore = "the other half of the test below, which kills it"]
async fn supervisor_that_is_killed() {
    let Some(program) = std::env::var_os(SUPERVISED) else { return };
    let output = Output {
        stdout: Box::new(tokio::io::stdout()),
        stderr: Box::new(Kept::default()),
        observer: Arc::new(|_, _| ()),
    };
    let engine = Engine::start(Command { program, ..Default::default() }, output).await.unwrap();
    engine.exited().await;
}

#[tokio::test]
async fn when_warmd_is_killed_the_leader_gets_sigterm_and_takes_its_core_along() {
    if !own_proc() {
        return;
    }
    let alone = alone().await;
    let fake = FakeEngine::new(vec![Step::Report { variable: "-".to_owned() }, Step::Child(CORE)]);
    let mut supervisor = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "engine::supervisor_that_is_killed", "--ignored", "--nocapture", "--test-threads=1"])
        .env(SUPERVISED, fake.program())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = Lines::of(supervisor.stdout.take().unwrap());
    let pid = |start: &str| -> i32 { lines.after(start).split(' ').next().unwrap().parse().unwrap() };
    let (leader, core) = (pid("session "), pid("core "));
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    eventually("the engine lives on", || !is_alive(leader) && !is_alive(core)).await;
    drop(alone);
}
