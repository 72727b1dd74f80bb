//! An engine that somebody else runs.

use std::path::Path;

use warmd::engine::Address;

use crate::harness::served::{Adapter, Fleet, ask_engine, registered, until};
use crate::harness::vllm::FakeVllm;

fn engine_at(socket: &Path) -> FakeVllm {
    FakeVllm::start_with("", |line, _| {
        let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        words.extend(["--enable-lora".to_owned(), "--uds".to_owned(), socket.display().to_string()]);
        let set = [("VLLM_API_KEY", "engine-key"), ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")];
        (words, set.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    })
}

#[tokio::test]
async fn an_engine_of_somebody_else_that_is_gone_and_back_is_given_its_adapters_again() {
    let mut fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let socket = fleet.cluster.path("theirs.sock");
    let mut engine = engine_at(&socket);
    let served = fleet.attach(fleet.config(), Address::Uds(socket.clone())).await;
    served.ready().await;
    assert_eq!(served.complete("base").await.weights(), "base");
    let weights = served.complete("sql").await.weights();
    let had = registered(&ask_engine(&socket, "engine-key", "/v1/models").await);
    assert_eq!(served.health().await["engine"]["state"], "attached");
    fleet.end_agents().await;
    engine.terminate();
    engine.exit().await;
    let answer = served.complete("sql").await;
    assert!([502, 503].contains(&answer.status), "{answer:?}");
    until("it is not noticed", async || served.get(None, "/health").await.status == 503).await;
    std::fs::remove_file(&socket).unwrap();
    let back = engine_at(&socket);
    served.ready().await;
    assert_eq!(served.complete("sql").await.weights(), weights);
    assert_eq!(registered(&ask_engine(&socket, "engine-key", "/v1/models").await), had);
    served.shutdown().await;
    let left = ask_engine(&socket, "engine-key", "/v1/models").await;
    assert_eq!(registered(&left), had, "an engine that is not ours is left as it is");
    drop(back);
}
