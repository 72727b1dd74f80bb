//! Nodes that find each other over the loopback.

use std::path::Path;

use libp2p::futures::StreamExt;
use libp2p::kad::store::RecordStore;
use libp2p::request_response::Event;
use libp2p::swarm::{DialError, SwarmEvent};
use libp2p::{PeerId, Swarm, kad};

use super::network::{Behaviour, BehaviourEvent};
use super::peer::{multiaddr, peer_of};
use super::samples::{held, node};
use super::*;
use crate::digest::IdentityId;
use crate::identity::{Admission, ClusterCa, NodeCertificate, PrivateKey};
use crate::protocol::metadata::Question;

const DEADLINE: Duration = Duration::from_secs(30);

struct Cluster {
    dir: tempfile::TempDir,
    ca: ClusterCa,
    tasks: Tasks,
}

impl Cluster {
    fn new(seed: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::create("test", &PrivateKey::from_seed(seed)).unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.certificate_pem()).unwrap();
        Self { dir, ca, tasks: Tasks::new() }
    }

    fn tls(&self, seed: u8) -> NodeTls {
        let key = PrivateKey::from_seed(seed);
        let path = self.dir.path().join(format!("{seed}.pem"));
        std::fs::write(&path, self.ca.issue(&key, &[], Duration::from_secs(3_600)).unwrap()).unwrap();
        tls(key, &path, &self.dir.path().join("ca.pem"))
    }

    fn local(&self, seed: u8) -> LocalNode {
        let endpoint = format!("127.0.0.1:{}", 10_000 + u16::from(seed)).parse().unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        LocalNode { listen, endpoints: Arc::from([endpoint]), locality: Arc::default(), memory: None }
    }

    async fn node_with(&self, seed: u8, config: DiscoveryConfig, local: LocalNode, limits: Limits) -> Discovery {
        let (tls, metrics) = (self.tls(seed), Metrics::default());
        let discovery = Discovery::start_within(&config, local, &tls, metrics, &self.tasks, limits).await.unwrap();
        discovery.set_state(NodeState::Ready);
        discovery
    }

    /// `direct`: whether all known nodes are asked, or the DHT.
    async fn node(&self, seed: u8, bootstrap: &[&Discovery], direct: bool) -> Discovery {
        let bootstrap: Vec<BootstrapAddr> = bootstrap.iter().map(|other| other.addr().into()).collect();
        let config = DiscoveryConfig { bootstrap, direct: if direct { 50 } else { 0 }, ..DiscoveryConfig::default() };
        self.node_with(seed, config, self.local(seed), Limits::default()).await
    }

    /// A swarm that the test polls itself.
    async fn swarm(&self, seed: u8) -> Swarm<Behaviour> {
        let tasks = Arc::new(self.tasks.child());
        network::open(&self.tls(seed), "127.0.0.1:0".parse().unwrap(), &[], false, Limits::default(), tasks)
            .await
            .unwrap()
            .0
    }
}

fn tls(key: PrivateKey, certificate: &Path, ca: &Path) -> NodeTls {
    NodeTls::new(key, NodeCertificate::load(certificate).unwrap(), Admission::new(Some(ca), None).unwrap()).unwrap()
}

fn lookup(identity: u8) -> Lookup {
    Lookup { identities: vec![IdentityId::from_array([identity; 32])], ..Lookup::default() }
}

