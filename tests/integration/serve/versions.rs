//! A new version takes an alias over while requests go on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::engine::own_proc;
use crate::harness::http::{Connection, Reply, digests};
use crate::harness::served::{Adapter, Fleet, registered, until};

/// Asks until told to end; after an answer of other weights than `old`, of whomever, nothing is of `old` any more.
async fn load(addr: std::net::SocketAddr, old: String, flipped: Arc<AtomicBool>, end: Arc<AtomicBool>, streams: bool) {
    let body = json!({"model": "sql", "prompt": "p", "max_tokens": 6, "stream": streams}).to_string();
    let mut connection = Connection::tcp(addr, None).await.unwrap();
    while !end.load(Ordering::SeqCst) {
        let was_flipped = flipped.load(Ordering::SeqCst);
        let answer = connection.ask(Method::POST, "/v1/completions", &body).await.unwrap();
        assert_eq!(answer.digests().len(), 6, "{answer:?}");
        let is_old = answer.weights() == old;
        assert!(!(is_old && was_flipped), "the old version answers after the new one");
        if !is_old {
            flipped.store(true, Ordering::SeqCst);
        }
    }
}

#[tokio::test]
async fn a_new_version_takes_over_under_load_and_no_answer_mixes_the_two() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let served = fleet.serve(fleet.config(), "--fake-token 0.002").await;
    served.ready().await;
    let old = served.complete("sql").await.weights();
    let [(old_name, old_directory)] = &registered(&served.engine("/v1/models").await)[..] else { panic!() };
    let mut long = served.stream("sql", 100_000).await;
    let (flipped, end) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut requests = JoinSet::new();
    for n in 0..4 {
        requests.spawn(load(served.addr, old.clone(), flipped.clone(), end.clone(), n % 2 == 0));
    }
    fleet.publish(Adapter::new("sql", 2)).await;
    until("the new version does not take over", async || flipped.load(Ordering::SeqCst)).await;
    let new = served.complete("sql").await.weights();
    assert_ne!(new, old);
    // Somebody still reads an answer of the old one.
    assert!(old_directory.exists());
    assert!(registered(&served.engine("/v1/models").await).iter().any(|(name, _)| name == old_name));
    for _ in 0..20 {
        let piece = long.piece().await.unwrap().unwrap();
        assert!(digests(&piece).iter().all(|digest| *digest == old), "{piece}");
    }
    drop(long);
    until("the old version stays in the engine", async || {
        let registered = registered(&served.engine("/v1/models").await);
        registered.len() == 1 && registered[0].0 != *old_name
    })
    .await;
    until("the old version stays on the disk", async || !old_directory.exists()).await;
    end.store(true, Ordering::SeqCst);
    requests.join_all().await;
    assert_eq!(served.complete("sql").await.weights(), new);
    assert_eq!(served.leader().await.1, 1, "the engine has lived on");
    served.shutdown().await;
}

#[tokio::test]
async fn adapters_that_leave_the_engines_memory_are_read_again_while_versions_come_and_go() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    let aliases = ["one", "two", "three", "four"];
    for (fill, alias) in aliases.into_iter().enumerate() {
        fleet.publish(Adapter::new(alias, fill as u8)).await;
    }
    // An engine that does not find the files of an adapter that it is asked for dies.
    let served = fleet.serve(fleet.config(), "--max-loras 1 --max-cpu-loras 2 --fake-token 0.001").await;
    served.ready().await;
    let mut seen = BTreeSet::new();
    // Before the next ones come: one that is published during the first load is served at once.
    for alias in aliases {
        seen.insert(served.complete(alias).await.weights());
    }
    for version in 0..3u8 {
        let (addr, mut requests) = (served.addr, JoinSet::new());
        for alias in aliases.into_iter().chain(aliases) {
            let body = json!({"model": alias, "prompt": "p", "max_tokens": 20, "wait_for_model": true}).to_string();
            requests.spawn(async move {
                let mut connection = Connection::tcp(addr, None).await.unwrap();
                connection.ask(Method::POST, "/v1/completions", &body).await.unwrap()
            });
        }
        let next = Adapter::new(aliases[usize::from(version)], 100 + version);
        let (answers, _) = tokio::join!(requests.join_all(), fleet.publish(next));
        seen.extend(answers.iter().map(Reply::weights));
    }
    until("a newest version is never served", async || {
        for alias in aliases {
            seen.insert(served.complete(alias).await.weights());
        }
        seen.len() == 7
    })
    .await;
    assert_eq!(served.leader().await.1, 1, "the engine has found all that it needed");
    served.shutdown().await;
}

#[tokio::test]
async fn which_patterns_are_followed_is_decided_by_the_version_of_each_engine_and_not_of_the_first() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("plain", 1)).await;
    fleet.publish(Adapter::new("uneven", 2).with("alpha_pattern", json!({"q_proj": 4}))).await;
    let version = fleet.cluster.path("version");
    std::fs::write(&version, "0.23.0").unwrap();
    let served = fleet.serve(fleet.config(), &format!("--fake-version-file {}", version.display())).await;
    let plain = served.complete_once_ready("plain").await.weights();
    let refused = served.complete("uneven").await;
    assert!(refused.status == 422 && refused.text.contains("alpha_pattern"), "{refused:?}");
    let mut upgraded = None;
    for (next, status) in [("0.32.0", 200), ("0.23.0", 422)] {
        let (_, epoch) = served.leader().await;
        std::fs::write(&version, next).unwrap();
        served.admin(Method::POST, "/admin/v1/engine/restart", "").await;
        until("there is no other engine", async || {
            served.leader_if_any().await.is_some_and(|(_, now)| now == epoch + 1)
        })
        .await;
        assert_eq!(served.complete_once_ready("plain").await.weights(), plain, "{next}");
        let answer = served.complete("uneven").await;
        assert_eq!(answer.status, status, "{next}: {answer:?}");
        let names = registered(&served.engine("/v1/models").await);
        assert_eq!(names.iter().any(|(name, _)| name.starts_with("uneven@")), status == 200, "{next}");
        if status == 200 {
            upgraded = Some(answer.weights());
        }
    }
    assert_ne!(upgraded, Some(plain));
    served.shutdown().await;
}
