//! Agents that ask each other: a hundred of them in one process, over the loopback, with the DHT; then without thirty.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::{StreamExt, stream};
use warmd::digest::{ArtifactId, ContentId, IdentityId, KeyId};
use warmd::discovery::{Discovery, DiscoveryConfig, LocalNode, Metrics};
use warmd::identity::{Admission, ClusterCa, NodeCertificate, NodeId, NodeTls, PrivateKey, UnixTime};
use warmd::lifecycle::Tasks;
use warmd::protocol::metadata::{Held, Lookup, NodeState, Summary};

use crate::Options;
use crate::harness::{Report, Row, Sample, fresh};

const NODES: usize = 100;
const GONE: usize = 30;
const IDENTITIES: usize = 40;
const LOOKUPS: usize = 1_000;
const IN_FLIGHT: usize = 4;

/// Holders of an identity, in turn: some that only few nodes know, and one that everybody has.
const HOLDERS: [usize; 4] = [1, 3, 10, NODES];

/// Connections that show that a node has found its place.
const MET: usize = 3;
const START: Duration = Duration::from_secs(60);

struct Node {
    id: NodeId,
    discovery: Discovery,
    _tasks: Tasks,
}

struct Fleet {
    nodes: Vec<Node>,
    /// Whoever holds an identity, by its number.
    holders: Vec<Vec<NodeId>>,
}

pub(crate) fn run(report: &mut Report, options: &Options) -> Result<String> {
    let fewer = if options.quick { 10 } else { 1 };
    let (mut all, mut rest) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (before, after) = runtime.block_on(once(&options.dir.join("discovery"), LOOKUPS / fewer))?;
        all.push(before);
        rest.push(after);
    }
    let after = Row { name: format!("the same, {GONE} nodes gone a moment before"), samples: rest };
    let success = after.values()["found %"];
    let check = report.at_least("discovery: % found with 30 % of the nodes gone", success, 99.0);
    let rows = vec![Row { name: format!("{} lookups among {NODES} nodes", LOOKUPS / fewer), samples: all }, after];
    Ok(report.add("Discovery without a server", rows) + &check)
}

async fn once(dir: &Path, lookups: usize) -> Result<(Sample, Sample)> {
    let mut fleet = Fleet::start(dir).await?;
    let before = fleet.lookups(lookups).await;
    // Without a word, as when a rack loses its power; the first three, which all others began with, among them.
    let gone: Vec<NodeId> = fleet.nodes.drain(..GONE).map(|node| node.id).collect();
    fleet.holders.iter_mut().for_each(|holders| holders.retain(|holder| !gone.contains(holder)));
    let after = fleet.lookups(lookups).await;
    Ok((before, after))
}

impl Fleet {
    async fn start(dir: &Path) -> Result<Self> {
        fresh(dir)?;
        let ca = ClusterCa::create("bench", &PrivateKey::generate()?)?;
        fs::write(dir.join("ca.pem"), ca.certificate_pem())?;
        let (mut nodes, mut first): (Vec<Node>, Vec<_>) = (Vec::new(), Vec::new());
        for index in 0..NODES {
            let node = Node::start(dir, &ca, index, first.clone()).await?;
            if index < MET {
                first.push(node.discovery.addr());
            }
            nodes.push(node);
        }
        for node in &nodes {
            ensure!(node.discovery.met(MET, START).await, "a node met nobody");
        }
        let mut holders = Vec::new();
        for number in 0..IDENTITIES {
            // From the end, so that it is not the bootstrap nodes that hold most.
            let count = HOLDERS[number % HOLDERS.len()];
            let chosen = nodes.iter().rev().cycle().skip(number * 7).take(count);
            holders.push(chosen.map(|node| node.hold(number)).collect::<Result<_>>()?);
        }
        for node in &nodes {
            ensure!(node.discovery.published(START).await, "a node could not publish what it holds");
        }
        Ok(Self { nodes, holders })
    }

    /// Found is a lookup whose answer names a holder that is there.
    async fn lookups(&self, count: usize) -> Sample {
        let begin = Instant::now();
        let look = |turn: usize| async move {
            let number = (turn * 7) % IDENTITIES;
            let node = &self.nodes[(turn * 31) % self.nodes.len()];
            let lookup = Lookup { identities: vec![identity(number)], exclude: vec![node.id], ..Lookup::default() };
            let holders: Vec<NodeId> =
                self.holders[number].iter().copied().filter(|holder| *holder != node.id).collect();
            let asked = Instant::now();
            let offers = node.discovery.lookup(&lookup).await.unwrap_or_default();
            let took = asked.elapsed().as_secs_f64();
            let found = offers.iter().flat_map(|offer| &offer.holders).any(|holder| holders.contains(&holder.node));
            (!holders.is_empty()).then_some((took, found))
        };
        let done: Vec<_> = stream::iter(0..count).map(look).buffer_unordered(IN_FLIGHT).collect().await;
        let done: Vec<(f64, bool)> = done.into_iter().flatten().collect();
        let mut times: Vec<f64> = done.iter().map(|(took, _)| *took).collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e3;
        let found = done.iter().filter(|(_, found)| *found).count() as f64 / done.len() as f64 * 100.0;
        let values = BTreeMap::from([("p50 ms", at(0.5)), ("p99 ms", at(0.99)), ("found %", found)]);
        Sample { seconds: begin.elapsed().as_secs_f64(), values, ..Sample::default() }
    }
}

impl Node {
    async fn start(dir: &Path, ca: &ClusterCa, index: usize, first: Vec<std::net::SocketAddr>) -> Result<Self> {
        let key = PrivateKey::generate()?;
        let path = dir.join("node.pem");
        fs::write(&path, ca.issue(&key, &[], Duration::from_secs(86_400))?)?;
        let admission = Admission::new(Some(&dir.join("ca.pem")), None)?;
        let tls = NodeTls::new(key, NodeCertificate::load(&path)?, admission)?;
        let bootstrap = first.into_iter().map(Into::into).collect();
        let config = DiscoveryConfig { bootstrap, ..DiscoveryConfig::default() };
        let endpoint = format!("127.0.0.1:{}", 10_000 + index).parse()?;
        let local = LocalNode {
            listen: "127.0.0.1:0".parse()?,
            endpoints: Arc::from([endpoint]),
            locality: Arc::default(),
            memory: None,
        };
        let tasks = Tasks::new();
        let discovery = Discovery::start(&config, local, &tls, Metrics::default(), &tasks).await?;
        discovery.set_state(NodeState::Ready);
        Ok(Self { id: tls.node_id(), discovery, _tasks: tasks })
    }

    fn hold(&self, number: usize) -> Result<NodeId> {
        let summary = Summary {
            artifact: ArtifactId::of(&number.to_le_bytes()),
            identity: identity(number),
            content: ContentId::of(&number.to_le_bytes()),
            family: "triton".parse()?,
            subject: "".into(),
            generation: 1,
            created: UnixTime::from_seconds(1_700_000_000),
            size: 40 << 20,
            wire_size: 4 << 20,
            files: 900,
            chunks: 40,
            signer: KeyId::of(b"signer"),
            compile_ms: 0,
        };
        self.discovery.hold(Held { artifact: Arc::new(summary), chunks_held: 40 });
        Ok(self.id)
    }
}

fn identity(number: usize) -> IdentityId {
    IdentityId::of(&(number as u64).to_be_bytes())
}
