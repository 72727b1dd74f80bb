//! One artifact, its manifest first: whoever gets it decides then whether its files are needed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::install::{self, Feed, InstallWork};
use super::{Failure, next};
use crate::artifact::{Admitted, SignedManifest, SourceIdentity};
use crate::caches::CONTROL;
use crate::identity::{Policy, UnixTime};
use crate::install::{CacheRoot, Limits, NegativeClass};
use crate::local::Client;
use crate::protocol::pb::{WarmEvent, WarmRequest, warm_event};

/// An artifact did not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// Trying again changes nothing until a policy or a publisher does.
    #[error("{0}")]
    NotAdmitted(String),
    #[error("{0}")]
    Unavailable(String),
}

impl From<Failure> for DeliveryError {
    fn from(failure: Failure) -> Self {
        match failure.class {
            NegativeClass::Untrusted | NegativeClass::Incompatible => Self::NotAdmitted(failure.detail),
            _ => Self::Unavailable(failure.detail),
        }
    }
}

/// An artifact that the agent fetches. Dropped, it is of no interest to this process any more.
#[derive(Debug)]
pub struct Delivery {
    admitted: Arc<Admitted>,
    client: Client,
    events: Streaming<WarmEvent>,
}

/// The newest artifact of one subject that the node can have.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    pub identity: &'a SourceIdentity,
    pub subject: &'a str,
    /// Who may have signed it.
    pub policy: Arc<Policy>,
    /// For the whole of the agent's work.
    pub budget: Duration,
}

impl Wanted<'_> {
    /// Its manifest, once the policy has admitted it; the agent fetches nothing else.
    pub async fn manifest(&self, client: &Client) -> Result<Admitted, DeliveryError> {
        let (admitted, _) = self.ask(client, true).await?;
        Ok(admitted)
    }

    async fn ask(
        &self,
        client: &Client,
        manifest_only: bool,
    ) -> Result<(Admitted, Streaming<WarmEvent>), DeliveryError> {
        let Self { identity, subject, policy, budget } = self;
        let request = WarmRequest {
            identity: bytes::Bytes::copy_from_slice(identity.id().as_bytes()),
            family: identity.family().to_string(),
            subject: (*subject).to_owned(),
            any_subject: false,
            budget_ms: u64::try_from(budget.as_millis()).unwrap_or(u64::MAX),
            manifest_only,
        };
        let mut events = client.warm(request).await.map_err(Failure::from)?;
        while let Some(event) = next(&mut events).await.map_err(Failure::from)? {
            match event {
                warm_event::Event::Manifest(manifest) => {
                    let admitted = SignedManifest::admit(manifest.envelope, policy, UnixTime::now());
                    let admitted = admitted.map_err(Failure::from)?;
                    let manifest = admitted.manifest();
                    if manifest.identity != **identity {
                        return Err(DeliveryError::NotAdmitted("it has another identity".to_owned()));
                    }
                    if manifest.subject != *subject {
                        return Err(DeliveryError::NotAdmitted("it has another subject".to_owned()));
                    }
                    return Ok((admitted, events));
                }
                warm_event::Event::Done(done) if !done.failure.is_empty() => {
                    return Err(DeliveryError::Unavailable(done.failure));
                }
                _ => {}
            }
        }
        Err(DeliveryError::Unavailable("nobody has it".to_owned()))
    }
}

impl Delivery {
    /// The agent begins to fetch it.
    pub async fn open(client: &Client, wanted: Wanted<'_>) -> Result<Self, DeliveryError> {
        let (admitted, events) = wanted.ask(client, false).await?;
        Ok(Self { admitted: Arc::new(admitted), client: client.clone(), events })
    }

    pub fn admitted(&self) -> &Admitted {
        &self.admitted
    }

    /// Writes the verified files into a directory that exists and is empty. `progress` is told bytes and all bytes.
    pub async fn write(self, into: &Path, limits: Limits, progress: impl Fn(u64, u64)) -> Result<(), DeliveryError> {
        let Self { admitted, client, mut events } = self;
        let path = into.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let root = CacheRoot::open(&path)?;
            let lock = root.lock(Instant::now());
            Ok::<_, crate::install::InstallError>((Arc::new(root), lock))
        });
        let (root, lock) = opened.await.map_err(panicked)?.map_err(Failure::from)?;
        let lock = Arc::new(lock.map_err(|error| DeliveryError::Unavailable(error.to_string()))?);
        let work =
            InstallWork { root, lock, limits, signed_by: None, witness: Arc::new(()), admitted: admitted.clone() };
        let installing = install::run(work, Feed::new(client, admitted.id(), CancellationToken::new()));
        let mut installing = std::pin::pin!(installing);
        let mut is_fetched = false;
        loop {
            tokio::select! {
                installed = &mut installing => {
                    installed?;
                    break;
                }
                event = next(&mut events), if !is_fetched => match event.map_err(Failure::from)? {
                    Some(warm_event::Event::Progress(now)) => progress(now.bytes, now.bytes_total),
                    Some(warm_event::Event::Done(done)) if !done.failure.is_empty() => {
                        return Err(DeliveryError::Unavailable(done.failure));
                    }
                    Some(_) => {}
                    None => is_fetched = true,
                },
            }
        }
        let own = into.join(CONTROL);
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(own)).await.map_err(panicked)?;
        removed.map_err(|error| DeliveryError::Unavailable(error.to_string()))
    }
}

fn panicked(_: tokio::task::JoinError) -> DeliveryError {
    DeliveryError::Unavailable("a thread panicked".to_owned())
}
