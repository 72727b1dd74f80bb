//! Server, client and announcer together, over loopback with real certificates.

mod contract;
mod failover;
mod fleet;
mod flood;
mod hostile;
mod reports;
mod shared;
mod trust;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::Registry as Metrics;
use futures_util::StreamExt;

use super::registry::tests::{announcement, held, identity};
use super::*;
use crate::identity::{Admission, ClusterCa, NodeCertificate, NodeId, NodeTls, PrivateKey};
use crate::lifecycle::Tasks;
use crate::protocol::metadata::{
    Announcement, Endpoint, Epoch, Held, Locality, Lookup, NodeState, PageRequest, WatchKind, Withdrawal,
};

/// Long enough for a slow machine: nothing waits so long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

struct Cluster {
    dir: tempfile::TempDir,
    ca: ClusterCa,
}

impl Cluster {
    fn new(seed: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::create("test", &PrivateKey::from_seed(seed)).unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.certificate_pem()).unwrap();
        Self { dir, ca }
    }

    fn node(&self, seed: u8) -> NodeTls {
        let key = PrivateKey::from_seed(seed);
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let path = self.dir.path().join(format!("{seed}.pem"));
        std::fs::write(&path, self.ca.issue(&key, &names, Duration::from_secs(3600)).unwrap()).unwrap();
        let admission = Admission::new(Some(&self.dir.path().join("ca.pem")), None).unwrap();
        NodeTls::new(key, NodeCertificate::load(&path).unwrap(), admission).unwrap()
    }

    async fn server(&self, data: Option<&Path>) -> Server {
        self.server_at("127.0.0.1:0".parse().unwrap(), data).await
    }

    async fn server_at(&self, listen: SocketAddr, data: Option<&Path>) -> Server {
        let mut config = Config::new(listen);
        config.store = data.map_or(Store::Memory, |data| Store::File(data.to_owned()));
        config.max_watches_per_caller = 2;
        config.registry.heartbeat = Duration::from_millis(50);
        Server::bind(config, &self.node(SERVER), &mut Metrics::default()).await.unwrap()
    }

    /// A server that is fast to notice things, over `store`.
    async fn server_over(&self, store: Store) -> Result<Server, ServerError> {
        let mut config = Config { store, ..Config::new("127.0.0.1:0".parse().unwrap()) };
        config.registry.heartbeat = Duration::from_millis(50);
        Server::bind(config, &self.node(SERVER), &mut Metrics::default()).await
    }

    fn client(&self, seed: u8, server: &Server) -> Client {
        client(&self.node(seed), vec![ServerAddr::new(Some(PrivateKey::from_seed(SERVER).node_id()), server.addr())])
    }
}

const SERVER: u8 = 100;

fn client(tls: &NodeTls, servers: Vec<ServerAddr>) -> Client {
    let config = ClientConfig { deadline: PATIENCE, ..ClientConfig::new(servers) };
    Client::new(config, tls, ClientMetrics::default()).unwrap()
}

fn ready(seed: u8, sequence: u64, held: Vec<Held>) -> Announcement {
    Announcement { held, server_epoch: None, ..announcement(seed, 1, sequence, NodeState::Ready) }
}

fn lookup(of: u8) -> Lookup {
    Lookup { identities: vec![identity(of)], ..Lookup::default() }
}

fn key(seed: u8) -> NodeId {
    PrivateKey::from_seed(seed).node_id()
}

async fn next(watch: &mut Watch) -> WatchKind {
    tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap().kind
}

