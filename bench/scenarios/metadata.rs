//! A metadata server with many nodes and artifacts: how fast they announce, how fast lookups are answered, what it costs in memory.
//!
//! The server is a child process with the server's own code; the nodes are clients of the library, each with its own certificate.

mod shared;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use warmd::digest::{ArtifactId, ContentId, IdentityId, KeyId};
use warmd::identity::{Admission, ClusterCa, NodeCertificate, NodeTls, PrivateKey, UnixTime};
use warmd::metadata::{Client, ClientConfig, ClientMetrics, Config, RedisConfig, Server, ServerAddr, Store};
use warmd::protocol::metadata::{Announcement, Epoch, Held, Load, Lookup, NodeState, Summary};
use warmd::telemetry::Registry;

use crate::Options;
use crate::harness::{Killed, MIB, Report, Row, Sample, fresh, status, wait_for};

const NODES: usize = 1_000;
const ARTIFACTS: usize = 100_000;
const IDENTITIES: usize = 20_000;
const LOOKUPS: usize = 40_000;
const CLIENTS: usize = 2;
const IN_FLIGHT: usize = 8;
const START: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn run(report: &mut Report, options: &Options) -> Result<String> {
    if options.redis {
        return shared::run(report, options);
    }
    let fewer = if options.quick { 10 } else { 1 };
    let (mut announced, mut looked) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let (announce, lookup) = once(&options.dir.join("metadata"), fewer)?;
        announced.push(announce);
        looked.push(lookup);
    }
    let rows = vec![
        Row { name: format!("{} announcements of {} artifacts", NODES / fewer, ARTIFACTS / fewer), samples: announced },
        Row {
            name: format!("{} lookups by {CLIENTS} clients, {IN_FLIGHT} in flight each", LOOKUPS / fewer),
            samples: looked,
        },
    ];
    Ok(report.add("Metadata server", rows))
}

fn once(dir: &Path, fewer: usize) -> Result<(Sample, Sample)> {
    fresh(dir)?;
    let ca = authority(dir)?;
    let (server, addr) = start(dir, &ca)?;
    let idle = status(server.pid(), "VmRSS:");
    let addr = [addr];
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let nodes: Vec<NodeTls> = (0..NODES / fewer).map(|_| node(dir, &ca)).collect::<Result<_>>()?;
    runtime.block_on(async {
        let announce = announce(&nodes, &addr, fewer).await?;
        let mut lookup = lookups(&nodes[..CLIENTS], &addr, fewer).await?;
        lookup.values.insert("server RSS MiB", status(server.pid(), "VmRSS:") / MIB);
        lookup.values.insert("of it idle", idle / MIB);
        Ok((announce, lookup))
    })
}

fn authority(dir: &Path) -> Result<ClusterCa> {
    let ca = ClusterCa::create("bench", &PrivateKey::generate()?)?;
    fs::write(dir.join("ca.pem"), ca.certificate_pem())?;
    Ok(ca)
}

/// A server with the keys that it finds in `dir`.
fn start(dir: &Path, ca: &ClusterCa) -> Result<(Killed, ServerAddr)> {
    let key = PrivateKey::generate()?;
    key.save_new(&dir.join("server.key"))?;
    fs::write(dir.join("server.pem"), ca.issue(&key, &["127.0.0.1".to_owned()], DAY)?)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--serve-metadata").arg(dir).stdin(Stdio::null());
    let server = Killed::spawn(&mut command)?;
    let addr = wait_for(&dir.join("addr"), START)?.parse()?;
    Ok((server, ServerAddr::new(Some(key.node_id()), addr)))
}

pub(crate) fn node(dir: &Path, ca: &ClusterCa) -> Result<NodeTls> {
    let key = PrivateKey::generate()?;
    let path = dir.join("node.pem");
    fs::write(&path, ca.issue(&key, &[], DAY)?)?;
    Ok(NodeTls::new(key, NodeCertificate::load(&path)?, Admission::new(Some(&dir.join("ca.pem")), None)?)?)
}

/// Of several servers it prefers that of its turn.
pub(crate) fn client(tls: &NodeTls, addrs: &[ServerAddr], turn: usize) -> Result<Client> {
    let mut addrs = addrs.to_vec();
    let first = turn % addrs.len();
    addrs.rotate_left(first);
    Ok(Client::new(ClientConfig::new(addrs), tls, ClientMetrics::default())?)
}

