//! Many agents at once: one holder and eight pullers, and the death of the fastest of three holders.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::Options;
use crate::ceilings::incompressible;
use crate::harness::{Report, Row, Sample, fresh, gone};
use crate::warmd::{Cluster, Counter, Pull, Warmed};

const PULLERS: usize = 8;
pub(crate) fn fan_out(report: &mut Report, options: &Options) -> Result<String> {
    let size = options.size() / 4;
    let tree = tree(options, size)?;
    let mut samples = Vec::new();
    for _ in 0..options.runs {
        let mut cluster = Cluster::start(&options.dir.join("cluster"))?;
        cluster.start_agent("first")?;
        cluster.publish("first", &tree)?;
        let names: Vec<String> = (0..PULLERS).map(|index| format!("puller{index}")).collect();
        for name in &names {
            cluster.start_agent(name)?;
        }
        let sent = cluster.counter("first", Counter::ChunkBytesSent)?;
        Cluster::settle();
        let pulls: Vec<Pull> = names.iter().map(|name| cluster.begin_pull(name)).collect::<Result<_>>()?;
        let finished: Vec<Warmed> = pulls.into_iter().map(Pull::finish).collect::<Result<_>>()?;
        let slowest = finished.iter().map(|warmed| warmed.seconds).fold(0.0, f64::max);
        let mean = finished.iter().map(|warmed| warmed.seconds).sum::<f64>() / PULLERS as f64;
        let copies = (cluster.counter("first", Counter::ChunkBytesSent)? - sent) / size as f64;
        samples.push(Sample {
            seconds: slowest,
            bytes: size * PULLERS as u64,
            cpu_seconds: Some(cluster.cpu()),
            values: BTreeMap::from([("copies of the first", copies), ("slowest / mean", slowest / mean)]),
            ..Sample::default()
        });
    }
    let row = Row { name: format!("1 holder, {PULLERS} pullers"), samples };
    let values = row.values();
    let lines = [
        report.at_most("fan-out: copies sent by the first holder", values["copies of the first"], 2.5),
        report.at_most("fan-out: slowest / mean", values["slowest / mean"], 1.5),
    ];
    gone(&tree)?;
    Ok(report.add("Fan-out, incompressible", vec![row]) + &lines.join("\n"))
}

pub(crate) fn kill_holder(report: &mut Report, options: &Options) -> Result<String> {
    let size = options.size();
    let tree = tree(options, size)?;
    let mut samples = Vec::new();
    for _ in 0..options.runs {
        let mut cluster = Cluster::start(&options.dir.join("cluster"))?;
        let holders = ["a", "b", "c"];
        for name in holders {
            cluster.start_agent(name)?;
        }
        cluster.publish("a", &tree)?;
        Cluster::settle();
        cluster.pull("b")?;
        cluster.pull("c")?;
        cluster.start_agent("puller")?;
        Cluster::settle();
        let before: Vec<f64> =
            holders.iter().map(|name| cluster.counter(name, Counter::ChunkBytesSent)).collect::<Result<_>>()?;
        let pull = cluster.begin_pull("puller")?;
        let limit = Instant::now() + Duration::from_secs(120);
        while cluster.counter("puller", Counter::ChunkBytesReceived)? < size as f64 / 2.0 {
            ensure!(Instant::now() < limit, "half of the bytes did not arrive");
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut fastest = ("", 0.0);
        for (name, before) in holders.into_iter().zip(before) {
            let sent = cluster.counter(name, Counter::ChunkBytesSent)? - before;
            if sent >= fastest.1 {
                fastest = (name, sent);
            }
        }
        cluster.kill(fastest.0)?;
        let warmed = pull.finish()?;
        Cluster::settle();
        let beyond = cluster.counter("puller", Counter::DatagramBytes)? - size as f64;
        samples.push(Sample {
            seconds: warmed.seconds,
            bytes: size,
            wire_bytes: Some(warmed.wire_bytes),
            values: BTreeMap::from([
                ("chunks twice", cluster.counter("puller", Counter::ChunksReceivedTwice)?),
                // Framing, acknowledgements and what the dead holder had sent of unfinished chunks.
                ("UDP MB beyond the content", beyond / 1e6),
            ]),
            ..Sample::default()
        });
    }
    gone(&tree)?;
    let row = Row { name: "3 holders, the fastest killed half way".to_owned(), samples };
    Ok(report.add("Death of a holder, incompressible", vec![row]))
}

fn tree(options: &Options, size: u64) -> Result<std::path::PathBuf> {
    let tree = options.dir.join("tree");
    fresh(&tree)?;
    incompressible(&tree.join("incompressible"), size)?;
    Ok(tree)
}
