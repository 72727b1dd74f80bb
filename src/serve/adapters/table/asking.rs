//! Who asks for what, and what they are told. Whose an adapter is stands in its manifest: until that is seen, everybody may
//! ask, and nothing but the manifest is fetched.

use std::sync::Arc;

use hyper::StatusCode;
use tokio::time::Instant;

use super::{Granted, Table};
use crate::adapters::Alias;
use crate::proxy::Caller;
use crate::proxy::auth::Tenant;
use crate::serve::adapters::entry::{Entry, Failure, Want};
use crate::serve::adapters::metrics::Tier;
use crate::serve::adapters::models::{Access, Denied};
use crate::serve::adapters::names::Hearsay;
use crate::serve::adapters::source::{Foreign, Signed};
use crate::serve::adapters::state::State;

/// What there is to say about an alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve::adapters) enum Found {
    Ready(Granted),
    Loading(State),
    /// The fleet is being asked whether there is such an adapter, and whose it is.
    Looking,
    Unknown,
    /// There is one for another base model.
    Foreign(Foreign),
    Denied(Denied),
    /// The caller's tenant has as many adapters here as it may.
    Full,
    Failed(Failure),
    Stopped,
    Unreachable,
    Busy,
}

impl Table {
    /// A request of `caller` for `alias`. It brings an adapter back that is known; an unknown name is looked up. The request
    /// that gets [`Found::Ready`] has a lease, to be given back by [`Table::release`].
    pub(in crate::serve::adapters) fn resolve(
        &mut self,
        alias: &Alias,
        caller: &Caller,
        access: &dyn Access,
        now: Instant,
    ) -> Found {
        let entry = self.entries.get(alias);
        let Some(entry) = entry.filter(|entry| entry.is_known() || entry.want == Want::Stopped) else {
            return self.rumour(alias, caller, access, now);
        };
        let authority = self.authority(entry);
        let (is_seen, owner) = (authority.is_some(), authority.and_then(|signed| signed.release.owner));
        match access.permits(caller, alias, owner) {
            // To who may not know of it, it is a name like any other: the same questions, the same answers.
            Err(denied) if denied.status == StatusCode::NOT_FOUND => self.rumour(alias, caller, access, now),
            Err(denied) => Found::Denied(denied),
            Ok(()) if entry.want == Want::Stopped => Found::Stopped,
            Ok(()) if entry.want != Want::Yes && !self.has_room(caller, access) => Found::Full,
            Ok(()) => self.request(alias, caller, is_seen, now),
        }
    }

    /// Of a known adapter, by somebody who may use it, as far as is known.
    fn request(&mut self, alias: &Alias, caller: &Caller, is_seen: bool, now: Instant) -> Found {
        let failure = self.entries.get(alias).and_then(|entry| self.failure(entry, now)).cloned();
        let granted = self.grant(alias);
        let Some(entry) = self.entries.get_mut(alias) else { return Found::Unknown };
        (entry.used, entry.leaving) = (now, None);
        if let Some(failure) = failure {
            return Found::Failed(failure);
        }
        if !is_seen {
            entry.ask(caller);
            return Found::Looking;
        }
        if entry.want != Want::Yes {
            entry.bring(caller);
        }
        granted.map_or_else(|| Found::Loading(self.state(&self.entries[alias], now)), Found::Ready)
    }

    fn rumour(&mut self, alias: &Alias, caller: &Caller, access: &dyn Access, now: Instant) -> Found {
        // Before anybody is asked: the answer tells nothing about the name.
        if !self.has_room(caller, access) {
            return Found::Full;
        }
        match self.names.ask(alias, caller, now) {
            Hearsay::Looking => Found::Looking,
            Hearsay::Unknown => Found::Unknown,
            Hearsay::Foreign(foreign) => Found::Foreign(foreign),
            Hearsay::Unreachable => Found::Unreachable,
            Hearsay::Busy => Found::Busy,
        }
    }

    /// The version that requests get, once more in use.
    fn grant(&mut self, alias: &Alias) -> Option<Granted> {
        let name = self.entries.get(alias)?.current.clone()?;
        let version = self.versions.get_mut(&name).filter(|version| version.place.is_ready(self.epoch))?;
        version.leases += 1;
        Some(Granted { name, prepared: version.prepared })
    }

    /// What decides who may use it: the version that requests get, or else the newest one, if its manifest was seen.
    fn authority<'t>(&'t self, entry: &'t Entry) -> Option<&'t Arc<Signed>> {
        self.current(entry).map(|version| &version.signed).or_else(|| entry.newest())
    }

    /// A load knows what is signed. False if nobody wants it who may use it: then it ends there.
    pub(in crate::serve::adapters) fn saw(
        &mut self,
        alias: &Alias,
        signed: &Arc<Signed>,
        access: &dyn Access,
        now: Instant,
    ) -> bool {
        if signed.release.owner.is_some() && self.entries.contains_key(alias) {
            self.names.conceal(alias, now + self.config.unknown_for, now);
        }
        let Some(entry) = self.entries.get_mut(alias) else { return false };
        entry.seen = Some(signed.clone());
        let askers = std::mem::take(&mut entry.askers);
        if entry.want != Want::No {
            return true;
        }
        let may_use = |caller: &&Caller| access.permits(caller, alias, signed.release.owner).is_ok();
        let asker = askers.iter().filter(may_use).find(|caller| self.has_room(caller, access));
        let entry = self.entries.get_mut(alias).zip(asker);
        entry.map(|(entry, caller)| entry.bring(caller)).is_some()
    }

    fn has_room(&self, caller: &Caller, access: &dyn Access) -> bool {
        self.brought_by(caller.tenant()) < access.max_adapters(caller)
    }

    /// Adapters that are being loaded or are in the engine because this tenant has asked for them.
    pub(super) fn brought_by(&self, tenant: &Tenant) -> usize {
        let is_theirs = |entry: &&Entry| entry.want == Want::Yes && entry.brought_by.as_ref() == Some(tenant);
        self.entries.values().filter(is_theirs).count()
    }

    /// Nobody who may use it has asked for it.
    pub(in crate::serve::adapters) fn unwanted(&mut self, alias: &Alias) {
        if let Some(entry) = self.entries.get_mut(alias) {
            entry.attempt = None;
        }
    }

    /// Whether [`Table::resolve`] needs nobody else's answer. The same for a name that nobody has and for one that the
    /// caller may not know of.
    pub(in crate::serve::adapters) fn knows(
        &self,
        alias: &Alias,
        caller: &Caller,
        access: &dyn Access,
        now: Instant,
    ) -> bool {
        let authority = self.entries.get(alias).and_then(|entry| self.authority(entry));
        let told = authority.map(|signed| access.permits(caller, alias, signed.release.owner));
        match told {
            Some(Ok(())) => true,
            Some(Err(denied)) if denied.status != StatusCode::NOT_FOUND => true,
            _ => self.names.knows(alias, now),
        }
    }

    /// For a request that has just been resolved.
    pub(in crate::serve::adapters) fn count(&self, alias: &Alias, found: &Found) {
        let entry = self.entries.get(alias);
        let has_files = entry.is_some_and(|entry| entry.current.is_some());
        match found {
            Found::Ready(_) => self.metrics.requested(alias, Tier::Engine),
            Found::Loading(_) if has_files => self.metrics.requested(alias, Tier::Disk),
            Found::Loading(_) => self.metrics.requested(alias, Tier::Peer),
            Found::Looking if entry.is_some_and(|entry| !entry.askers.is_empty()) => {
                self.metrics.requested(alias, Tier::Peer)
            }
            _ => {}
        }
    }
}
