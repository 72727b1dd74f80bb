//! Keeps a server's registry at what the store says: reads all of it after each connect, then the log.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use rand::RngExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::link::{Line, Link, Pulse, Tail, connect};
use super::record::{Entry, Record};
use super::settings::{compare, settings};
use super::trust::merge;
use super::{Drift, Drifted, RedisConfig, Shared, StoreError, StoreUrl};
use crate::identity::trust::Documents;
use crate::metadata::registry::{Change, Config, Counts, Registry, Version};
use crate::metadata::service::Directory;
use crate::metadata::trust::PutError;
use crate::protocol::metadata::ServerEpoch;

/// How often the store is asked for its time, its epoch and the leadership.
const PULSE: Duration = Duration::from_secs(1);

/// Longest wait before the next attempt to connect; with jitter.
const RETRY: Duration = Duration::from_millis(500);

/// Nodes that are read at once.
const READS: usize = 32;

/// Nodes forgotten in one go.
const FORGET: usize = 256;

/// What is needed to connect again and again.
#[derive(Debug, Clone)]
pub(in crate::metadata) struct Follower {
    url: StoreUrl,
    config: RedisConfig,
    registry: Config,
    settings: std::collections::BTreeMap<&'static str, String>,
    /// This server's name among those who may lead.
    server: String,
}

/// Why a server cannot share a store.
#[derive(Debug, thiserror::Error)]
pub(in crate::metadata) enum JoinError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Drifted(#[from] Drifted),
}

impl Follower {
    /// Looks at the store once: can it be used, and has the cluster agreed on the same settings?
    pub(in crate::metadata) async fn join(
        url: &StoreUrl,
        config: &RedisConfig,
        registry: &Config,
        cluster: Option<&str>,
        candidate: ServerEpoch,
    ) -> Result<Self, JoinError> {
        let settings = settings(registry, cluster);
        let (link, _) = connect(url, config).await?;
        let opened = link.open(candidate, &settings, config.drift).await?;
        if let Err(drifted) = compare(&settings, &opened.settings) {
            match config.drift {
                Drift::Warn | Drift::Adopt => tracing::warn!("{drifted}"),
                Drift::Abort => return Err(drifted.into()),
            }
        }
        let server = format!("{:016x}", rand::rng().random::<u64>());
        // Adopted once: a later connect must not undo what another server adopts.
        let config = RedisConfig { drift: Drift::Warn, ..config.clone() };
        Ok(Self { url: url.clone(), config, registry: registry.clone(), settings, server })
    }
}

/// Follows the store until cancelled.
pub(in crate::metadata) async fn follow(
    directory: Arc<Directory>,
    shared: Arc<Shared>,
    follower: Follower,
    token: CancellationToken,
) {
    let following = async {
        loop {
            let Err(error) = session(&directory, &shared, &follower).await;
            tracing::warn!(%error, "the shared store was lost");
            directory.metrics.lost_store(&error);
            show(&directory, false, &Counts::default());
            shared.set(Err(error), Version::default());
            let wait = RETRY.mul_f64(rand::rng().random_range(0.2..1.0));
            tokio::time::sleep(wait).await;
        }
    };
    token.run_until_cancelled(following).await;
    if let Ok((link, _)) = shared.link() {
        // Else another server waits until the leadership expires.
        let _ = link.pulse(&follower.server, false).await;
    }
}

/// From a connect to the next failure.
async fn session(directory: &Directory, shared: &Shared, follower: &Follower) -> Result<Infallible, StoreError> {
    let (link, tail) = connect(&follower.url, &follower.config).await?;
    let candidate = ServerEpoch(rand::rng().random_range(1..=u64::MAX));
    let opened = link.open(candidate, &follower.settings, Drift::Warn).await?;
    let pulse = link.pulse(&follower.server, true).await?;
    let begin = Instant::now();
    // What changes while the nodes are read is in the log behind this place.
    let registry = load(&link, &follower.registry, opened.epoch).await?;
    directory.replace(registry, pulse.now + begin.elapsed());
    directory.metrics.found_store();
    tracing::info!(epoch = opened.epoch.0, version = pulse.last.0, "the shared store was read");
    // What somebody saw before does not count any more.
    let _ = shared.reload.notified().now_or_never();
    shared.set(Ok((link.clone(), opened.epoch)), pulse.last);
    let mut session = Session { directory, shared, follower, link, tail, epoch: opened.epoch, applied: pulse.last };
    session.run(pulse).await
}

