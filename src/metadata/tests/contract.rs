//! What every server keeps to, whatever is behind it.

use super::shared::Redis;
use super::*;

/// A server with a store of its own that nobody used before.
struct Place {
    cluster: Cluster,
    store: Store,
}

impl Place {
    fn new(store: Store) -> Self {
        Self { cluster: Cluster::new(1), store }
    }

    async fn server(&self) -> Server {
        self.cluster.server_over(self.store.clone()).await.unwrap()
    }
}

async fn contract(store: impl Fn() -> Store) {
    what_is_announced_is_offered_until_it_is_withdrawn(Place::new(store())).await;
    the_end_of_an_epoch_is_its_end_and_the_next_begins_empty(Place::new(store())).await;
    late_messages_and_impossible_changes_are_refused(Place::new(store())).await;
    a_withdrawal_takes_one_artifact_of_one_node(Place::new(store())).await;
    a_lease_that_runs_out_hides_a_node_until_it_speaks(Place::new(store())).await;
    what_breaks_a_limit_is_refused_whole(Place::new(store())).await;
    a_node_that_believes_in_another_epoch_is_asked_for_everything(Place::new(store())).await;
}

#[tokio::test]
async fn a_server_with_memory_only_keeps_the_contract() {
    contract(|| Store::Memory).await;
}

#[tokio::test]
async fn a_server_with_a_file_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    contract(|| {
        next.set(next.get() + 1);
        Store::File(dir.path().join(next.get().to_string()))
    })
    .await;
}

#[tokio::test]
async fn a_server_with_a_shared_store_keeps_the_contract() {
    let Some(redis) = Redis::start().await else { return };
    let next = std::cell::Cell::new(0);
    contract(|| {
        next.set(next.get() + 1);
        let Store::Shared(url, config) = redis.store(Drift::Abort) else { panic!("it is shared") };
        Store::Shared(url, RedisConfig { prefix: format!("cluster-{}", next.get()), ..config })
    })
    .await;
}

async fn holders(client: &Client, of: u8) -> Vec<(u64, Vec<NodeId>)> {
    let offers = client.lookup(&lookup(of)).await.unwrap().offers;
    let nodes = |holders: &[crate::protocol::metadata::HolderInfo]| {
        let mut nodes: Vec<_> = holders.iter().map(|holder| holder.node).collect();
        nodes.sort_unstable();
        nodes
    };
    offers.iter().map(|offer| (offer.artifact.generation, nodes(&offer.holders))).collect()
}

async fn what_is_announced_is_offered_until_it_is_withdrawn(place: Place) {
    let server = place.server().await;
    let (a, b) = (place.cluster.client(2, &server), place.cluster.client(3, &server));
    let mut watch = b.watch(&[identity(1)]).await.unwrap();
    let reply = a.announce(&ready(2, 1, vec![held(1, 1, 4, 4)])).await.unwrap();
    assert!(!reply.announce_in_full);
    let artifact = held(1, 1, 4, 4).artifact.artifact;
    let event = |added| match added {
        true => WatchKind::HolderAdded { identity: identity(1), artifact, node: key(2) },
        false => WatchKind::HolderGone { identity: identity(1), artifact, node: key(2) },
    };
    assert_eq!(next(&mut watch).await, event(true));
    assert_eq!(holders(&b, 1).await, [(1, vec![key(2)])]);
    let more =
        Announcement { full: false, server_epoch: Some(reply.server_epoch), ..ready(2, 2, vec![held(3, 1, 1, 4)]) };
    assert!(!a.announce(&more).await.unwrap().announce_in_full);
    assert_eq!(holders(&b, 1).await, [(3, vec![key(2)]), (1, vec![key(2)])]);
    a.withdraw(Withdrawal { node: key(2), epoch: Epoch(1), sequence: 3, artifact }).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchKind::HolderAdded { .. }));
    assert_eq!(next(&mut watch).await, event(false));
    assert_eq!(holders(&b, 1).await, [(3, vec![key(2)])]);
    a.announce(&announcement(2, 1, 4, NodeState::Draining)).await.unwrap();
    assert_eq!(holders(&b, 1).await, []);
    assert!(server.shutdown(PATIENCE).await);
}

async fn the_end_of_an_epoch_is_its_end_and_the_next_begins_empty(place: Place) {
    let server = place.server().await;
    let a = place.cluster.client(2, &server);
    a.announce(&ready(2, 1, vec![held(1, 1, 4, 4)])).await.unwrap();
    a.announce(&announcement(2, 1, 2, NodeState::Stale)).await.unwrap();
    let late = a.announce(&ready(2, 3, vec![])).await.unwrap_err();
    assert!(matches!(late, ClientError::Refused { refusal: Refusal::Ended, .. }), "{late}");
    let next = Announcement { epoch: Epoch(2), full: false, ..ready(2, 1, vec![held(2, 1, 4, 4)]) };
    assert!(a.announce(&next).await.unwrap().announce_in_full);
    assert_eq!(holders(&a, 1).await, [(2, vec![key(2)])]);
    let old = a.announce(&ready(2, 9, vec![])).await.unwrap_err();
    assert!(matches!(old, ClientError::Refused { refusal: Refusal::Ended, .. }), "{old}");
    server.shutdown(PATIENCE).await;
}