/// Holders that are found, until there are as many as expected.
async fn holders(of: &Discovery, identity: u8, expected: &[u8]) -> Vec<u8> {
    let seeds = |offers: Vec<Offer>| {
        let nodes: Vec<_> = offers.iter().flat_map(|offer| &offer.holders).map(|holder| holder.node).collect();
        (1..=99).filter(|seed| nodes.contains(&node(*seed))).collect::<Vec<u8>>()
    };
    let find = async {
        loop {
            let found = seeds(of.lookup(&lookup(identity)).await.unwrap());
            if found == expected {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, find).await.expect("the holders that were expected")
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_met_through_a_third_one_find_what_the_other_holds() {
    let cluster = Cluster::new(200);
    let first = cluster.node(1, &[], true).await;
    let (a, b) = (cluster.node(2, &[&first], true).await, cluster.node(3, &[&first], true).await);
    a.hold(held(1, 7, 10));
    assert_eq!(holders(&b, 7, &[2]).await, [2]);
    a.drop_artifact(&held(1, 7, 10).artifact.artifact);
    assert!(holders(&b, 7, &[]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dht_names_the_holders() {
    let cluster = Cluster::new(200);
    let first = cluster.node(1, &[], false).await;
    let mut others = Vec::new();
    for seed in 2..=8 {
        others.push(cluster.node(seed, &[&first], false).await);
    }
    others[0].hold(held(1, 7, 10));
    others[1].hold(held(1, 7, 10));
    assert_eq!(holders(&others[6], 7, &[2, 3]).await, [2, 3]);
    assert_eq!(holders(&first, 7, &[2, 3]).await, [2, 3]);
    assert!(first.lookup(&lookup(8)).await.unwrap().is_empty());
    others[0].set_state(NodeState::Draining);
    assert_eq!(holders(&others[6], 7, &[3]).await, [3]);
}

/// Polls until a dial has ended.
async fn dialled(swarm: &mut Swarm<Behaviour>, addr: SocketAddr) -> Result<(), DialError> {
    swarm.dial(multiaddr(addr)).unwrap();
    let ended = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { .. } => return Ok(()),
                SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error),
                _ => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("the end of a dial")
}

/// A swarm of another cluster that lets in whom it dials, with a record to put and a question to ask. Returns when it was
/// turned away.
async fn intrude(elsewhere: &Cluster, seed: u8, victim: &Discovery) {
    let key = PrivateKey::from_seed(seed);
    let certificate = elsewhere.dir.path().join("stranger.pem");
    std::fs::write(&certificate, elsewhere.ca.issue(&key, &[], Duration::from_secs(3_600)).unwrap()).unwrap();
    let admission = Admission::new(None, Some([node(1)].into())).unwrap();
    let tls = NodeTls::new(key, NodeCertificate::load(&certificate).unwrap(), admission).unwrap();
    let tasks = Arc::new(elsewhere.tasks.child());
    let (mut stranger, _) =
        network::open(&tls, "127.0.0.1:0".parse().unwrap(), &[], false, Limits::default(), tasks).await.unwrap();
    stranger.dial(multiaddr(victim.addr())).unwrap();
    let victim = peer_of(&node(1)).unwrap();
    let ended = async {
        loop {
            match stranger.select_next_some().await {
                SwarmEvent::ConnectionEstablished { .. } => {
                    let behaviour = stranger.behaviour_mut();
                    behaviour.kad.add_address(&victim, multiaddr("127.0.0.1:9".parse().unwrap()));
                    behaviour.kad.start_providing(vec![7; 32].into()).unwrap();
                    let identities = vec![IdentityId::from_array([7; 32])];
                    behaviour.exchange.send_request(&victim, Question { identities });
                }
                SwarmEvent::Behaviour(BehaviourEvent::Exchange(Event::Message { .. })) => panic!("an answer"),
                SwarmEvent::ConnectionClosed { .. } | SwarmEvent::OutgoingConnectionError { .. } => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("to be turned away");
}

/// Everybody that a node tells a member of.
async fn told(member: &mut Swarm<Behaviour>) -> Vec<PeerId> {
    loop {
        match member.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::RoutingUpdated { .. })) => {
                member.behaviour_mut().kad.get_closest_peers(peer_of(&node(50)).unwrap());
            }
            SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                result: kad::QueryResult::GetClosestPeers(Ok(found)),
                ..
            })) => return found.peers.into_iter().map(|peer| peer.peer_id).collect(),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nothing_and_put_nothing() {
    let (cluster, elsewhere) = (Cluster::new(200), Cluster::new(201));
    let victim = cluster.node(1, &[], true).await;
    victim.hold(held(1, 7, 10));
    for seed in 50..60 {
        intrude(&elsewhere, seed, &victim).await;
    }
    assert_eq!(victim.connected(), 0);
    let mut member = cluster.swarm(2).await;
    dialled(&mut member, victim.addr()).await.unwrap();
    let told = tokio::time::timeout(DEADLINE, told(&mut member)).await.expect("what the victim tells");
    assert_eq!(told, [peer_of(&node(1)).unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_leave_room_for_members() {
    let cluster = Cluster::new(200);
    let victim = cluster.node(1, &[], true).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(tokio::net::TcpStream::connect(victim.addr()).await.unwrap());
    }
    victim.hold(held(1, 7, 10));
    let member = cluster.node(2, &[&victim], true).await;
    assert_eq!(holders(&member, 7, &[1]).await, [1]);
    assert_eq!(victim.connected(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lies_costs_time_only() {
    let cluster = Cluster::new(200);
    let first = cluster.node(1, &[], false).await;
    let honest = cluster.node(2, &[&first], false).await;
    honest.hold(held(1, 7, 10));
    let asker = cluster.node(3, &[&first], false).await;
    let mut liar = cluster.swarm(4).await;
    dialled(&mut liar, first.addr()).await.unwrap();
    dialled(&mut liar, asker.addr()).await.unwrap();
    // It names nodes that are not there as holders of everything, and answers no question.
    let lie = move |liar: &mut Swarm<Behaviour>| {
        for shard in 0..16 {
            let key = super::key::key(&IdentityId::from_array([7; 32]), shard);
            for seed in 60..90 {
                let record = kad::ProviderRecord {
                    key: key.to_vec().into(),
                    provider: peer_of(&node(seed)).unwrap(),
                    expires: None,
                    addresses: vec![multiaddr("127.0.0.1:9".parse().unwrap())],
                };
                liar.behaviour_mut().kad.store_mut().add_provider(record).unwrap();
            }
        }
    };
    lie(&mut liar);
    cluster.tasks.spawn("liar", async move {
        loop {
            liar.select_next_some().await;
        }
    });
    assert_eq!(holders(&asker, 7, &[2]).await, [2]);
}

/// A member that publishes under many keys and asks many questions, as fast as its victim takes them. It says so when it has
/// published them all, and goes on.
async fn flood(mut flooder: Swarm<Behaviour>, victim: SocketAddr, done: mpsc::Sender<()>) {
    flooder.dial(multiaddr(victim)).unwrap();
    let mut keys = (0..100u8).map(|n| [n; 32]);
    loop {
        let SwarmEvent::Behaviour(BehaviourEvent::Kad(
            kad::Event::RoutingUpdated { is_new_peer: true, .. }
            | kad::Event::OutboundQueryProgressed { result: kad::QueryResult::StartProviding(_), .. },
        )) = flooder.select_next_some().await
        else {
            continue;
        };
        let behaviour = flooder.behaviour_mut();
        match keys.next() {
            Some(key) => drop(behaviour.kad.start_providing(key.to_vec().into()).unwrap()),
            None => drop(done.try_send(())),
        }
        let identities = vec![IdentityId::from_array([7; 32])];
        behaviour.exchange.send_request(&peer_of(&node(1)).unwrap(), Question { identities });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_members_leaves_the_tables_bounded_and_the_node_at_work() {
    let cluster = Cluster::new(200);
    let limits = Limits { connections: 9, records: 40, per_key: 4, per_node: 16 };
    let (config, metrics) = (DiscoveryConfig::default(), Metrics::default());
    let (local, tls) = (cluster.local(1), cluster.tls(1));
    let victim = Discovery::start_within(&config, local, &tls, metrics.clone(), &cluster.tasks, limits).await.unwrap();
    victim.set_state(NodeState::Ready);
    victim.hold(held(1, 7, 10));
    let member = cluster.node(2, &[&victim], true).await;
    assert!(member.met(1, DEADLINE).await);
    let (done, mut ended) = mpsc::channel(64);
    for seed in 10..30 {
        let flooder = cluster.swarm(seed).await;
        cluster.tasks.spawn("flooder", flood(flooder, victim.addr(), done.clone()));
    }
    // The member has one of the connections.
    for _ in 1..limits.connections {
        tokio::time::timeout(DEADLINE, ended.recv()).await.expect("a flood").unwrap();
    }
    // One that has ended may have said so several times.
    let flooded = async {
        while metrics.records.get() <= 16 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, flooded).await.expect("a flood of more than one");
    assert_eq!(holders(&member, 7, &[1]).await, [1]);
    let records = metrics.records.get();
    assert!(records <= limits.records as i64, "{records}");
    assert!(victim.connected() <= limits.connections as usize, "{}", victim.connected());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_again_knows_where_the_others_were() {
    let cluster = Cluster::new(200);
    let first = cluster.node(1, &[], true).await;
    let memory = cluster.dir.path().join("agents");
    let local = LocalNode { memory: Some(memory.clone()), ..cluster.local(2) };
    let config = DiscoveryConfig { bootstrap: vec![first.addr().into()], ..DiscoveryConfig::default() };
    let before = cluster.node_with(2, config, local.clone(), Limits::default()).await;
    let written = async {
        while memory::read(&memory) != [first.addr()] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, written).await.expect("what is remembered");
    before.close(DEADLINE).await;
    let again = cluster.node_with(2, DiscoveryConfig::default(), local, Limits::default()).await;
    assert!(again.met(1, DEADLINE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_holds_is_published_when_it_says_so() {
    let cluster = Cluster::new(200);
    let first = cluster.node(1, &[], false).await;
    let a = cluster.node(2, &[&first], false).await;
    assert!(a.met(1, DEADLINE).await);
    (1..40).for_each(|n| a.hold(held(n, n, 10)));
    assert!(a.published(DEADLINE).await);
    assert_eq!(holders(&first, 39, &[2]).await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_an_error_with_the_way_out() {
    let cluster = Cluster::new(200);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tasks = Arc::new(Tasks::new());
    let opened =
        network::open(&cluster.tls(1), taken.local_addr().unwrap(), &[], false, Limits::default(), tasks).await;
    let error = opened.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("discovery.listen"), "{error}");
}
