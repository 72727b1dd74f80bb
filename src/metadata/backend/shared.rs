//! One store for several servers: Redis or Valkey.
//!
//! The store has the truth: a record for each node and for each thing that it holds, and a log of changes. A server decides
//! a change by its own registry, and a script in the store takes it only if nothing else happened to the node since
//! (compare and set by version). Every server, that one too, then applies the log in its order ([`registry::Change`]), so
//! that lookups, lists and watches are answered from memory. A request that changes something is answered when its own
//! server has applied the change.
//!
//! - Time is the store's: a lease begins when the store takes the renewal. Between two pulses a server adds what its own
//!   monotonic clock says.
//! - The epoch is the store's. A store that is empty, or another process than before, which may have lost what came last,
//!   gets a new epoch, and agents announce everything again.
//! - One server leads, by a key that expires: it forgets nodes and shows the gauges of the directory. Two leaders would do
//!   no harm, since forgetting is compare and set as well.
//! - While the store does not answer, or this server has not read all of it, every request is refused with [`StoreError`].
//! - Limits are looked at by whoever decides, so servers that decide at once can exceed those of the whole directory by as
//!   many announcements as they have in hand.
//!
//! [`registry::Change`]: crate::metadata::registry::Change

mod config;
mod follow;
mod link;
mod record;
mod settings;
mod trust;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::metadata::registry::{Change, RegistryError, Version};
use crate::metadata::service::Directory;
use crate::protocol::metadata::ServerEpoch;
pub use config::{Drift, InvalidStoreUrl, RedisConfig, StoreUrl};
pub(in crate::metadata) use follow::{Follower, JoinError, follow};
use link::{Committed, Link};
pub use settings::{Difference, Drifted};

/// How often a change is decided again because another server was first.
const ATTEMPTS: usize = 8;

/// Longest wait until this server has applied what the store has taken.
const APPLIED: Duration = Duration::from_secs(2);

/// Between two attempts, where the store does not say which change was first.
const AGAIN: Duration = Duration::from_millis(50);

/// The store that servers share did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("the shared store is unreachable: {0}")]
    Unreachable(String),
    #[error("the shared store does not answer in time")]
    Silent,
    /// Password, memory, a replica that takes no writes, and the like.
    #[error("the shared store refuses: {0}")]
    Refused(String),
    /// This server has not read the whole store since it connected.
    #[error("the shared store is still being read")]
    Loading,
    #[error("other servers change the same node all the time")]
    Contended,
    #[error("{0} in the shared store is not readable: empty the store, and agents announce everything again")]
    Damaged(&'static str),
}

/// Why a change was not done.
#[derive(Debug)]
pub(in crate::metadata) enum ChangeError {
    Registry(RegistryError),
    Store(StoreError),
}

impl From<StoreError> for ChangeError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What handlers have of the store.
pub(in crate::metadata) struct Shared {
    state: Mutex<Result<(Link, ServerEpoch), StoreError>>,
    /// The last change that the registry has seen.
    applied: watch::Sender<Version>,
    /// Somebody has seen that the store and the registry do not agree.
    reload: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("applied", &*self.applied.borrow()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(in crate::metadata) fn new() -> Arc<Self> {
        let state = Mutex::new(Err(StoreError::Loading));
        Arc::new(Self { state, applied: watch::Sender::default(), reload: Notify::new() })
    }

    /// Whether the registry knows what the store knows.
    pub(in crate::metadata) fn check(&self) -> Result<(), StoreError> {
        self.link().map(|_| ())
    }

    /// Waits until it does; false at the deadline.
    pub(in crate::metadata) async fn ready(&self, deadline: Duration) -> bool {
        let mut applied = self.applied.subscribe();
        let ready = async { while self.check().is_err() && applied.changed().await.is_ok() {} };
        tokio::time::timeout(deadline, ready).await.is_ok()
    }

    /// Does a change in the store and waits until the registry has it.
    pub(in crate::metadata) async fn change(&self, directory: &Directory, change: &Change) -> Result<(), ChangeError> {
        let mut unknown = false;
        for _ in 0..ATTEMPTS {
            let (link, epoch) = self.link()?;
            let decision = directory.read(|registry, _| registry.decide(change)).map_err(ChangeError::Registry)?;
            let Some(decision) = decision else {
                if self.knows_all(&link).await? {
                    return Ok(());
                }
                continue;
            };
            let committed = link.commit(change, &decision, epoch).await;
            unknown = false;
            match committed.inspect_err(|_| self.reload.notify_one())? {
                Committed::Done(version) => return Ok(self.applied(version).await?),
                Committed::Conflict(version) if version > *self.applied.borrow() => self.applied(version).await?,
                // Forgotten, which the log tells us in a moment.
                Committed::Conflict(version) if version == Version::default() => {
                    unknown = true;
                    tokio::time::sleep(AGAIN).await;
                }
                // We had not applied it when we decided.
                Committed::Conflict(version)
                    if directory.read(|registry, _| registry.version_of(change.node())) >= version => {}
                Committed::Conflict(_) | Committed::OtherEpoch => return Err(self.disagrees().into()),
            }
        }
        Err(if unknown { self.disagrees() } else { StoreError::Contended }.into())
    }

    /// Whether the registry has every change; waits for what it has not.
    async fn knows_all(&self, link: &Link) -> Result<bool, StoreError> {
        let last = link.last().await.inspect_err(|_| self.reload.notify_one())?;
        if last <= *self.applied.borrow() {
            return Ok(true);
        }
        self.applied(last).await?;
        Ok(false)
    }

    /// The registry is not what the store has: it is read again.
    fn disagrees(&self) -> StoreError {
        self.reload.notify_one();
        StoreError::Loading
    }

    async fn applied(&self, version: Version) -> Result<(), StoreError> {
        let mut applied = self.applied.subscribe();
        let reached = tokio::time::timeout(APPLIED, applied.wait_for(|applied| *applied >= version)).await;
        if matches!(reached, Ok(Ok(_))) { Ok(()) } else { Err(StoreError::Loading) }
    }

    fn link(&self) -> Result<(Link, ServerEpoch), StoreError> {
        self.state().clone()
    }

    fn set(&self, state: Result<(Link, ServerEpoch), StoreError>, applied: Version) {
        *self.state() = state;
        self.applied.send_replace(applied);
    }

    fn state(&self) -> MutexGuard<'_, Result<(Link, ServerEpoch), StoreError>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
