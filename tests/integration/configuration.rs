//! `warmd config` as an operator uses it, and what a role says of a file that it cannot use, before anything is started.

mod certificates;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use warmd::agent::AgentConfig;
use warmd::config::MetadataConfig;
use warmd::identity::{ClusterCa, PrivateKey};

use super::harness::cluster::Cluster;
use super::harness::engine::own_proc;
use super::harness::http::Connection;
use super::harness::ports;
use super::harness::program::Program;
use super::harness::served::Fleet;

fn warmd(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmd"));
    command.env_clear().envs(environment.iter().copied()).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn all_that_is_wrong_with_a_file_is_told_at_once_with_line_key_and_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    let wrong = "[transport]\nlissen = \"0.0.0.0:1\"\nmax_streams = \"many\"\n[provide]\nlink_share = 1.5\n\
                 [discovery]\nmode = \"severless\"\n";
    std::fs::write(&file, wrong).unwrap();
    let checked = warmd(&["config", "check", "agent", text(&file)], &[("WARMD_STORE_MAX_BITES", "1")]);
    assert_eq!(checked.status.code(), Some(1));
    let told = stdout(&checked);
    for expected in [
        "agent.toml:2: transport.lissen: unknown key: did you mean `listen`?",
        "agent.toml:3: transport.max_streams: wrong type",
        "agent.toml:5: provide.link_share: must be above 0 and at most 1",
        "agent.toml:7: discovery.mode: \"severless\" is none of",
        "did you mean \"serverless\"?",
        "WARMD_STORE_MAX_BITES: store.max_bites: unknown key: did you mean `max_bytes`?",
    ] {
        assert!(told.contains(expected), "`{expected}` in {told}");
    }
    let started = warmd(&["agent", "--config", text(&file)], &[]);
    assert_eq!(started.status.code(), Some(1));
    assert!(stderr(&started).contains("4 problems in the configuration"), "{}", stderr(&started));
    let json = warmd(&["config", "check", "agent", text(&file), "--json"], &[]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json["ok"].as_bool(), json["problems"].as_array().unwrap().len()), (Some(false), 4), "{json}");
}

#[test]
fn a_file_that_cannot_be_read_and_one_that_is_no_toml_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let told = stderr(&warmd(&["agent", "--config", text(&dir.path().join("none.toml"))], &[]));
    assert!(told.contains("none.toml") && told.contains("--config") && told.contains("No such file"), "{told}");
    let file = dir.path().join("broken.toml");
    std::fs::write(&file, "state_dir = \"/s\"\n[transport\n").unwrap();
    let told = stderr(&warmd(&["metadata", "--config", text(&file)], &[]));
    assert!(told.contains("broken.toml:2: this is no TOML"), "{told}");
}

/// A state directory whose certificate is not good, a policy that has expired, and a file that names both.
fn spoilt(dir: &Path, more: &str) -> String {
    let (key, pem) = (PrivateKey::generate().unwrap(), |name: &str| dir.join(name));
    key.save_new(&pem("node.key")).unwrap();
    let ca = |name| ClusterCa::create(name, &PrivateKey::generate().unwrap()).unwrap();
    // Of another authority: as useless as one that has expired, and told in the same place.
    std::fs::write(pem("node.pem"), ca("other").issue(&key, &[], Duration::from_secs(60)).unwrap()).unwrap();
    std::fs::write(pem("ca.pem"), ca("test").certificate_pem()).unwrap();
    let policy = format!(
        "version = 1\nexpires = \"2020-01-01T00:00:00Z\"\n[[signer]]\nname = \"s\"\nkey = \"{}\"\n\
         families = [\"*\"]\nclass = \"data\"\n",
        PrivateKey::generate().unwrap().public()
    );
    std::fs::write(pem("policy.toml"), policy).unwrap();
    let text = format!(
        "state_dir = \"{0}\"\n[trust]\npolicy = \"{0}/policy.toml\"\n[metadata]\nservers = [\"m:1\"]\n\
         [transport]\nlisten = \"127.0.0.1:0\"\n{more}",
        dir.display()
    );
    std::fs::write(pem("agent.toml"), text).unwrap();
    pem("agent.toml").to_str().unwrap().to_owned()
}

#[test]
fn a_bad_certificate_an_expired_policy_a_port_in_use_and_a_missing_collector_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_gone, gone) = ports::deaf();
    let taken_addr = taken.local_addr().unwrap();
    let more = format!("[metrics]\nlisten = \"{taken_addr}\"\n[tracing]\nendpoint = \"http://{gone}\"\n");
    let file = spoilt(dir.path(), &more);
    let checked = warmd(&["config", "check", "agent", &file], &[]);
    let told = stdout(&checked);
    for expected in [
        "nobody will speak with this node",
        "`warmd keys node`",
        "trust.policy: nothing will be fetched",
        "metrics.listen: listen on",
        "choose another one",
        "tracing.endpoint: no collector answers",
    ] {
        assert!(told.contains(expected), "`{expected}` in {told}");
    }
    assert_eq!(checked.status.code(), Some(1), "a port in use is what a start fails by");
    let told = stderr(&warmd(&["agent", "--config", &file], &[]));
    assert!(told.contains("metrics.listen: listen on") && !told.contains("agent ready"), "{told}");
}

