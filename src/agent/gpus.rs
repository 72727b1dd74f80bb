//! The node's GPUs, for `/metrics` and for what the node tells of itself.
//!
//! Drivers bring a library to be asked, which a static program cannot load, and a program that asks it: `nvidia-smi`. One of
//! those runs beside the agent and tells again and again. What is not told again in time is forgotten.

mod metrics;
mod reading;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use self::reading::{QUERY, Reading};
use super::config::GpuSection;
use crate::lifecycle::child::{Lines, Program};
use crate::lifecycle::{Doubling, Tasks};
use crate::protocol::report::Gpu;

const PROGRAM: &str = "nvidia-smi";

/// Between two readings of a GPU.
const EVERY: Duration = Duration::from_secs(15);

/// A reading that is older says nothing; a program that is silent for longer is ended.
const FRESH: Duration = Duration::from_secs(3 * EVERY.as_secs());

/// Before a program that has ended is started again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(600);

/// Of a program's environment: where its libraries are found.
const INHERITED: [&str; 2] = ["PATH", "LD_LIBRARY_PATH"];

/// Shared by who reads them and who tells of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Gpus(watch::Sender<Table>);

/// The latest reading of each GPU, by index. Pure.
#[derive(Debug, Default)]
struct Table(BTreeMap<u8, (Instant, Reading)>);

impl Table {
    fn put(&mut self, reading: Reading, now: Instant) {
        self.0.insert(reading.gpu.index, (now, reading));
    }

    /// By index, without those of which nothing was heard lately.
    fn at(&self, now: Instant) -> impl Iterator<Item = &Reading> {
        let fresh = move |heard: Instant| now.saturating_duration_since(heard) < FRESH;
        self.0.values().filter(move |(heard, _)| fresh(*heard)).map(|(_, reading)| reading)
    }
}

impl Gpus {
    /// Follows the program that tells of them, if there is one, until the tasks end.
    pub(super) fn follow(&self, section: &GpuSection, tasks: &Tasks) {
        match section.enabled.then(|| program(section.program.as_deref())).flatten() {
            Some(path) => tasks.spawn("gpus", follow(asking(&path), self.clone())),
            None => tracing::debug!("{PROGRAM} is not asked, or not there: nothing is told of GPUs"),
        }
    }

    /// As they are now, by index.
    pub(super) fn now(&self) -> Vec<Gpu> {
        self.0.borrow().at(Instant::now()).map(|reading| reading.gpu.clone()).collect()
    }

    fn put(&self, reading: Reading) {
        self.0.send_modify(|table| table.put(reading, Instant::now()));
    }
}

/// The one that was named, or the first in `PATH`.
fn program(named: Option<&Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = || std::env::split_paths(&path).map(|place| place.join(PROGRAM));
    let found = named.map_or_else(|| places().find(|path| path.is_file()), |named| Some(named.to_owned()));
    found.filter(|path| path.is_file())
}

fn asking(path: &Path) -> Program {
    let every = EVERY.as_secs().to_string();
    let environment = INHERITED.into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    let arguments = [&format!("--query-gpu={QUERY}"), "--format=csv,noheader,nounits", "-l", &every];
    Program::new(path).arguments(arguments).environment(environment)
}

async fn follow(program: Program, gpus: Gpus) {
    let mut pauses = Doubling::new(FIRST_PAUSE, LAST_PAUSE);
    loop {
        match program.lines() {
            Ok(mut lines) => {
                if read(&mut lines, &gpus).await {
                    pauses.reset();
                }
                // One at a time, although a driver that hangs may hold it for long.
                while !lines.kill().await {
                    tokio::time::sleep(pauses.step()).await;
                }
                tracing::debug!(again = ?pauses.pause(), "{PROGRAM} has ended or was silent");
            }
            Err(error) => tracing::debug!(%error, again = ?pauses.pause(), "nothing is told of GPUs"),
        }
        tokio::time::sleep(pauses.step()).await;
    }
}

/// Until the program has ended or is silent. Whether it told anything.
async fn read(lines: &mut Lines, gpus: &Gpus) -> bool {
    let mut any = false;
    while let Ok(Ok(Some(line))) = timeout(FRESH, lines.next()).await {
        match Reading::parse(&line) {
            Some(reading) => {
                gpus.put(reading);
                any = true;
            }
            None => tracing::debug!(line = line.escape_debug().to_string(), "not a reading of a GPU"),
        }
    }
    any
}

#[cfg(test)]
mod tests;
