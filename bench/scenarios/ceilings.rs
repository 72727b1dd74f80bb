//! What this machine gives without warmd: memory, hashing, compression, and the same bytes over other transports.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use rayon::prelude::*;

use crate::corpus::content::Content;
use crate::harness::{Contestant, Report, Row, Sample, gone, interleave, process_cpu};
use crate::peers::Peers;

const BLOCK: usize = 1 << 20;

pub(crate) fn transports<'a>(peers: &'a Peers, from: &'a Path, to: &'a Path) -> Vec<Contestant<'a>> {
    vec![
        Contestant::new("TCP, 1 connection", || peers.tcp(from, to, false)),
        Contestant::new("TLS 1.3 over TCP", || peers.tcp(from, to, true)),
        Contestant::new("bare quinn", || peers.quic(from, to)),
    ]
}

/// An incompressible file of `size` bytes, made once per run.
pub(crate) fn incompressible(path: &Path, size: u64) -> Result<()> {
    let blocks: Vec<Vec<u8>> = (0..size.div_ceil(BLOCK as u64))
        .into_par_iter()
        .map(|seed| {
            let mut block = Vec::new();
            Content::Weights.render(BLOCK, seed, &mut block);
            block
        })
        .collect();
    let mut all = blocks.concat();
    all.truncate(size as usize);
    Ok(fs::write(path, all)?)
}

pub(crate) fn run(report: &mut Report, peers: &Peers, dir: &Path, size: u64, runs: usize) -> Result<String> {
    let (from, to) = (dir.join("incompressible"), dir.join("copy"));
    incompressible(&from, size)?;
    let content = fs::read(&from)?;
    let mut contestants = vec![
        Contestant::new("memory to a new file", || {
            gone(&to)?;
            timed(size, || Ok(fs::write(&to, &content)?))
        }),
        Contestant::new("BLAKE3, one core", || {
            timed(size, || {
                std::hint::black_box(blake3::hash(&content));
                Ok(())
            })
        }),
        Contestant::new("BLAKE3, all cores", || {
            timed(size, || {
                content.par_chunks(4 * BLOCK).for_each(|part| {
                    std::hint::black_box(blake3::hash(part));
                });
                Ok(())
            })
        }),
    ];
    contestants.extend(transports(peers, &from, &to));
    let rows = interleave(runs, contestants)?;
    ensure!(fs::read(&to)? == content, "the last transport changed the bytes");
    let mut text = report.add(&format!("Ceilings, {} MiB incompressible, file to file", size >> 20), rows);
    gone(&from)?;
    gone(&to)?;
    text += &report.add("Ceilings, zstd of IR text in 1 MiB blocks", zstd(size.min(256 << 20), runs)?);
    Ok(text)
}

fn zstd(size: u64, runs: usize) -> Result<Vec<Row>> {
    let blocks: Vec<Vec<u8>> = (0..size.div_ceil(BLOCK as u64))
        .into_par_iter()
        .map(|seed| {
            let mut block = Vec::new();
            Content::Mlir.render(BLOCK, seed, &mut block);
            block
        })
        .collect();
    let blocks = &blocks;
    let one = |level: i32| {
        move || {
            timed(size, || {
                blocks.iter().try_for_each(|block| zstd::bulk::compress(block, level).map(drop).map_err(Into::into))
            })
        }
    };
    let all = |level: i32| {
        move || {
            timed(size, || {
                blocks.par_iter().try_for_each(|block| zstd::bulk::compress(block, level).map(drop).map_err(Into::into))
            })
        }
    };
    interleave(
        runs,
        vec![
            Contestant::new("zstd -1, one core", one(1)),
            Contestant::new("zstd -1, all cores", all(1)),
            Contestant::new("zstd -3, one core", one(3)),
            Contestant::new("zstd -3, all cores", all(3)),
        ],
    )
}

fn timed(bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<Sample> {
    let (cpu, begin) = (own_cpu(), Instant::now());
    work()?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Sample { seconds, bytes, cpu_seconds: Some(own_cpu() - cpu), ..Sample::default() })
}

fn own_cpu() -> f64 {
    process_cpu(std::process::id())
}
