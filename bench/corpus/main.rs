//! `cargo bench --bench corpus -- make D --dir DIR`: writes a corpus, or its next generation, and tells what it reached.
#![expect(clippy::print_stdout, reason = "the report is the output")]

#[path = "../corpus.rs"]
mod corpus;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use rayon::prelude::*;

use corpus::content::Content;
use corpus::{Corpus, Kind, Planned};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// Given by cargo.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write a corpus.
    Make(What),
    /// Turn a corpus that `make` wrote with the same options into its next generation.
    Next {
        #[command(flatten)]
        what: What,
        /// Share of the files that are new or changed.
        #[arg(long, default_value_t = 0.05)]
        fraction: f64,
    },
}

#[derive(clap::Args)]
struct What {
    kind: Kind,
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Multiplies the number of entries.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
}

fn main() -> Result<()> {
    let (what, fraction) = match Args::parse().command {
        Command::Make(what) => (what, None),
        Command::Next { what, fraction } => (what, Some(fraction)),
    };
    let corpus = Corpus { kind: what.kind, seed: what.seed, scale: what.scale };
    let begin = Instant::now();
    let (plan, written) = match fraction {
        None => (corpus.plan(), corpus.write(&what.dir)?),
        Some(fraction) => (corpus.changes(fraction), corpus.next_generation(&what.dir, fraction)?),
    };
    let seconds = begin.elapsed().as_secs_f64();
    println!("{:?}: {} files, {} bytes in {seconds:.1} s", what.kind, written.files, written.bytes);
    let distinct: HashSet<_> = plan.iter().map(|file| (file.content, file.size, file.seed)).collect();
    println!("distinct: {} files, {} bytes", distinct.len(), distinct.iter().map(|file| file.1 as u64).sum::<u64>());
    ratios(&plan)
}

/// zstd -3 of each file alone, and of the files of one content in packs of 1 MiB.
fn ratios(plan: &[Planned]) -> Result<()> {
    let mut by_content: BTreeMap<&str, Vec<&Planned>> = BTreeMap::new();
    for file in plan {
        by_content.entry(name(file.content)).or_default().push(file);
    }
    println!("{:<16} {:>7} {:>12} {:>12} {:>12}", "content", "files", "bytes", "zstd-3 alone", "in packs");
    for (name, files) in by_content {
        let (alone, packed) = compressed(&files)?;
        let bytes: usize = files.iter().map(|file| file.size).sum();
        let ratio = |encoded: usize| bytes as f64 / encoded as f64;
        println!("{name:<16} {:>7} {bytes:>12} {:>12.1} {:>12.1}", files.len(), ratio(alone), ratio(packed));
    }
    Ok(())
}

fn compressed(files: &[&Planned]) -> Result<(usize, usize)> {
    const PACK: usize = 1 << 20;
    let mut packs: Vec<Vec<&Planned>> = vec![Vec::new()];
    let mut filled = 0;
    for file in files {
        packs.last_mut().expect("never empty").push(file);
        filled += file.size;
        if filled >= PACK {
            packs.push(Vec::new());
            filled = 0;
        }
    }
    let sums: Result<Vec<(usize, usize)>> = packs
        .par_iter()
        .map(|pack| {
            let (mut alone, mut all, mut buffer) = (0, Vec::new(), Vec::new());
            for file in pack {
                file.content.render(file.size, file.seed, &mut buffer);
                alone += zstd::bulk::compress(&buffer, 3)?.len();
                all.extend_from_slice(&buffer);
            }
            Ok((alone, zstd::bulk::compress(&all, 3)?.len()))
        })
        .collect();
    Ok(sums?.into_iter().fold((0, 0), |sum, pack| (sum.0 + pack.0, sum.1 + pack.1)))
}

fn name(content: Content) -> &'static str {
    match content {
        Content::Mlir => "triton ir",
        Content::Llvm => "llvm ir",
        Content::Ptx => "ptx",
        Content::Python => "python",
        Content::Cuda => "cuda source",
        Content::Json => "json",
        Content::Pickle => "pickle",
        Content::SharedModel { .. } => "model (shared)",
        Content::Cubin => "cubin",
        Content::Object => "object",
        Content::Weights => "weights",
    }
}
