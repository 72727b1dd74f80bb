//! What a running engine is told of adapters, and what warmd makes of its answers, version by version.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use warmd::caches::{Environment, Launch};
use warmd::engine::arguments::{Adapters, Arguments, Config, Given};
use warmd::engine::lora::{Card, Client, Deadlines, Load, LoraError, Unload};
use warmd::engine::quirks::PrefixKey;
use warmd::engine::{Address, Secret};

use crate::harness::engine::{is_alive, kill};
use crate::harness::vllm::FakeVllm;

/// One of each row of the table.
const VERSIONS: [&str; 5] = ["0.16.0", "0.22.1", "0.26.0", "0.32.0", "0.33.0"];

fn of(version: &str) -> FakeVllm {
    FakeVllm::start(&format!("--max-lora-rank 16 --fake-version {version}"))
}

#[tokio::test]
async fn an_adapter_is_loaded_listed_served_and_unloaded_in_every_version() {
    for version in VERSIONS {
        let fake = of(version);
        let client = fake.client().await;
        let (path, digest) = fake.adapter("one", 8);
        assert_eq!(client.version().await.unwrap().to_string(), version);
        assert_eq!(client.load("a@1", &path).await.unwrap(), Load::Loaded, "{version}");
        assert_eq!(client.load("a@1", &path).await.unwrap(), Load::AlreadyLoaded, "{version}");
        let base = Card { id: "base".into(), root: Some("base".into()), parent: None, max_model_len: Some(2048) };
        let card = Card {
            id: "a@1".into(),
            root: Some(path.display().to_string()),
            parent: Some("base".into()),
            max_model_len: None,
        };
        assert_eq!(client.list().await.unwrap(), [base, card], "{version}");
        let (status, answer) = fake.complete("a@1").await;
        assert!(status == 200 && answer.contains(&format!("kv={digest} w={digest}")), "{version}: {answer}");
        assert_eq!(client.unload("a@1").await.unwrap(), Unload::Unloaded, "{version}");
        assert_eq!(client.unload("a@1").await.unwrap(), Unload::NotLoaded, "{version}");
        assert_eq!(fake.complete("a@1").await.0, 404, "{version}");
    }
}

#[tokio::test]
async fn why_an_adapter_is_not_loaded_is_known_in_every_version() {
    for version in VERSIONS {
        let fake = of(version);
        let client = fake.client().await;
        let ((one, _), (two, _), (large, _)) =
            (fake.adapter("one", 8), fake.adapter("two", 8), fake.adapter("large", 64));
        client.load("a", &one).await.unwrap();
        let taken = client.load("a", &two).await.unwrap();
        assert_eq!(taken, Load::NameTaken { root: Some(one.display().to_string()) }, "{version}");
        let base = client.load("base", &two).await.unwrap();
        assert_eq!(base, Load::NameTaken { root: Some("base".to_owned()) }, "{version}");
        let missing = client.load("b", Path::new("/none")).await.unwrap_err();
        assert!(matches!(missing, LoraError::MissingFiles(path) if path == Path::new("/none")), "{version}");
        let refused = client.load("b", &large).await.unwrap_err();
        assert!(matches!(&refused, LoraError::Refused { reason } if reason.contains("LoRA rank 64")), "{version}");
        let relative = client.load("b", Path::new("org/adapter")).await.unwrap_err();
        assert!(matches!(relative, LoraError::Path(_)), "{version}");
        assert_eq!(client.list().await.unwrap().len(), 2, "{version}");
    }
}

#[tokio::test]
async fn an_engine_without_the_routes_is_told_from_one_without_the_adapter() {
    let fake = FakeVllm::start("--no-enable-lora");
    let client = fake.client().await;
    let (path, _) = fake.adapter("one", 8);
    assert!(matches!(client.load("a", &path).await, Err(LoraError::RuntimeUpdatingOff)));
    assert!(matches!(client.unload("a").await, Err(LoraError::RuntimeUpdatingOff)));
    client.healthy().await.unwrap();
}

