//! Networks as they are: they lose, damage, swap and cut, they are slow, behind firewalls, and fall apart.

use std::net::SocketAddr;

use warmd::agent::AgentConfig;
use warmd::serve::warm::Verdict;
use warmd::transport::Carriers;

use crate::harness::cluster::{Cluster, identity, until};
use crate::harness::lan::Lan;
use crate::harness::ports::free;
use crate::harness::process::{AgentProcess, Role};
use crate::harness::relay::{Faults, Relay};
use crate::harness::tree;

/// A holder that peers reach through the relay, and who pulls from it.
async fn pulled_through(cluster: &Cluster, carrier: Carriers, behind: SocketAddr, relay: &Relay) {
    let (mut config, mut asks) = (cluster.config("a"), cluster.config("b"));
    config.transport.listen = behind;
    config.advertise = vec![relay.addr];
    config.transport.carrier = carrier;
    asks.transport.carrier = carrier;
    let (a, b) = (cluster.agent_with(config).await, cluster.agent_with(asks).await);
    let files = tree::sample();
    tree::write(&cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    let report = b.warm(cluster.job(identity, "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    tree::assert_same(&tree::read(&cluster.path("cache")), &files);
    b.stop().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_that_are_lost_doubled_swapped_and_damaged_cost_time_only() {
    let (cluster, behind) = (Cluster::start().await, free());
    let faults = Faults { lost: 10, doubled: 10, swapped: 20, damaged: 10 };
    let relay = Relay::udp(behind, faults, 7).await;
    pulled_through(&cluster, Carriers::Quic, behind, &relay).await;
    assert!(relay.faulty() > 10, "only {} datagrams fared badly", relay.faulty());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_in_the_middle_are_taken_up_again() {
    let (cluster, behind) = (Cluster::start().await, free());
    let relay = Relay::tcp(behind, 2, 3_000_000).await;
    pulled_through(&cluster, Carriers::Tcp, behind, &relay).await;
    assert_eq!(relay.cut(), 2);
}

const PEERS: u16 = 4780;
const SERVER: u16 = 4781;
const METRICS: u16 = 9780;

/// A metadata server on the host of that name, and agents on hosts.
struct Fleet {
    lan: Lan,
    cluster: Cluster,
    _server: Role,
}

impl Fleet {
    async fn new(hosts: &[&'static str]) -> Option<Self> {
        let lan = Lan::new(hosts)?;
        let mut cluster = Cluster::without_server();
        let addr = lan.socket("meta", SERVER);
        let state = cluster.state_dir("metadata", &[&addr.ip().to_string()]);
        cluster.ask(addr.to_string().parse().unwrap());
        let server = Role::start(&lan.on("meta"), &["metadata", "--listen", &addr.to_string()], &state).await;
        Some(Self { lan, cluster, _server: server })
    }

    fn config(&self, host: &str) -> AgentConfig {
        let mut config = self.cluster.config(host);
        config.transport.listen = self.lan.socket(host, PEERS);
        config.metrics.listen = Some(([127, 0, 0, 1], METRICS).into());
        config
    }

    async fn agent(&self, host: &str) -> AgentProcess {
        AgentProcess::start_on(&self.lan.on(host), &self.config(host)).await
    }
}

/// What `a` has published is installed on `b`, over what `carrier` names.
async fn comes_over(fleet: &Fleet, carrier: &str) {
    let a = fleet.agent("a").await;
    let mut config = fleet.config("b");
    if carrier == "quic" {
        // TCP would win where QUIC is slow to begin.
        config.transport.carrier = Carriers::Quic;
    }
    let b = AgentProcess::start_on(&fleet.lan.on("b"), &config).await;
    let files = tree::sample();
    tree::write(&fleet.cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&fleet.cluster.path("source"), &identity).await;
    let report = b.warm(fleet.cluster.job(identity, "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    tree::assert_same(&tree::read(&fleet.cluster.path("cache")), &files);
    let metrics = fleet.lan.scrape("b", METRICS);
    let connected = format!(r#"warmd_transfer_connections{{carrier="{carrier}"}} 1"#);
    assert!(metrics.contains(&connected), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_firewall_that_drops_udp_caches_come_over_tcp() {
    let Some(fleet) = Fleet::new(&["meta", "a", "b"]).await else { return };
    fleet.lan.drop_on("a", &["meta l4proto udp"]);
    comes_over(&fleet, "tcp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_slow_link_that_loses_packets_caches_come_over_quic() {
    let Some(fleet) = Fleet::new(&["meta", "a", "b"]).await else { return };
    fleet.lan.run("a", "tc qdisc add dev eth0 root tbf rate 400mbit burst 64kb latency 20ms");
    fleet.lan.drop_on("b", &["meta l4proto udp numgen random mod 100 < 2"]);
    comes_over(&fleet, "quic").await;
}

/// `a` hears nobody but the server, then `b` does not reach the server either: what is known by then is enough.
#[tokio::test(flavor = "multi_thread")]
async fn when_the_network_falls_apart_whoever_can_be_reached_is_enough_and_healed_is_whole_again() {
    let Some(fleet) = Fleet::new(&["meta", "a", "b", "c"]).await else { return };
    let (a, b, c) = (fleet.agent("a").await, fleet.agent("b").await, fleet.agent("c").await);
    let files = tree::sample();
    tree::write(&fleet.cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&fleet.cluster.path("source"), &identity).await;
    let report = c.warm(fleet.cluster.job(identity.clone(), "on-c")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");

    // One way only: what `a` sends arrives, what it is sent does not.
    let (b_addr, server) = (fleet.lan.addr("b"), fleet.lan.addr("meta"));
    fleet.lan.drop_on("a", &[&format!("ip saddr {b_addr}")]);
    let report = b.warm(fleet.cluster.job(identity.clone(), "on-b")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    tree::assert_same(&tree::read(&fleet.cluster.path("on-b")), &files);

    fleet.lan.drop_on("b", &[&format!("ip saddr {server}")]);
    let report = b.warm(fleet.cluster.job(identity.clone(), "on-b-again")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    fleet.lan.heal("b");
    fleet.lan.heal("a");
    tree::write(&fleet.cluster.path("more"), &[("x".to_owned(), (false, b"more".to_vec()))].into());
    let more = crate::harness::cluster::identity(&[("torch", "2.14.0")]);
    b.publish(&fleet.cluster.path("more"), &more).await;
    until("`b` was never heard of again", async || {
        matches!(a.warm(fleet.cluster.job(more.clone(), "on-a")).await.verdict, Verdict::Installed)
    })
    .await;
}
