//! Whom a pod trusts: by a policy file of its own, or by documents that its agent hands on and that the pod verifies with a
//! root document of its own.
//!
//! The agent is asked, or the file looked at, before anything is brought, again right before an engine starts, and now and
//! then while it runs. What an agent tells is remembered in `.warmd` below the caches' root: it cannot take it back.

mod file;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use self::file::PolicyFile;
use super::admissions::{self, Whose};
use super::audit;
use super::records::Records;
use super::target::Say;
use crate::artifact::Stamp;
use crate::caches::{CacheFamily, Environment};
use crate::identity::trust::{Known, TrustError, TrustFile, Trusted, read_root};
use crate::identity::{Policy, TrustConfig, UnixTime};
use crate::local::{Client, chain};

/// For an answer of the agent.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the agent is asked while an engine runs.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Whom a pod trusts.
#[derive(Debug, Clone)]
pub struct Trust {
    source: Source,
    /// Why nothing is installed, though it may be known whom to trust.
    off: Option<String>,
}

/// Where a pod's policy comes from.
#[derive(Debug, Clone)]
enum Source {
    /// From nowhere, and why.
    Nowhere(String),
    File(Arc<PolicyFile>),
    Documents(Arc<Handed>),
}

/// What the agent has handed on so far.
#[derive(Debug)]
pub struct Handed {
    trusted: Mutex<Trusted>,
    /// Of them, for those who ask often.
    policy: RwLock<Option<Arc<Policy>>>,
    /// Below which it is remembered.
    caches: Option<PathBuf>,
}

impl Trust {
    /// Nobody, for this reason.
    pub fn nobody(reason: impl Into<String>) -> Self {
        Source::Nowhere(reason.into()).into()
    }

    /// As the policy's file says, now and whenever it is asked again. One that cannot be used is no error: it may be mended.
    pub fn file(config: TrustConfig) -> Self {
        Source::File(Arc::new(PolicyFile::read(config))).into()
    }

    /// Nothing is installed, for this reason. What is revoked goes all the same.
    pub fn switched_off(self, reason: impl Into<String>) -> Self {
        Self { off: Some(reason.into()), ..self }
    }

    /// Goes on with what is remembered below `caches`.
    pub fn documents(root: &Path, caches: Option<&Path>) -> Result<Self, TrustError> {
        let root = read_root(root)?;
        let records = caches.and_then(|caches| Records::find(caches).ok().flatten());
        let trusted = match records {
            Some(records) => TrustFile::new(records.directory()).load(&root)?,
            None => Trusted::new(&root)?,
        };
        let policy = RwLock::new(trusted.policy().map(Arc::new));
        let caches = caches.map(Path::to_owned);
        Ok(Source::Documents(Arc::new(Handed { trusted: Mutex::new(trusted), policy, caches })).into())
    }

    /// By what may be installed now, or why nothing is. Asks nobody.
    pub fn policy(&self) -> Result<Arc<Policy>, String> {
        if let Some(reason) = &self.off {
            return Err(reason.clone());
        }
        let policy = self.known()?;
        match (policy.lapse(UnixTime::now()), &self.source) {
            (None, _) => Ok(policy),
            (Some(reason), Source::Documents(handed)) => {
                Err(format!("{reason} (root version {})", handed.lock().root().version))
            }
            (Some(reason), _) => Err(format!("{reason}: put a newer one in place")),
        }
    }

    /// Why nothing is installed whatever the agent may hand on.
    pub(super) fn refusal(&self) -> Option<String> {
        match &self.source {
            Source::Documents(_) => self.off.clone(),
            Source::Nowhere(_) | Source::File(_) => self.policy().err(),
        }
    }

    /// The newest policy that is known, whether anything may be installed by it or not.
    pub(super) fn known(&self) -> Result<Arc<Policy>, String> {
        match &self.source {
            Source::Nowhere(reason) => Err(reason.clone()),
            Source::File(file) => file.policy(),
            Source::Documents(handed) => {
                let policy = handed.policy.read().unwrap_or_else(PoisonError::into_inner).clone();
                policy.ok_or_else(|| "the agent has handed on no trust policy yet".to_owned())
            }
        }
    }

