//! What was found out about the fleet and about loads.

use tokio::time::Instant;

use super::{Eviction, Place, Table};
use crate::adapters::{Alias, PreparationId, ServedName};
use crate::digest::ArtifactId;
use crate::serve::adapters::entry::{Kind, Loaded, Version};
use crate::serve::adapters::metrics::Outcome;
use crate::serve::adapters::source::{Foreign, LookError, Offer, Sighting};

type Looked = Result<Vec<Sighting>, LookError>;

impl Table {
    pub(in crate::serve::adapters) fn looked(&mut self, batch: &[Alias], found: Looked, now: Instant) {
        self.looks = self.looks.saturating_sub(1);
        let found = found.and_then(|offers| {
            let wrong = || LookError(format!("{} answers to {} questions", offers.len(), batch.len()));
            if offers.len() == batch.len() { Ok(offers) } else { Err(wrong()) }
        });
        match found {
            Ok(offers) => {
                let (answered, open): (Vec<_>, Vec<_>) =
                    batch.iter().zip(offers).partition(|(_, answer)| answer.is_ok());
                for (alias, offer) in answered {
                    self.heard(alias, offer.ok().flatten(), now);
                }
                if let Some((_, Err(error))) = open.first() {
                    self.not_looked(open.iter().map(|(alias, _)| *alias), error, now);
                }
            }
            Err(error) => self.not_looked(batch, &error, now),
        }
    }

    fn not_looked<'a>(&mut self, aliases: impl IntoIterator<Item = &'a Alias>, error: &LookError, now: Instant) {
        tracing::warn!(%error, "adapters were not looked up");
        for alias in aliases {
            self.names.not_answered(alias, now + self.config.unknown_for);
        }
    }

    /// That there is none for our base model is known already: what is not answered is left out.
    pub(in crate::serve::adapters) fn compared(
        &mut self,
        batch: &[Alias],
        found: Result<Vec<Option<Foreign>>, LookError>,
        now: Instant,
    ) {
        self.comparisons = self.comparisons.saturating_sub(1);
        let found = found.unwrap_or_else(|error| {
            tracing::debug!(%error, "whether there are adapters of other base models is not known");
            Vec::new()
        });
        let until = now + self.config.unknown_for;
        for (alias, foreign) in batch.iter().zip(found.into_iter().chain(std::iter::repeat(None))) {
            self.names.compared(alias, foreign, until);
        }
    }

    fn heard(&mut self, alias: &Alias, offer: Option<Offer>, now: Instant) {
        let Some(offer) = offer else {
            if let Some(entry) = self.entries.get_mut(alias) {
                entry.looked = true;
            }
            self.names.not_found(alias);
            return;
        };
        if let Some(entry) = self.entries.get_mut(alias).filter(|entry| entry.is_known()) {
            (entry.looked, entry.offer) = (true, Some(offer));
            // Who has asked for the name may not know of it.
            return self.names.not_found(alias);
        }
        let askers = self.names.take(alias);
        // Nobody asks for it any more.
        if askers.is_none() && !self.entries.contains_key(alias) {
            return;
        }
        let Some(entry) = self.entry(alias, now) else {
            tracing::warn!(%alias, "too many adapters are known: this one is not loaded");
            return;
        };
        (entry.looked, entry.offer) = (true, Some(offer));
        askers.iter().flatten().for_each(|caller| entry.ask(caller));
    }

    pub(in crate::serve::adapters) fn loaded(&mut self, alias: &Alias, loaded: Loaded, now: Instant) {
        let Loaded { signed, prepared, directory, bytes } = loaded;
        self.files.put(prepared, bytes, now);
        let turn = self.next_turn();
        let name = ServedName::new(alias.clone(), &prepared);
        let version = self.versions.entry(name.clone()).or_insert_with(|| Version {
            prepared,
            directory,
            signed: signed.clone(),
            place: Place::Disk { since: turn },
            leases: 0,
            not_before: now,
            lost: Vec::new(),
        });
        // The same weights may have been signed anew.
        version.signed = signed.clone();
        let Some(entry) = self.entries.get_mut(alias) else { return };
        (entry.attempt, entry.shelved) = (None, None);
        let current = entry.current.as_ref().and_then(|name| self.versions.get(name));
        let serves = current.is_some_and(|version| !matches!(version.place, Place::Disk { .. }));
        if serves && entry.current.as_ref() != Some(&name) {
            entry.next = Some(name);
            self.settle(alias);
            return;
        }
        if entry.current.replace(name.clone()).is_some_and(|old| old != name) {
            self.metrics.evicted(Eviction::Superseded);
        }
        (entry.next, entry.signed) = (None, Some(signed));
        self.dirty.insert(alias.clone());
    }

    pub(in crate::serve::adapters) fn failed(&mut self, alias: &Alias, kind: Kind, reason: String, now: Instant) {
        self.metrics.loaded(if kind == Kind::Refused { Outcome::Refused } else { Outcome::Failed });
        let attempt = self.entries.get_mut(alias).and_then(|entry| entry.attempt.take());
        if let Some(attempt) = attempt {
            self.fail(alias, attempt.artifact, kind, reason, now);
        }
    }

    /// A newer version came in place of the one that was asked for. If that one is still the one to load, asking again would
    /// bring the same again.
    pub(in crate::serve::adapters) fn superseded(&mut self, alias: &Alias, offer: Offer, now: Instant) {
        let attempt = self.entries.get_mut(alias).and_then(|entry| entry.attempt.take());
        let reason = format!("artifact {} came instead", offer.artifact);
        self.heard(alias, Some(offer), now);
        let candidate = self.entries.get(alias).and_then(|entry| entry.candidate(now));
        if let (Some(attempt), Some(candidate)) = (attempt, candidate)
            && attempt.artifact == candidate.artifact
        {
            self.metrics.loaded(Outcome::Failed);
            self.fail(alias, attempt.artifact, Kind::Failed, reason, now);
        }
    }

    pub(in crate::serve::adapters) fn elsewhere(
        &mut self,
        alias: &Alias,
        artifact: &ArtifactId,
        is_there: bool,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get(alias) else { return };
        let is_same = self.current(entry).is_some_and(|version| version.signed.artifact == *artifact);
        let is_idle = entry.used + self.config.offload_after <= now && !entry.is_pinned() && entry.attempt.is_none();
        if is_there && is_same && is_idle {
            self.leave(alias, Eviction::Idle);
        }
    }

    pub(in crate::serve::adapters) fn deleted(&mut self, id: &PreparationId, is_gone: bool, now: Instant) {
        self.files.removed(id, is_gone, now);
    }

    /// Those that were not written are written with the next ones.
    pub(in crate::serve::adapters) fn saved(&mut self, not_written: impl IntoIterator<Item = Alias>) {
        self.is_saving = false;
        self.dirty.extend(not_written);
    }
}
