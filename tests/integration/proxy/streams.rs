//! Streams: nothing is held back, nothing goes on for nobody, and no end is disguised.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::harness::cluster::DEADLINE;
use super::super::harness::engine::eventually;
use super::super::harness::front::Front;
use super::{BASE, CHAT};

const STREAM: &str = r#"{"model":"sql","stream":true,"messages":[]}"#;

fn event(model: &str, text: &str) -> String {
    format!("data: {{\"id\":\"1\",\"model\":\"{model}\",\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

#[tokio::test]
async fn each_event_reaches_the_client_before_the_next_one_exists() {
    let mut front = Front::start(|_| {}).await;
    front.fleet.load();
    for (model, served) in [("sql", "sql@0a1b2c"), ("base", "base")] {
        let mut client = front.client().await;
        client.post(CHAT, &STREAM.replace("sql", model)).await;
        let stream = front.next().await.stream();
        let head = client.head().await;
        assert_eq!(
            (head.status, head.header("x-accel-buffering"), head.header("transfer-encoding")),
            (200, "no", "chunked")
        );
        for text in ["a", "b", "c"] {
            stream.send(&event(served, text)).await;
            assert_eq!(client.chunk().await, Some(event(model, text)));
        }
        stream.send(": keep-alive\n\n").await;
        assert_eq!(client.chunk().await.unwrap(), ": keep-alive\n\n");
        stream.send("data: [DONE]\n\n").await;
        assert_eq!(client.chunk().await.unwrap(), "data: [DONE]\n\n");
        drop(stream);
        assert_eq!(client.chunk().await.unwrap(), "");
    }
    assert_eq!(front.guard.tokens.load(Ordering::SeqCst), 6);
    assert!(front.metrics().contains("warmd_proxy_between_tokens_seconds_count 8"), "{}", front.metrics());
}

#[tokio::test]
async fn half_an_event_reaches_the_client_too() {
    let mut front = Front::start(|_| {}).await;
    front.fleet.load();
    let mut client = front.client().await;
    client.post(CHAT, STREAM).await;
    let stream = front.next().await.stream();
    client.head().await;
    stream.send("data: {\"model\":\"sql@0a").await;
    assert_eq!(client.chunk().await.unwrap(), "data: {\"model\":");
    stream.send("1b2c\",\"x\":1").await;
    assert_eq!(client.chunk().await.unwrap(), "\"sql\",\"x\":1");
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_what_the_engine_does_for_it() {
    let mut front = Front::start(|_| {}).await;
    front.fleet.load();
    let mut client = front.client().await;
    client.post(CHAT, STREAM).await;
    let asked = front.next().await;
    assert_eq!(front.fleet.leases(), 1);
    drop(client);
    asked.gone().await;

    let mut client = front.client().await;
    client.post(CHAT, STREAM).await;
    let stream = front.next().await.stream();
    client.head().await;
    stream.send(&event("sql@0a1b2c", "a")).await;
    client.chunk().await;
    drop(client);
    stream.gone().await;
    eventually("the adapter is still in use", || front.fleet.leases() == 0).await;
    eventually("a connection to the engine is left", || front.engine.open() == 0).await;
    assert!(front.metrics().contains(r#"warmd_proxy_aborted_total{by="client"} 1"#), "{}", front.metrics());
}

#[tokio::test]
async fn a_stream_whose_engine_dies_ends_with_an_error_and_without_a_done() {
    let mut front = Front::start(|_| {}).await;
    front.fleet.load();
    let mut client = front.client().await;
    client.post(CHAT, STREAM).await;
    let stream = front.next().await.stream();
    client.head().await;
    stream.send(&event("sql@0a1b2c", "a")).await;
    client.chunk().await;
    stream.die().await;
    let error = client.chunk().await.unwrap();
    let data = error.strip_prefix("event: error\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!((&data["error"]["code"], &data["type"]), (&"engine_error".into(), &"error".into()));
    assert_eq!(client.chunk().await.unwrap(), "");
}

#[tokio::test]
async fn an_answer_that_breaks_off_within_an_event_or_a_text_is_cut_off() {
    let mut front = Front::start(|_| {}).await;
    for (kind, piece) in [("text/event-stream", "data: {\"model\":"), ("application/json", "{\"model\":")] {
        let mut client = front.client().await;
        client.post(CHAT, BASE).await;
        let pieces = front.next().await.pieces(200, kind);
        client.head().await;
        pieces.send(piece).await;
        assert_eq!(client.chunk().await.unwrap(), piece);
        pieces.die().await;
        assert_eq!(client.chunk().await, None);
    }
}

#[tokio::test]
async fn a_stream_that_stalls_ends_with_an_error() {
    let mut front = Front::start(|config| config.idle = Duration::from_millis(20)).await;
    let mut client = front.client().await;
    client.post(CHAT, BASE).await;
    let stream = front.next().await.stream();
    client.head().await;
    assert!(client.chunk().await.unwrap().contains("engine_timeout"));
    assert_eq!(client.chunk().await.unwrap(), "");
    stream.gone().await;
}

#[tokio::test]
async fn an_aborted_request_is_told_so_before_and_within_its_stream() {
    let mut front = Front::start(|_| {}).await;
    let (mut early, mut late) = (front.client().await, front.client().await);
    early.post(CHAT, BASE).await;
    let asked = front.next().await;
    late.post(CHAT, BASE).await;
    let stream = front.next().await.stream();
    late.head().await;
    front.guard.abort.cancel();
    assert_eq!(early.refusal().await, (503, "aborted".to_owned()));
    asked.gone().await;
    assert!(late.chunk().await.unwrap().contains(r#""code":"aborted""#));
    assert_eq!(late.chunk().await.unwrap(), "");
    stream.gone().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_given_up() {
    let mut front = Front::start(|config| config.stalled = Duration::from_millis(20)).await;
    let mut client = front.client().await;
    client.post(CHAT, BASE).await;
    let stream = front.next().await.stream();
    let piece = format!(": {}\n\n", "x".repeat(1 << 20));
    let sending = async { while stream.offer(&piece).await {} };
    tokio::time::timeout(DEADLINE, sending).await.expect("it is still read");
    eventually("the connection to the engine is left", || front.engine.open() == 0).await;
}

#[tokio::test]
async fn a_thousand_clients_that_go_away_leave_nothing_behind() {
    let mut front = Front::start(|_| {}).await;
    front.fleet.load();
    for round in 0..20 {
        let mut clients = Vec::new();
        let (mut unanswered, mut streams) = (Vec::new(), Vec::new());
        for _ in 0..50 {
            let mut client = front.client().await;
            client.post(CHAT, STREAM).await;
            clients.push(client);
            match front.next().await {
                asked if round % 2 == 0 => unanswered.push(asked),
                asked => streams.push(asked.stream()),
            }
        }
        drop(clients);
        for asked in unanswered {
            asked.gone().await;
        }
        for stream in streams {
            stream.gone().await;
        }
    }
    eventually("a connection to the engine is left", || front.engine.open() == 0).await;
    eventually("an adapter is in use", || front.fleet.leases() == 0).await;
    let metrics = front.metrics();
    assert!(metrics.lines().filter(|line| line.contains("in_flight{")).all(|line| line.ends_with(" 0")), "{metrics}");
    assert!(front.server.shutdown(DEADLINE).await, "a client's connection is left");
}
