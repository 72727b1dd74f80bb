//! Does what the table wants done.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tracing::Instrument;

use super::Shared;
use super::desired::Desired;
use super::load::Ended;
use super::metrics::Stage;
use super::registry::RegistryError;
use super::source::LookError;
use super::table::Work;
use crate::adapters::{Alias, PreparationId, ServedName};
use crate::digest::ArtifactId;
use crate::identity::UnixTime;
use crate::telemetry::trace;

/// How often the table is asked for what only time brings.
const TICK: Duration = Duration::from_secs(1);

/// Runs as long as the adapters are served. What it has begun ends with it.
pub(super) async fn conduct(shared: Arc<Shared>, mut epoch: watch::Receiver<Option<u64>>) {
    let mut running = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_engine = true;
    loop {
        let work = {
            let now = Instant::now();
            let mut table = shared.table();
            table.engine(*epoch.borrow_and_update(), now);
            table.take(now)
        };
        for work in work {
            running.spawn(perform(shared.clone(), work));
        }
        tokio::select! {
            () = shared.stir.notified() => {}
            _ = tick.tick() => shared.table().observe(Instant::now()),
            changed = epoch.changed(), if has_engine => has_engine = changed.is_ok(),
            Some(_) = running.join_next() => {}
        }
    }
}

/// A panic is a failure like others.
async fn caught<T>(work: impl Future<Output = T>, otherwise: impl FnOnce() -> T) -> T {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| otherwise())
}

async fn perform(shared: Arc<Shared>, work: Work) {
    match work {
        Work::Look(batch) => shared.look(batch).await,
        Work::Compare(batch) => shared.compare(batch).await,
        Work::Load { alias, job } => {
            let (traceparent, artifact) = (shared.causes.of(&alias), job.artifact);
            let span = tracing::debug_span!(target: trace::OPERATIONS, "load adapter", adapter = %alias, %artifact, traceparent);
            let loading = shared.load(&alias, job).instrument(span);
            let result = caught(loading, || Err(Ended::failed("the load panicked"))).await;
            if !matches!(result, Ok(_) | Err(Ended::Superseded(_))) {
                shared.causes.over(&alias);
            }
            shared.update(|table, now| match result {
                Ok(loaded) => table.loaded(&alias, loaded, now),
                Err(Ended::Superseded(offer)) => table.superseded(&alias, *offer, now),
                Err(Ended::Unwanted) => table.unwanted(&alias),
                Err(Ended::Failed { kind, reason }) => table.failed(&alias, kind, reason, now),
            });
        }
        Work::Register { epoch, name, directory } => shared.register(epoch, name, &directory).await,
        Work::Unregister { epoch, name } => {
            let result = shared.ask(shared.registry.unload(epoch, &name)).await;
            shared.update(|table, now| table.was_unregistered(epoch, &name, result, now));
        }
        Work::List { epoch, begun } => {
            let found = shared.ask(shared.registry.list(epoch)).await;
            shared.update(|table, now| table.listed(epoch, begun, found, now));
        }
        Work::AskElsewhere { alias, artifact } => shared.ask_elsewhere(alias, artifact).await,
        Work::Delete(id) => shared.delete(id).await,
        Work::Save(aliases) => {
            let not_written = shared.save(aliases).await;
            shared.table().saved(not_written);
        }
    }
}

impl Shared {
    async fn look(&self, batch: Vec<Alias>) {
        let begun = Instant::now();
        let looking = timeout(self.config().look, self.loader.source.look(&batch));
        let found = caught(looking, || Ok(Err(LookError("the look-up panicked".to_owned())))).await;
        let found = found.unwrap_or_else(|_| Err(LookError("no answer in time".to_owned())));
        self.metrics.looked(begun.elapsed());
        self.update(|table, now| table.looked(&batch, found, now));
    }

