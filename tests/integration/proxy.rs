//! The proxy between a client that sends any bytes and an engine that the test plays.

mod adapters;
mod connections;
mod refusals;
mod streams;

use serde_json::json;

use super::harness::front::Front;

const CHAT: &str = "/v1/chat/completions";
const BASE: &str = r#"{"model":"base","messages":[]}"#;

#[tokio::test]
async fn an_answer_is_the_engines_and_the_request_is_our_own() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    let headers = "X-Request-Id: req-7\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
                   Cookie: a=b\r\nX-data-parallel-rank: 3\r\nConnection: X-Hop\r\nX-Hop: 1\r\n";
    client.post_with("/v1/messages?beta=true", headers, BASE).await;
    let asked = front.next().await;
    assert_eq!(
        (asked.method.as_str(), asked.path.as_str(), &asked.body[..]),
        ("POST", "/v1/messages", BASE.as_bytes())
    );
    assert_eq!((asked.header("authorization"), asked.header("x-request-id")), ("Bearer engine-key", "req-7"));
    let parent = asked.header("traceparent").to_owned();
    assert!(parent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && !parent.contains("00f067aa0ba902b7"));
    for name in ["cookie", "x-data-parallel-rank", "x-hop", "connection"] {
        assert!(!asked.headers.contains_key(name), "{name}");
    }
    asked.json_answer(418, json!({"model": "base", "usage": {"total_tokens": 12}}));
    let (head, body) = client.text().await;
    assert_eq!((head.status, body.as_str()), (418, r#"{"model":"base","usage":{"total_tokens":12}}"#));
    assert_eq!(
        (head.header("x-request-id"), head.header("traceparent"), head.header("server")),
        ("req-7", parent.as_str(), "")
    );
    assert_eq!(front.guard.tokens.load(std::sync::atomic::Ordering::SeqCst), 12);
    assert!(front.metrics().contains(r#"warmd_proxy_requests_total{class="base",route="messages",code="418"} 1"#));
}

#[tokio::test]
async fn models_and_health_are_our_own_answers() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    let (_, list) = client.get("/v1/models").await;
    let sql =
        json!({"id": "sql", "object": "model", "owned_by": "t", "created": 1, "parent": "base", "state": "ready"});
    assert_eq!(list, json!({"object": "list", "data": [sql]}));
    assert_eq!(client.get("/health").await.0.status, 200);
    front.upstream.send_replace(None);
    assert_eq!(client.get("/health").await.0.status, 503);
    client.post(CHAT, BASE).await;
    let (head, body) = client.answer().await;
    assert_eq!(
        (head.status, head.header("retry-after"), &body["error"]["code"]),
        (503, "5", &json!("engine_not_ready"))
    );
    assert!(front.nothing_asked());
}

#[tokio::test]
async fn a_huge_answer_passes_whole() {
    let mut front = Front::start(|_| {}).await;
    front.fleet.load();
    let mut client = front.client().await;
    client.post("/v1/embeddings", r#"{"model":"sql","input":"x"}"#).await;
    let asked = front.next().await;
    let data = "0.125,".repeat(1 << 20);
    let answer = |model: &str| format!(r#"{{"data":[{data}1],"model":"{model}"}}"#);
    asked.answer(200, "application/json", answer("sql@0a1b2c"));
    assert!(client.text().await.1 == answer("sql"));
}
