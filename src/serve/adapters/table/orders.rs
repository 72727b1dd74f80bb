//! What operators want, and what was remembered from the last run.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Eviction, Table, Want};
use crate::adapters::{Alias, PreparationId};
use crate::identity::UnixTime;
use crate::serve::adapters::desired::Wish;
use crate::serve::adapters::disk::{Record, Remembered};

/// The order was not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error("no such adapter is known here")]
    Unknown,
    #[error("too many adapters are known: raise `max_adapters`, or unpin some")]
    Full,
}

impl Table {
    pub(in crate::serve::adapters) fn load(&mut self, alias: &Alias, now: Instant) -> Result<(), OrderError> {
        self.entry(alias, now).ok_or(OrderError::Full)?;
        self.wanted(alias, now);
        self.dirty.insert(alias.clone());
        Ok(())
    }

    /// Makes an adapter wanted, and looks it up if it was not.
    fn wanted(&mut self, alias: &Alias, now: Instant) {
        let Some(entry) = self.entries.get_mut(alias) else { return };
        (entry.want, entry.brought_by, entry.leaving, entry.used) = (Want::Yes, None, None, now);
        entry.failures.clear();
        if !entry.looked {
            self.names.refresh([alias.clone()].into_iter());
        }
    }

    /// It leaves the engine when nobody uses it any more, and comes back by [`Table::load`] only.
    pub(in crate::serve::adapters) fn unload(&mut self, alias: &Alias) -> Result<(), OrderError> {
        let entry = self.entries.get_mut(alias).ok_or(OrderError::Unknown)?;
        if entry.want != Want::Stopped {
            entry.want = Want::Stopped;
            self.metrics.evicted(Eviction::Operator);
            self.dirty.insert(alias.clone());
        }
        Ok(())
    }

    /// A pinned adapter stays in the engine, and is the first that a new engine gets.
    pub(in crate::serve::adapters) fn pin(&mut self, alias: &Alias, pin: bool, now: Instant) -> Result<(), OrderError> {
        let is_stopped = self.entries.get(alias).is_some_and(|entry| entry.want == Want::Stopped);
        let entry = self.entry(alias, now).ok_or(OrderError::Full)?;
        entry.pin = pin;
        if pin && !is_stopped {
            self.wanted(alias, now);
        }
        self.dirty.insert(alias.clone());
        Ok(())
    }

    /// The whole of what the file says. What an operator has unloaded stays so.
    pub(in crate::serve::adapters) fn desire(&mut self, wishes: BTreeMap<Alias, Wish>, now: Instant) {
        for (alias, entry) in &mut self.entries {
            if !wishes.contains_key(alias) {
                entry.wish = None;
            }
        }
        for (alias, wish) in wishes {
            let Some(entry) = self.entry(&alias, now) else {
                tracing::warn!(%alias, "too many adapters are known: this one is not loaded");
                continue;
            };
            let is_new = entry.wish.as_ref() != Some(&wish);
            let comes = (wish.pin || wish.preload) && is_new && entry.want != Want::Stopped;
            entry.wish = Some(wish);
            if comes {
                self.wanted(&alias, now);
            }
        }
    }

    /// From the last run; nothing of it is in the engine.
    pub(in crate::serve::adapters) fn remember(&mut self, all: Vec<Remembered>, now: Instant) {
        for Remembered { alias, signed, prepared, want, brought_by, pin, used_ago } in all {
            let Some(entry) = self.entry(&alias, now) else { return };
            (entry.signed, entry.shelved) = (signed.map(Arc::new), prepared);
            (entry.want, entry.brought_by, entry.pin) = (want, brought_by, pin);
            entry.used = now.checked_sub(used_ago).unwrap_or(now);
        }
        self.keep_recent();
    }

    /// What is worth to be remembered; `None` if nothing is.
    pub(in crate::serve::adapters) fn record(&self, alias: &Alias, now: Instant, time: UnixTime) -> Option<Record> {
        let entry = self.entries.get(alias)?;
        let envelope = entry.signed.as_ref().map(|signed| &signed.envelope[..]);
        if envelope.is_none() && !entry.pin && entry.want != Want::Stopped {
            return None;
        }
        let ago = now.saturating_duration_since(entry.used).as_secs();
        let used = UnixTime::from_seconds(time.seconds().saturating_sub(ago));
        let (want, brought_by) = (entry.want, entry.brought_by.clone());
        Some(Record::new(alias.clone(), want, brought_by, entry.pin, used, envelope))
    }

    /// A prepared directory of the last run. Nobody needs it until somebody does.
    pub(in crate::serve::adapters) fn found_on_disk(&mut self, id: PreparationId, bytes: u64, now: Instant) {
        self.files.put(id, bytes, now);
    }
}
