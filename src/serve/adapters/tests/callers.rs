//! Who may use what, and what others hear of it.

use std::path::Path;

use hyper::StatusCode;

use super::*;
use crate::adapters::{Address, Release};
use crate::proxy::limits::Limit;

/// Tells who may use `secret`.
struct Guard;

impl Access for Guard {
    fn permits(&self, _: &Caller, alias: &Alias, _: Option<Address>) -> Result<(), Denied> {
        let denied = Denied { status: StatusCode::FORBIDDEN, reason: "not yours".to_owned() };
        if alias.as_str() == "secret" { Err(denied) } else { Ok(()) }
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_not_use_an_adapter_neither_sees_nor_loads_it() {
    let node = Node::guarded(|_| {}, Arc::new(Guard));
    node.fleet.publish("secret", 1, 0);
    node.fleet.publish("sql", 1, 1);
    assert_eq!(node.refusal("secret").await, (403, "not yours".to_owned()));
    node.adapters.load(&alias("secret")).unwrap();
    drop(node.ready("sql").await);
    eventually("it is not ready", || node.state("secret") == State::Ready).await;
    assert_eq!(node.refusal("secret").await.0, 403);
    let cards = node.adapters.list(&caller()).await;
    let seen: Vec<_> = cards.iter().map(|card| (&*card.id, card.state.as_deref(), card.parent.as_deref())).collect();
    assert_eq!(seen, [("tiny", None, None), ("sql", Some("ready"), Some("tiny"))]);
}

/// What has an owner is for the tenant `owner`; others are answered with this status.
struct Owners(StatusCode);

impl Access for Owners {
    fn permits(&self, caller: &Caller, _: &Alias, owner: Option<Address>) -> Result<(), Denied> {
        let is_permitted = owner.is_none() || caller.tenant().as_str() == "owner";
        let denied = Denied { status: self.0, reason: "not yours".to_owned() };
        is_permitted.then_some(()).ok_or(denied)
    }
}

const OWNER: &str = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266";

#[tokio::test(start_paused = true)]
async fn a_name_that_is_there_for_another_base_model_alone_is_answered_with_both_models() {
    let node = Node::guarded(|_| {}, Arc::new(Owners(StatusCode::NOT_FOUND)));
    node.fleet.publish_foreign("sql", "acme/large-70b", None);
    node.fleet.publish_foreign("private", "acme/large-70b", Some(OWNER));
    let both = |told: Resolution| match told {
        Resolution::OtherBase { made_for, served } => (made_for, served),
        other => panic!("{other:?}"),
    };
    let expected = ("acme/large-70b".to_owned(), "tiny".to_owned());
    for _ in 0..3 {
        assert_eq!(both(node.wait("sql").await), expected);
    }
    assert_eq!(node.fleet.compared(), 1, "it is remembered");
    assert_eq!(both(node.wait_as("owner", "private").await), expected);
    assert!(matches!(node.wait("private").await, Resolution::Unknown), "who may not use it hears nothing of it");
    assert!(matches!(node.wait("none").await, Resolution::Unknown));
    node.fleet.publish("sql", 1, 0);
    pass(6).await;
    drop(node.ready("sql").await);
}

fn is_refused(resolution: &Resolution) -> bool {
    matches!(resolution, Resolution::Refused { status, .. } if status.as_u16() == 403)
}

#[tokio::test(start_paused = true)]
async fn what_strangers_ask_for_costs_a_manifest_and_no_transfer() {
    let node = Node::guarded(|_| {}, Arc::new(Owners(StatusCode::FORBIDDEN)));
    let owned = |_: &Path, release: &mut Release| release.owner = OWNER.parse().ok();
    node.fleet.publish_changed("mine", 1, owned);
    for _ in 0..3 {
        assert!(is_refused(&node.wait_as("stranger", "mine").await));
        pass(600).await;
    }
    assert_eq!((node.fleet.opened(), node.engine.loads()), ((1, 0), 0));
    assert_eq!(node.state("mine"), State::Absent);
    drop(served(node.wait_as("owner", "mine").await));
    assert_eq!(node.fleet.opened(), (1, 1), "its manifest is known");
    assert!(is_refused(&node.wait_as("stranger", "mine").await));
}

#[tokio::test(start_paused = true)]
async fn of_many_who_ask_at_once_the_one_who_may_is_served_and_the_others_are_refused() {
    let node = Node::guarded(|_| {}, Arc::new(Owners(StatusCode::FORBIDDEN)));
    node.fleet.publish_changed("mine", 1, |_, release| release.owner = OWNER.parse().ok());
    let tenants = (0..100).map(|n| if n == 99 { "owner".to_owned() } else { format!("t{n}") });
    let node = &node;
    let waiting = tenants.map(|tenant| async move {
        let told = node.wait_as(&tenant, "mine").await;
        (tenant, told)
    });
    let answers = futures_util::future::join_all(waiting).await;
    for (tenant, told) in answers {
        match tenant.as_str() {
            "owner" => drop(served(told)),
            _ => assert!(is_refused(&told), "{tenant}: {told:?}"),
        }
    }
    assert_eq!((node.fleet.opened().1, node.engine.loads()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_load_goes_on_without_the_one_who_may_use_it_and_the_next_version_may_be_somebody_elses() {
    let node = Node::guarded(|_| {}, Arc::new(Owners(StatusCode::FORBIDDEN)));
    node.fleet.publish_changed("mine", 1, |_, release| release.owner = OWNER.parse().ok());
    let owner = Caller::at_socket("owner".parse().unwrap(), 0);
    let told = node.adapters.wait("mine", &owner, Instant::now()).await;
    assert!(matches!(told, Resolution::Loading { .. }), "{told:?}");
    eventually("nobody waits, and nothing is loaded", || node.engine.loads() == 1).await;
    node.fleet.is_elsewhere(true);
    eventually("it does not leave", || node.state("mine") == State::Offloaded).await;
    assert!(is_refused(&node.wait_as("stranger", "mine").await));
    node.fleet.publish("mine", 2, 1);
    pass(20).await;
    drop(served(node.wait_as("stranger", "mine").await));
}

/// As many adapters of each tenant.
struct Few(usize);

impl Access for Few {
    fn permits(&self, _: &Caller, _: &Alias, _: Option<Address>) -> Result<(), Denied> {
        Ok(())
    }

    fn max_adapters(&self, _: &Caller) -> usize {
        self.0
    }
}

fn is_limited(resolution: &Resolution) -> bool {
    matches!(resolution, Resolution::Limited(limited) if limited.limit == Limit::Adapters)
}

#[tokio::test(start_paused = true)]
async fn a_tenant_with_all_its_adapters_here_hears_so_and_others_are_served() {
    let node = Node::guarded(|_| {}, Arc::new(Few(2)));
    for (n, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        node.fleet.publish(name, 1, n);
    }
    for name in ["a", "b"] {
        drop(served(node.wait_as("greedy", name).await));
    }
    for name in ["c", "d", "none"] {
        assert!(is_limited(&node.wait_as("greedy", name).await), "whether there is {name} or not");
    }
    assert_eq!(node.fleet.opened(), (2, 2));
    drop(served(node.wait_as("greedy", "a").await));
    drop(served(node.wait_as("modest", "c").await));
    drop(served(node.wait_as("greedy", "c").await));
    node.adapters.load(&alias("d")).unwrap();
    eventually("it is not loaded", || node.state("d") == State::Ready).await;
    drop(served(node.wait_as("greedy", "d").await));
    node.adapters.unload(&alias("a")).unwrap();
    node.fleet.publish("e", 1, 5);
    drop(served(node.wait_as("greedy", "e").await));
    assert!(is_limited(&node.wait_as("greedy", "f").await));
}

#[tokio::test(start_paused = true)]
async fn what_a_tenant_has_here_is_counted_after_a_restart() {
    let node = Node::guarded(|_| {}, Arc::new(Few(1)));
    node.fleet.publish("a", 1, 0);
    node.fleet.publish("b", 1, 1);
    drop(served(node.wait_as("greedy", "a").await));
    let Node { root, fleet, engine, epoch, adapters } = node;
    assert!(Arc::into_inner(adapters).unwrap().shutdown(Duration::from_secs(5)).await);
    let adapters = start(root.path(), &fleet, &engine, &epoch, AdaptersConfig::default(), Arc::new(Few(1)));
    let node = Node { root, fleet, engine, epoch, adapters: Arc::new(adapters) };
    assert!(is_limited(&node.wait_as("greedy", "b").await));
    drop(served(node.wait_as("modest", "b").await));
}

#[tokio::test(start_paused = true)]
async fn a_concealed_name_is_looked_up_counted_and_answered_like_one_that_nobody_has() {
    let node = Node::guarded(|_| {}, Arc::new(Owners(StatusCode::NOT_FOUND)));
    node.fleet.publish_changed("mine", 1, |_, release| release.owner = OWNER.parse().ok());
    let stranger = Caller::at_socket("stranger".parse().unwrap(), 0);
    drop(served(node.wait_as("owner", "mine").await));
    pass(60).await;
    let mut transcripts = Vec::new();
    for name in ["none", "mine"] {
        let mut transcript = Vec::new();
        for pause in [0, 1, 2, 10, 1, 6, 0] {
            pass(pause).await;
            let costs = !node.adapters.knows(name, &stranger);
            let (compared, begun) = (node.fleet.compared(), Instant::now());
            let told = node.adapters.resolve(name, &stranger).await;
            transcript.push((costs, format!("{told:?}"), begun.elapsed(), node.fleet.compared() - compared));
        }
        transcripts.push(transcript);
    }
    assert_eq!(transcripts[0], transcripts[1]);
    assert!(transcripts[0].iter().all(|(_, told, ..)| told == "Unknown"), "{transcripts:?}");
    assert!(transcripts[0].iter().any(|(costs, ..)| *costs) && transcripts[0].iter().any(|(costs, ..)| !costs));
    drop(served(node.wait_as("owner", "mine").await));
}

#[tokio::test(start_paused = true)]
async fn a_concealed_name_that_a_stranger_asks_for_first_is_remembered_like_one_that_nobody_has() {
    let node = Node::guarded(|_| {}, Arc::new(Owners(StatusCode::NOT_FOUND)));
    node.fleet.publish_changed("mine", 1, |_, release| release.owner = OWNER.parse().ok());
    let stranger = Caller::at_socket("stranger".parse().unwrap(), 0);
    for name in ["mine", "none"] {
        assert!(!node.adapters.knows(name, &stranger), "the first question costs");
        assert!(matches!(node.adapters.resolve(name, &stranger).await, Resolution::Unknown));
        assert!(node.adapters.knows(name, &stranger), "the next one does not");
        assert!(matches!(node.adapters.resolve(name, &stranger).await, Resolution::Unknown));
    }
}