async fn late_messages_and_impossible_changes_are_refused(place: Place) {
    let server = place.server().await;
    let a = place.cluster.client(2, &server);
    a.announce(&ready(2, 5, vec![held(1, 1, 4, 4)])).await.unwrap();
    let artifact = held(1, 1, 4, 4).artifact.artifact;
    let late = a.withdraw(Withdrawal { node: key(2), epoch: Epoch(1), sequence: 5, artifact }).await.unwrap_err();
    assert!(matches!(late, ClientError::Refused { refusal: Refusal::Overtaken, .. }), "{late}");
    let late = a.announce(&ready(2, 4, vec![])).await.unwrap_err();
    assert!(matches!(late, ClientError::Refused { refusal: Refusal::Overtaken, .. }), "{late}");
    let back = a.announce(&announcement(2, 1, 6, NodeState::Initializing)).await.unwrap_err();
    assert!(matches!(back, ClientError::Refused { refusal: Refusal::Ended, .. }), "{back}");
    assert_eq!(holders(&a, 1).await, [(1, vec![key(2)])]);
    server.shutdown(PATIENCE).await;
}

async fn a_withdrawal_takes_one_artifact_of_one_node(place: Place) {
    let server = place.server().await;
    let (a, b) = (place.cluster.client(2, &server), place.cluster.client(3, &server));
    let both = vec![held(1, 1, 4, 4), held(2, 1, 4, 4)];
    a.announce(&ready(2, 1, both.clone())).await.unwrap();
    b.announce(&ready(3, 1, both)).await.unwrap();
    let artifact = held(1, 1, 4, 4).artifact.artifact;
    a.withdraw(Withdrawal { node: key(2), epoch: Epoch(1), sequence: 2, artifact }).await.unwrap();
    // Neither of another epoch, nor of a node that is not known.
    b.withdraw(Withdrawal { node: key(3), epoch: Epoch(2), sequence: 2, artifact }).await.unwrap();
    let c = place.cluster.client(4, &server);
    c.withdraw(Withdrawal { node: key(4), epoch: Epoch(1), sequence: 1, artifact }).await.unwrap();
    let mut all = vec![key(2), key(3)];
    all.sort_unstable();
    assert_eq!(holders(&a, 1).await, [(2, all), (1, vec![key(3)])]);
    server.shutdown(PATIENCE).await;
}

async fn a_lease_that_runs_out_hides_a_node_until_it_speaks(place: Place) {
    let mut config = Config { store: place.store.clone(), ..Config::new("127.0.0.1:0".parse().unwrap()) };
    config.registry.lease = Duration::from_millis(200);
    let tls = place.cluster.node(SERVER);
    let server = Server::bind(config, &tls, &mut Metrics::default()).await.unwrap();
    let a = place.cluster.client(2, &server);
    let mut watch = a.watch(&[identity(1)]).await.unwrap();
    let reply = a.announce(&ready(2, 1, vec![held(1, 1, 4, 4)])).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchKind::HolderAdded { .. }));
    assert!(matches!(next(&mut watch).await, WatchKind::HolderGone { .. }));
    assert_eq!(holders(&a, 1).await, []);
    let beat = Announcement { full: false, server_epoch: Some(reply.server_epoch), ..ready(2, 2, vec![]) };
    assert!(!a.announce(&beat).await.unwrap().announce_in_full);
    assert!(matches!(next(&mut watch).await, WatchKind::HolderAdded { .. }));
    server.shutdown(PATIENCE).await;
}

async fn what_breaks_a_limit_is_refused_whole(place: Place) {
    let mut config = Config { store: place.store.clone(), ..Config::new("127.0.0.1:0".parse().unwrap()) };
    config.registry.max_nodes = 1;
    config.registry.max_artifacts_per_node = 2;
    let tls = place.cluster.node(SERVER);
    let server = Server::bind(config, &tls, &mut Metrics::default()).await.unwrap();
    let (a, b) = (place.cluster.client(2, &server), place.cluster.client(3, &server));
    a.announce(&ready(2, 1, vec![held(1, 1, 4, 4)])).await.unwrap();
    let three = (2..5).map(|n| held(n, 1, 4, 4)).collect();
    for refused in [a.announce(&ready(2, 2, three)).await, b.announce(&ready(3, 1, vec![])).await] {
        assert!(matches!(refused, Err(ClientError::Refused { refusal: Refusal::Full, .. })), "{refused:?}");
    }
    assert_eq!(holders(&a, 1).await, [(1, vec![key(2)])]);
    server.shutdown(PATIENCE).await;
}

async fn a_node_that_believes_in_another_epoch_is_asked_for_everything(place: Place) {
    let server = place.server().await;
    let a = place.cluster.client(2, &server);
    let reply = a.announce(&ready(2, 1, vec![held(1, 1, 4, 4)])).await.unwrap();
    let other = crate::protocol::metadata::ServerEpoch(reply.server_epoch.0 ^ 1);
    let beat = |sequence, epoch| Announcement { full: false, server_epoch: Some(epoch), ..ready(2, sequence, vec![]) };
    assert!(!a.announce(&beat(2, reply.server_epoch)).await.unwrap().announce_in_full);
    assert!(a.announce(&beat(3, other)).await.unwrap().announce_in_full);
    assert_eq!(holders(&a, 1).await, [(1, vec![key(2)])], "until then it is believed");
    server.shutdown(PATIENCE).await;
}