    async fn compare(&self, batch: Vec<Alias>) {
        let comparing = timeout(self.config().look, self.loader.source.compare(&batch));
        let found = caught(comparing, || Ok(Err(LookError("the comparison panicked".to_owned())))).await;
        let found = found.unwrap_or_else(|_| Err(LookError("no answer in time".to_owned())));
        self.update(|table, now| table.compared(&batch, found, now));
    }

    /// A question to the engine that is not answered may have been followed.
    async fn ask<T>(&self, question: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
        let unknown = || Err(RegistryError::Unknown);
        caught(timeout(self.config().register, question), || Ok(unknown())).await.unwrap_or_else(|_| unknown())
    }

    async fn register(&self, epoch: u64, name: ServedName, directory: &Path) {
        let Ok(_turn) = self.registering.acquire().await else { return };
        let begun = Instant::now();
        let traceparent = self.causes.of(name.alias());
        let span =
            tracing::debug_span!(target: trace::OPERATIONS, "register adapter", adapter = %name.alias(), traceparent);
        let result = self.ask(self.registry.load(epoch, &name, directory)).instrument(span).await;
        self.causes.over(name.alias());
        self.metrics.took(name.alias(), Stage::Register, begun.elapsed());
        self.update(|table, now| table.was_registered(epoch, &name, result, now));
    }

    async fn ask_elsewhere(&self, alias: Alias, artifact: ArtifactId) {
        let asking = timeout(self.config().look, self.loader.source.elsewhere(&artifact));
        let is_there = caught(asking, || Ok(false)).await.unwrap_or(false);
        self.update(|table, now| table.elsewhere(&alias, &artifact, is_there, now));
    }

    async fn delete(&self, id: PreparationId) {
        let preparer = self.loader.preparer.clone();
        let removed = self.unbounded(move || preparer.root().discard(&id)).await;
        let is_gone = match removed {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::warn!(%id, %error, "a prepared adapter was not removed");
                false
            }
            Err(_) => false,
        };
        self.update(|table, now| table.deleted(&id, is_gone, now));
    }

    /// Writes the records of these aliases; those that were not written are returned.
    pub(super) async fn save(self: &Arc<Self>, aliases: Vec<Alias>) -> Vec<Alias> {
        let (shared, to_write) = (self.clone(), aliases.clone());
        // The runtime's clock, which its other threads do not know.
        let now = Instant::now();
        self.unbounded(move || shared.write(to_write, now)).await.unwrap_or(aliases)
    }

    /// One at a time: whoever writes last writes what is so last.
    fn write(&self, aliases: Vec<Alias>, now: Instant) -> Vec<Alias> {
        let disk = &self.loader.disk;
        let _turn = disk.writing();
        let (mut not_written, time) = (Vec::new(), UnixTime::now());
        for alias in aliases {
            let record = self.table().record(&alias, now, time);
            let written = record.map_or_else(|| disk.forget(&alias), |record| disk.write(&record));
            if let Err(error) = written {
                tracing::warn!(%alias, %error, "an adapter will not be remembered");
                not_written.push(alias);
            }
        }
        not_written
    }
}

/// Follows the file of wishes. While it cannot be read, the last ones count.
pub(super) async fn follow(shared: Arc<Shared>, path: PathBuf) {
    let mut desired = Desired::new(path);
    let mut tick = tokio::time::interval(shared.config().desired_every.max(Duration::from_millis(100)));
    let mut told = String::new();
    loop {
        tick.tick().await;
        let polled = tokio::task::spawn_blocking(move || {
            let polled = desired.poll();
            (desired, polled)
        });
        let Ok((same, polled)) = polled.await else { return };
        desired = same;
        match polled {
            Ok(Some(wishes)) => {
                told.clear();
                shared.update(|table, now| table.desire(wishes, now));
            }
            Ok(None) => {}
            Err(error) => {
                let text = error.to_string();
                if text != told {
                    tracing::warn!(%error, "the file of desired adapters");
                    told = text;
                }
            }
        }
    }
}
