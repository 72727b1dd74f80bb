//! The whole of `warmd serve`: clients over sockets, an engine that says which weights it answered with, and agents of a
//! fleet that has the adapters.

mod attached;
mod callers;
mod command_line;
mod gates;
mod lives;
mod names;
mod offload;
mod versions;
pub(super) mod wallet;

use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;
use warmd::identity::{PrivateKey, TrustConfig};
use warmd::serve::trust::Trust;

use crate::harness::cluster::DEADLINE;
use crate::harness::engine::own_proc;
use crate::harness::http::Connection;
use crate::harness::served::{Adapter, Fleet, registered, until, waiting};

#[tokio::test]
async fn an_adapter_of_another_node_answers_who_waits_for_it_and_tells_the_others_when_to_come_again() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let hold = fleet.cluster.path("hold");
    std::fs::write(&hold, "").unwrap();
    let served = fleet.serve(fleet.config(), &format!("--fake-hold {}", hold.display())).await;
    served.ready().await;
    let at_once = json!({"model": "sql", "prompt": "p", "max_tokens": 4});
    let told = served.complete_as(None, &at_once).await;
    assert_eq!(told.refusal(), (503, "model_loading".to_owned()));
    assert!(told.retry_after().is_some_and(|seconds| seconds > 0), "{told:?}");
    let (addr, mut requests) = (served.addr, JoinSet::new());
    for _ in 0..3 {
        requests.spawn(async move {
            let mut connection = Connection::tcp(addr, None).await.unwrap();
            connection.ask(Method::POST, "/v1/completions", &waiting("sql").to_string()).await.unwrap()
        });
    }
    until("nobody waits", async || served.requests().await.1 == 3).await;
    std::fs::remove_file(&hold).unwrap();
    let answers = requests.join_all().await;
    let weights = answers[0].weights();
    assert!(weights != "base" && answers.iter().all(|answer| answer.weights() == weights));
    assert!(answers.iter().all(|answer| answer.json()["model"] == "sql"));
    let again = served.complete_as(None, &at_once).await;
    assert_eq!(again.weights(), weights);
    assert_eq!(served.engine("/fake").await["loads"].as_array().unwrap().len(), 1, "one load for all who wait");
    served.shutdown().await;
}

#[tokio::test]
async fn an_adapter_of_a_signer_whom_this_server_does_not_trust_is_not_served() {
    if !own_proc() {
        return;
    }
    let mut fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let stranger = PrivateKey::generate().unwrap().public().to_string();
    let text = std::fs::read_to_string(fleet.cluster.policy_path()).unwrap();
    let theirs = text.replace(&fleet.cluster.signer.to_string(), &stranger);
    assert_ne!(theirs, text);
    let path = fleet.cluster.path("theirs.toml");
    std::fs::write(&path, theirs).unwrap();
    let file = TrustConfig { policy: Some(path), ..TrustConfig::default() };
    for trust in [Trust::file(file), Trust::nobody("no trust policy")] {
        fleet.trust = trust;
        let served = fleet.serve(fleet.config(), "").await;
        served.ready().await;
        let refused = served.complete("sql").await;
        assert_eq!(refused.status, 422, "{refused:?}");
        assert_eq!(served.engine("/fake").await["loads"], json!([]));
        assert_eq!(served.complete("base").await.weights(), "base");
        served.shutdown().await;
    }
}

#[tokio::test]
async fn three_adapters_come_at_once_and_those_that_are_refused_disturb_nobody() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    let good = ["one", "two", "three"];
    for (fill, alias) in good.into_iter().enumerate() {
        fleet.publish(Adapter::new(alias, fill as u8)).await;
    }
    fleet.publish(Adapter::new("other", 7).with("base_model_name_or_path", json!("acme/other-7b"))).await;
    fleet.publish(Adapter::new("corrupt", 7).with_weights(&[0xff; 64])).await;
    fleet.publish(Adapter::new("dora", 7).with("use_dora", json!(true))).await;
    let served = fleet.serve(fleet.config(), "").await;
    let (addr, mut requests) = (served.addr, JoinSet::new());
    served.ready().await;
    for model in good.into_iter().chain(["other", "corrupt", "dora"]) {
        requests.spawn(async move {
            let mut connection = Connection::tcp(addr, None).await.unwrap();
            let body = waiting(model).to_string();
            (model, connection.ask(Method::POST, "/v1/completions", &body).await.unwrap())
        });
    }
    let mut weights = Vec::new();
    for (model, answer) in requests.join_all().await {
        if good.contains(&model) {
            weights.push(answer.weights());
            continue;
        }
        assert_eq!(answer.status, 422, "{model}: {answer:?}");
        let reason = match model {
            "other" => "acme/other-7b",
            "corrupt" => "header",
            _ => "DoRA",
        };
        assert!(answer.text.to_lowercase().contains(&reason.to_lowercase()), "{model}: {answer:?}");
    }
    weights.sort_unstable();
    weights.dedup();
    assert_eq!(weights.len(), good.len(), "each has weights of its own");
    let fake = served.engine("/fake").await;
    let loads = fake["loads"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
    let mut loads: Vec<&str> = loads.map(|name| name.split('@').next().unwrap()).collect();
    loads.sort_unstable();
    assert_eq!(loads, ["one", "three", "two"], "the engine hears of nothing else");
    assert_eq!(registered(&served.engine("/v1/models").await).len(), 3);
    served.shutdown().await;
}

#[tokio::test]
async fn an_adapter_that_the_fleet_has_for_another_base_model_is_answered_with_both_names() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1).for_base("acme/other-7b")).await;
    let mut config = fleet.config();
    config.adapters.unknown_for = DEADLINE;
    let served = fleet.serve(config, "").await;
    served.ready().await;
    for _ in 0..2 {
        let told = served.complete("sql").await;
        assert_eq!(told.refusal(), (404, "model_not_found".to_owned()));
        assert!(told.text.contains("made for `acme/other-7b`") && told.text.contains("serves `base`"), "{told:?}");
    }
    let missing = served.complete("nobodys").await;
    assert!(missing.text.contains("does not exist"), "{missing:?}");
    assert_eq!(fleet.agent.as_ref().unwrap().client.status().await.unwrap().artifacts, 0, "nothing was fetched");
    served.shutdown().await;
}

#[tokio::test]
async fn the_agent_hears_how_fast_the_engine_answers() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    let agent = fleet.agent.as_ref().unwrap();
    let served = fleet.serve(fleet.config(), "").await;
    served.ready().await;
    let pace = "warmd_transfer_engine_between_tokens_seconds ";
    assert!(agent.scrape().await.contains(&format!("{pace}0")));
    until("the agent was not told", async || {
        let mut stream = served.stream("base", 100).await;
        while stream.piece().await.unwrap().is_some() {}
        !agent.scrape().await.contains(&format!("{pace}0.0\n"))
    })
    .await;
    served.shutdown().await;
}