#[test]
fn what_says_each_value_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("metadata.toml");
    std::fs::write(&file, "[server]\nlease = \"40s\"\n").unwrap();
    let arguments = ["config", "show", "metadata", text(&file), "--origin", "--json"];
    let shown = warmd(&arguments, &[("WARMD_SERVER_FORGET", "2h")]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["server.lease"]["origin"], format!("{}:2", file.display()));
    assert_eq!(shown["server.forget"]["origin"], "WARMD_SERVER_FORGET");
    assert_eq!(
        (shown["server.heartbeat"]["origin"].as_str(), shown["server.heartbeat"]["value"].as_str()),
        (Some("default"), Some("10s"))
    );
    let table = stdout(&warmd(&arguments[..5], &[]));
    assert!(table.starts_with("# A flag counts more") && table.contains("metadata.toml:2"), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_from_another_file_or_from_the_agent_that_runs_is_told() {
    let cluster = Cluster::start().await;
    let config = cluster.config("a");
    let file = cluster.path("a.toml");
    std::fs::write(&file, warmd::config::render(&config)).unwrap();
    let _node = cluster.agent_with(config.clone()).await;
    let (file, socket) = (text(&file).to_owned(), text(&config.local.socket).to_owned());
    let run = async |more: &[&str]| {
        let words: Vec<String> =
            ["config", "diff", "agent"].iter().chain(more).map(|word| (*word).to_owned()).collect();
        let words = move || warmd(&words.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        tokio::task::spawn_blocking(words).await.unwrap()
    };
    let same = run(&[&file, "--socket", &socket]).await;
    assert_eq!((same.status.code(), stdout(&same)), (Some(0), String::new()), "{}", stderr(&same));
    let other = cluster.path("b.toml");
    let mut changed = config.clone();
    changed.provide.upload_slots = 3;
    std::fs::write(&other, warmd::config::render(&changed)).unwrap();
    for differs in [run(&[text(&other), &file]).await, run(&[text(&other), "--socket", &socket]).await] {
        assert_eq!(differs.status.code(), Some(1));
        assert!(stdout(&differs).contains("provide.upload_slots  3"), "{}{}", stdout(&differs), stderr(&differs));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_runs_by_the_file_is_no_problem_of_the_file() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config("a");
    (config.transport.listen, config.metrics.listen) = (ports::free(), Some(ports::free()));
    let (file, other) = (cluster.path("a.toml"), cluster.path("b.toml"));
    std::fs::write(&file, warmd::config::render(&config)).unwrap();
    let check = async |file: &Path| {
        let file = file.to_owned();
        let run = move || warmd(&["config", "check", "agent", text(&file)], &[]);
        tokio::task::spawn_blocking(run).await.unwrap()
    };
    let _node = cluster.agent_with(config.clone()).await;
    let checked = check(&file).await;
    let told = stdout(&checked);
    assert_eq!(checked.status.code(), Some(0), "{told}");
    assert!(told.contains("note: ") && told.contains("the agent that is running by it listens there"), "{told}");
    // What another one holds is wrong all the same.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    config.metrics.listen = Some(taken.local_addr().unwrap());
    std::fs::write(&other, warmd::config::render(&config)).unwrap();
    let checked = check(&other).await;
    assert_eq!(checked.status.code(), Some(1));
    assert!(stdout(&checked).contains("stop what is there"), "{}", stdout(&checked));
}

/// What `config diff` says with the file's own role, before and after the file has changed.
async fn differs(role: &'static str, file: &Path, change: (&str, &str)) -> [Output; 2] {
    let arguments: Vec<String> = ["config", "diff", role, text(file)].map(str::to_owned).to_vec();
    let diff = async || {
        let arguments = arguments.clone();
        let run = move || warmd(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        tokio::task::spawn_blocking(run).await.unwrap()
    };
    let same = diff().await;
    let before = std::fs::read_to_string(file).unwrap();
    assert!(before.contains(change.0), "{before}");
    std::fs::write(file, before.replacen(change.0, change.1, 1)).unwrap();
    [same, diff().await]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_server_and_a_serving_pod_tell_what_they_run_with_too() {
    let cluster = Cluster::start().await;
    let (page, token) = (ports::free(), cluster.path("token"));
    std::fs::write(&token, "canary-token-of-the-page-77\n").unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let state_dir = cluster.state_dir("another", &["localhost"]);
    let mut config = MetadataConfig { state_dir, ..MetadataConfig::default() };
    config.server.listen = ([127, 0, 0, 1], 0).into();
    (config.web.listen, config.web.token_file) = (Some(page), Some(token));
    config.web.hosts = vec!["x".to_owned()];
    let file = cluster.path("metadata.toml");
    std::fs::write(&file, warmd::config::render(&config)).unwrap();
    let arguments = ["metadata", "--config", text(&file), "--log-level", "info"];
    let mut server = Program::start(&arguments, &[]);
    server.says("metadata server ready").await;
    let [same, differs_now] = differs("metadata", &file, ("sample = 1.0", "sample = 0.5")).await;
    assert_eq!((same.status.code(), stdout(&same)), (Some(0), String::new()), "{}", stderr(&same));
    assert_eq!(differs_now.status.code(), Some(1));
    assert!(stdout(&differs_now).contains("tracing.sample  0.5"), "{}{}", stdout(&differs_now), stderr(&differs_now));
    let shut = Connection::tcp(page, None).await.unwrap().ask(Method::GET, "/api/config", "").await.unwrap();
    assert_eq!(shut.status, 401, "{}", shut.text);
    server.hang_up().await.unwrap();
    let taken = warmd(&["config", "diff", "metadata", text(&file)], &[]);
    assert_eq!(taken.status.code(), Some(0), "{}{}", stdout(&taken), stderr(&taken));

    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    let config = fleet.config();
    let file = fleet.cluster.path("serve.toml");
    std::fs::write(&file, warmd::config::render(&config)).unwrap();
    let served = fleet.serve(config, "").await;
    let [same, differs_now] = differs("serve", &file, ("sample = 1.0", "sample = 0.5")).await;
    assert_eq!((same.status.code(), stdout(&same)), (Some(0), String::new()), "{}", stderr(&same));
    assert!(stdout(&differs_now).contains("tracing.sample  0.5"), "{}{}", stdout(&differs_now), stderr(&differs_now));
    served.shutdown().await;
    let [gone, _] = differs("serve", &file, ("sample = 0.5", "sample = 0.5")).await;
    assert!(stderr(&gone).contains("admin.sock"), "{}", stderr(&gone));
}

#[test]
fn what_a_hook_takes_from_its_environment_is_checked_and_shown_like_a_file() {
    let wrong = warmd(&["config", "check", "hook"], &[("WARMD_TRACING_SAMPLE", "7"), ("WARMD_TRACING_ENDPIONT", "x")]);
    assert_eq!(wrong.status.code(), Some(1));
    let told = stdout(&wrong);
    assert!(told.contains("WARMD_TRACING_ENDPIONT: tracing.endpiont: unknown key: did you mean `endpoint`?"), "{told}");
    let arguments = ["config", "show", "hook", "--origin", "--json"];
    let shown = warmd(&arguments, &[("WARMD_TRACING_SAMPLE", "0.5"), ("WARMD_SOCKET", "/s")]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["tracing.sample"]["origin"], "WARMD_TRACING_SAMPLE");
    assert!(stdout(&warmd(&["config", "example", "hook"], &[])).contains("WARMD_TRACING_ENDPOINT"));
    let asked = warmd(&["config", "diff", "hook", "/dev/null"], &[]);
    assert!(stderr(&asked).contains("name a second file"), "{}", stderr(&asked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_takes_limits_and_callers_and_refuses_the_whole_of_what_is_wrong_or_needs_a_restart() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config("a");
    config.metrics.listen = None;
    let file = cluster.path("a.toml");
    let write = |config: &AgentConfig| std::fs::write(&file, warmd::config::render(config)).unwrap();
    write(&config);
    let mut program = Program::start(&["agent", "--config", text(&file), "--log-level", "info"], &[]);
    program.says("agent ready").await;
    let running = warmd::local::Client::connect(&config.local.socket).await.unwrap();
    let modes = || {
        let sockets = [config.local.socket.clone(), warmd::local::chunk_socket(&config.local.socket)];
        sockets.map(|socket| socket.metadata().unwrap().permissions().mode() & 0o777)
    };
    assert_eq!(modes(), [0o600; 2]);

    let mut capped = config.clone();
    capped.provide.max_rate = Some(1_000_000);
    capped.local.allow_uids = vec![4711];
    write(&capped);
    let told = program.hang_up().await.unwrap();
    assert!(told.contains("provide.max_rate") && told.contains("local.allow_uids"), "{told}");
    assert!(running.configuration().await.unwrap().contains("max_rate = 1000000"));
    assert_eq!(modes(), [0o666; 2], "others may come to the door, where their user id is looked at");

    let mut moved = capped.clone();
    moved.provide.max_rate = Some(2_000_000);
    moved.fetch_deadline = Duration::from_secs(1);
    moved.transport.max_streams = 7;
    write(&moved);
    let refused = program.hang_up().await.unwrap_err();
    assert!(refused.contains("fetch_deadline, transport.max_streams need a restart"), "{refused}");
    assert!(running.configuration().await.unwrap().contains("max_rate = 1000000"), "nothing of it is taken");

    std::fs::write(&file, "[provide]\nlink_share = 7.0\n").unwrap();
    assert!(program.hang_up().await.unwrap_err().contains("provide.link_share"));
    write(&config);
    program.hang_up().await.unwrap();
    assert_eq!(modes(), [0o600; 2]);
}
