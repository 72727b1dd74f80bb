//! The trust policy in force on this node: of a file, read again when it changes, or of documents that metadata servers
//! hand out.

mod distribution;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use self::distribution::Distribution;
use super::AgentError;
use super::audit::{Audit, of_agent};
use crate::identity::trust::{Documents, Known, TrustError};
use crate::identity::{Policy, PolicyError, PolicyHistory, TrustConfig, UnixTime};
use crate::metadata::Client;
use crate::store::{Artifact, Store};
use crate::telemetry::audit::Action;
use crate::transfer::MayServe;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often a server is asked that has told nothing new, and how soon again after a failure.
const ASK_EVERY: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Shared by all who ask for the policy. Without one, everything is refused.
pub(super) struct Trust {
    config: TrustConfig,
    history: PolicyHistory,
    /// Present if a root document is configured.
    distribution: Option<Distribution>,
    current: RwLock<Option<Arc<Policy>>>,
    changed: watch::Sender<()>,
    audit: Audit,
}

/// What became of the policy's file.
pub(super) enum Reread {
    /// There is none: servers tell what is new.
    OfDocuments,
    File(Option<Policy>),
}

impl Trust {
    /// A policy or a root that is configured and cannot be used is an error at start.
    pub(super) fn load(config: TrustConfig, state: &Path, audit: Audit) -> Result<Arc<Self>, AgentError> {
        let history = PolicyHistory::new(state);
        let open = |root| Distribution::open(root, config.policy.as_deref(), state);
        let distribution = config.root.as_deref().map(open).transpose()?;
        let policy = match &distribution {
            Some(distribution) => distribution.policy(),
            None => config.load(Some(&history))?,
        };
        match &policy {
            None if distribution.is_some() => tracing::info!("no trust policy yet: metadata servers are asked for it"),
            None => tracing::warn!("no trust policy is configured (`trust.policy`): nothing will be fetched"),
            Some(policy) => match policy.lapse(UnixTime::now()) {
                Some(reason) => tracing::warn!(%reason, "nothing will be fetched"),
                None => tracing::info!(version = policy.version, signers = policy.signers.len(), "trust policy"),
            },
        }
        if let Some(policy) = &policy {
            audit.tell(of_agent(Action::Policy, Some(policy.version), "in force at start"));
        }
        let current = RwLock::new(policy.map(Arc::new));
        Ok(Arc::new(Self { config, history, distribution, current, changed: watch::Sender::new(()), audit }))
    }

    pub(super) fn policy(&self) -> Option<Arc<Policy>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, policy: Option<Policy>) {
        let (before, now) = (self.policy().map(|policy| policy.version), policy.as_ref().map(|policy| policy.version));
        if before != now {
            let result = if now.is_some() { "in force" } else { "none: nothing is installed" };
            self.audit.tell(of_agent(Action::Policy, now, result));
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = policy.map(Arc::new);
        self.changed.send_replace(());
    }

    /// Told whenever the policy may be another one.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// For those who serve: false once an artifact, or every key that signed it, is revoked.
    pub(super) fn may_serve(self: &Arc<Self>, store: &Store) -> MayServe {
        let (trust, store) = (self.clone(), store.clone());
        Arc::new(move |id| {
            let Some(policy) = trust.policy() else { return true };
            let signed_by = store.get(id).map(|artifact| artifact.signed().key_ids()).unwrap_or_default();
            !policy.is_revoked(id, &signed_by)
        })
    }

    /// Whether it is not told to anybody that this node has it.
    pub(super) fn hides(&self, artifact: &Artifact) -> bool {
        let is_revoked = |policy: Arc<Policy>| policy.is_revoked(&artifact.id(), &artifact.signed().key_ids());
        self.policy().is_some_and(is_revoked)
    }

    /// In a word: `ok`, `expired`, `unconfirmed`, or `none`.
    pub(super) fn state(&self) -> &'static str {
        match self.policy() {
            None => "none",
            Some(policy) if policy.expires.has_passed(UnixTime::now()) => "expired",
            Some(policy) if policy.is_expired(UnixTime::now()) => "unconfirmed",
            Some(_) => "ok",
        }
    }

    /// Reads the file again when its time changes. A policy that cannot be used leaves the one before in force.
    pub(super) async fn watch(self: Arc<Self>) {
        let Some(path) = self.config.policy.clone().filter(|_| self.distribution.is_none()) else { return };
        let mut seen = modified(&path);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = modified(&path);
            if now == seen {
                continue;
            }
            seen = now;
            if let Err(error) = self.reload() {
                tracing::error!(%error, "the changed trust policy is not used; the one before stays");
            }
        }
    }

    fn reload(&self) -> Result<(), PolicyError> {
        self.take(self.read_again()?);
        Ok(())
    }

    /// Reads the policy's file again, if the policy is of one, for [`Trust::take`]. Blocks.
    pub(super) fn read_again(&self) -> Result<Reread, PolicyError> {
        match self.distribution {
            Some(_) => Ok(Reread::OfDocuments),
            None => self.config.load(Some(&self.history)).map(Reread::File),
        }
    }

    pub(super) fn take(&self, reread: Reread) {
        if let Reread::File(policy) = reread {
            tracing::info!(version = policy.as_ref().map(|policy| policy.version), "trust policy read again");
            self.set(policy);
        }
    }

    /// Asks for documents whenever a heartbeat tells that there are others, and now and then. `heard` is what it told.
    pub(super) async fn follow(self: Arc<Self>, client: Client, mut heard: watch::Receiver<u64>) {
        let Some(distribution) = &self.distribution else { return };
        loop {
            heard.borrow_and_update();
            let wait = match client.trust(distribution.known()).await {
                Ok(documents) if documents.is_empty() => ASK_EVERY,
                Ok(documents) => match self.clone().take_documents(documents).await {
                    Ok(()) => ASK_EVERY,
                    Err(error) => {
                        tracing::error!(%error, "documents of trust are refused; those before stay");
                        ASK_EVERY
                    }
                },
                Err(error) => {
                    tracing::debug!(%error, "documents of trust were not had");
                    ASK_AGAIN
                }
            };
            if let Ok(Err(_)) = tokio::time::timeout(wait, heard.changed()).await {
                return;
            }
        }
    }

    async fn take_documents(self: Arc<Self>, documents: Documents) -> Result<(), TrustError> {
        let taking = tokio::task::spawn_blocking(move || {
            let Some(distribution) = &self.distribution else { return Ok(()) };
            let before = distribution.known();
            let taken = distribution.take(&documents);
            let now = distribution.known();
            if (before.root, before.policy) != (now.root, now.policy) {
                tracing::info!(root = now.root, policy = now.policy, "documents of trust were taken");
            }
            self.set(distribution.policy());
            taken.map(drop)
        });
        // A panic there is logged by the runtime, and the next heartbeat tries again.
        taking.await.unwrap_or(Ok(()))
    }

    /// What somebody lacks who has `known`; `None` without a root document.
    pub(super) fn after(&self, known: Known) -> Option<Documents> {
        self.distribution.as_ref().map(|distribution| distribution.after(known))
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|meta| meta.modified()).ok()
}
