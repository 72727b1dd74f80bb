//! `warmd config` as an operator uses it, and what a role says of a file that it cannot use, before anything is started.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use warmd::agent::AgentConfig;
use warmd::identity::{ClusterCa, PrivateKey};

use super::harness::cluster::{Cluster, DEADLINE};

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
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
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
async fn a_hangup_takes_limits_and_refuses_the_whole_of_what_is_wrong_or_needs_a_restart() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config("a");
    config.metrics.listen = None;
    let file = cluster.path("a.toml");
    let write = |config: &AgentConfig| std::fs::write(&file, warmd::config::render(config)).unwrap();
    write(&config);
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
    command.args(["agent", "--config", text(&file), "--log-level", "info"]);
    let mut child = command.stderr(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let pid = Pid::from_raw(child.id().unwrap() as i32).unwrap();
    let mut says = async |text: &str| loop {
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().expect("it ended");
        if line.contains(text) {
            return line;
        }
    };
    says("agent ready").await;
    let running = warmd::local::Client::connect(&config.local.socket).await.unwrap();

    config.provide.max_rate = Some(1_000_000);
    write(&config);
    kill_process(pid, Signal::HUP).unwrap();
    assert!(says("was read again").await.contains("provide.max_rate"));
    assert!(running.configuration().await.unwrap().contains("max_rate = 1000000"));

    let mut moved = config.clone();
    moved.provide.max_rate = Some(2_000_000);
    moved.fetch_deadline = Duration::from_secs(1);
    write(&moved);
    kill_process(pid, Signal::HUP).unwrap();
    assert!(says("is not taken").await.contains("fetch_deadline needs a restart"));
    assert!(running.configuration().await.unwrap().contains("max_rate = 1000000"), "nothing of it is taken");

    std::fs::write(&file, "[provide]\nlink_share = 7.0\n").unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    assert!(says("is not taken").await.contains("provide.link_share"));
}
