//! Operators and trainers hold an adapter's requests back, over the admin socket.

use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::engine::own_proc;
use crate::harness::http::{Connection, Reply};
use crate::harness::served::{Adapter, Fleet, Served, until};

async fn fleet() -> (Fleet, Served) {
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let served = fleet.serve(fleet.config(), "--fake-token 0.005").await;
    served.ready().await;
    served.complete("sql").await.weights();
    (fleet, served)
}

/// Requests that come while the gate is closed, all of them waiting there.
async fn held(served: &Served, count: u64) -> JoinSet<Reply> {
    let (addr, mut requests) = (served.addr, JoinSet::new());
    for _ in 0..count {
        requests.spawn(async move {
            let body = json!({"model": "sql", "prompt": "p", "max_tokens": 3}).to_string();
            let mut connection = Connection::tcp(addr, None).await.unwrap();
            connection.ask(Method::POST, "/v1/completions", &body).await.unwrap()
        });
    }
    until("they do not wait", async || served.requests().await.1 == count).await;
    requests
}

#[tokio::test]
async fn requests_wait_while_an_adapter_is_paused_and_go_on_when_it_is_resumed() {
    if !own_proc() {
        return;
    }
    let (_fleet, served) = fleet().await;
    let at = |verb: &str| format!("/admin/v1/adapters/sql/{verb}");
    let paused = served.admin(Method::POST, &at("pause"), "{\"lease_s\": 600, \"by\": \"trainer-0\"}").await;
    assert_eq!((paused.status, &paused.json()["by"]), (200, &json!("trainer-0")));
    let requests = held(&served, 3).await;
    let still = served.admin(Method::GET, &at("wait?timeout_s=0"), "").await;
    assert_eq!(still.json()["paused"], true, "{still:?}");
    assert_eq!(served.complete("base").await.weights(), "base", "others are not held back");
    let resumed = served.admin(Method::POST, &at("resume"), "").await;
    assert_eq!((resumed.status, &resumed.json()["was_paused"]), (200, &json!(true)));
    requests.join_all().await.iter().for_each(|answer| assert_eq!(answer.digests().len(), 3, "{answer:?}"));
    assert_eq!(served.admin(Method::GET, &at("wait"), "").await.json(), json!({"paused": false}));
    served.shutdown().await;
}

#[tokio::test]
async fn a_pause_whose_holder_is_gone_ends_with_its_lease() {
    if !own_proc() {
        return;
    }
    let (_fleet, served) = fleet().await;
    let pause = served.admin(Method::POST, "/admin/v1/adapters/sql/pause", "{\"lease_s\": 1.5}").await;
    assert_eq!(pause.status, 200, "{pause:?}");
    let waits = served.admin(Method::GET, "/admin/v1/adapters/sql/wait?timeout_s=60", "").await;
    assert_eq!(waits.json(), json!({"paused": false}));
    assert_eq!(served.complete("sql").await.status, 200);
    served.shutdown().await;
}

#[tokio::test]
async fn an_abort_ends_what_the_engine_works_on_and_skyrls_words_do_the_same() {
    if !own_proc() {
        return;
    }
    let (_fleet, served) = fleet().await;
    let mut stream = served.stream("sql", 100_000).await;
    let aborted = served.admin(Method::POST, "/admin/v1/adapters/sql/abort", "").await;
    assert_eq!((aborted.status, &aborted.json()["count"]), (200, &json!(1)));
    let mut last = String::new();
    while let Ok(Some(piece)) = stream.piece().await {
        last = piece;
    }
    assert!(last.contains("aborted") && !last.contains("[DONE]"), "{last}");
    let skyrl = async |verb: &str, body: serde_json::Value| {
        served.admin(Method::POST, &format!("/skyrl/v1/{verb}"), &body.to_string()).await
    };
    let stream = served.stream("sql", 100_000).await;
    let stopped = skyrl("abort_lora_requests", json!({"lora_name": "sql", "more": 1})).await;
    assert_eq!((stopped.status, &stopped.json()["count"], &stopped.json()["status"]), (200, &json!(1), &json!("ok")));
    assert!(!stream.whole().await.text.contains("[DONE]"));
    let requests = held(&served, 2).await;
    let wait = skyrl("wait_lora_unpaused", json!({"lora_name": "sql", "timeout_s": 0})).await;
    assert_eq!(wait.json()["paused"], true);
    assert_eq!(skyrl("resume_lora_requests", json!({"lora_name": "sql"})).await.json(), json!({"status": "ok"}));
    requests.join_all().await.iter().for_each(|answer| assert_eq!(answer.status, 200, "{answer:?}"));
    let wait = skyrl("wait_lora_unpaused", json!({"lora_name": "sql", "timeout_s": 5.5})).await;
    assert_eq!(wait.json(), json!({"paused": false}));
    served.shutdown().await;
}

#[tokio::test]
async fn times_that_are_none_are_400() {
    if !own_proc() {
        return;
    }
    let (_fleet, served) = fleet().await;
    for bad in ["NaN", "inf", "-inf", "-1", "-0", "soon", "", "1e3", "3601", "0x1", "1;2"] {
        let path = format!("/admin/v1/adapters/sql/wait?timeout_s={bad}");
        assert_eq!(served.admin(Method::GET, &path, "").await.status, 400, "{bad}");
    }
    for bad in ["NaN", "Infinity", "-1", "-0.5", "\"60\"", "null1", "1e999", "[1]", "3600.5"] {
        let body = format!("{{\"lora_name\": \"sql\", \"timeout_s\": {bad}}}");
        assert_eq!(served.admin(Method::POST, "/skyrl/v1/wait_lora_unpaused", &body).await.status, 400, "{bad}");
        let body = format!("{{\"lease_s\": {bad}}}");
        assert_eq!(served.admin(Method::POST, "/admin/v1/adapters/sql/pause", &body).await.status, 400, "{bad}");
    }
    assert_eq!(served.complete("sql").await.status, 200, "nothing of that has paused it");
    served.shutdown().await;
}
