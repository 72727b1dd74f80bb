//! What ends, and what comes back: the engine, the server, the agent.

use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::engine::{is_alive, kill, own_proc};
use crate::harness::http::{Connection, Reply};
use crate::harness::served::{Adapter, Fleet, Served, registered, until, waiting};

/// So many requests for that many words each, all of which the engine works on.
async fn under_way(served: &Served, count: u64, words: u64) -> JoinSet<Option<Reply>> {
    let (addr, mut requests) = (served.addr, JoinSet::new());
    for n in 0..count {
        let body = json!({"model": "sql", "prompt": "p", "max_tokens": words, "stream": n % 2 == 0}).to_string();
        requests.spawn(async move {
            let mut connection = Connection::tcp(addr, None).await.unwrap();
            connection.ask(Method::POST, "/v1/completions", &body).await
        });
    }
    until("the requests do not reach the engine", async || served.requests().await.0 == count).await;
    requests
}

#[tokio::test]
async fn requests_of_an_engine_that_is_killed_fail_honestly_and_the_next_one_has_its_adapters() {
    if !own_proc() {
        return;
    }
    let mut fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let served = fleet.serve(fleet.config(), "--fake-token 0.02").await;
    let weights = served.complete_once_ready("sql").await;
    let weights = (weights.weights(), registered(&served.engine("/v1/models").await));
    let core = served.engine("/fake").await["core"].as_i64().unwrap() as i32;
    let (leader, epoch) = served.leader().await;
    fleet.end_agents().await;
    let requests = under_way(&served, 6, 100_000).await;
    kill(leader);
    for reply in requests.join_all().await {
        let reply = reply.expect("an answer broke off before it began");
        match reply.status {
            200 => {
                assert!(reply.is_whole && !reply.text.contains("[DONE]"), "{}", reply.text);
                let last = reply.text.trim_end().rsplit("\n\n").next().unwrap();
                assert!(last.starts_with("event: error\ndata: ") && last.contains("engine_error"), "{last}");
            }
            status => assert_eq!((status, reply.refusal().1.as_str()), (502, "engine_error")),
        }
    }
    let mut next = served.complete("sql").await;
    until("no engine answers again", async || {
        if next.status == 200 {
            return true;
        }
        // It came while there was no engine, or to the last breath of the one before.
        let (status, code) = next.refusal();
        assert!([(503, "engine_not_ready"), (502, "engine_error")].contains(&(status, &code)), "{status} {code}");
        next = served.complete("sql").await;
        false
    })
    .await;
    assert_eq!((next.weights(), registered(&served.engine("/v1/models").await)), weights);
    assert!(!is_alive(leader) && !is_alive(core));
    assert_eq!(served.leader().await.1, epoch + 1);
    assert_eq!(served.engine("/fake").await["loads"], json!([weights.1[0].0]), "loaded again once, by itself");
    served.shutdown().await;
}

