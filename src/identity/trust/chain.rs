//! What a node has taken, and what it takes next.

use serde::{Deserialize, Serialize};

use super::documents::{Body, Freshness, Signed};
use super::root::{Root, Signing};
use super::{Document, TrustError};
use crate::digest::Digest;
use crate::identity::envelope::Envelope;
use crate::identity::policy::{Horizon, Policy};
use crate::identity::time::UnixTime;

/// Root documents from the configured one to the one in force. They are kept for those who are configured with an older one.
pub const MAX_ROOTS: usize = 64;

/// A policy's version may be this much higher than the last one: a node that misses one a day is away for three years.
pub const MAX_STEP: u64 = 1_000;

/// What is handed over, none of it trusted: roots in order of their versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Documents {
    pub roots: Vec<Envelope>,
    pub policy: Option<Envelope>,
    pub freshness: Option<Envelope>,
}

impl Documents {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What somebody has already, 0 for nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    pub root: u64,
    pub policy: u64,
    /// Unix seconds of the freshness statement.
    pub issued: u64,
}

/// The highest that was ever taken; survives the documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seen {
    policy: u64,
    digest: Option<Digest>,
    issued: Option<UnixTime>,
}

/// The documents in force.
#[derive(Debug, Clone)]
pub struct Trusted {
    root: Signed<Root>,
    /// Oldest first; the first is the one of the configuration.
    before: Vec<Signed<Root>>,
    policy: Option<Signed<Policy>>,
    freshness: Option<Signed<Freshness>>,
    seen: Seen,
}

impl Trusted {
    /// Begins with a root document that is trusted because it is configured. Its own keys must have signed it, too.
    pub fn new(root: &Envelope) -> Result<Self, TrustError> {
        let root = own(root)?;
        let seen = Seen { policy: root.content.policy.least - 1, ..Seen::default() };
        Ok(Self { root, before: Vec::new(), policy: None, freshness: None, seen })
    }

    /// Takes what is newer: roots, then the policy, then the freshness statement. The first that is refused ends it; what
    /// was taken before that stays.
    pub fn take(&mut self, documents: &Documents, now: UnixTime) -> Result<(), TrustError> {
        let before = self.root.content.version;
        for root in &documents.roots {
            self.take_root(root)?;
        }
        match documents.policy.as_ref().map(|policy| self.take_policy(policy)) {
            // It came for the sake of the root, and ours has outlived that.
            Some(Err(TrustError::Rollback { .. })) if self.root.content.version > before && self.policy.is_some() => {}
            taken => taken.unwrap_or(Ok(()))?,
        }
        documents.freshness.as_ref().map_or(Ok(()), |freshness| self.take_freshness(freshness, now))
    }

    fn take_root(&mut self, envelope: &Envelope) -> Result<(), TrustError> {
        let digest = Digest::of(envelope.payload());
        if self.roots().any(|root| root.digest == digest) {
            return Ok(());
        }
        let current = &self.root.content;
        current.root.verify(Document::Root, envelope, current.version)?;
        let next = own(envelope)?;
        let (found, current) = (next.content.version, current.version);
        match found.cmp(&current) {
            std::cmp::Ordering::Less => {
                return Err(TrustError::Rollback { document: Document::Root, found, seen: current });
            }
            std::cmp::Ordering::Equal => {
                return Err(TrustError::OtherContent { document: Document::Root, version: found });
            }
            std::cmp::Ordering::Greater if found - current > 1 => return Err(TrustError::Gap { found, current }),
            std::cmp::Ordering::Greater => {}
        }
        if self.before.len() + 1 >= MAX_ROOTS {
            return Err(TrustError::TooManyRoots);
        }
        self.before.push(self.root.clone());
        self.follow(next);
        Ok(())
    }

    /// What the old root had authorised is verified by the new one.
    fn follow(&mut self, next: Signed<Root>) {
        let begins_anew = next.content.policy.least > self.root.content.policy.least;
        self.root = next;
        let root = &self.root.content;
        let least = root.policy.least;
        self.policy.take_if(|policy| {
            policy.content.version < least
                || root.policy.verify(Document::Policy, &policy.envelope, root.version).is_err()
        });
        self.freshness.take_if(|freshness| {
            let role = root.freshness.as_ref();
            role.is_none_or(|role| role.verify(Document::Freshness, &freshness.envelope, root.version).is_err())
        });
        if begins_anew {
            self.seen.policy = self.policy.as_ref().map_or(least - 1, |policy| policy.content.version);
            self.seen.digest = self.policy.as_ref().map(|policy| policy.digest);
        }
    }

    fn take_policy(&mut self, envelope: &Envelope) -> Result<(), TrustError> {
        let digest = Digest::of(envelope.payload());
        if self.policy.as_ref().is_some_and(|policy| policy.digest == digest) {
            return Ok(());
        }
        let root = &self.root.content;
        root.policy.verify(Document::Policy, envelope, root.version)?;
        let next = Signed::<Policy>::read(envelope)?;
        let (found, seen) = (next.content.version, self.seen.policy);
        let floor = seen.max(root.policy.least);
        if found < floor {
            return Err(TrustError::Rollback { document: Document::Policy, found, seen: floor });
        }
        if found == seen && self.seen.digest.is_some_and(|seen| seen != digest) {
            return Err(TrustError::OtherContent { document: Document::Policy, version: found });
        }
        if seen > 0 && found - seen > MAX_STEP {
            return Err(TrustError::FastForward { found, seen });
        }
        self.seen = Seen { policy: found, digest: Some(digest), ..self.seen };
        self.policy = Some(next);
        Ok(())
    }

