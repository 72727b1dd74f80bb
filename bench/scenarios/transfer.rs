//! One holder and one puller: the rate of one large artifact, and what a new generation costs.

use std::collections::BTreeMap;

use anyhow::Result;
use rayon::prelude::*;

use crate::Options;
use crate::ceilings::{incompressible, transports};
use crate::corpora::same;
use crate::corpus::{Corpus, Kind, Planned};
use crate::harness::{Contestant, MIB, Report, Sample, Watch, fresh, gone, interleave};
use crate::peers::Peers;
use crate::warmd::{Cluster, Counter};

const RSS_LIMIT_MIB: f64 = 96.0;

pub(crate) fn one_to_one(report: &mut Report, peers: &Peers, options: &Options) -> Result<String> {
    let (tree, copy) = (options.dir.join("tree"), options.dir.join("copy"));
    fresh(&tree)?;
    let file = tree.join("incompressible");
    incompressible(&file, options.size())?;
    let mut contestants = transports(peers, &file, &copy);
    contestants.insert(0, Contestant::new("warmd, into the store", || pull(options)));
    let rows = interleave(options.runs, contestants)?;
    let seconds = |name: &str| rows.iter().find(|row| row.name == name).map_or(f64::NAN, crate::harness::Row::seconds);
    let own = rows[0].seconds();
    let mut lines = vec![
        report.at_least("1 to 1: rate / bare quinn", seconds("bare quinn") / own, 0.85),
        report.at_least("1 to 1: rate / TLS 1.3 over TCP", seconds("TLS 1.3 over TCP") / own, 0.55),
    ];
    let values = rows[0].values();
    for (side, name) in [("holder", "holder MiB"), ("puller", "puller MiB")] {
        let peak = values.get(name).copied().unwrap_or(f64::NAN);
        lines.push(report.at_most(
            format!("1 to 1: {side}'s peak anonymous memory above idle, MiB"),
            peak,
            RSS_LIMIT_MIB,
        ));
    }
    gone(&tree)?;
    gone(&copy)?;
    Ok(report.add("One holder to one puller, incompressible, verified", rows) + &lines.join("\n"))
}

/// Published beforehand; the clock runs from the request until everything is verified and in the puller's store.
fn pull(options: &Options) -> Result<Sample> {
    let mut cluster = Cluster::start(&options.dir.join("cluster"))?;
    cluster.start_agent("a")?;
    cluster.start_agent("b")?;
    cluster.publish("a", &options.dir.join("tree"))?;
    Cluster::settle();
    let cpu = cluster.cpu();
    let (holder, puller) = (Watch::start(cluster.pid("a")?)?, Watch::start(cluster.pid("b")?)?);
    let warmed = cluster.pull("b")?;
    let mut values = BTreeMap::new();
    for (side, anonymous, total) in
        [(holder, "holder MiB", "holder MiB mapped too"), (puller, "puller MiB", "puller MiB mapped too")]
    {
        let peak = side.stop();
        values.insert(anonymous, peak.anonymous / MIB);
        values.insert(total, peak.total / MIB);
    }
    let cpu_seconds = Some(cluster.cpu() - cpu);
    Cluster::settle();
    let datagrams = cluster.counter("b", Counter::Datagrams)?;
    values.insert("datagram B", cluster.counter("b", Counter::DatagramBytes)? / datagrams);
    Ok(Sample {
        seconds: warmed.seconds,
        bytes: options.size(),
        wire_bytes: Some(warmed.wire_bytes),
        cpu_seconds,
        values,
    })
}

pub(crate) fn next_generation(report: &mut Report, options: &Options) -> Result<String> {
    const FRACTION: f64 = 0.05;
    let corpus = Corpus { kind: Kind::D, seed: 7, scale: options.scale() };
    let changed = encoded(&corpus.changes(FRACTION))?;
    let (mut first, mut next) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let (tree, into) = (options.dir.join("tree"), options.dir.join("arrived"));
        gone(&tree)?;
        gone(&into)?;
        let bytes = corpus.write(&tree)?.bytes;
        let mut cluster = Cluster::start(&options.dir.join("cluster"))?;
        cluster.start_agent("a")?;
        cluster.start_agent("b")?;
        cluster.publish("a", &tree)?;
        Cluster::settle();
        let warmed = cluster.pull("b")?;
        first.push(Sample { seconds: warmed.seconds, bytes, wire_bytes: Some(warmed.wire_bytes), ..Sample::default() });
        let bytes = corpus.next_generation(&tree, FRACTION)?.bytes;
        let published = cluster.publish("a", &tree)?;
        Cluster::settle();
        let warmed = cluster.pull("b")?;
        // Outside of the figure: a new root gets the whole generation, old chunks and new.
        let whole = cluster.warm("b", &into)?;
        same(&tree, &into)?;
        let values = BTreeMap::from([("publish s", published.seconds), ("into an empty root s", whole.seconds)]);
        next.push(Sample {
            seconds: warmed.seconds,
            bytes,
            wire_bytes: Some(warmed.wire_bytes),
            values,
            ..Sample::default()
        });
    }
    let rows = vec![
        crate::harness::Row { name: "first pull".to_owned(), samples: first },
        crate::harness::Row { name: "next generation".to_owned(), samples: next },
    ];
    let wire = rows[1].wire_bytes().unwrap_or(f64::NAN) / changed as f64;
    let time = rows[1].seconds() / rows[0].seconds();
    let lines = [
        report.at_most("next generation: wire bytes / encoded bytes of what changed", wire, 1.2),
        report.at_most("next generation: time / first pull", time, 0.2),
    ];
    Ok(report.add("Next generation of D, 5 % of the files changed or new", rows) + &lines.join("\n"))
}

/// What the changed files take when they are packed to 1 MiB in the order of their paths and compressed with zstd -3.
fn encoded(files: &[Planned]) -> Result<usize> {
    const PACK: usize = 1 << 20;
    let mut files: Vec<&Planned> = files.iter().collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let (mut all, mut buffer) = (Vec::new(), Vec::new());
    for file in files {
        file.content.render(file.size, file.seed, &mut buffer);
        all.extend_from_slice(&buffer);
    }
    let packs: Result<Vec<usize>> = all.par_chunks(PACK).map(|pack| Ok(zstd::bulk::compress(pack, 3)?.len())).collect();
    Ok(packs?.into_iter().sum())
}