#[tokio::test]
async fn what_one_node_announces_another_finds_watches_and_lists() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let (a, b) = (cluster.client(2, &server), cluster.client(3, &server));
    let mut watch = b.watch(&[identity(1)]).await.unwrap();
    assert_eq!(b.lookup(&lookup(1)).await.unwrap().offers, []);

    let one = held(1, 1, 4, 4);
    let reply = a.announce(&ready(2, 1, vec![one.clone()])).await.unwrap();
    assert!(!reply.announce_in_full);
    let artifact = one.artifact.artifact;
    let holder = |node| WatchKind::HolderAdded { identity: identity(1), artifact, node };
    assert_eq!(next(&mut watch).await, holder(key(2)));
    let found = b.lookup(&lookup(1)).await.unwrap();
    assert_eq!(found.server_epoch, reply.server_epoch);
    assert_eq!(found.offers[0].artifact, one.artifact);
    assert_eq!(found.offers[0].holders[0].node, key(2));
    assert_eq!(found.offers[0].holders[0].endpoints.as_ref(), ["10.0.0.2:1".parse::<Endpoint>().unwrap()]);
    let page = b.list(&PageRequest::default()).await.unwrap();
    assert_eq!((page.offers.len(), page.nodes, page.next), (1, 1, None));

    let gone = Withdrawal { node: key(2), epoch: Epoch(1), sequence: 2, artifact };
    assert_eq!(a.withdraw(gone).await.unwrap(), reply.server_epoch);
    assert_eq!(next(&mut watch).await, WatchKind::HolderGone { identity: identity(1), artifact, node: key(2) });
    assert_eq!(b.lookup(&lookup(1)).await.unwrap().offers, []);
    assert!(server.shutdown(PATIENCE).await, "open watches do not hold up the end");
    assert!(tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn nobody_speaks_for_another_node() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let (a, b) = (cluster.client(2, &server), cluster.client(3, &server));
    a.announce(&ready(2, 1, vec![held(1, 1, 4, 4)])).await.unwrap();
    let forged = b.announce(&announcement(2, 2, 1, NodeState::Stale)).await.unwrap_err();
    assert!(matches!(forged, ClientError::Refused { refusal: Refusal::Forbidden, .. }), "{forged}");
    let artifact = held(1, 1, 4, 4).artifact.artifact;
    let forged = b.withdraw(Withdrawal { node: key(2), epoch: Epoch(1), sequence: 9, artifact }).await.unwrap_err();
    assert!(matches!(forged, ClientError::Refused { refusal: Refusal::Forbidden, .. }), "{forged}");
    assert_eq!(b.lookup(&lookup(1)).await.unwrap().offers.len(), 1);
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn refusals_of_the_registry_reach_the_caller_as_what_they_are() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let a = cluster.client(2, &server);
    let refusal = async |announcement: Announcement| match a.announce(&announcement).await {
        Err(ClientError::Refused { refusal, .. }) => refusal,
        other => panic!("{other:?}"),
    };
    a.announce(&announcement(2, 5, 7, NodeState::Stale)).await.unwrap();
    assert_eq!(refusal(announcement(2, 5, 8, NodeState::Ready)).await, Refusal::Ended);
    assert_eq!(refusal(announcement(2, 4, 8, NodeState::Ready)).await, Refusal::Ended);
    assert_eq!(refusal(announcement(2, 5, 7, NodeState::Stale)).await, Refusal::Overtaken);
    let twice = Announcement { held: vec![held(1, 1, 4, 4); 2], ..announcement(2, 6, 1, NodeState::Ready) };
    assert_eq!(refusal(twice).await, Refusal::Invalid);
    let _watches = (a.watch(&[identity(1)]).await.unwrap(), a.watch(&[identity(1)]).await.unwrap());
    let third = a.watch(&[identity(1)]).await.unwrap_err();
    assert!(matches!(third, ClientError::Refused { refusal: Refusal::Full, .. }), "{third}");
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn certificates_of_another_cluster_are_refused_by_both_sides() {
    let (here, there) = (Cluster::new(1), Cluster::new(9));
    let server = here.server(None).await;
    let pinned = ServerAddr::new(Some(key(SERVER)), server.addr());
    let stranger = client(&there.node(2), vec![pinned]);
    assert!(matches!(stranger.list(&PageRequest::default()).await, Err(ClientError::Unavailable { .. })));
    // The server's own view: it trusts nobody of that cluster, whatever the client thinks of it.
    let rejected = async {
        while server.rejected_handshakes() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, rejected).await.unwrap();
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn servers_are_known_by_host_name_or_by_pinned_id_and_others_are_refused() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let port = server.addr().port();
    let ask = async |addr: String| {
        let client = client(&cluster.node(2), vec![addr.parse().unwrap()]);
        client.list(&PageRequest::default()).await.map(|_| ())
    };
    ask(format!("localhost:{port}")).await.unwrap();
    ask(format!("127.0.0.1:{port}")).await.unwrap();
    ask(format!("{}@127.0.0.1:{port}", key(SERVER))).await.unwrap();
    assert!(matches!(ask(format!("{}@127.0.0.1:{port}", key(7))).await, Err(ClientError::Unavailable { .. })));
    assert!(matches!(ask(format!("127.0.0.2:{port}")).await, Err(ClientError::Unavailable { .. })));
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_is_gone_and_remembered() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let gone = cluster.server(None).await;
    let dead = ServerAddr::new(Some(key(SERVER)), gone.addr());
    gone.shutdown(PATIENCE).await;
    let client = client(&cluster.node(2), vec![dead, ServerAddr::new(Some(key(SERVER)), server.addr())]);
    client.list(&PageRequest::default()).await.unwrap();
    client.list(&PageRequest::default()).await.unwrap();
    server.shutdown(PATIENCE).await;
    assert!(matches!(client.list(&PageRequest::default()).await, Err(ClientError::Unavailable { .. })));
}

fn announcer(cluster: &Cluster, server: &Server, seed: u8, epoch: u64, tasks: &Tasks) -> Announcer {
    let node = AnnouncedNode {
        node: key(seed),
        epoch: Epoch(epoch),
        endpoints: Arc::from(["127.0.0.1:9".parse().unwrap()]),
        locality: Arc::new(Locality::default()),
    };
    let fast = Duration::from_millis(5);
    let config = AnnounceConfig { spacing: fast, retry: fast, max_retry: 4 * fast, ..AnnounceConfig::default() };
    Announcer::spawn(cluster.client(seed, server), node, config, tasks)
}

#[tokio::test]
async fn an_announcer_tells_all_changes_drains_and_ends_with_stale() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let tasks = Tasks::new();
    let asker = cluster.client(3, &server);
    let announcer = announcer(&cluster, &server, 2, 1, &tasks);
    announcer.hold(held(1, 1, 4, 4)).unwrap();
    announcer.hold(held(2, 1, 1, 4)).unwrap();
    announcer.set_state(NodeState::Ready);
    assert!(announcer.settled(PATIENCE).await && announcer.is_connected());
    assert_eq!(asker.lookup(&lookup(1)).await.unwrap().offers.len(), 2);
    announcer.drop_artifact(held(1, 1, 4, 4).artifact.artifact);
    announcer.hold(held(2, 1, 4, 4)).unwrap();
    assert!(announcer.settled(PATIENCE).await);
    let offers = asker.lookup(&lookup(1)).await.unwrap().offers;
    assert_eq!((offers.len(), offers[0].holders[0].chunks_held), (1, 4));
    announcer.set_state(NodeState::Draining);
    assert!(announcer.settled(PATIENCE).await);
    assert_eq!(asker.lookup(&lookup(1)).await.unwrap().offers, []);
    assert!(announcer.close(PATIENCE).await);
    let late = cluster.client(2, &server).announce(&announcement(2, 1, 1_000, NodeState::Ready)).await;
    assert!(matches!(late, Err(ClientError::Refused { refusal: Refusal::Ended, .. })));
    assert!(tasks.shutdown(PATIENCE).await);
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn agents_announce_everything_again_to_a_server_that_lost_everything() {
    let cluster = Cluster::new(1);
    // Below the ports that the kernel gives to who asks for any: nobody has it while the server is away.
    let is_free = |addr: &SocketAddr| std::net::TcpListener::bind(addr).is_ok();
    let mut low = (25_000..32_000).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let (addr, tasks) = (low.find(is_free).unwrap(), Tasks::new());
    let server = cluster.server_at(addr, None).await;
    let agents: Vec<_> = (2..6).map(|seed| announcer(&cluster, &server, seed, 1, &tasks)).collect();
    for agent in &agents {
        agent.hold(held(1, 1, 4, 4)).unwrap();
        agent.set_state(NodeState::Ready);
        assert!(agent.settled(PATIENCE).await);
    }
    server.shutdown(PATIENCE).await;
    let server = cluster.server_at(addr, None).await;
    let asker = cluster.client(50, &server);
    let mut watch = asker.watch(&[identity(1)]).await.unwrap();
    let mut back = asker.lookup(&lookup(1)).await.unwrap().offers.first().map_or(0, |offer| offer.holders.len());
    while back < agents.len() {
        assert!(matches!(next(&mut watch).await, WatchKind::HolderAdded { .. }));
        back = asker.lookup(&lookup(1)).await.unwrap().offers[0].holders.len();
    }
    assert!(tasks.shutdown(PATIENCE).await);
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_restarted_server_offers_what_it_remembers_under_a_new_epoch() {
    let cluster = Cluster::new(1);
    let data = tempfile::tempdir().unwrap();
    let server = cluster.server(Some(data.path())).await;
    let a = cluster.client(2, &server);
    let reply = a.announce(&ready(2, 1, vec![held(1, 1, 4, 4), held(2, 1, 4, 4)])).await.unwrap();
    let artifact = held(1, 1, 4, 4).artifact.artifact;
    a.withdraw(Withdrawal { node: key(2), epoch: Epoch(1), sequence: 2, artifact }).await.unwrap();
    server.shutdown(PATIENCE).await;

    let server = cluster.server(Some(data.path())).await;
    let a = cluster.client(2, &server);
    let found = a.lookup(&lookup(1)).await.unwrap();
    assert_eq!(found.offers.len(), 1);
    assert_ne!(found.server_epoch, reply.server_epoch);
    let beat = Announcement { full: false, server_epoch: Some(reply.server_epoch), ..ready(2, 3, vec![]) };
    assert!(a.announce(&beat).await.unwrap().announce_in_full);
    server.shutdown(PATIENCE).await;

    std::fs::remove_dir_all(data.path()).unwrap();
    let server = cluster.server(Some(data.path())).await;
    assert_eq!(cluster.client(2, &server).lookup(&lookup(1)).await.unwrap().offers, []);
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn counts_and_outcomes_are_exposed_with_closed_labels() {
    let cluster = Cluster::new(1);
    let mut metrics = Metrics::default();
    let config = Config::new("127.0.0.1:0".parse().unwrap());
    let server = Server::bind(config, &cluster.node(SERVER), &mut metrics).await.unwrap();
    for seed in 2..12 {
        let client = cluster.client(seed, &server);
        client.announce(&ready(seed, 1, vec![held(seed, seed, 4, 4)])).await.unwrap();
        client.announce(&ready(seed, 1, vec![])).await.unwrap_err();
    }
    server.shutdown(PATIENCE).await;
    let text = crate::telemetry::encode(&metrics);
    for line in [
        "warmd_metadata_requests_total{method=\"announce\",outcome=\"ok\"} 10",
        "warmd_metadata_requests_total{method=\"announce\",outcome=\"refused\"} 10",
        "warmd_metadata_nodes{state=\"ready\"} 10",
        "warmd_metadata_artifacts 10",
        "warmd_metadata_request_seconds_count{method=\"announce\"} 20",
        "warmd_metadata_connections 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains(&key(2).short()));
}

#[tokio::test]
async fn a_crowded_server_sends_away_and_who_was_sent_away_comes_again() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let client = cluster.client(2, &server);
    let (room, turned_away) = (&server.directory().room, &server.directory().metrics.turned_away);
    let mut places: Vec<_> = std::iter::from_fn(|| (20..40).find_map(|seed| room.enter(key(seed)))).collect();
    let crowded = async {
        while turned_away.get() == 0 {
            tokio::task::yield_now().await;
        }
        // Renewals go on while look-ups still wait.
        places.truncate(places.len() - 2);
        let error = crate::metadata::Client::new(short(&server), &cluster.node(3), ClientMetrics::default()).unwrap();
        let error = error.list(&PageRequest::default()).await.unwrap_err();
        assert!(matches!(error, ClientError::Overloaded { .. }), "{error}");
        client.announce(&announcement(2, 1, 1, NodeState::Ready)).await.unwrap();
        drop(places);
    };
    let lookup = Lookup { identities: vec![identity(1)], ..Lookup::default() };
    let (found, ()) = tokio::join!(client.lookup(&lookup), crowded);
    assert!(found.unwrap().offers.is_empty());
    server.shutdown(PATIENCE).await;
}

/// A client that gives up soon.
fn short(server: &Server) -> ClientConfig {
    let addr = ServerAddr::new(Some(PrivateKey::from_seed(SERVER).node_id()), server.addr());
    ClientConfig { deadline: Duration::from_secs(2), ..ClientConfig::new(vec![addr]) }
}