    fn take_freshness(&mut self, envelope: &Envelope, now: UnixTime) -> Result<(), TrustError> {
        let root = &self.root.content;
        // Of a root that asked for it.
        let Some(role) = &root.freshness else { return Ok(()) };
        role.verify(Document::Freshness, envelope, root.version)?;
        let next = Signed::<Freshness>::read(envelope)?;
        let issued = next.content.issued;
        if !issued.has_come(now) {
            return Err(TrustError::Future(issued));
        }
        let (found, document) = (issued.seconds(), Document::Freshness);
        if let Some(seen) = self.seen.issued.filter(|seen| issued < *seen) {
            return Err(TrustError::Rollback { document, found, seen: seen.seconds() });
        }
        let before = self.freshness.as_ref().filter(|before| before.content.issued == issued);
        if before.is_some_and(|before| before.digest != next.digest) {
            return Err(TrustError::OtherContent { document, version: found });
        }
        self.seen.issued = Some(issued);
        self.freshness = Some(next);
        Ok(())
    }

    /// The policy, as long as root and freshness let it be in force; see [`Policy::lapse`].
    pub fn policy(&self) -> Option<Policy> {
        let mut policy = self.policy.as_ref()?.content.clone();
        let root = &self.root.content;
        policy.expires = policy.expires.min(root.expires);
        let horizon = match (&root.freshness, self.freshness.as_ref().map(|freshness| freshness.content)) {
            (None, _) => Horizon::Unlimited,
            (Some(_), None) => Horizon::Unknown,
            (Some(_), Some(Freshness { root: newest, .. })) if newest > root.version => Horizon::Superseded,
            (Some(_), Some(Freshness { policy: newest, .. })) if newest > policy.version => Horizon::Superseded,
            (Some(role), Some(Freshness { issued, .. })) => Horizon::Until(issued.after(role.max_age)),
        };
        Some(policy.until(horizon))
    }

    pub fn root(&self) -> &Root {
        &self.root.content
    }

    pub fn freshness(&self) -> Option<Freshness> {
        self.freshness.as_ref().map(|freshness| freshness.content)
    }

    pub fn known(&self) -> Known {
        Known {
            root: self.root.content.version,
            policy: self.policy.as_ref().map_or(0, |policy| policy.content.version),
            issued: self.freshness.as_ref().map_or(0, |freshness| freshness.content.issued.seconds()),
        }
    }

    /// What somebody lacks who has `known`. With a newer root comes everything: by that, theirs may not stand any more.
    pub fn after(&self, known: Known) -> Documents {
        let later = |root: &&Signed<Root>| root.content.version > known.root;
        let own = self.known();
        let behind = own.root > known.root;
        let policy = self.policy.as_ref().filter(|_| behind || own.policy > known.policy);
        let freshness = self.freshness.as_ref().filter(|_| behind || own.issued > known.issued);
        Documents {
            roots: self.roots().filter(later).map(|root| root.envelope.clone()).collect(),
            policy: policy.map(|policy| policy.envelope.clone()),
            freshness: freshness.map(|freshness| freshness.envelope.clone()),
        }
    }

    /// Everything, from the configured root on.
    pub fn documents(&self) -> Documents {
        self.after(Known::default())
    }

    /// Another number whenever the documents change; never 0.
    pub fn stamp(&self) -> u64 {
        let digests = [
            Some(self.root.digest),
            self.policy.as_ref().map(|policy| policy.digest),
            self.freshness.as_ref().map(|freshness| freshness.digest),
        ];
        let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.map_or([0; 32], |d| *d.as_bytes())).collect();
        let digest = Digest::of(&bytes);
        let first = digest.as_bytes().first_chunk().copied().unwrap_or_default();
        u64::from_be_bytes(first).max(1)
    }

    fn roots(&self) -> impl Iterator<Item = &Signed<Root>> {
        self.before.iter().chain([&self.root])
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen
    }

    /// For a node that has `seen` more than its documents tell.
    pub(super) fn remember(&mut self, seen: Seen) {
        self.seen = seen;
    }

    /// Goes on with a root of the configuration: one that is known, or one that is newer than all that are. `None`, if it
    /// is neither: then it is the beginning of something else.
    pub(super) fn pinned(mut self, root: &Envelope) -> Result<Option<Self>, TrustError> {
        let root = own(root)?;
        if self.roots().any(|known| known.digest == root.digest) {
            return Ok(Some(self));
        }
        if root.content.version <= self.root.content.version {
            return Ok(None);
        }
        self.before.clear();
        self.follow(root);
        Ok(Some(self))
    }
}

/// A root that its own keys have signed.
fn own(envelope: &Envelope) -> Result<Signed<Root>, TrustError> {
    let root = Signed::<Root>::read(envelope)?;
    root.content.root.verify(Root::DOCUMENT, envelope, root.content.version)?;
    Ok(root)
}
