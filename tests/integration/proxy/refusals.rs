//! What is refused: clearly, at once, and without the engine's hearing of it.

use std::time::Duration;

use super::super::harness::front::Front;
use super::{BASE, CHAT};

const KEY: &str = "Host: x\r\nAuthorization: Bearer client-key\r\n";

#[tokio::test]
async fn bad_bodies_are_refused_and_the_connection_goes_on() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    let nested = format!("{{\"model\":\"base\",\"x\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let long = format!("{{\"model\":\"{}\"}}", "x".repeat(10 << 10));
    let bad = [
        "",
        "not json",
        "[]",
        "{\"model\":\"base\"",
        "{}",
        r#"{"model":7}"#,
        r#"{"model":"a\u0000b"}"#,
        &nested,
        &long,
        r#"{"model":"base","model":"theirs"}"#,
        r#"{"model":"base","\u006dodel":"theirs"}"#,
        r#"{"model":"base","wait_for_model":"60"}"#,
        r#"{"model":"base","wait_for_model":-1}"#,
    ];
    for body in bad {
        client.post(CHAT, body).await;
        assert_eq!(client.refusal().await, (400, "invalid_request".to_owned()), "{body:.60}");
    }
    for name in ["nobody", "../../etc/passwd", "/abs", "a@b", "org/x"] {
        client.post(CHAT, &format!(r#"{{"model":"{name}"}}"#)).await;
        assert_eq!(client.refusal().await, (404, "model_not_found".to_owned()), "{name}");
    }
    client.post(CHAT, r#"{"model":"theirs"}"#).await;
    assert_eq!(client.refusal().await, (403, "refused".to_owned()));
    assert!(front.nothing_asked());
    client.post(CHAT, BASE).await;
    front.next().await.json_answer(200, serde_json::json!({}));
    assert_eq!(client.answer().await.0.status, 200);
}

#[tokio::test]
async fn the_engines_administration_is_out_of_reach() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    for path in [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/pause",
        "/sleep",
        "/collective_rpc",
        "/metrics",
        "/v1/chat/completions/",
    ] {
        client.post(path, BASE).await;
        assert_eq!(client.refusal().await, (404, "route_not_found".to_owned()), "{path}");
    }
    let (head, _) = client.get(CHAT).await;
    assert_eq!((head.status, head.header("allow")), (405, "POST"));
    assert!(front.nothing_asked());
}

#[tokio::test]
async fn who_has_no_key_is_refused_before_the_body_is_read() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    client
        .send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer other\r\nContent-Length: 100\r\n\r\n")
        .await;
    let (head, body) = client.answer().await;
    assert_eq!((head.status, head.header("www-authenticate")), (401, "Bearer"));
    assert!(!body.to_string().contains("other") && front.nothing_asked());
}

#[tokio::test]
async fn a_message_that_is_framed_twice_is_refused_in_either_order() {
    let mut front = Front::start(|_| {}).await;
    let smuggled = "0\r\n\r\nPOST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    for framing in
        ["Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"]
    {
        let mut client = front.client().await;
        client.send(&format!("POST {CHAT} HTTP/1.1\r\n{KEY}{framing}\r\n{smuggled}")).await;
        assert_eq!(client.refusal().await, (400, "invalid_request".to_owned()));
        assert_eq!(client.rest().await, "");
    }
    for framing in
        ["Content-Length: 5\r\nContent-Length: 6\r\n", "Transfer-Encoding: gzip\r\n", "Content-Length: +5\r\n"]
    {
        let mut client = front.client().await;
        client.send(&format!("POST {CHAT} HTTP/1.1\r\n{KEY}{framing}\r\nhello")).await;
        assert!(client.rest().await.starts_with("HTTP/1.1 400"), "{framing}");
    }
    assert!(front.nothing_asked());
}

#[tokio::test]
async fn a_chunked_request_is_read_and_the_engine_gets_a_length() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    client.send(&format!("POST {CHAT} HTTP/1.1\r\n{KEY}Transfer-Encoding: chunked\r\n\r\n")).await;
    for piece in ["{\"mod", "el\":\"base\"", "}"] {
        client.send(&format!("{:x}\r\n{piece}\r\n", piece.len())).await;
    }
    client.send("0\r\n\r\n").await;
    let asked = front.next().await;
    assert_eq!((&asked.body[..], asked.header("content-length")), (&b"{\"model\":\"base\"}"[..], "16"));
    assert!(!asked.headers.contains_key("transfer-encoding"));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_and_its_sender_reads_why() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    let large = "x".repeat(8 << 20);
    client.post(CHAT, &large).await;
    assert_eq!(client.refusal().await, (413, "body_too_large".to_owned()));
    let mut client = front.client().await;
    client
        .send(&format!(
            "POST {CHAT} HTTP/1.1\r\n{KEY}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n",
            large.len()
        ))
        .await;
    assert_eq!(client.refusal().await, (413, "body_too_large".to_owned()));
    assert!(front.nothing_asked());
}

#[tokio::test]
async fn bodies_of_all_requests_are_bounded_in_sum() {
    let front = Front::start(|config| config.max_held_bytes = 64 << 10).await;
    let mut slow = front.client().await;
    slow.send(&format!("POST {CHAT} HTTP/1.1\r\n{KEY}Expect: 100-continue\r\nContent-Length: 60000\r\n\r\n")).await;
    assert_eq!(slow.head().await.status, 100);
    let mut other = front.client().await;
    other.post(CHAT, &format!("{{\"model\":\"base\",\"x\":\"{}\"}}", "x".repeat(20_000))).await;
    assert_eq!(other.refusal().await, (503, "overloaded".to_owned()));
}

#[tokio::test]
async fn a_head_or_a_body_that_trickles_is_not_waited_for() {
    let short = Duration::from_millis(30);
    let mut front = Front::start(|config| config.body = short).await;
    let mut body = front.client().await;
    body.send(&format!("POST {CHAT} HTTP/1.1\r\n{KEY}Content-Length: 100\r\n\r\n{{")).await;
    assert_eq!(body.refusal().await, (408, "body_timeout".to_owned()));
    assert!(front.nothing_asked());

    let mut front = Front::start(|config| config.head = short).await;
    let mut head = front.client().await;
    head.send("POST /v1/chat").await;
    assert!(!head.rest().await.contains("200"));
    assert!(front.nothing_asked());
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    client.send(&format!("GET /health HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000))).await;
    assert!(client.rest().await.starts_with("HTTP/1.1 431"));
}
