//! The trust policy in force on this node: of a file, read again when it changes, or of documents that metadata servers
//! hand out.

mod distribution;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::watch;

use self::distribution::Distribution;
use super::AgentError;
use super::audit::{Audit, of_agent};
use crate::artifact::Stamp;
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
    current: RwLock<Current>,
    /// The policy's file as it was before it was first read.
    at_start: Option<Stamp>,
    changed: watch::Sender<()>,
    audit: Audit,
}

struct Current {
    policy: Option<Arc<Policy>>,
    /// Grows with each policy that is set.
    edition: u64,
}

/// The policy's file when it was last used, and why it was not since.
struct Seen {
    stamp: Option<Stamp>,
    problem: Option<String>,
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
        let at_start = config.policy.as_deref().and_then(stamp);
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
        let current = RwLock::new(Current { policy: policy.map(Arc::new), edition: 0 });
        let changed = watch::Sender::new(());
        Ok(Arc::new(Self { config, history, distribution, current, at_start, changed, audit }))
    }

    pub(super) fn policy(&self) -> Option<Arc<Policy>> {
        self.current().policy.clone()
    }

    fn current(&self) -> RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// An older version of a file never takes the place of a newer one; of documents, [`Distribution`] decides. `policy` is
    /// asked for while nobody else sets another.
    fn set(&self, policy: impl FnOnce() -> Option<Policy>) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let policy = policy();
        let (before, now) =
            (current.policy.as_ref().map(|policy| policy.version), policy.as_ref().map(|policy| policy.version));
        if now.is_some() && now < before && self.distribution.is_none() {
            return;
        }
        *current = Current { policy: policy.map(Arc::new), edition: current.edition + 1 };
        drop(current);
        if before != now {
            let result = if now.is_some() { "in force" } else { "none: nothing is installed" };
            self.audit.tell(of_agent(Action::Policy, now, result));
        }
        self.changed.send_replace(());
    }

    /// Told whenever the policy may be another one.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// For those who serve: false once an artifact, or those who signed it, are revoked.
    pub(super) fn may_serve(self: &Arc<Self>, store: &Store) -> MayServe {
        let (trust, store) = (self.clone(), store.clone());
        Arc::new(move |id| match store.get(id) {
            Some(artifact) => !trust.hides(&artifact),
            None => !trust.policy().is_some_and(|policy| policy.is_artifact_revoked(id)),
        })
    }

    /// Whether it is not told to anybody that this node has it.
    pub(super) fn hides(&self, artifact: &Artifact) -> bool {
        let Current { policy, edition } = &*self.current();
        policy.as_ref().is_some_and(|policy| artifact.judge(policy, *edition))
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

    /// Reads the file again when it is another one. A policy that cannot be used leaves the one before in force, and is tried
    /// again: the file may have been half written.
    pub(super) async fn watch(self: Arc<Self>) {
        let Some(path) = self.config.policy.clone().filter(|_| self.distribution.is_none()) else { return };
        let mut seen = Seen { stamp: self.at_start, problem: None };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look(&path, &mut seen).await;
        }
    }

    async fn look(self: &Arc<Self>, path: &Path, seen: &mut Seen) {
        let now = stamp(path);
        if now == seen.stamp {
            return;
        }
        let trust = self.clone();
        let reloading = tokio::task::spawn_blocking(move || trust.read_again().map(|reread| trust.take(reread)));
        // A panic there is logged by the runtime.
        let Ok(reloaded) = reloading.await else { return };
        match reloaded {
            Ok(()) => *seen = Seen { stamp: now, problem: None },
            Err(error) => {
                let problem = Some(error.to_string());
                if seen.problem != problem {
                    tracing::error!(%error, "the changed trust policy is not used; the one before stays");
                    seen.problem = problem;
                }
            }
        }
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
            self.set(|| policy);
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
            self.set(|| distribution.policy());
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

fn stamp(path: &Path) -> Option<Stamp> {
    path.metadata().ok().map(|meta| Stamp::of(&meta))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(version: u64) -> String {
        format!("version = {version}\nexpires = \"2050-01-01T00:00:00Z\"\n")
    }

    /// Of a file of version 1.
    fn trust(dir: &Path) -> (Arc<Trust>, std::path::PathBuf) {
        let path = dir.join("policy.toml");
        std::fs::write(&path, policy(1)).unwrap();
        let config = TrustConfig { policy: Some(path.clone()), ..TrustConfig::default() };
        (Trust::load(config, dir, Audit::nowhere()).unwrap(), path)
    }

    fn version(trust: &Trust) -> u64 {
        trust.policy().unwrap().version
    }

    #[tokio::test]
    async fn a_file_that_could_not_be_used_once_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let (trust, path) = trust(dir.path());
        let mut seen = Seen { stamp: trust.at_start, problem: None };
        std::fs::write(&path, "version = ").unwrap();
        let time = path.metadata().unwrap().modified().unwrap();
        trust.look(&path, &mut seen).await;
        assert!(version(&trust) == 1 && seen.problem.is_some() && seen.stamp == trust.at_start);
        std::fs::write(&path, policy(2)).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        trust.look(&path, &mut seen).await;
        assert!(version(&trust) == 2 && seen.problem.is_none() && seen.stamp == stamp(&path));
    }

    #[tokio::test]
    async fn a_file_that_changed_while_the_agent_started_is_read_again_though_its_time_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (trust, path) = trust(dir.path());
        let time = path.metadata().unwrap().modified().unwrap();
        std::fs::write(dir.path().join("new"), policy(2)).unwrap();
        std::fs::File::options().write(true).open(dir.path().join("new")).unwrap().set_modified(time).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        trust.look(&path, &mut Seen { stamp: trust.at_start, problem: None }).await;
        assert_eq!(version(&trust), 2);
    }

    #[test]
    fn an_older_version_never_takes_the_place_of_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let (trust, _) = trust(dir.path());
        for (given, in_force) in [(3, 3), (2, 3), (3, 3), (4, 4)] {
            trust.take(Reread::File(Some(Policy::parse(&policy(given)).unwrap())));
            assert_eq!(version(&trust), in_force);
        }
    }
}
