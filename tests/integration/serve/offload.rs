//! Adapters that nobody needs any more.

use std::time::Duration;

use hyper::Method;

use crate::harness::engine::own_proc;
use crate::harness::served::{Adapter, Fleet, registered, until};

#[tokio::test]
async fn an_idle_adapter_leaves_the_last_node_that_has_it_if_the_origin_has_it_too() {
    if !own_proc() {
        return;
    }
    let mut fleet = Fleet::start().await;
    fleet.end_agents().await;
    let url = format!("file://{}", fleet.cluster.path("origin").display());
    for name in ["trainer", "pod"] {
        let mut config = fleet.cluster.config(name);
        config.origin.url = Some(url.parse().unwrap());
        config.origin.push = vec!["lora".parse().unwrap()];
        let node = Some(fleet.cluster.agent_with(config).await);
        if name == "pod" { fleet.agent = node } else { fleet.trainer = node }
    }
    fleet.publish(Adapter::new("sql", 1)).await;
    let trainer = fleet.trainer.take().unwrap();
    until("it is not uploaded", async || trainer.client.origin_list("").await.unwrap().artifacts.len() == 1).await;
    trainer.stop().await;
    let mut config = fleet.config();
    config.adapters.offload_after = Duration::from_millis(500);
    let served = fleet.serve(config, "").await;
    let weights = served.complete_once_ready("sql").await.weights();
    let state = async || served.admin(Method::GET, "/admin/v1/adapters/sql", "").await.json()["state"].clone();
    until("it stays", async || state().await == "offloaded").await;
    assert_eq!(registered(&served.engine("/v1/models").await), []);
    assert_eq!(served.complete("sql").await.weights(), weights);
    served.shutdown().await;
}
