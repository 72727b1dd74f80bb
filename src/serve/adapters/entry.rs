//! One alias, and one version of what it names.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::desired::Wish;
use super::source::{Offer, Progress, Signed};
use super::state::{Eviction, Place, State};
use crate::adapters::{PreparationId, ServedName};
use crate::digest::ArtifactId;
use crate::proxy::Caller;
use crate::proxy::auth::Tenant;

/// Whether an adapter is to be in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Want {
    No,
    Yes,
    /// An operator said so; requests do not bring it back.
    Stopped,
}

/// Why a load failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Trying again changes nothing.
    Refused,
    Failed,
}

/// A version that is not tried again until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) artifact: ArtifactId,
    pub(super) kind: Kind,
    pub(super) reason: String,
    pub(super) until: Instant,
}

/// A load that is under way.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) artifact: ArtifactId,
    pub(super) stage: State,
    /// Its files are not deleted.
    pub(super) claim: Option<PreparationId>,
    /// Bytes of the quota.
    pub(super) reserved: u64,
    pub(super) progress: Option<watch::Receiver<Progress>>,
}

/// What a load brings.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) signed: Arc<Signed>,
    pub(super) prepared: PreparationId,
    pub(super) directory: PathBuf,
    /// On disk.
    pub(super) bytes: u64,
}

/// What to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) artifact: ArtifactId,
    /// If it was admitted already.
    pub(super) signed: Option<Arc<Signed>>,
}

#[derive(Debug)]
pub(super) struct Version {
    pub(super) prepared: PreparationId,
    pub(super) directory: PathBuf,
    pub(super) signed: Arc<Signed>,
    pub(super) place: Place,
    /// Requests that were sent to it and have not ended.
    pub(super) leases: usize,
    /// The engine is not asked before.
    pub(super) not_before: Instant,
    /// When the engine did not know it any more.
    pub(super) lost: Vec<Instant>,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// The newest that was heard of.
    pub(super) offer: Option<Offer>,
    /// Of the version that is served, or was served last.
    pub(super) signed: Option<Arc<Signed>>,
    /// Of the version that was looked at last: says whose it is before anything is served.
    pub(super) seen: Option<Arc<Signed>>,
    pub(super) attempt: Option<Attempt>,
    /// What requests get, once it is ready.
    pub(super) current: Option<ServedName>,
    /// What takes its place, once that is ready.
    pub(super) next: Option<ServedName>,
    /// Prepared by the last run, and not looked at since.
    pub(super) shelved: Option<PreparationId>,
    pub(super) failures: Vec<Failure>,
    pub(super) want: Want,
    /// Whose request has made it wanted; nobody's if an operator has.
    pub(super) brought_by: Option<Tenant>,
    /// Those of whom nobody knows yet whether they may use it; of many, the first.
    pub(super) askers: Vec<Caller>,
    /// Its files go when the engine has let go of it.
    pub(super) leaving: Option<Eviction>,
    /// By an operator.
    pub(super) pin: bool,
    /// By the file.
    pub(super) wish: Option<Wish>,
    pub(super) used: Instant,
    /// When to ask whether somebody else has it.
    pub(super) ask_at: Instant,
    /// Whether the fleet was asked.
    pub(super) looked: bool,
}

/// Of one name; whoever is left out is let in when they ask again.
const MAX_ASKERS: usize = 32;

pub(super) fn remember(askers: &mut Vec<Caller>, caller: &Caller) {
    if askers.len() < MAX_ASKERS && !askers.contains(caller) {
        askers.push(caller.clone());
    }
}

impl Entry {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            offer: None,
            signed: None,
            seen: None,
            attempt: None,
            current: None,
            next: None,
            shelved: None,
            failures: Vec::new(),
            want: Want::No,
            brought_by: None,
            askers: Vec::new(),
            leaving: None,
            pin: false,
            wish: None,
            used: now,
            ask_at: now,
            looked: false,
        }
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.pin || self.wish.as_ref().is_some_and(|wish| wish.pin)
    }

    /// Nothing is here, and nothing is on its way.
    pub(super) fn is_bare(&self) -> bool {
        self.attempt.is_none() && self.current.is_none() && self.next.is_none()
    }

    pub(super) fn is_known(&self) -> bool {
        self.offer.is_some() || self.signed.is_some() || !self.is_bare()
    }

    /// It becomes wanted because of a request.
    pub(super) fn bring(&mut self, caller: &Caller) {
        (self.want, self.brought_by) = (Want::Yes, Some(caller.tenant().clone()));
    }

    pub(super) fn ask(&mut self, caller: &Caller) {
        remember(&mut self.askers, caller);
    }

    /// Whether a load has a reason; without [`Want::Yes`], it has one up to the manifest.
    pub(super) fn is_asked_for(&self) -> bool {
        self.want == Want::Yes || (self.want == Want::No && !self.askers.is_empty())
    }

    /// The newest version that was seen, unless a better one is offered.
    pub(super) fn newest(&self) -> Option<&Arc<Signed>> {
        let seen = [&self.signed, &self.seen].into_iter().flatten();
        let newest = seen.max_by_key(|signed| (signed.created, signed.generation))?;
        let is_old = |offer: &Offer| self.is_better(offer) && offer.is_newer(newest);
        (!self.offer.as_ref().is_some_and(is_old)).then_some(newest)
    }

    pub(super) fn names(&self, version: &ServedName) -> bool {
        [&self.current, &self.next].into_iter().flatten().any(|name| name == version)
    }

    pub(super) fn is_blocked(&self, artifact: &ArtifactId, now: Instant) -> bool {
        self.failures.iter().any(|failure| failure.artifact == *artifact && now < failure.until)
    }

    /// The version to load, if there is one that is better than what is here.
    pub(super) fn candidate(&self, now: Instant) -> Option<Job> {
        let offer = self.offer.as_ref().filter(|offer| self.is_better(offer) && !self.is_blocked(&offer.artifact, now));
        if let Some(offer) = offer {
            let signed = self.seen.clone().filter(|seen| seen.artifact == offer.artifact);
            return Some(Job { artifact: offer.artifact, signed });
        }
        let signed = self.signed.as_ref().filter(|_| self.current.is_none())?;
        let fits = self.accepts(signed).is_ok() && !self.is_blocked(&signed.artifact, now);
        fits.then(|| Job { artifact: signed.artifact, signed: Some(signed.clone()) })
    }

    fn is_better(&self, offer: &Offer) -> bool {
        let Some(signed) = &self.signed else { return true };
        match self.wish.as_ref().and_then(|wish| wish.digest) {
            Some(wanted) => signed.release.content != wanted && offer.content.is_none_or(|content| content == wanted),
            None => offer.is_newer(signed),
        }
    }

    /// Offers are hints; this is about what turned out to be signed.
    pub(super) fn accepts(&self, signed: &Signed) -> Result<(), String> {
        if let Some(wanted) = self.wish.as_ref().and_then(|wish| wish.digest) {
            let found = signed.release.content;
            return if found == wanted { Ok(()) } else { Err(format!("its content is {found}, wanted is {wanted}")) };
        }
        match &self.signed {
            Some(last) if (signed.created, signed.generation) < (last.created, last.generation) => {
                let [signed, last] =
                    [signed, last].map(|one| format!("{} (generation {})", one.created, one.generation));
                Err(format!("it is of {signed}, and one of {last} was served already"))
            }
            _ => Ok(()),
        }
    }
}
