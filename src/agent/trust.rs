//! The trust policy in force on this node, read again when its file changes.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use crate::identity::{Policy, PolicyError, PolicyHistory, TrustConfig, UnixTime};
use crate::transfer::MayServe;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Shared by all who ask for the policy. Without one, everything is refused.
pub(super) struct Trust {
    config: TrustConfig,
    history: PolicyHistory,
    current: RwLock<Option<Arc<Policy>>>,
}

impl Trust {
    /// A policy that is configured and cannot be used is an error at start.
    pub(super) fn load(config: TrustConfig, state: &Path) -> Result<Arc<Self>, PolicyError> {
        let history = PolicyHistory::new(state);
        let policy = config.load(Some(&history))?.map(Arc::new);
        match &policy {
            None => tracing::warn!("no trust policy is configured (`trust.policy`): nothing will be fetched"),
            Some(policy) if policy.is_expired(UnixTime::now()) => {
                tracing::warn!(expired = %policy.expires, "the trust policy has expired: nothing will be fetched");
            }
            Some(policy) => tracing::info!(version = policy.version, signers = policy.signers.len(), "trust policy"),
        }
        Ok(Arc::new(Self { config, history, current: RwLock::new(policy) }))
    }

    pub(super) fn policy(&self) -> Option<Arc<Policy>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For the provider: false once an artifact is revoked.
    pub(super) fn may_serve(self: &Arc<Self>) -> MayServe {
        let trust = self.clone();
        Arc::new(move |id| trust.policy().is_none_or(|policy| !policy.is_artifact_revoked(id)))
    }

    /// In a word: `ok`, `expired`, or `none`.
    pub(super) fn state(&self) -> &'static str {
        match self.policy() {
            None => "none",
            Some(policy) if policy.is_expired(UnixTime::now()) => "expired",
            Some(_) => "ok",
        }
    }

    /// Reads the file again when its time changes. A policy that cannot be used leaves the one before in force.
    pub(super) async fn watch(self: Arc<Self>) {
        let Some(path) = self.config.policy.clone() else { return };
        let mut seen = modified(&path);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = modified(&path);
            if now == seen {
                continue;
            }
            seen = now;
            match self.config.load(Some(&self.history)) {
                Ok(policy) => {
                    tracing::info!(version = policy.as_ref().map(|policy| policy.version), "trust policy read again");
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = policy.map(Arc::new);
                }
                Err(error) => tracing::error!(%error, "the changed trust policy is not used; the one before stays"),
            }
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|meta| meta.modified()).ok()
}
