//! Several servers over a Redis or Valkey server of our own. Without either program these tests say so and end.

mod process;

use super::*;
use crate::protocol::metadata::Load;
pub(super) use process::Redis;

fn announcer_of(cluster: &Cluster, servers: &[&Server], seed: u8, tasks: &Tasks) -> Announcer {
    let node = AnnouncedNode {
        node: key(seed),
        epoch: Epoch(1),
        endpoints: Arc::from(["127.0.0.1:9".parse().unwrap()]),
        locality: Arc::new(Locality::default()),
    };
    let fast = Duration::from_millis(5);
    let config = AnnounceConfig { spacing: fast, retry: fast, max_retry: 4 * fast, ..AnnounceConfig::default() };
    Announcer::spawn(all_of(cluster, servers, seed), node, config, tasks)
}

fn all_of(cluster: &Cluster, servers: &[&Server], seed: u8) -> Client {
    let addrs = servers.iter().map(|server| ServerAddr::new(Some(key(SERVER)), server.addr())).collect();
    client(&cluster.node(seed), addrs)
}

/// Asks again and again; fails with `what` when patience ends.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let asking = async {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while !holds() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect(what);
}

/// Asks until `holders` nodes are offered; fails when patience ends.
async fn until_offered(asker: &Client, of: u8, holders: usize) {
    let offered = async {
        loop {
            let found = asker.lookup(&lookup(of)).await;
            let offers = found.map(|found| found.offers).unwrap_or_default();
            if offers.first().map_or(0, |offer| offer.holders.len()) == holders {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, offered).await.unwrap();
}

fn words(error: &ClientError) -> String {
    let ClientError::Unavailable { words, .. } = error else { panic!("{error:?}") };
    words.to_string()
}

#[tokio::test]
async fn what_one_server_hears_the_others_offer_watch_and_list() {
    let Some(redis) = Redis::start().await else { return };
    let cluster = Cluster::new(1);
    let (a, b) = (redis.server(&cluster).await, redis.server(&cluster).await);
    let (at_a, at_b) = (cluster.client(2, &a), cluster.client(3, &b));
    let mut watch = at_b.watch(&[identity(1)]).await.unwrap();
    let one = held(1, 1, 4, 4);
    let reply = at_a.announce(&ready(2, 1, vec![one.clone()])).await.unwrap();
    let artifact = one.artifact.artifact;
    assert_eq!(next(&mut watch).await, WatchKind::HolderAdded { identity: identity(1), artifact, node: key(2) });
    let found = at_b.lookup(&lookup(1)).await.unwrap();
    assert_eq!((found.server_epoch, found.offers.len()), (reply.server_epoch, 1));

    // A large announcement does not go through the log.
    let many: Vec<_> = (0..250).map(|n| held(n, 7, 4, 4)).collect();
    cluster.client(4, &a).announce(&ready(4, 1, many)).await.unwrap();
    until_offered(&at_b, 7, 1).await;
    assert_eq!(
        at_b.list(&PageRequest { size: Some(1_000), ..PageRequest::default() }).await.unwrap().offers.len(),
        251
    );

    let gone = Withdrawal { node: key(2), epoch: Epoch(1), sequence: 2, artifact };
    cluster.client(2, &b).withdraw(gone).await.unwrap();
    assert_eq!(next(&mut watch).await, WatchKind::HolderGone { identity: identity(1), artifact, node: key(2) });
    for server in [a, b] {
        server.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
async fn an_end_that_one_server_heard_holds_at_all_of_them() {
    let Some(redis) = Redis::start().await else { return };
    let cluster = Cluster::new(1);
    let (a, b) = (redis.server(&cluster).await, redis.server(&cluster).await);
    let (at_a, at_b) = (cluster.client(2, &a), cluster.client(2, &b));
    for epoch in 1..20 {
        let told = |sequence, state| Announcement { epoch: Epoch(epoch), ..announcement(2, 1, sequence, state) };
        at_a.announce(&told(1, NodeState::Ready)).await.unwrap();
        // Both at once: whichever is first, READY does not follow STALE.
        let (end, back) = (told(2, NodeState::Stale), told(3, NodeState::Ready));
        let (end, back) = tokio::join!(at_a.announce(&end), at_b.announce(&back));
        match (&end, &back) {
            (Ok(_), Err(ClientError::Refused { refusal: Refusal::Ended, .. }))
            | (Err(ClientError::Refused { refusal: Refusal::Overtaken, .. }), Ok(_)) => {}
            other => panic!("{other:?}"),
        }
        let _ = at_b.announce(&told(4, NodeState::Stale)).await;
        for client in [&at_a, &at_b] {
            let late = client.announce(&told(9, NodeState::Ready)).await;
            assert!(matches!(late, Err(ClientError::Refused { refusal: Refusal::Ended, .. })), "{late:?}");
        }
    }
    for server in [a, b] {
        server.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_store_that_lost_nothing_but_its_count_takes_announcements_again() {
    let Some(redis) = Redis::start().await else { return };
    let cluster = Cluster::new(1);
    let server = redis.server(&cluster).await;
    let tasks = Tasks::new();
    let agents: Vec<_> = (2..6).map(|seed| announcer_of(&cluster, &[&server], seed, &tasks)).collect();
    let asker = cluster.client(50, &server);
    for (of, lost) in [(1, false), (2, true)] {
        if lost {
            assert_eq!(redis.ask(&["DEL", "{warmd}:meta"]).trim(), "1");
        }
        for agent in &agents {
            agent.set_state(NodeState::Ready);
            agent.hold(held(of, of, 4, 4)).unwrap();
            assert!(agent.settled(PATIENCE).await);
        }
        until_offered(&asker, of, 4).await;
    }
    tasks.shutdown(PATIENCE).await;
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_store_that_is_gone_is_an_error_and_agents_fill_the_one_that_comes_back_empty() {
    let Some(mut redis) = Redis::start().await else { return };
    let cluster = Cluster::new(1);
    let (a, b) = (redis.server(&cluster).await, redis.server(&cluster).await);
    let tasks = Tasks::new();
    let agents: Vec<_> = (2..6).map(|seed| announcer_of(&cluster, &[&a, &b], seed, &tasks)).collect();
    for agent in &agents {
        agent.hold(held(1, 1, 4, 4)).unwrap();
        agent.set_state(NodeState::Ready);
        assert!(agent.settled(PATIENCE).await);
    }
    let asker = cluster.client(50, &b);
    until_offered(&asker, 1, 4).await;
    let before = asker.lookup(&lookup(1)).await.unwrap().server_epoch;

    redis.kill();
    let lost = async {
        loop {
            match asker.lookup(&lookup(1)).await {
                Ok(found) => assert_eq!(found.offers[0].holders.len(), 4, "no answer is better than a wrong one"),
                Err(error) => return words(&error),
            }
            tokio::task::yield_now().await;
        }
    };
    let why = tokio::time::timeout(PATIENCE, lost).await.unwrap();
    assert!(why.contains("shared store"), "{why}");
    let refused = all_of(&cluster, &[&a, &b], 50).list(&PageRequest::default()).await.unwrap_err();
    assert!(words(&refused).contains("shared store"), "{refused}");

    redis.run().await;
    until_offered(&asker, 1, 4).await;
    assert_ne!(asker.lookup(&lookup(1)).await.unwrap().server_epoch, before);

    redis.empty();
    until_offered(&asker, 1, 0).await;
    until_offered(&asker, 1, 4).await;
    assert!(tasks.shutdown(PATIENCE).await);
    for server in [a, b] {
        server.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
async fn agents_go_on_with_the_other_servers_when_one_of_three_is_killed() {
    let Some(redis) = Redis::start().await else { return };
    let cluster = Cluster::new(1);
    let servers = [redis.server(&cluster).await, redis.server(&cluster).await, redis.server(&cluster).await];
    let [a, b, c] = &servers;
    let tasks = Tasks::new();
    let agents: Vec<_> = (2..5).map(|seed| announcer_of(&cluster, &[a, b, c], seed, &tasks)).collect();
    for agent in &agents {
        agent.hold(held(1, 1, 4, 4)).unwrap();
        agent.set_state(NodeState::Ready);
        assert!(agent.settled(PATIENCE).await);
    }
    let asker = all_of(&cluster, &[a, c], 50);
    until_offered(&asker, 1, 3).await;
    let [a, b, c] = servers;
    a.shutdown(Duration::ZERO).await;
    for agent in &agents {
        agent.hold(held(2, 2, 4, 4)).unwrap();
        assert!(agent.settled(PATIENCE).await && agent.is_connected());
    }
    until_offered(&asker, 1, 3).await;
    until_offered(&asker, 2, 3).await;
    assert!(tasks.shutdown(PATIENCE).await);
    for server in [b, c] {
        server.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_server_with_other_settings_is_told_what_differs_and_how_to_mend_it() {
    let Some(redis) = Redis::start().await else { return };
    let cluster = Cluster::new(1);
    let first = redis.server(&cluster).await;
    let start = async |lease: u64, drift| {
        let mut config = Config { store: redis.store(drift), ..Config::new("127.0.0.1:0".parse().unwrap()) };
        config.registry.heartbeat = Duration::from_millis(50);
        config.registry.lease = Duration::from_secs(lease);
        Server::bind(config, &cluster.node(SERVER), &mut Metrics::default()).await
    };
    let Err(ServerError::Drifted(drifted)) = start(77, Drift::Abort).await else { panic!("it started") };
    assert_eq!(drifted.0.len(), 1);
    assert!(drifted.to_string().contains("WARMD_SERVER_LEASE=30s warmd metadata"), "{drifted}");
    start(77, Drift::Warn).await.unwrap().shutdown(PATIENCE).await;
    start(30, Drift::Abort).await.unwrap().shutdown(PATIENCE).await;
    start(77, Drift::Adopt).await.unwrap().shutdown(PATIENCE).await;
    assert!(matches!(start(30, Drift::Abort).await, Err(ServerError::Drifted(_))));
    start(77, Drift::Abort).await.unwrap().shutdown(PATIENCE).await;
    let stranger = Cluster::new(9).server_over(redis.store(Drift::Abort)).await;
    let Err(ServerError::Drifted(drifted)) = stranger else { panic!("of another cluster") };
    assert!(drifted.0.iter().any(|difference| difference.name == "cluster"), "{drifted}");
    first.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_store_that_is_not_there_at_start_is_named() {
    let Some(mut redis) = Redis::start().await else { return };
    redis.kill();
    let error = Cluster::new(1).server_over(redis.store(Drift::Abort)).await.unwrap_err();
    assert!(matches!(error, ServerError::Shared(StoreError::Unreachable(_))), "{error:?}");
}

#[tokio::test]
async fn nodes_are_counted_and_forgotten_once_however_many_servers_there_are() {
    let Some(redis) = Redis::start().await else { return };
    let cluster = Cluster::new(1);
    let mut servers = Vec::new();
    for _ in 0..3 {
        let mut metrics = Metrics::default();
        let mut config = Config { store: redis.store(Drift::Abort), ..Config::new("127.0.0.1:0".parse().unwrap()) };
        config.registry.lease = Duration::from_millis(300);
        config.registry.forget = Duration::from_millis(300);
        let server = Server::bind(config, &cluster.node(SERVER), &mut metrics).await.unwrap();
        servers.push((server, metrics));
    }
    let clients: Vec<_> = servers.iter().map(|(server, _)| cluster.client(2, server)).collect();
    let mut watch = clients[1].watch(&[identity(1)]).await.unwrap();
    clients[0].announce(&ready(2, 1, vec![held(1, 1, 4, 4)])).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchKind::HolderAdded { .. }));
    assert!(matches!(next(&mut watch).await, WatchKind::HolderGone { .. }), "its lease ran out");
    until("it is not forgotten", || redis.ask(&["HLEN", "{warmd}:nodes"]).trim() == "0").await;
    // Left are the epoch, the settings, the log and the leader, which is nobody for a moment where it was late to renew.
    until("something else is left", || redis.ask(&["DBSIZE"]).trim() == "4").await;
    let with = |line: &str| {
        let texts = servers.iter().map(|(_, metrics)| crate::telemetry::encode(metrics));
        texts.filter(|text| text.contains(&format!("\n{line}\n"))).count()
    };
    until("not one of them leads", || with("warmd_metadata_leads 1") == 1).await;
    until("the store is lost", || with("warmd_metadata_shared_store_up 1") == 3).await;
    assert_eq!(with("warmd_metadata_lease_expiries_total 1"), 1);
    for (server, _) in servers {
        server.shutdown(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_agents_at_three_servers_end_with_one_view_of_everything() {
    let Some(redis) = Redis::start().await else { return };
    let cluster = Cluster::new(1);
    let servers = [redis.server(&cluster).await, redis.server(&cluster).await, redis.server(&cluster).await];
    let speak = async |seed: u8| {
        let clients: Vec<_> = servers.iter().map(|server| cluster.client(seed, server)).collect();
        let mut sequence = 0;
        for turn in 0..40_usize {
            sequence += 1;
            let client = &clients[turn % 3];
            let n = (turn % 5) as u8;
            if turn % 4 == 3 {
                let artifact = held(n, 1, 4, 4).artifact.artifact;
                client.withdraw(Withdrawal { node: key(seed), epoch: Epoch(1), sequence, artifact }).await.unwrap();
            } else {
                let load = Load { uploads: turn as u32, upload_slots: 99 };
                let told = Announcement { full: turn == 0, load, ..ready(seed, sequence, vec![held(n, 1, 4, 4)]) };
                client.announce(&told).await.unwrap();
            }
        }
    };
    futures_util::future::join_all((2..14).map(speak)).await;
    let asker = |server| cluster.client(50, server);
    // One more change, so that each server has come to the end when it shows it.
    cluster.client(60, &servers[0]).announce(&ready(60, 1, vec![held(9, 9, 4, 4)])).await.unwrap();
    let mut views = Vec::new();
    for server in &servers {
        until_offered(&asker(server), 9, 1).await;
        let page = asker(server).list(&PageRequest::default()).await.unwrap();
        let mut counts: Vec<_> = page.offers.iter().map(|o| (o.artifact.artifact, o.holder_count)).collect();
        counts.sort_unstable();
        views.push((page.nodes, counts));
    }
    assert_eq!(views[0].0, 13);
    assert!(views[0].1.len() > 3);
    assert!(views.iter().all(|view| *view == views[0]), "{views:?}");
    // A server that starts now reads the same from the records.
    let late = redis.server(&cluster).await;
    let page = asker(&late).list(&PageRequest::default()).await.unwrap();
    let mut counts: Vec<_> = page.offers.iter().map(|o| (o.artifact.artifact, o.holder_count)).collect();
    counts.sort_unstable();
    assert_eq!((page.nodes, counts), views[0]);
    late.shutdown(PATIENCE).await;
    for server in servers {
        server.shutdown(PATIENCE).await;
    }
}