#[tokio::test]
async fn who_waits_for_an_adapter_is_answered_though_the_engine_dies_meanwhile() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let hold = fleet.cluster.path("hold");
    std::fs::write(&hold, "").unwrap();
    let served = fleet.serve(fleet.config(), &format!("--fake-hold {}", hold.display())).await;
    served.ready().await;
    let (addr, mut requests) = (served.addr, JoinSet::new());
    requests.spawn(async move {
        let mut connection = Connection::tcp(addr, None).await.unwrap();
        connection.ask(Method::POST, "/v1/completions", &waiting("sql").to_string()).await.unwrap()
    });
    until("the engine is not asked to load it", async || {
        served.engine("/fake").await["loads"].as_array().unwrap().len() == 1
    })
    .await;
    kill(served.leader().await.0);
    std::fs::remove_file(&hold).unwrap();
    let answers = requests.join_all().await;
    assert!(answers[0].weights() != "base");
    assert_eq!(served.leader().await.1, 2);
    served.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_fails_no_request_that_was_admitted_and_leaves_nothing_of_the_engine() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let served = fleet.serve(fleet.config(), "--fake-token 0.02").await;
    let weights = served.complete_once_ready("sql").await.weights();
    let core = served.engine("/fake").await["core"].as_i64().unwrap() as i32;
    let leader = served.leader().await.0;
    let (addr, socket) = (served.addr, served.state.join("admin.sock"));
    let requests = under_way(&served, 6, 200).await;
    // Neither of them holds up the end.
    let (idle, mut operator) = (served.connect(None).await, Connection::unix(&socket, None).await.unwrap());
    served.admin(Method::POST, "/admin/v1/adapters/other/pause", "{\"lease_s\": 3600}").await;
    let mut waits = JoinSet::new();
    waits.spawn(async move { operator.ask(Method::GET, "/admin/v1/adapters/other/wait?timeout_s=3600", "").await });
    let (answers, ()) = tokio::join!(requests.join_all(), served.shutdown());
    for answer in answers {
        let answer = answer.expect("a request that was admitted is not answered");
        assert_eq!((answer.weights(), answer.digests().len()), (weights.clone(), 200));
    }
    assert!(!is_alive(leader) && !is_alive(core));
    assert!(Connection::tcp(addr, None).await.is_none() && !socket.exists());
    assert!(waits.join_all().await[0].is_none());
    drop(idle);
}

#[tokio::test]
async fn what_is_loaded_goes_on_without_the_agent_and_of_other_names_nobody_says_that_they_do_not_exist() {
    if !own_proc() {
        return;
    }
    let mut fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    fleet.publish(Adapter::new("late", 2)).await;
    let served = fleet.serve(fleet.config(), "").await;
    let weights = served.complete_once_ready("sql").await.weights();
    let missing = served.complete("nobodys").await;
    assert_eq!(missing.refusal(), (404, "model_not_found".to_owned()), "as long as somebody can tell");
    fleet.agent.take().unwrap().stop().await;
    for model in ["late", "never-heard-of"] {
        let told = served.complete(model).await;
        assert_eq!(told.status, 503, "{model}: {told:?}");
    }
    assert_eq!(served.complete("sql").await.weights(), weights);
    // The same socket, another agent.
    fleet.agent = Some(fleet.cluster.agent("pod").await);
    until("the agent's return goes unnoticed", async || served.complete("late").await.status == 200).await;
    assert_eq!(served.complete("sql").await.weights(), weights);
    served.shutdown().await;
}

#[tokio::test]
async fn a_server_that_is_started_again_without_an_agent_has_the_adapters_that_it_had() {
    if !own_proc() {
        return;
    }
    let mut fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    fleet.publish(Adapter::new("code", 2)).await;
    let served = fleet.serve(fleet.config(), "").await;
    let before = (served.complete_once_ready("sql").await.weights(), served.complete("code").await.weights());
    let directories = registered(&served.engine("/v1/models").await);
    let key = served.engine_key().await;
    served.shutdown().await;
    fleet.end_agents().await;
    let served = fleet.serve(fleet.config(), "").await;
    let after = (served.complete_once_ready("sql").await.weights(), served.complete("code").await.weights());
    assert_eq!(after, before);
    assert_eq!(registered(&served.engine("/v1/models").await).len(), directories.len());
    assert_ne!(served.engine_key().await, key);
    served.shutdown().await;
}

#[tokio::test]
async fn before_the_first_engine_serves_an_adapter_is_loading_and_not_unknown() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let served = fleet.serve(fleet.config(), "--fake-start 0.3").await;
    let mut seen = Vec::new();
    until("it is never answered", async || {
        let answer = served.complete_as(None, &waiting("sql")).await;
        seen.push((answer.status, answer.text.clone()));
        answer.status == 200
    })
    .await;
    let refusals = &seen[..seen.len() - 1];
    assert!(refusals.iter().all(|(status, text)| *status == 503 && text.contains("engine_not_ready")), "{refusals:?}");
    served.shutdown().await;
}