/// Every node connects, announces all that it holds in one message, and keeps its connection.
async fn announce(nodes: &[NodeTls], addrs: &[ServerAddr], fewer: usize) -> Result<Sample> {
    let each = ARTIFACTS / fewer / nodes.len();
    let begin = Instant::now();
    let clients: Vec<Client> = stream::iter(nodes.iter().enumerate())
        .map(|(index, tls)| async move {
            let client = client(tls, addrs, index)?;
            let numbers = index * each..(index + 1) * each;
            client.announce(&announcement(tls, index, numbers, IDENTITIES / fewer)?).await?;
            anyhow::Ok(client)
        })
        .buffer_unordered(32)
        .try_collect()
        .await?;
    let seconds = begin.elapsed().as_secs_f64();
    drop(clients);
    let values = BTreeMap::from([("nodes/s", nodes.len() as f64 / seconds)]);
    Ok(Sample { seconds, values, ..Sample::default() })
}

/// Of whole artifacts by number, which have so many identities in turn.
pub(crate) fn announcement(
    tls: &NodeTls,
    index: usize,
    numbers: Range<usize>,
    identities: usize,
) -> Result<Announcement> {
    let held = numbers.map(|number| {
        let summary = Summary {
            artifact: ArtifactId::of(&number.to_le_bytes()),
            identity: identity(number % identities),
            content: ContentId::of(&number.to_le_bytes()),
            family: "triton".parse()?,
            subject: format!("subject-{number}").into(),
            generation: 1,
            created: UnixTime::from_seconds(1_700_000_000 + number as u64),
            size: 40 << 20,
            wire_size: 4 << 20,
            files: 900,
            chunks: 40,
            signer: KeyId::of(b"signer"),
            compile_ms: 0,
        };
        anyhow::Ok(Held { artifact: Arc::new(summary), chunks_held: 40 })
    });
    Ok(Announcement {
        node: tls.node_id(),
        epoch: Epoch(1),
        sequence: 1,
        state: NodeState::Ready,
        endpoints: Arc::from([format!("10.{}.{}.1:4780", index / 250, index % 250 + 1).parse()?]),
        load: Load { uploads: 0, upload_slots: 16 },
        locality: Arc::default(),
        held: held.collect::<Result<_>>()?,
        full: true,
        server_epoch: None,
    })
}

fn identity(number: usize) -> IdentityId {
    IdentityId::of(&(number as u64).to_be_bytes())
}

async fn lookups(nodes: &[NodeTls], addrs: &[ServerAddr], fewer: usize) -> Result<Sample> {
    let clients: Vec<Client> =
        nodes.iter().enumerate().map(|(turn, tls)| client(tls, addrs, turn)).collect::<Result<_>>()?;
    let begin = Instant::now();
    let each = LOOKUPS / fewer / clients.len();
    let times = stream::iter(clients.iter().enumerate())
        .map(|(index, client)| {
            stream::iter(0..each)
                .map(move |turn| async move {
                    // A large odd step walks over all identities in an order that no cache likes.
                    let wanted = identity((turn * 7_919 + index * 31) % (IDENTITIES / fewer));
                    let asked = Instant::now();
                    let found = client.lookup(&Lookup { identities: vec![wanted], ..Lookup::default() }).await?;
                    anyhow::ensure!(!found.offers.is_empty(), "nothing was found");
                    Ok(asked.elapsed().as_secs_f64())
                })
                .buffer_unordered(IN_FLIGHT)
                .try_collect::<Vec<f64>>()
        })
        .buffer_unordered(nodes.len())
        .try_collect::<Vec<Vec<f64>>>()
        .await?;
    let seconds = begin.elapsed().as_secs_f64();
    let mut times = times.concat();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e3;
    let values =
        BTreeMap::from([("lookups/s", times.len() as f64 / seconds), ("p50 ms", at(0.5)), ("p99 ms", at(0.99))]);
    Ok(Sample { seconds, values, ..Sample::default() })
}

/// The child: serves until killed.
pub(crate) fn serve(dir: &Path) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let key = PrivateKey::load(&dir.join("server.key"))?;
        let admission = Admission::new(Some(&dir.join("ca.pem")), None)?;
        let tls = NodeTls::new(key, NodeCertificate::load(&dir.join("server.pem"))?, admission)?;
        let mut config = Config::new("127.0.0.1:0".parse()?);
        config.store = store(dir)?;
        // Nodes of this scenario announce once.
        config.registry.lease = Duration::from_secs(3600);
        let server = Server::bind(config, &tls, &mut Registry::default()).await?;
        fs::write(dir.join("addr.tmp"), server.addr().to_string())?;
        fs::rename(dir.join("addr.tmp"), dir.join("addr")).context("tell the address")?;
        std::future::pending::<()>().await;
        Ok(())
    })
}

/// The store that a file names, or one of its own.
fn store(dir: &Path) -> Result<Store> {
    if let Ok(url) = fs::read_to_string(dir.join("redis")) {
        return Ok(Store::Shared(url.parse()?, RedisConfig::default()));
    }
    let data = dir.join("data");
    fs::create_dir_all(&data)?;
    Ok(Store::File(data))
}
