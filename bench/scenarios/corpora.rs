//! Whole trees, publish -> pull -> installed, against the best that ordinary tools and iroh-blobs do with the same tree.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rayon::prelude::*;

use crate::Options;
use crate::corpus::{Corpus, Kind, Written};
use crate::harness::{Contestant, Report, Row, Sample, children_cpu, fresh, gone, interleave, shell};
use crate::peers::Peers;
use crate::warmd::Cluster;

const SEED: u64 = 7;

pub(crate) fn run(report: &mut Report, peers: &Peers, options: &Options) -> Result<String> {
    let mut text = String::new();
    for kind in [Kind::A, Kind::B, Kind::D, Kind::E] {
        text += &one(report, peers, options, kind)?;
    }
    Ok(text)
}

fn one(report: &mut Report, peers: &Peers, options: &Options, kind: Kind) -> Result<String> {
    let (from, to) = (options.dir.join("tree"), options.dir.join("arrived"));
    gone(&from)?;
    let corpus = Corpus { kind, seed: SEED, scale: options.scale() };
    let written = corpus.write(&from)?;
    let bytes = written.bytes;
    let mut contestants = rivals(peers, &from, &to, bytes);
    if options.with_warmd() {
        contestants.insert(0, Contestant::new("warmd", || warmd(&options.dir, &from, bytes)));
    }
    let rows = interleave(options.runs, contestants)?;
    let title = format!("Corpus {kind:?}: {} files, {:.1} MB, publish to installed", written.files, bytes as f64 / 1e6);
    let checks = if options.with_warmd() { compare(report, kind, &rows, bytes) } else { String::new() };
    gone(&from)?;
    gone(&to)?;
    Ok(report.add(&title, rows) + &checks)
}

fn rivals<'a>(peers: &'a Peers, from: &'a Path, to: &'a Path, bytes: u64) -> Vec<Contestant<'a>> {
    let checked = move |sample: Result<Sample>| {
        let sample = sample?;
        same(from, to)?;
        Ok(sample)
    };
    let mut contestants = Vec::new();
    for level in [1, 3] {
        let name = format!("tar, zstd -T0 -{level}, TLS");
        contestants.push(Contestant::new(name, move || checked(peers.tar(from, to, level, bytes))));
    }
    for (name, compress) in [("rsync", false), ("rsync -z", true)] {
        contestants.push(Contestant::new(name, move || checked(peers.rsync(from, to, compress, bytes))));
    }
    contestants.push(Contestant::new("iroh-blobs", move || checked(peers.iroh(from, to))));
    contestants
}

/// Files into an empty root from what the node has: an archive and `tar` against warmd's store, which verifies all bytes twice.
/// On a disk, where warmd makes durable what it writes, and in memory, where that costs nothing and only the cores count.
pub(crate) fn install(report: &mut Report, options: &Options) -> Result<String> {
    let disk = options.disk.join(format!("warmd-bench-{}", std::process::id()));
    let mut text = String::new();
    for (dir, place) in [(&disk, "on a disk"), (&options.dir, "in memory")] {
        for kind in [Kind::C, Kind::D] {
            fresh(&dir.join("cluster"))?;
            let (title, rows) = install_one(options, kind, dir)?;
            let ratio = rows[1].seconds() / rows[0].seconds();
            text += &report.add(&format!("{title} {place}"), rows);
            text += &report.at_least(format!("{kind:?} {place}: tar -xf / warmd, time"), ratio, 1.0);
            text += "\n";
        }
    }
    gone(&disk)?;
    Ok(text)
}

