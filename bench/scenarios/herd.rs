//! Thundering herds: a thousand cold nodes in the model of bench/herd.rs, and 32 real agents against the same model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use warmd::artifact::{Draft, Family, Outputs, Provenance, RelPath, SourceFile, SourceIdentity, Stamp, Tree, build};
use warmd::identity::{TrustClass, UnixTime};

use crate::Options;
use crate::corpus::{Corpus, Kind};
use crate::harness::{Report, Row, Sample, gone};
use crate::model::{Outcome, Setup, run};
use crate::warmd::{Cluster, Counter, Pull, Warmed};

/// Bytes per second of 10 Gbit/s.
const CARD: f64 = 1.25e9;

const AGENTS: usize = 32;

const SEED: u64 = 7;

/// What the model needs to know of an artifact.
struct Shape {
    chunk_lens: Vec<u32>,
    manifest: u64,
}

/// Corpus C as warmd encodes it.
fn shape(tree: &Path, scale: f64) -> Result<Shape> {
    gone(tree)?;
    let planned = Corpus { kind: Kind::C, seed: SEED, scale };
    planned.write(tree)?;
    let top = Tree::open(tree)?;
    let files = planned.plan().into_iter().map(|file| {
        let (source, path) = (tree.join(&file.path), RelPath::new(&file.path)?);
        let stamp = Stamp::of(&fs::metadata(&source)?);
        Ok(SourceFile { path, tree: top.clone(), executable: false, mtime_ns: 0, stamp, content: None })
    });
    let mut files: Vec<SourceFile> = files.collect::<Result<_>>()?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let built = build(&files, None, &Outputs { store: &|_, _| Ok(()), progress: &|_| () })?;
    let chunk_lens = built.chunks.iter().map(|chunk| chunk.encoded_len).collect();
    let draft = Draft {
        identity: SourceIdentity::new(Family::directory(), BTreeMap::new())?,
        class: TrustClass::Data,
        subject: String::new(),
        generation: 1,
        created: UnixTime::now(),
        expires: None,
        provenance: Provenance::default(),
        files: built.files,
        chunks: built.chunks,
        entries: Vec::new(),
        attributes: BTreeMap::new(),
    };
    let manifest = draft.encode()?.len() as u64;
    gone(tree)?;
    Ok(Shape { chunk_lens, manifest })
}

pub(crate) fn model(report: &mut Report, options: &Options) -> Result<String> {
    let shape = shape(&options.dir.join("tree"), options.scale())?;
    let setup = Setup {
        chunk_lens: shape.chunk_lens,
        manifest: shape.manifest,
        pullers: if options.quick { options.nodes / 10 } else { options.nodes },
        card: CARD,
        machine: None,
        within: Duration::ZERO,
        zones: 4,
        racks_per_zone: 8,
        deaths: 0.0,
        stragglers: 0.0,
        swarming: true,
        seed: SEED,
    };
    let (chunks, nodes) = (setup.chunk_lens.len(), setup.pullers);
    let title = format!(
        "Model: {nodes} cold nodes, 10 Gbit/s, corpus C: {:.1} MB in {chunks} chunks, manifest {:.2} MB",
        setup.size() as f64 / 1e6,
        setup.manifest as f64 / 1e6
    );
    let single = run(&Setup { pullers: 1, ..setup.clone() }).quantile(1.0);
    let mut rows = Vec::new();
    let mut lines = Vec::new();
    for (name, deaths, stragglers) in [("all well", 0.0, 0.0), ("5 % die, 5 % straggle", 0.05, 0.05)] {
        let mut samples = Vec::new();
        for round in 0..options.runs as u64 {
            let setup = Setup { deaths, stragglers, seed: SEED + round, ..setup.clone() };
            let begin = Instant::now();
            let outcome = run(&setup);
            ensure!(outcome.failed() == 0, "{} nodes never had everything", outcome.failed());
            samples.push(figures(&setup, &outcome, single, begin.elapsed()));
        }
        let row = Row { name: name.to_owned(), samples };
        let values = row.values();
        lines.push(report.at_most(format!("herd, {name}: copies sent by the first holder"), values["copies"], 3.0));
        lines.push(report.at_most(format!("herd, {name}: p99 / single node"), values["p99"], 2.0));
        lines.push(report.at_least(format!("herd, {name}: ideal / slowest"), values["efficiency"], 0.8));
        rows.push(row);
    }
    Ok(report.add(&title, rows) + &format!("\nsingle node: {single:.3} s\n") + &lines.join("\n"))
}