    /// Takes what the agent has that is newer, or the file if it is another one; what is refused, or not told in time, changes
    /// nothing. The time is `left`, or two seconds if that is more.
    pub async fn ask(&self, client: &Client, left: Duration) -> Result<(), String> {
        let handed = match &self.source {
            Source::Nowhere(_) => return Ok(()),
            Source::File(file) => return file.read_again(left.min(PATIENCE)).await,
            Source::Documents(handed) => handed,
        };
        let known = handed.lock().known();
        let asked = timeout(left.min(PATIENCE), client.trust(known)).await;
        let documents = asked.map_err(|_| "the agent does not answer".to_owned())?.map_err(|error| chain(&error))?;
        if documents.is_empty() {
            return Ok(());
        }
        let handed = handed.clone();
        let taking = tokio::task::spawn_blocking(move || {
            let mut trusted = handed.lock();
            let taken = trusted.take(&documents, UnixTime::now());
            *handed.policy.write().unwrap_or_else(PoisonError::into_inner) = trusted.policy().map(Arc::new);
            handed.remember(&trusted, known);
            taken
        });
        let taken = taking.await.map_err(|_| "the thread that verifies documents panicked".to_owned())?;
        taken.map_err(|error| format!("what the agent hands on is refused: {error}"))
    }

    /// As [`Trust::ask`], of the agent at `socket`, if one is needed and there is one.
    pub(super) async fn refresh(&self, socket: &Path) -> Option<Client> {
        if let Source::File(file) = &self.source
            && let Err(reason) = file.read_again(PATIENCE).await
        {
            tracing::warn!(reason, "the trust policy before stays");
        }
        let Source::Documents(_) = &self.source else { return None };
        let client = connect(socket).await?;
        if let Err(reason) = self.ask(&client, PATIENCE).await {
            tracing::debug!(reason, "no news of the trust policy");
        }
        Some(client)
    }

    /// Looks after what is installed below `roots` and was not used yet, for as long as it is polled.
    pub(super) async fn watch(&self, socket: &Path, roots: &[PathBuf], say: &Say) {
        if let Source::Nowhere(_) = &self.source {
            return std::future::pending().await;
        }
        let mut seen = self.edition();
        loop {
            let client = self.refresh(socket).await;
            let now = self.edition();
            if now != seen {
                seen = now;
                let client = if client.is_some() { client } else { connect(socket).await };
                self.withdraw(roots, Whose::NobodyUsed, client.as_ref(), say).await;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Another one whenever the policy may say something else of what is installed.
    fn edition(&self) -> (u64, Option<Stamp>) {
        let stamp = if let Source::File(file) = &self.source { file.stamp() } else { None };
        (self.known().map_or(0, |policy| policy.version), stamp)
    }

    /// Before an engine may read it: takes away all that is installed below `roots` and is revoked by the newest policy that
    /// is known. With a `client` the agent's audit log has it.
    pub async fn withdraw_all(&self, roots: &[PathBuf], client: Option<&Client>, say: &Say) {
        self.withdraw(roots, Whose::Everybodys, client, say).await;
    }

    /// Takes away what is installed below `roots` and is revoked by the newest policy that is known.
    async fn withdraw(&self, roots: &[PathBuf], whose: Whose, client: Option<&Client>, say: &Say) {
        let policy = match self.known() {
            Ok(policy) => policy,
            Err(reason) => return admissions::not_asked(roots, &reason, say).await,
        };
        let mut events = Vec::new();
        for root in roots {
            let withdrawn = admissions::withdraw(root.clone(), policy.clone(), whose, say).await;
            events.extend(withdrawn.iter().map(|one| audit::of_withdrawn(one, policy.version)));
        }
        if let Some(client) = client {
            audit::tell(client, events).await;
        }
    }
}

impl From<Source> for Trust {
    fn from(source: Source) -> Self {
        Self { source, off: None }
    }
}

async fn connect(socket: &Path) -> Option<Client> {
    timeout(PATIENCE, Client::connect(socket)).await.ok()?.ok()
}

impl Handed {
    fn lock(&self) -> MutexGuard<'_, Trusted> {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A statement of freshness alone is not worth a write.
    fn remember(&self, trusted: &Trusted, before: Known) {
        let now = trusted.known();
        let Some(caches) = self.caches.as_ref().filter(|_| (now.root, now.policy) != (before.root, before.policy))
        else {
            return;
        };
        let remembered = Records::make(caches)
            .map_err(|error| chain(&error))
            .and_then(|records| TrustFile::new(records.directory()).save(trusted).map_err(|error| chain(&error)));
        if let Err(error) = remembered {
            tracing::warn!(error, "the trust policy is not remembered: after a restart an older one could be taken");
        }
    }
}

/// The roots of all families, as the engine's environment says.
pub(super) fn roots(environment: &Environment) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = CacheFamily::all().iter().filter_map(|family| (family.root)(environment)).collect();
    roots.sort_unstable();
    roots.dedup();
    roots
}
