//! The life of LoRA adapters on one node: from a name that a client says to weights that the engine serves, and back.
//!
//! ```text
//! Models::resolve --> Table (pure: what is, what is wanted) --take--> Work --> Source, Preparer, Registry --> Table
//! ```
//!
//! A `Table` behind a lock says what there is and what is to be done; one task does it, and tells the table
//! how it went. Every change is told by a channel whose value is read again after subscribing, so no waiter misses one.
//! Who waits owns nothing: a load goes on when its waiters have left.
//!
//! An adapter is served as `alias@digest` from a directory that never changes. A new version is registered beside the old
//! one; then the alias names the new one, all at once. Requests that got the old one keep it: it is unloaded when the last
//! of them has ended, and its files go after a grace, because engines read them again whenever they like.
//!
//! What is believed of the engine is stamped with its epoch. A new epoch begins with nothing; the engine's own list is
//! compared then, and now and again.

mod cause;
mod conduct;
mod config;
mod desired;
mod disk;
mod entry;
mod files;
mod load;
mod metrics;
mod models;
mod names;
mod registry;
mod source;
mod state;
mod status;
mod table;
mod top;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::adapters::{AdapterRoot, Alias, Preparer};
use crate::identity::UnixTime;
use crate::lifecycle::Tasks;
use crate::proxy::ModelCard;
use cause::Causes;
use disk::Remembered;
use load::Loader;
use table::Table;

pub use config::AdaptersConfig;
pub use desired::DesiredError;
pub use disk::{Disk, DiskError};
pub use metrics::Metrics;
pub use models::{Access, Denied, Everybody};
pub use registry::{Registered, Registry, RegistryError};
pub use source::{Delivery, FetchError, Files, Foreign, LookError, Offer, Progress, Sighting, Signed, Source};
pub use state::State;
pub use status::{AdapterStatus, Capacity, FailureStatus, VersionStatus};
pub use table::OrderError;

/// The adapters cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("threads for preparing adapters: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// What adapters need.
pub struct Parts {
    pub config: AdaptersConfig,
    /// Its root is [`Disk::prepared`] of `disk`.
    pub preparer: Arc<Preparer>,
    pub disk: Arc<Disk>,
    pub source: Arc<dyn Source>,
    pub registry: Arc<dyn Registry>,
    /// Of the engine, while it is ready.
    pub epoch: watch::Receiver<Option<u64>>,
    /// The base models that the engine serves, by the names that clients say.
    pub base: Vec<ModelCard>,
    pub access: Arc<dyn Access>,
    pub metrics: Metrics,
}

/// The adapters of one engine.
pub struct Adapters {
    shared: Arc<Shared>,
    tasks: Tasks,
}

/// What all requests and loads share.
struct Shared {
    table: Mutex<Table>,
    /// Counts changes that somebody may wait for.
    changes: watch::Sender<u64>,
    /// There may be something to do.
    stir: Notify,
    loader: Loader,
    registry: Arc<dyn Registry>,
    registering: Semaphore,
    /// Work on other threads, which goes on when whoever waits for it is cancelled.
    blocking: TaskTracker,
    causes: Causes,
    base: Vec<ModelCard>,
    access: Arc<dyn Access>,
    metrics: Metrics,
    config: AdaptersConfig,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> &AdaptersConfig {
        &self.config
    }

    /// Changes the table and tells whoever waits or works.
    fn update<T>(&self, change: impl FnOnce(&mut Table, Instant) -> T) -> T {
        let done = change(&mut self.table(), Instant::now());
        self.changes.send_modify(|count| *count += 1);
        self.stir.notify_one();
        done
    }

    fn stage(&self, alias: &Alias, stage: State) {
        self.table().stage(alias, stage);
    }
}

impl Adapters {
    /// Remembers what the last run had, without the network, and begins. Blocking, inside a runtime.
    pub fn start(parts: Parts) -> Result<Self, StartError> {
        let Parts { config, preparer, disk, source, registry, epoch, base, access, metrics } = parts;
        let now = Instant::now();
        let mut table = Table::new(config.clone(), metrics.clone(), now);
        clean(preparer.root());
        for (id, bytes) in disk::prepared(preparer.root()) {
            table.found_on_disk(id, bytes, now);
        }
        table.remember(remembered(&disk, &*source, &preparer)?, now);
        let loader = Loader::new(source, preparer, disk, &config)?;
        let registering = Semaphore::new(config.max_registering.max(1));
        let (table, changes, stir) = (Mutex::new(table), watch::Sender::new(0), Notify::new());
        let shared = Arc::new(Shared {
            table,
            changes,
            stir,
            loader,
            registry,
            registering,
            blocking: TaskTracker::new(),
            causes: Causes::default(),
            base,
            access,
            metrics,
            config,
        });
        let tasks = Tasks::new();
        tasks.spawn("adapters", conduct::conduct(shared.clone(), epoch));
        if let Some(path) = shared.config.desired.clone() {
            tasks.spawn("desired adapters", conduct::follow(shared.clone(), path));
        }
        Ok(Self { shared, tasks })
    }

    /// Ends all work and remembers what there is; false if something had not ended at the deadline. Files of the engine stay.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        let ended = self.tasks.shutdown(deadline).await;
        let aliases = self.shared.table().entries().map(|(alias, _)| alias.clone()).collect();
        let saved = tokio::time::timeout(deadline, self.shared.save(aliases)).await;
        self.shared.blocking.close();
        // What was cancelled may still write.
        let idle = tokio::time::timeout(deadline, self.shared.blocking.wait()).await;
        ended && idle.is_ok() && saved.is_ok_and(|not_written| not_written.is_empty())
    }
}

fn clean(root: &AdapterRoot) {
    if let Err(error) = root.clean() {
        tracing::warn!(%error, "what dead workers left was not removed");
    }
}

/// What today's policy still admits.
fn remembered(disk: &Disk, source: &dyn Source, preparer: &Preparer) -> Result<Vec<Remembered>, DiskError> {
    let now = UnixTime::now();
    let mut all = Vec::new();
    for record in disk.records()? {
        let signed = match record.envelope().map(|envelope| source.readmit(&envelope)).transpose() {
            Ok(signed) => signed.filter(|signed| signed.release.alias == record.alias),
            Err(error) => {
                tracing::warn!(alias = %record.alias, %error, "an adapter of the last run is not admitted any more");
                None
            }
        };
        let used_ago = Duration::from_secs(now.seconds().saturating_sub(record.used.seconds()));
        let prepared = signed.as_ref().map(|signed| preparer.id(signed.release.content));
        let (alias, want, brought_by, pin) = (record.alias, record.want, record.brought_by, record.pin);
        all.push(Remembered { alias, signed, prepared, want, brought_by, pin, used_ago });
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
