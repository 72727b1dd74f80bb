//! Connections on both sides: reuse, races, overload, and the end.

use std::time::Duration;

use serde_json::json;

use super::super::harness::cluster::{DEADLINE, until};
use super::super::harness::engine::eventually;
use super::super::harness::front::{Client, Front};
use super::super::harness::upstream::Upstream;
use super::{BASE, CHAT};

/// One request, answered at once.
async fn ask(front: &mut Front, client: &mut Client) -> u16 {
    client.post(CHAT, BASE).await;
    front.next().await.json_answer(200, json!({}));
    client.answer().await.0.status
}

#[tokio::test]
async fn requests_one_after_the_other_share_a_connection_on_either_side() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    for _ in 0..3 {
        assert_eq!(ask(&mut front, &mut client).await, 200);
    }
    client.post(CHAT, BASE).await;
    let stream = front.next().await.stream();
    stream.send("data: [DONE]\n\n").await;
    drop(stream);
    assert_eq!(client.text().await.1, "data: [DONE]\n\n");
    assert_eq!(ask(&mut front, &mut client).await, 200);
    assert_eq!(front.engine.accepted(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    for _ in 0..2 {
        client.post(CHAT, BASE).await;
    }
    for number in [1, 2] {
        front.next().await.json_answer(200, json!(number));
    }
    assert_eq!((client.answer().await.1, client.answer().await.1), (json!(1), json!(2)));
}

#[tokio::test]
async fn a_connection_is_not_kept_for_as_long_as_the_engine_would() {
    let mut front = Front::start(|config| config.keep_alive = Duration::from_millis(10)).await;
    let mut client = front.client().await;
    ask(&mut front, &mut client).await;
    eventually("the connection is kept", || front.engine.open() == 0).await;
    assert_eq!(ask(&mut front, &mut client).await, 200);
}

#[tokio::test]
async fn a_connection_of_an_engine_before_is_never_used() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    ask(&mut front, &mut client).await;
    let (next, mut asked) = Upstream::start();
    front.upstream.send_replace(Some(next.at(2)));
    client.post(CHAT, BASE).await;
    asked.recv().await.unwrap().json_answer(200, json!(2));
    assert_eq!(client.answer().await.1, json!(2));
    assert!(front.nothing_asked());
    eventually("the old connection is kept", || front.engine.open() == 0).await;
}

#[tokio::test]
async fn a_kept_connection_that_the_engine_has_closed_costs_no_request() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    for connection in 1..4 {
        assert_eq!(ask(&mut front, &mut client).await, 200);
        assert_eq!(front.engine.accepted(), connection);
        front.engine.hang_up().await;
    }
}

#[tokio::test]
async fn an_engine_that_takes_no_connections_is_told_from_one_that_does_not_answer() {
    let front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    front.engine.die().await;
    client.post(CHAT, BASE).await;
    assert_eq!(client.refusal().await, (503, "engine_not_ready".to_owned()));
}

#[tokio::test]
async fn what_an_engine_may_have_died_of_is_not_sent_again() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    ask(&mut front, &mut client).await;
    client.post(CHAT, BASE).await;
    front.next().await.hang_up();
    assert_eq!(client.refusal().await, (502, "engine_error".to_owned()));
    assert!(front.nothing_asked());
}

#[tokio::test]
async fn what_the_client_would_repeat_is_sent_once_more_if_a_kept_connection_fails() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    ask(&mut front, &mut client).await;
    client.post_with(CHAT, "Idempotency-Key: 1\r\n", BASE).await;
    front.next().await.hang_up();
    front.next().await.hang_up();
    assert_eq!(client.refusal().await, (502, "engine_error".to_owned()));
    assert!(front.nothing_asked());
    assert!(front.metrics().contains("warmd_proxy_retries_total 1"));
}

#[tokio::test]
async fn an_engine_that_does_not_answer_is_given_up_and_its_own_401_is_not_the_clients() {
    let mut front = Front::start(|config| config.first_byte = Duration::from_millis(20)).await;
    let mut client = front.client().await;
    client.post(CHAT, BASE).await;
    let asked = front.next().await;
    assert_eq!(client.refusal().await, (504, "engine_timeout".to_owned()));
    asked.gone().await;

    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    client.post(CHAT, BASE).await;
    front.next().await.json_answer(401, json!({"error": "Unauthorized"}));
    assert_eq!(client.refusal().await, (502, "engine_error".to_owned()));
}

#[tokio::test]
async fn what_is_too_much_is_refused_at_once_and_the_rest_is_served() {
    let mut front = Front::start(|config| config.max_requests = 1).await;
    let (mut first, mut second) = (front.client().await, front.client().await);
    first.post(CHAT, BASE).await;
    let asked = front.next().await;
    for _ in 0..100 {
        second.post(CHAT, BASE).await;
        assert_eq!(second.refusal().await, (503, "overloaded".to_owned()));
    }
    assert_eq!(second.get("/health").await.0.status, 200);
    asked.json_answer(200, json!({}));
    assert_eq!(first.answer().await.0.status, 200);
    assert_eq!(ask(&mut front, &mut second).await, 200);
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so() {
    let mut front = Front::start(|config| config.max_connections = 1).await;
    let mut first = front.client().await;
    ask(&mut front, &mut first).await;
    let mut second = front.client().await;
    second.post(CHAT, BASE).await;
    assert_eq!(second.refusal().await, (503, "overloaded".to_owned()));
    assert_eq!(second.rest().await, "");
    assert_eq!(ask(&mut front, &mut first).await, 200);
}

#[tokio::test]
async fn a_drain_fails_no_request() {
    let mut front = Front::start(|_| {}).await;
    let (mut streaming, mut idle) = (front.client().await, front.client().await);
    ask(&mut front, &mut idle).await;
    streaming.post(CHAT, BASE).await;
    let stream = front.next().await.stream();
    assert_eq!(streaming.head().await.header("connection"), "");

    front.server.announce_end();
    let (head, _) = front.client().await.get("/health").await;
    assert_eq!((head.status, head.header("connection")), (503, "close"));
    idle.post(CHAT, BASE).await;
    front.next().await.json_answer(200, json!({}));
    let (head, _) = idle.answer().await;
    assert_eq!((head.status, head.header("connection")), (200, "close"));

    let addr = front.addr();
    let finishing = async {
        until("it still listens", async || tokio::net::TcpStream::connect(addr).await.is_err()).await;
        stream.send("data: [DONE]\n\n").await;
        drop(stream);
        assert_eq!(streaming.chunk().await.unwrap(), "data: [DONE]\n\n");
        assert_eq!(streaming.chunk().await.unwrap(), "");
    };
    let (finished, ()) = tokio::join!(front.server.shutdown(DEADLINE), finishing);
    assert!(finished);
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_off() {
    let mut front = Front::start(|_| {}).await;
    let mut client = front.client().await;
    client.post(CHAT, BASE).await;
    let stream = front.next().await.stream();
    client.head().await;
    assert!(!front.server.shutdown(Duration::from_millis(30)).await);
    assert_eq!(client.chunk().await, None);
    stream.gone().await;
}
