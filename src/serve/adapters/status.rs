//! What operators see and do.

use serde::Serialize;
use tokio::time::Instant;

use super::Adapters;
use super::entry::{Entry, Want};
use super::source::Progress;
use super::state::State;
use super::table::{OrderError, Table};
use crate::adapters::{Alias, Release};
use crate::digest::{ArtifactId, ContentId};

/// One alias.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterStatus {
    pub alias: Alias,
    pub state: State,
    pub pinned: bool,
    /// False if nobody needs it in the engine now.
    pub wanted: bool,
    /// By an operator: requests do not bring it back.
    pub stopped: bool,
    /// Since the last request.
    pub idle_seconds: u64,
    pub base_model: Option<String>,
    pub owner: Option<String>,
    pub artifact: Option<ArtifactId>,
    pub content: Option<ContentId>,
    pub generation: Option<u64>,
    /// Generation of the newest version in the fleet, as far as is known.
    pub offered_generation: Option<u64>,
    pub progress: Option<Progress>,
    pub failure: Option<FailureStatus>,
    /// All that are here; of several, the others are on their way in or out.
    pub versions: Vec<VersionStatus>,
}

/// Why a version is not served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureStatus {
    pub artifact: ArtifactId,
    pub reason: String,
    pub retry_in_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionStatus {
    /// What the engine calls it.
    pub name: String,
    /// Requests get this one.
    pub current: bool,
    pub in_flight: usize,
    pub bytes: u64,
}

/// Adapters that the engine keeps in memory, and bytes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capacity {
    pub slots: usize,
    pub used: usize,
    pub free: usize,
    pub quota_bytes: u64,
    pub used_bytes: u64,
}

impl Table {
    fn status(&self, alias: &Alias, entry: &Entry, now: Instant) -> AdapterStatus {
        let signed = self.signed(alias);
        let release = signed.map(|signed| &signed.release);
        let text = |of: fn(&Release) -> Option<String>| release.and_then(of);
        let attempt = entry.attempt.as_ref();
        AdapterStatus {
            alias: alias.clone(),
            state: self.state(entry, now),
            pinned: entry.is_pinned(),
            wanted: entry.want == Want::Yes,
            stopped: entry.want == Want::Stopped,
            idle_seconds: now.saturating_duration_since(entry.used).as_secs(),
            base_model: text(|release| Some(release.base.to_string())),
            owner: text(|release| Some(release.owner.as_ref()?.to_string())),
            artifact: signed.map(|signed| signed.artifact),
            content: release.map(|release| release.content),
            generation: signed.map(|signed| signed.generation),
            offered_generation: entry.offer.as_ref().map(|offer| offer.generation),
            progress: attempt.and_then(|attempt| Some(*attempt.progress.as_ref()?.borrow())),
            failure: entry.failures.iter().rfind(|failure| now < failure.until).map(|failure| FailureStatus {
                artifact: failure.artifact,
                reason: failure.reason.clone(),
                retry_in_seconds: failure.until.saturating_duration_since(now).as_secs(),
            }),
            versions: self.versions_of(alias, entry),
        }
    }

    fn versions_of(&self, alias: &Alias, entry: &Entry) -> Vec<VersionStatus> {
        let own = self.sizes().filter(|(name, ..)| name.alias() == alias);
        own.map(|(name, in_flight, bytes)| VersionStatus {
            name: name.to_string(),
            current: entry.current.as_ref() == Some(name),
            in_flight,
            bytes,
        })
        .collect()
    }
}

impl Adapters {
    pub fn status(&self) -> Vec<AdapterStatus> {
        let (table, now) = (self.shared.table(), Instant::now());
        table.entries().map(|(alias, entry)| table.status(alias, entry, now)).collect()
    }

    pub fn capacity(&self) -> Capacity {
        let table = self.shared.table();
        let (slots, used) = (table.config().max_cpu_loras, table.registered());
        let (quota_bytes, used_bytes) = (table.config().quota_bytes, table.used_bytes());
        Capacity { slots, used, free: slots.saturating_sub(used), quota_bytes, used_bytes }
    }

    /// Loads an adapter before anybody asks for it, also one that was unloaded or has failed. Returns at once.
    pub fn load(&self, alias: &Alias) -> Result<(), OrderError> {
        self.shared.update(|table, now| table.load(alias, now))
    }

    /// No request gets it from now on, until [`Adapters::load`]; those that have it keep it to their end.
    pub fn unload(&self, alias: &Alias) -> Result<(), OrderError> {
        self.shared.update(|table, _| table.unload(alias))
    }

    /// A pinned adapter is loaded, stays, and is the first that a new engine gets.
    pub fn pin(&self, alias: &Alias, pin: bool) -> Result<(), OrderError> {
        self.shared.update(|table, now| table.pin(alias, pin, now))
    }
}