/// Only the leader shows what all servers have in common: a sum over servers counts it once.
fn show(directory: &Directory, leads: bool, counts: &Counts) {
    directory.set_counts(leads);
    let none = Counts::default();
    directory.metrics.set(if leads { counts } else { &none });
}

async fn load(link: &Link, config: &Config, epoch: ServerEpoch) -> Result<Registry, StoreError> {
    let mut registry = Registry::shared(config.clone(), epoch);
    let mut cursor = 0;
    loop {
        let (next, nodes) = link.nodes(cursor).await?;
        let mut reads = stream::iter(nodes.into_iter().map(|node| link.with_held(node))).buffer_unordered(READS);
        while let Some(record) = reads.try_next().await? {
            adopt(&mut registry, &record);
        }
        if next == 0 {
            return Ok(registry);
        }
        cursor = next;
    }
}

fn adopt(registry: &mut Registry, record: &Record) {
    let complete = record.complete == Some(registry.server_epoch());
    registry.adopt(&record.node, complete, record.version, Duration::from_millis(record.renewed_ms));
}

struct Session<'a> {
    directory: &'a Directory,
    shared: &'a Shared,
    follower: &'a Follower,
    link: Link,
    tail: Tail,
    epoch: ServerEpoch,
    applied: Version,
}

impl Session<'_> {
    async fn run(&mut self, mut pulse: Pulse) -> Result<Infallible, StoreError> {
        loop {
            self.upkeep(&pulse).await?;
            self.trust().await?;
            let next = Instant::now() + PULSE;
            loop {
                let wait = next.saturating_duration_since(Instant::now());
                if wait.is_zero() {
                    break;
                }
                let lines = tokio::select! {
                    lines = self.tail.read(self.applied, wait) => lines?,
                    () = self.shared.reload.notified() => return Err(StoreError::Loading),
                };
                if lines.is_empty() && self.applied < pulse.last {
                    // It was there before we asked, and is not any more.
                    return Err(StoreError::Loading);
                }
                self.apply(lines).await?;
            }
            let begin = Instant::now();
            pulse = self.link.pulse(&self.follower.server, true).await?;
            self.directory.set_clock(pulse.now, begin);
            if pulse.epoch != Some(self.epoch) || pulse.last < self.applied {
                return Err(StoreError::Loading);
            }
        }
    }

    async fn apply(&mut self, lines: Vec<Line>) -> Result<(), StoreError> {
        for line in lines {
            // A gap: the log was cut before we came to it.
            if line.version.0 != self.applied.0 + 1 {
                return Err(StoreError::Loading);
            }
            match line.entry {
                Entry::Apply(change) => {
                    self.directory.change_at(line.at, |registry, now| registry.apply(&change, line.version, now));
                }
                Entry::Load => self.reread(&line).await?,
            }
            self.applied = line.version;
            self.shared.applied.send_replace(line.version);
        }
        Ok(())
    }

    async fn reread(&self, line: &Line) -> Result<(), StoreError> {
        let record = self.link.node(line.node).await?;
        self.directory.change_at(line.at, |registry, now| {
            registry.expire(now);
            match &record {
                Some(record) if registry.version_of(line.node) >= record.version => {}
                Some(record) => adopt(registry, record),
                None => registry.apply(&Change::Forget(line.node), line.version, now),
            }
        });
        Ok(())
    }

    /// Takes documents of trust that other servers were handed, and gives those that the store has lost.
    async fn trust(&self) -> Result<(), StoreError> {
        match merge(&self.link, &self.directory.trust, &Documents::default()).await {
            Ok(_) | Err(PutError::NoRoot) => Ok(()),
            Err(PutError::Store(error)) => Err(error),
            Err(error @ (PutError::Refused(_) | PutError::Keep(_))) => {
                tracing::warn!(%error, "documents of trust in the shared store are not taken");
                Ok(())
            }
        }
    }

    /// What one server does for all.
    async fn upkeep(&self, pulse: &Pulse) -> Result<(), StoreError> {
        let counts = self.directory.expire();
        show(self.directory, pulse.leads, &counts);
        if !pulse.leads {
            return Ok(());
        }
        let gone = self.directory.read(|registry, now| registry.to_forget(now));
        for node in gone.into_iter().take(FORGET) {
            let change = Change::Forget(node);
            let decision = self.directory.read(|registry, _| registry.decide(&change));
            if let Ok(Some(decision)) = decision {
                // A node that spoke in between is not forgotten.
                self.link.commit(&change, &decision, self.epoch).await?;
            }
        }
        Ok(())
    }
}