#[tokio::test]
async fn an_engine_that_dies_as_soon_as_it_is_ready_is_followed_by_one_that_gets_its_adapters() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let end = fleet.cluster.path("end");
    std::fs::write(&end, "").unwrap();
    let served = fleet.serve(fleet.config(), &format!("--fake-end {}", end.display())).await;
    // The version is the first thing that adapters need.
    until("the first engine is not asked for its version", async || !end.exists()).await;
    let mut answer = served.complete_once_ready("sql").await;
    until("the next engine does not answer", async || {
        if answer.status == 200 {
            return true;
        }
        assert!([502, 503].contains(&answer.status), "{answer:?}");
        answer = served.complete("sql").await;
        false
    })
    .await;
    assert!(answer.weights() != "base");
    assert_eq!(served.leader().await.1, 2);
    assert_eq!(registered(&served.engine("/v1/models").await).len(), 1);
    served.shutdown().await;
}

#[tokio::test]
async fn an_operator_restarts_and_stops_the_engine_when_requests_have_ended_and_the_next_one_has_another_key() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let served = fleet.serve(fleet.config(), "--fake-token 0.02").await;
    let weights = served.complete_once_ready("sql").await.weights();
    let (leader, epoch) = served.leader().await;
    let key = served.engine_key().await;
    let requests = under_way(&served, 4, 200).await;
    assert_eq!(served.admin(Method::POST, "/admin/v1/engine/restart", "").await.status, 200);
    for answer in requests.join_all().await {
        assert_eq!(answer.unwrap().digests().len(), 200, "a request that was under way was not answered");
    }
    until("there is no other engine", async || served.leader_if_any().await.is_some_and(|(_, now)| now == epoch + 1))
        .await;
    assert!(!is_alive(leader));
    assert_eq!(served.complete_once_ready("sql").await.weights(), weights);
    assert_ne!(served.engine_key().await, key, "each engine asks for a key of its own");
    let leader = served.leader().await.0;
    served.admin(Method::POST, "/admin/v1/engine/stop", "").await;
    until("it is not stopped", async || served.health().await["engine"]["state"] == "stopped").await;
    assert!(!is_alive(leader));
    let told = served.complete("sql").await;
    assert_eq!(told.refusal(), (503, "engine_not_ready".to_owned()));
    assert!(told.retry_after().is_some());
    served.admin(Method::POST, "/admin/v1/engine/start", "").await;
    assert_eq!(served.complete_once_ready("sql").await.weights(), weights);
    served.shutdown().await;
}

#[tokio::test]
async fn an_operator_loads_and_unloads_an_adapter_and_requests_do_not_bring_it_back() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let served = fleet.serve(fleet.config(), "").await;
    served.ready().await;
    let order = async |order: &str| served.admin(Method::POST, &format!("/admin/v1/adapters/sql/{order}"), "").await;
    let state = async || served.admin(Method::GET, "/admin/v1/adapters/sql", "").await;
    until("there are no adapters yet", async || order("load").await.status == 200).await;
    until("it is not loaded", async || state().await.json()["state"] == "ready").await;
    let fake = served.engine("/fake").await;
    assert_eq!(fake["loads"].as_array().unwrap().len(), 1, "before anybody has asked for it");
    let weights = served.complete("sql").await.weights();
    assert_eq!(order("unload").await.status, 200);
    until("it stays in the engine", async || registered(&served.engine("/v1/models").await).is_empty()).await;
    assert_eq!(served.complete("sql").await.status, 404);
    assert_eq!(state().await.json()["stopped"], true);
    order("load").await;
    assert_eq!(served.complete("sql").await.weights(), weights);
    assert_eq!(served.admin(Method::GET, "/admin/v1/capacity", "").await.json()["adapters"]["used"], 1);
    assert_eq!(served.admin(Method::GET, "/admin/v1/adapters/nobodys", "").await.status, 404);
    served.shutdown().await;
}
