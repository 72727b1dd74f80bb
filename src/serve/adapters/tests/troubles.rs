//! Bad adapters, a fleet that does not deliver, an engine that forgets.

use super::*;
use crate::adapters::{CONFIG, WEIGHTS};

#[tokio::test(start_paused = true)]
async fn an_adapter_of_another_base_model_is_refused_before_it_is_fetched() {
    let node = Node::new();
    node.fleet.publish_changed("sql", 1, |_, release| release.base = "acme/large-70b".parse().unwrap());
    node.fleet.flows.send_replace(false);
    let (status, reason) = node.refusal("sql").await;
    assert!(status == 422 && reason.contains("large-70b") && reason.contains("tiny-llama"), "{reason}");
    assert_eq!((node.state("sql"), node.engine.loads()), (State::Failed, 0));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_adapter_is_refused_before_the_engine_hears_of_it() {
    let node = Node::new();
    node.fleet.publish_changed("cut", 1, |directory, _| {
        let path = directory.join(WEIGHTS);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() - 10]).unwrap();
    });
    node.fleet.publish_changed("lie", 1, |directory, _| {
        let path = directory.join(CONFIG);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace("LORA", "IA3")).unwrap();
    });
    assert_eq!(node.refusal("cut").await.0, 422);
    assert_eq!(node.refusal("lie").await.0, 422);
    assert_eq!((node.engine.loads(), node.directories()), (0, 0));
    eventually("something is left", || {
        std::fs::read_dir(node.root.path().join("adapters/incoming")).unwrap().count() == 0
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_hear_why_a_load_failed_and_it_is_not_tried_again_at_once() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    node.fleet.fails(Some("the cable is cut"));
    let who = caller();
    let deadline = Instant::now() + Duration::from_secs(600);
    let waiting = (0..50).map(|_| node.adapters.wait("sql", &who, deadline));
    for resolution in futures_util::future::join_all(waiting).await {
        assert!(
            matches!(&resolution, Resolution::Refused { status, reason } if status.as_u16() == 503 && reason.contains("cable")),
            "{resolution:?}"
        );
    }
    for _ in 0..20 {
        node.refusal("sql").await;
    }
    assert_eq!(node.fleet.opened().1, 1);
    node.fleet.fails(None);
    pass(31).await;
    drop(node.ready("sql").await);
    assert_eq!(node.fleet.opened().1, 2);
}

#[tokio::test(start_paused = true)]
async fn a_newer_version_of_what_has_failed_is_tried_at_once() {
    let node = Node::with(|config| config.refused_for = Duration::from_secs(24 * 3600));
    node.fleet.publish_changed("sql", 1, |_, release| release.base = "acme/other".parse().unwrap());
    node.adapters.pin(&alias("sql"), true).unwrap();
    eventually("it has not failed", || node.state("sql") == State::Failed).await;
    node.fleet.publish("sql", 2, 0);
    let begun = Instant::now();
    eventually("it is not ready", || node.state("sql") == State::Ready).await;
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_bad_new_version_does_not_disturb_the_one_that_is_served() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    let (name, _lease) = node.ready("sql").await;
    *node.engine.refuses.lock().unwrap() = Some(RegistryError::Refused { reason: "no".to_owned() });
    node.fleet.publish("sql", 2, 1);
    eventually("it is not refused", || node.status("sql").failure.is_some()).await;
    assert_eq!(served(node.resolve("sql").await).0, name);
    assert_eq!((node.state("sql"), node.status("sql").generation), (State::Ready, Some(1)));
    eventually("files of the bad one stay", || node.directories() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_version_that_nobody_has_any_more_is_not_asked_for_without_end() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    drop(node.ready("sql").await);
    node.fleet.is_elsewhere(true);
    eventually("it is still here", || node.directories() == 0).await;
    node.fleet.publish_changed("sql", 2, |_, release| release.base = "acme/other".parse().unwrap());
    for _ in 0..10 {
        assert!(node.refusal("sql").await.0 >= 400);
    }
    let (opened, fetched) = node.fleet.opened();
    assert!(opened <= 3 && fetched <= 3, "{opened} manifests, {fetched} transfers");
}

#[tokio::test(start_paused = true)]
async fn what_another_publisher_signed_later_takes_over_though_it_counts_from_one() {
    let node = Node::new();
    node.fleet.publish("sql", 7, 0);
    drop(node.ready("sql").await);
    node.fleet.publish("sql", 1, 1);
    node.fleet.sign_last_at(8);
    eventually("it does not take over", || node.status("sql").generation == Some(1)).await;
    drop(node.ready("sql").await);
}

#[tokio::test(start_paused = true)]
async fn an_older_version_does_not_replace_a_newer_one_whoever_offers_it() {
    let node = Node::new();
    node.fleet.publish("sql", 5, 0);
    let (name, _lease) = node.ready("sql").await;
    node.fleet.publish("sql", 4, 1);
    pass(60).await;
    assert_eq!(served(node.resolve("sql").await).0, name);
    assert_eq!(node.fleet.opened().0, 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_engine_gets_what_was_used_lately_from_the_disk() {
    let node = Node::with(|config| config.max_cpu_loras = 1);
    for (name, variant) in [("a", 0), ("b", 1), ("c", 2)] {
        node.fleet.publish(name, 1, variant);
    }
    node.adapters.pin(&alias("a"), true).unwrap();
    drop(node.ready("a").await);
    drop(node.ready("b").await);
    pass(5).await;
    drop(node.ready("c").await);
    node.epoch.send_replace(None);
    pass(5).await;
    assert!(matches!(node.resolve("c").await, Resolution::Loading { .. }));
    node.restart_engine(2);
    eventually("they are not back", || node.engine.names().len() == 2).await;
    pass(30).await;
    assert_eq!((node.state("a"), node.state("b"), node.state("c")), (State::Ready, State::Prepared, State::Ready));
    drop(node.ready("b").await);
    assert_eq!((node.fleet.opened().1, node.engine.loads()), (3, 6));
}

#[tokio::test(start_paused = true)]
async fn what_the_engine_has_lost_is_brought_back_but_not_for_ever() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    let (name, lease) = node.ready("sql").await;
    drop(lease);
    node.adapters.not_found(&name, 7);
    assert_eq!(node.state("sql"), State::Ready, "that was another engine");
    for loads in 2..4 {
        node.engine.loaded.lock().unwrap().clear();
        node.adapters.not_found(&name, 1);
        assert_eq!(node.ready("sql").await.0, name);
        assert_eq!(node.engine.loads(), loads);
    }
    node.adapters.not_found(&name, 1);
    let (status, reason) = node.refusal("sql").await;
    assert!(status == 503 && reason.contains("keeps losing"), "{reason}");
    pass(60).await;
    assert_eq!(node.ready("sql").await.0, name);
}

#[tokio::test(start_paused = true)]
async fn the_engines_list_is_compared_and_what_is_not_ours_any_more_leaves() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    let (name, _lease) = node.ready("sql").await;
    let stray = format!("old@{}", "0".repeat(32));
    {
        let mut loaded = node.engine.loaded.lock().unwrap();
        loaded.clear();
        loaded.insert(stray.clone(), "/nowhere".into());
        loaded.insert("not-ours".to_owned(), "/elsewhere".into());
    }
    eventually("it is not compared", || node.engine.names() == ["not-ours".to_owned(), name.clone()]).await;
    assert_eq!(*node.engine.unloads.lock().unwrap(), [stray]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_used_makes_room_and_what_is_registered_does_not() {
    let size = disk::bytes(&fakes::recorded("plain")).unwrap();
    let node = Node::with(|config| config.quota_bytes = size * 7 / 2);
    for (name, variant) in [("a", 0), ("b", 1), ("c", 2)] {
        node.fleet.publish(name, 1, variant);
    }
    let (_, _in_use) = node.ready("a").await;
    drop(node.ready("b").await);
    let (status, reason) = node.refusal("c").await;
    assert!(status == 503 && reason.contains("quota"), "{reason}");
    assert_eq!(node.directories(), 2);
    eventually("the idle one has not left", || node.directories() == 1).await;
    assert_eq!((node.state("a"), node.state("b")), (State::Ready, State::Offloaded));
    drop(node.ready("c").await);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_unknown_names_cost_little() {
    let node = Node::new();
    node.fleet.publish("sql", 1, 0);
    drop(node.ready("sql").await);
    let (before, _) = node.fleet.looks();
    let names: Vec<String> = (0..10_000).map(|number| format!("unknown-{number}")).collect();
    let who = caller();
    let mut unknown = 0;
    for names in names.chunks(1000) {
        let asked = names.iter().map(|name| node.adapters.resolve(name, &who));
        let resolutions = futures_util::future::join_all(asked).await;
        unknown += resolutions.iter().filter(|resolution| matches!(resolution, Resolution::Unknown)).count();
    }
    assert_eq!(unknown, 10_000);
    assert_eq!(node.adapters.status().len(), 1, "unknown names are not kept");
    let (after, _) = node.fleet.looks();
    assert!(after - before <= 300, "{} look-ups", after - before);
    assert!(matches!(node.resolve(&names[9_999]).await, Resolution::Unknown));
    assert!(node.fleet.looks().0 - after <= 1, "a name that is known to be unknown is looked up again");
    for wrong in ["../etc", "a/b", "sql@00", ""] {
        assert!(matches!(node.resolve(wrong).await, Resolution::Unknown), "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn names_that_cannot_be_looked_up_are_not_said_to_be_unknown() {
    let node = Node::new();
    node.fleet.is_down(true);
    assert_eq!(node.refusal("sql").await.0, 503);
    node.fleet.is_down(false);
    node.fleet.publish("sql", 1, 0);
    pass(6).await;
    drop(node.ready("sql").await);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_adapter_is_refused_until_another_version_takes_its_place() {
    let node = Node::new();
    let bad = node.fleet.publish("sql", 1, 0);
    drop(node.ready("sql").await);
    node.fleet.revoke(bad.artifact);
    let (status, reason) = node.refusal("sql").await;
    assert!(status == 422 && reason.contains("revoked"), "{reason}");
    node.fleet.publish("sql", 2, 1);
    eventually("the next version does not take over", || node.engine.unloads.lock().unwrap().len() == 1).await;
    assert!(matches!(node.wait("sql").await, Resolution::Ready(_)));
}