/// Times are of healthy nodes, over that of a single one.
fn figures(setup: &Setup, outcome: &Outcome, single: f64, took: Duration) -> Sample {
    let slowest = outcome.quantile(1.0);
    let sent = |bytes: f64| bytes / setup.size() as f64;
    let all: f64 = outcome.sent.iter().sum();
    let mut values = BTreeMap::from([
        ("copies", sent(outcome.sent[0])),
        ("copies with manifests", sent(outcome.sent[0] + outcome.manifests as f64)),
        ("p50", outcome.quantile(0.5) / single),
        ("p99", outcome.quantile(0.99) / single),
        ("slowest", slowest / single),
        ("last manifest", outcome.last(|marks| marks.manifest) / single),
        ("last first chunk", outcome.last(|marks| marks.first_chunk) / single),
        ("last half", outcome.last(|marks| marks.half) / single),
        ("seeded", outcome.seeded.as_secs_f64() / single),
        ("efficiency", setup.ideal().as_secs_f64() / slowest),
        ("bytes twice", sent(all) / setup.pullers as f64 - 1.0),
        ("between zones", outcome.between_zones / all),
        ("Busy a node", outcome.busy as f64 / setup.pullers as f64),
        ("directory calls a node", outcome.calls as f64 / setup.pullers as f64),
        ("million events", outcome.events as f64 / 1e6),
        ("simulated in s", took.as_secs_f64()),
    ]);
    if setup.stragglers > 0.0 {
        values.insert("slowest straggler", outcome.slowest_straggler() / single);
    }
    Sample { seconds: slowest, bytes: setup.size() * setup.pullers as u64, values, ..Sample::default() }
}

pub(crate) fn agents(report: &mut Report, options: &Options) -> Result<String> {
    let scale = if options.quick { 0.02 } else { 0.25 };
    let tree = options.dir.join("tree");
    let shape = shape(&tree, scale)?;
    Corpus { kind: Kind::C, seed: SEED, scale }.write(&tree)?;
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        together.push(pull(options, &tree, &shape, true)?);
        alone.push(pull(options, &tree, &shape, false)?);
    }
    gone(&tree)?;
    let rows = vec![
        Row { name: "swarming".to_owned(), samples: together },
        Row { name: "pullers do not serve".to_owned(), samples: alone },
    ];
    let copies = rows[0].values()["copies"];
    let size: u64 = shape.chunk_lens.iter().map(|len| u64::from(*len)).sum();
    // The machine is what bounds all of them: its rate is measured, the rest is predicted.
    let rate = rows[0].seconds();
    let setup = Setup {
        pullers: AGENTS,
        card: CARD,
        machine: Some((AGENTS as u64 * size) as f64 / rate),
        chunk_lens: shape.chunk_lens,
        manifest: shape.manifest,
        within: Duration::ZERO,
        zones: 1,
        racks_per_zone: 1,
        deaths: 0.0,
        stragglers: 0.0,
        swarming: true,
        seed: SEED,
    };
    let predicted = run(&setup);
    let sent = predicted.sent[0] / size as f64;
    let lines = [
        report.at_most(format!("{AGENTS} agents: copies sent by the first holder"), copies, 3.0),
        report.at_most(format!("{AGENTS} agents: difference to the model's copies"), (copies - sent).abs(), 1.0),
        format!("the model says {sent:.2} copies and {:.3} s for the slowest", predicted.quantile(1.0)),
    ];
    let title = format!("{AGENTS} real agents, {:.1} MB of corpus C's shape", size as f64 / 1e6);
    Ok(report.add(&title, rows) + &lines.join("\n"))
}

/// All pullers ask at the same moment.
fn pull(options: &Options, tree: &Path, shape: &Shape, swarming: bool) -> Result<Sample> {
    let size: u64 = shape.chunk_lens.iter().map(|len| u64::from(*len)).sum();
    let mut cluster = Cluster::start(&options.dir.join("cluster"))?;
    cluster.start_agent("first")?;
    cluster.publish("first", tree)?;
    let names: Vec<String> = (0..AGENTS).map(|index| format!("puller{index}")).collect();
    let settings: &[(&str, &str)] = if swarming { &[] } else { &[("WARMD_PROVIDE_ENABLED", "false")] };
    for name in &names {
        cluster.start_agent_with(name, settings)?;
    }
    let sent = cluster.counter("first", Counter::ChunkBytesSent)?;
    Cluster::settle();
    let cpu = cluster.cpu();
    let pulls: Vec<Pull> = names.iter().map(|name| cluster.begin_pull(name)).collect::<Result<_>>()?;
    let finished: Vec<Warmed> = pulls.into_iter().map(Pull::finish).collect::<Result<_>>()?;
    let cpu_seconds = Some(cluster.cpu() - cpu);
    let slowest = finished.iter().map(|warmed| warmed.seconds).fold(0.0, f64::max);
    let mean = finished.iter().map(|warmed| warmed.seconds).sum::<f64>() / AGENTS as f64;
    let wire: u64 = finished.iter().map(|warmed| warmed.wire_bytes).sum();
    let copies = (cluster.counter("first", Counter::ChunkBytesSent)? - sent) / size as f64;
    let twice = wire as f64 / (size * AGENTS as u64) as f64 - 1.0;
    let values = BTreeMap::from([("copies", copies), ("slowest / mean", slowest / mean), ("bytes twice", twice)]);
    Ok(Sample { seconds: slowest, bytes: size * AGENTS as u64, wire_bytes: Some(wire), cpu_seconds, values })
}
