//! Adapters: names both ways, leases, waiting, and an engine that has lost one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use warmd::proxy::Loading;

use super::super::harness::engine::eventually;
use super::super::harness::front::{Front, SALT, SERVED};
use super::CHAT;

const SQL: &str = r#"{ "model":"sql", "messages":[ ], "temperature":1.0e0 }"#;

#[tokio::test]
async fn an_adapter_has_its_own_name_on_each_side_and_is_in_use_until_the_end() {
    let mut front = Front::start(|_| {}).await;
    front.fleet.load();
    let mut client = front.client().await;
    client.post(CHAT, SQL).await;
    let asked = front.next().await;
    let salted = SQL.replace("{ ", &format!("{{\"cache_salt\":\"{SALT}\", "));
    assert_eq!(asked.body, salted.replace("\"sql\"", &format!("\"{SERVED}\"")));
    let pieces = asked.pieces(200, "application/json");
    let head = client.head().await;
    assert_eq!(head.status, 200);
    pieces.send(&format!(r#"{{"model":"{SERVED}","choices":[{{"text":"{SERVED}"}}]}}"#)).await;
    assert_eq!(client.chunk().await.unwrap(), format!(r#"{{"model":"sql","choices":[{{"text":"{SERVED}"}}]}}"#));
    assert_eq!(front.fleet.leases(), 1);
    drop(pieces);
    assert_eq!(client.chunk().await.unwrap(), "");
    eventually("the adapter is still in use", || front.fleet.leases() == 0).await;
}

#[tokio::test]
async fn an_answer_that_comes_in_one_piece_has_its_length_with_the_clients_name_in_it() {
    let mut front = Front::start(|_| {}).await;
    front.fleet.load();
    let mut client = front.client().await;
    for _ in 0..2 {
        client.post(CHAT, SQL).await;
        front.next().await.json_answer(200, json!({"model": SERVED, "usage": {"total_tokens": 7}}));
        let (head, body) = client.answer().await;
        assert_eq!(body, json!({"model": "sql", "usage": {"total_tokens": 7}}));
        assert_eq!(head.header("content-length"), body.to_string().len().to_string());
    }
    assert_eq!((front.fleet.leases(), front.guard.tokens.load(Ordering::SeqCst)), (0, 14));
}

#[tokio::test]
async fn who_does_not_wait_is_told_when_to_come_again() {
    let front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    client.post(CHAT, SQL).await;
    let (head, body) = client.answer().await;
    assert_eq!((head.status, head.header("retry-after")), (503, "3"));
    assert_eq!((&body["error"]["code"], &body["status"]), (&json!("model_loading"), &json!("fetching")));

    let accepting = Front::start(|config| config.loading = Loading::Accepted).await;
    let mut client = accepting.client().await;
    client.post(CHAT, SQL).await;
    assert_eq!(client.answer().await.0.status, 202);
}

#[tokio::test]
async fn who_waits_is_served_when_the_model_is_there() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    client.post(CHAT, r#"{"model":"sql","wait_for_model":true}"#).await;
    eventually("nobody waits", || front.fleet.waiting() == 1).await;
    front.fleet.load();
    let asked = front.next().await;
    assert_eq!(asked.json(), json!({"model": SERVED, "cache_salt": SALT}));
    asked.json_answer(200, json!({}));
    assert_eq!(client.answer().await.0.status, 200);
}

#[tokio::test]
async fn a_wait_ends_with_the_servers_patience_the_clients_or_the_client() {
    let mut front = Front::start(|config| config.wait_for_model = Duration::from_millis(10)).await;
    let mut client = front.client().await;
    for wait in ["true", "0.001", "1000"] {
        client.post(CHAT, &format!(r#"{{"model":"sql","wait_for_model":{wait}}}"#)).await;
        assert_eq!(client.refusal().await, (503, "model_loading".to_owned()));
    }
    let patient = Front::start(|_| {}).await;
    let mut client = patient.client().await;
    client.post(CHAT, r#"{"model":"sql","wait_for_model":true}"#).await;
    eventually("nobody waits", || patient.fleet.waiting() == 1).await;
    drop(client);
    eventually("somebody still waits", || patient.fleet.waiting() == 0).await;
    assert!(front.nothing_asked());
}

#[tokio::test]
async fn who_waits_takes_no_place_from_those_who_are_served() {
    let mut front = Front::start(|config| (config.max_requests, config.max_waiting) = (1, 1)).await;
    let (mut waiting, mut other) = (front.client().await, front.client().await);
    waiting.post(CHAT, r#"{"model":"sql","wait_for_model":true}"#).await;
    eventually("nobody waits", || front.fleet.waiting() == 1).await;
    other.post(CHAT, r#"{"model":"sql","wait_for_model":true}"#).await;
    assert_eq!(other.refusal().await, (503, "overloaded".to_owned()));
    other.post(CHAT, super::BASE).await;
    front.next().await.json_answer(200, json!({}));
    assert_eq!(other.answer().await.0.status, 200);
}

#[tokio::test]
async fn an_adapter_that_the_engine_has_lost_is_brought_back_once_per_request() {
    let mut front = Front::start(|_| {}).await;
    front.fleet.load();
    let mut client = front.client().await;
    client.post(CHAT, SQL).await;
    front.next().await.unknown_model();
    front.next().await.json_answer(200, json!({"model": SERVED}));
    assert_eq!(client.answer().await.1, json!({"model": "sql"}));
    assert_eq!(*front.fleet.lost.lock().unwrap(), [(SERVED.to_owned(), 1)]);

    client.post(CHAT, SQL).await;
    front.next().await.unknown_model();
    front.next().await.unknown_model();
    let (head, body) = client.answer().await;
    assert_eq!((head.status, &body["error"]["code"]), (404, &json!("model_not_found")));
    assert!(body["error"]["message"].as_str().unwrap().contains("`sql`"), "{body}");
    assert!(front.nothing_asked());
    assert_eq!(front.fleet.leases(), 0);
}

#[tokio::test]
async fn any_other_404_is_the_clients_and_is_not_tried_again() {
    let mut front = Front::start(|_| {}).await;
    front.fleet.load();
    let mut client = front.client().await;
    for body in [
        json!({"detail": "Not Found"}),
        json!({"error": {"message": "The model `sql@0a1b2c` does not exist.", "type": "NotFoundError", "param": null}}),
    ] {
        client.post(CHAT, SQL).await;
        front.next().await.json_answer(404, body.clone());
        let (head, got) = client.answer().await;
        assert_eq!((head.status, got), (404, body));
    }
    assert!(front.nothing_asked() && front.fleet.lost.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_this_server_can_do_is_told_to_those_who_may_ask() {
    let mut front = Front::start(|config| config.max_requests = 7).await;
    let mut client = front.client().await;
    let (head, body) = client.get("/v1/warmd/capabilities").await;
    assert_eq!((head.status, &body["base"][0], &body["limits"]["max_requests"]), (200, &json!("base"), &json!(7)));
    assert_eq!(body["models"], json!(["sql"]));
    client.send("GET /v1/warmd/capabilities HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(client.refusal().await.0, 401);
    assert!(front.nothing_asked());
}