fn install_one(options: &Options, kind: Kind, dir: &Path) -> Result<(String, Vec<Row>)> {
    let (from, archive) = (dir.join("tree"), dir.join("tree.tar"));
    gone(&from)?;
    let written = Corpus { kind, seed: SEED, scale: options.scale() }.write(&from)?;
    shell(&format!("tar -C '{}' -cf '{}' .", from.display(), archive.display()))?;
    let into = dir.join("arrived");
    let unpack = || {
        fresh(&into)?;
        let (seconds, cpu) = shell(&format!("tar -C '{}' -xf '{}'", into.display(), archive.display()))?;
        installed(seconds, cpu, &from, &into, &written)
    };
    let mut cluster = Cluster::start(&dir.join("cluster"))?;
    cluster.start_agent("a")?;
    cluster.publish("a", &from)?;
    Cluster::settle();
    let warm = || {
        gone(&into)?;
        let (cpu, children) = (cluster.cpu(), children_cpu());
        let warmed = cluster.warm("a", &into)?;
        let cpu = cluster.cpu() - cpu + children_cpu() - children;
        installed(warmed.seconds, cpu, &from, &into, &written)
    };
    let contestants = vec![Contestant::new("warmd, from its store", warm), Contestant::new("tar -xf", unpack)];
    let rows = interleave(options.runs, contestants)?;
    gone(&from)?;
    gone(&into)?;
    gone(&archive)?;
    let (files, megabytes) = (written.files, written.bytes as f64 / 1e6);
    Ok((format!("Corpus {kind:?}: {files} files, {megabytes:.1} MB, installed"), rows))
}

fn installed(seconds: f64, cpu: f64, from: &Path, into: &Path, written: &Written) -> Result<Sample> {
    same(from, into)?;
    let values = BTreeMap::from([("files/s", written.files as f64 / seconds)]);
    Ok(Sample { seconds, bytes: written.bytes, cpu_seconds: Some(cpu), values, ..Default::default() })
}

/// Publish on one agent, warm on another, both new: nothing is held before.
fn warmd(dir: &Path, from: &Path, bytes: u64) -> Result<Sample> {
    let mut cluster = Cluster::start(&dir.join("cluster"))?;
    let into = dir.join("arrived");
    gone(&into)?;
    cluster.start_agent("a")?;
    cluster.start_agent("b")?;
    Cluster::settle();
    let (cpu, begin) = (cluster.cpu(), Instant::now());
    let published = cluster.publish("a", from)?;
    let warmed = cluster.warm("b", &into)?;
    let seconds = begin.elapsed().as_secs_f64();
    let cpu_seconds = Some(cluster.cpu() - cpu);
    same(from, &into)?;
    let values = BTreeMap::from([("publish s", published.seconds), ("warm s", warmed.seconds)]);
    Ok(Sample { seconds, bytes, wire_bytes: Some(warmed.wire_bytes), cpu_seconds, values })
}

fn compare(report: &mut Report, kind: Kind, rows: &[Row], bytes: u64) -> String {
    let own = rows[0].seconds();
    let best = rows[1..].iter().map(Row::seconds).fold(f64::INFINITY, f64::min);
    let factor = if matches!(kind, Kind::D | Kind::E) { 2.0 } else { 1.0 };
    let mut lines = report.at_least(format!("{kind:?}: best rival / warmd, time"), best / own, factor) + "\n";
    if kind == Kind::B {
        let wire = rows[0].wire_bytes().unwrap_or(f64::NAN);
        lines += &report.at_most("B: wire bytes / raw bytes", wire / bytes as f64, 0.1);
        lines += "\n";
    }
    lines
}

/// The same names with the same bytes. Our own directory for locks and markers is not part of the tree.
pub(crate) fn same(from: &Path, to: &Path) -> Result<()> {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    list(from, from, &mut left)?;
    list(to, to, &mut right)?;
    right.retain(|name| !name.starts_with(".warmd/"));
    left.sort();
    right.sort();
    ensure!(left == right, "{} files were sent, {} arrived", left.len(), right.len());
    left.par_iter().try_for_each(|name| {
        let equal = fs::read(from.join(name))? == fs::read(to.join(name))?;
        ensure!(equal, "{name} arrived changed");
        Ok(())
    })
}

fn list(root: &Path, dir: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            list(root, &path, names)?;
        } else {
            names.push(path.strip_prefix(root)?.to_str().context("a name that is not UTF-8")?.to_owned());
        }
    }
    Ok(())
}
