//! `cargo bench --bench scenarios -- [SCENARIO]`: what warmd does and what else does it, in one run. README.md explains each number.
#![expect(clippy::print_stdout, reason = "the report is the output")]

mod adapter;
mod ceilings;
mod corpora;
#[path = "../corpus.rs"]
mod corpus;
mod discovery;
mod engine;
#[path = "../harness.rs"]
mod harness;
mod herd;
mod http;
mod local;
mod metadata;
#[path = "../herd.rs"]
mod model;
mod peers;
mod proxy;
mod swarm;
mod transfer;
mod warmd;
mod watching;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use harness::{GIB, Report, fresh, gone};
use peers::Peers;

#[derive(Parser)]
pub(crate) struct Options {
    #[arg(default_value = "all")]
    scenario: Scenario,
    /// Runs of each row; the table shows medians.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Where trees and stores go, in a directory of this run. /dev/shm by default, because many disks would be all that is measured.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// A directory on a disk, for the scenario that makes durable what it writes.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    disk: PathBuf,
    /// A tenth of the bytes: tells whether everything works, not how fast.
    #[arg(long)]
    quick: bool,
    /// The scenario `engine-start` with an engine of one kind only.
    #[arg(long)]
    engine: Option<engine::Mode>,
    /// Cold nodes of the scenario `herd`.
    #[arg(long, default_value_t = 1_000)]
    nodes: usize,
    /// Only what warmd is compared with.
    #[arg(long)]
    without_warmd: bool,
    /// The scenario `metadata` with servers that share a Redis or Valkey, which must be installed.
    #[arg(long)]
    redis: bool,
    /// Most servers that share it.
    #[arg(long, default_value_t = 3)]
    servers: usize,
    /// The child of the scenario `metadata`: serves with the keys in this directory.
    #[arg(long, hide = true, value_name = "DIR")]
    serve_metadata: Option<PathBuf>,
    /// The child of the scenarios `proxy` and `adapter`: an engine that takes no time.
    #[arg(long, hide = true, value_name = "ADDR")]
    serve_engine: Option<std::net::SocketAddr>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    Ceilings,
    OneToOne,
    Corpora,
    Install,
    NextGeneration,
    FanOut,
    KillHolder,
    Metadata,
    Discovery,
    /// Needs a real vLLM, see bench/README.md.
    EngineStart,
    Proxy,
    Adapter,
    /// What /metrics, the page and the fleet's view cost.
    Watching,
    /// A thousand nodes in the model, and nothing else.
    Herd,
    /// 32 real agents, and the model of them.
    Agents,
    All,
}

impl Options {
    fn size(&self) -> u64 {
        if self.quick { GIB / 10 } else { GIB }
    }

    fn scale(&self) -> f64 {
        if self.quick { 0.1 } else { 1.0 }
    }

    fn with_warmd(&self) -> bool {
        !self.without_warmd
    }

    fn wants(&self, scenario: Scenario) -> bool {
        self.scenario == scenario || self.scenario == Scenario::All
    }
}

fn main() -> Result<()> {
    let mut options = Options::parse();
    if let Some(dir) = &options.serve_metadata {
        return metadata::serve(dir);
    }
    if let Some(addr) = options.serve_engine {
        return proxy::engine::serve(addr, &options.dir);
    }
    options.dir.push(format!("warmd-bench-{}", std::process::id()));
    fresh(&options.dir)?;
    let mut report = Report::new(&options.dir, options.runs);
    println!("{}", report.facts_line());
    let done = run(&options, &mut report);
    let saved = report.save(options.scenario.to_possible_value().as_ref().map_or("all", |value| value.get_name()))?;
    println!("\n{}", saved.display());
    gone(&options.dir)?;
    done
}

/// What the programs of `peers/` are needed for, which take minutes to build.
fn run_with_peers(options: &Options, report: &mut Report) -> Result<()> {
    let peers = Peers::new(&options.dir)?;
    if options.wants(Scenario::Ceilings) {
        println!("{}", ceilings::run(report, &peers, &options.dir, options.size(), options.runs)?);
    }
    if options.wants(Scenario::OneToOne) && options.with_warmd() {
        println!("{}", transfer::one_to_one(report, &peers, options)?);
    }
    if options.wants(Scenario::Corpora) {
        println!("{}", corpora::run(report, &peers, options)?);
    }
    Ok(())
}

fn run(options: &Options, report: &mut Report) -> Result<()> {
    if [Scenario::Ceilings, Scenario::OneToOne, Scenario::Corpora].into_iter().any(|one| options.wants(one)) {
        run_with_peers(options, report)?;
    }
    if options.wants(Scenario::Install) && options.with_warmd() {
        println!("{}", corpora::install(report, options)?);
    }
    if options.wants(Scenario::NextGeneration) && options.with_warmd() {
        println!("{}", transfer::next_generation(report, options)?);
    }
    if options.wants(Scenario::FanOut) && options.with_warmd() {
        println!("{}", swarm::fan_out(report, options)?);
    }
    if options.wants(Scenario::Herd) && options.with_warmd() {
        println!("{}", herd::model(report, options)?);
    }
    if options.wants(Scenario::Agents) && options.with_warmd() {
        println!("{}", herd::agents(report, options)?);
    }
    if options.wants(Scenario::KillHolder) && options.with_warmd() {
        println!("{}", swarm::kill_holder(report, options)?);
    }
    if options.wants(Scenario::Metadata) && options.with_warmd() {
        println!("{}", metadata::run(report, options)?);
    }
    if options.wants(Scenario::Discovery) && options.with_warmd() {
        println!("{}", discovery::run(report, options)?);
    }
    if options.wants(Scenario::Proxy) && options.with_warmd() {
        println!("{}", proxy::run(report, options)?);
    }
    if options.wants(Scenario::Adapter) && options.with_warmd() {
        println!("{}", adapter::run(report, options)?);
    }
    if options.wants(Scenario::Watching) && options.with_warmd() {
        println!("{}", watching::run(report, options)?);
    }
    if options.wants(Scenario::EngineStart) && options.with_warmd() {
        engine::run(report, options, &|text| println!("{text}"))?;
    }
    Ok(())
}