#[tokio::test]
async fn a_load_that_takes_too_long_is_neither_done_nor_failed() {
    let fake = FakeVllm::start("--fake-load 600");
    let deadlines = Deadlines { load: Duration::from_millis(50), ..Deadlines::default() };
    let client = fake.client_with("engine-key", deadlines).await;
    let (path, _) = fake.adapter("one", 8);
    assert!(matches!(client.load("a", &path).await, Err(LoraError::Unknown { .. })));
    assert_eq!(client.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_engine_that_is_not_there_or_has_another_key_is_not_blamed_on_the_adapter() {
    let key = || Some(Secret::new("engine-key").unwrap());
    let nowhere = Client::open(Address::Uds("/none/engine.sock".into()), key(), Deadlines::default()).await;
    assert!(matches!(nowhere, Err(LoraError::Unavailable { .. })));
    let fake = FakeVllm::start("");
    let (path, _) = fake.adapter("one", 8);
    let stranger = fake.client_with("another-key", Deadlines::default()).await;
    let refused = stranger.load("a", &path).await.unwrap_err();
    assert!(matches!(&refused, LoraError::Unavailable { reason, .. } if reason.contains("401")), "{refused}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_unknown_of_a_change_and_nothing_of_a_question() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let answers = async {
        let version = "HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n{\"version\": \"0.33.0\"}";
        for answer in [version, "", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nSuc", ""] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 2048];
            let len = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..len]).to_lowercase();
            assert!(
                request.contains("x-request-id: warmd-") && request.contains("authorization: bearer k"),
                "{request}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    let asking = async {
        let key = Some(Secret::new("k").unwrap());
        let client = Client::open(address, key, Deadlines::default()).await.unwrap();
        for _ in 0..2 {
            let load = client.load("a", Path::new("/a")).await;
            assert!(matches!(load, Err(LoraError::Unknown { .. })), "{load:?}");
        }
        assert!(matches!(client.list().await, Err(LoraError::Unavailable { .. })));
    };
    tokio::join!(answers, asking);
}

#[tokio::test]
async fn an_engine_dies_of_an_adapter_that_it_reads_again_after_its_files_have_gone() {
    let mut fake = FakeVllm::start("--max-cpu-loras 1");
    let client = fake.client().await;
    let ((one, digest), (two, _)) = (fake.adapter("one", 8), fake.adapter("two", 8));
    client.load("one", &one).await.unwrap();
    std::fs::remove_dir_all(&one).unwrap();
    assert!(fake.complete("one").await.1.contains(&digest), "it is still held");
    client.load("two", &two).await.unwrap();
    let (status, body) = fake.complete("one").await;
    assert!(status == 500 && body.contains("EngineCore encountered an issue"), "{body}");
    fake.line("AsyncLLM output_handler failed.");
    assert_eq!((fake.exit().await, is_alive(fake.core())), (Some(0), false));
    assert!(matches!(client.healthy().await, Err(LoraError::Unavailable { .. })));
}

#[tokio::test]
async fn a_core_that_is_killed_takes_the_engine_along() {
    let mut fake = FakeVllm::start("");
    kill(fake.core());
    fake.line("AsyncLLM output_handler failed.");
    assert_eq!(fake.exit().await, Some(0));
}

#[tokio::test]
async fn a_draining_engine_refuses_what_is_new_and_ends_with_what_runs() {
    let mut fake = FakeVllm::start("--shutdown-timeout 60 --fake-token 0.01");
    let client = fake.client().await;
    let (path, _) = fake.adapter("one", 8);
    let body = r#"{"model": "base", "prompt": "p", "max_tokens": 100000, "stream": true}"#;
    let mut stream = fake.begin("/v1/completions", body).await;
    stream.read_u8().await.unwrap();
    fake.terminate();
    fake.line("shutting down");
    client.healthy().await.unwrap();
    let load = client.load("a", &path).await.unwrap_err();
    assert!(matches!(&load, LoraError::Unavailable { reason, .. } if reason.contains("shutting down")), "{load}");
    assert_eq!(fake.complete("base").await.0, 500);
    drop(stream);
    assert_eq!((fake.exit().await, is_alive(fake.core())), (Some(0), false));
}

#[tokio::test]
async fn a_name_with_new_weights_answers_with_the_old_prompts_cache_where_the_path_is_in_no_key() {
    for (version, kv_of) in [("0.26.0", "one"), ("0.32.0", "two")] {
        let fake = of(version);
        let client = fake.client().await;
        let (one, two) = (fake.adapter("one", 8), fake.adapter("two", 8));
        client.load("a", &one.0).await.unwrap();
        fake.complete("a").await;
        client.unload("a").await.unwrap();
        client.load("a", &two.0).await.unwrap();
        let kv = if kv_of == "one" { &one.1 } else { &two.1 };
        let (_, answer) = fake.complete("a").await;
        assert!(answer.contains(&format!("kv={kv} w={}", two.1)), "{version}: {answer}");
        assert_eq!(client.quirks().prefix_key == PrefixKey::Name, kv_of == "one");
    }
}

#[tokio::test]
async fn the_command_that_is_made_of_the_users_serves_adapters_behind_its_socket() {
    let config = Config { adapters: Some(Adapters::default()), ..Config::default() };
    let mut made = None;
    let fake = FakeVllm::start_with("--port 8000 --host 0.0.0.0 --served-model-name m n", |line, socket| {
        let command: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let launch = Launch::parse(&command).unwrap();
        let (environment, config) = (&Environment::default(), &config);
        let arguments = Arguments::new(Given { command: &command, launch: &launch, environment, config, socket });
        let arguments = arguments.unwrap();
        let key = arguments.key.for_launch().unwrap();
        let launch = (arguments.command.clone(), arguments.variables(key.as_ref()));
        made = Some((arguments, key));
        launch
    });
    let (made, key) = made.unwrap();
    let client = Client::open(made.address, key, Deadlines::default()).await.unwrap();
    let (path, _) = fake.adapter("one", made.limits.unwrap().max_lora_rank);
    assert_eq!(client.load("a", &path).await.unwrap(), Load::Loaded);
    let ids: Vec<String> = client.list().await.unwrap().into_iter().map(|card| card.id).collect();
    assert_eq!(ids, ["m", "n", "a"]);
    assert_eq!(made.model.unwrap().names, ids[..2]);
    let stranger = fake.client_with("engine-key", Deadlines::default()).await;
    assert!(matches!(stranger.list().await, Err(LoraError::Unavailable { .. })));
}
