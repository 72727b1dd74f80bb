//! One load: manifest, verdict, files, check, preparation. It belongs to nobody who waits for it.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::Shared;
use super::disk::{self, Disk};
use super::entry::{Job, Kind, Loaded};
use super::metrics::Stage;
use super::source::{Delivery, FetchError, Files, Offer, Progress, Signed, Source};
use super::state::State;
use crate::adapters::{self, Alias, PrepareError, Prepared, Preparer, SourceError};

/// For one manifest.
const OPEN: Duration = Duration::from_secs(30);

/// Why a load ended early.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) kind: Kind,
    pub(super) reason: String,
    /// A version that was published meanwhile: that one is wanted, and nothing is wrong.
    pub(super) instead: Option<Box<Offer>>,
}

impl Ended {
    pub(super) fn failed(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, reason: reason.into(), instead: None }
    }

    fn refused(reason: String) -> Self {
        Self { kind: Kind::Refused, reason, instead: None }
    }
}

/// What loads need, and what bounds them.
pub(super) struct Loader {
    pub(super) source: Arc<dyn Source>,
    pub(super) preparer: Arc<Preparer>,
    pub(super) disk: Arc<Disk>,
    pub(super) loading: Semaphore,
    pub(super) preparing: Semaphore,
    /// The cores that checks and preparations may have: requests need the others.
    pub(super) pool: Arc<rayon::ThreadPool>,
}

impl Shared {
    pub(super) async fn load(&self, alias: &Alias, job: Job) -> Result<Loaded, Ended> {
        let _turn = self.loader.loading.acquire().await.map_err(interrupted)?;
        self.stage(alias, State::Fetching);
        let (signed, mut delivery) = match job.signed.clone() {
            Some(signed) => (signed, None),
            None => {
                let Delivery { signed, files } = self.open(alias, &job).await?;
                (signed, Some(files))
            }
        };
        self.update(|table, _| table.saw(alias, &signed));
        self.judge(alias, &job, &signed)?;
        if let Some(prepared) = self.find(alias, &signed).await? {
            return loaded(signed, prepared);
        }
        if delivery.is_none() {
            delivery = Some(self.open(alias, &job).await?.files);
        }
        let Some(files) = delivery else { return Err(Ended::failed("nothing was delivered")) };
        let incoming = self.fetch(alias, &signed, files).await?;
        let prepared = self.prepare(alias, &signed, incoming).await?;
        loaded(signed, prepared)
    }

    async fn open(&self, alias: &Alias, job: &Job) -> Result<Delivery, Ended> {
        let begun = Instant::now();
        let delivery = timeout(OPEN, self.loader.source.open(&job.artifact)).await;
        self.metrics.took(Stage::Open, begun.elapsed());
        let delivery = delivery.map_err(late)??;
        let signed = &delivery.signed;
        if signed.artifact == job.artifact {
            return Ok(delivery);
        }
        let ended = Ended::failed(format!("artifact {} came instead", signed.artifact));
        let is_newest = self
            .table()
            .offer(alias)
            .is_some_and(|offer| (offer.created, offer.generation) <= (signed.created, signed.generation));
        let offer = Offer {
            artifact: signed.artifact,
            content: Some(signed.release.content),
            generation: signed.generation,
            created: signed.created,
            size: signed.size,
            holders: 1,
        };
        Err(Ended { instead: is_newest.then(|| Box::new(offer)), ..ended })
    }

    /// Before anything is fetched.
    fn judge(&self, alias: &Alias, job: &Job, signed: &Arc<Signed>) -> Result<(), Ended> {
        self.table().accepts(alias, signed).map_err(Ended::refused)?;
        let verdict = self.loader.preparer.judge(&signed.release);
        for warning in &verdict.warnings {
            tracing::warn!(%alias, artifact = %job.artifact, %warning, "an adapter is odd");
        }
        if verdict.is_ok() { Ok(()) } else { Err(PrepareError::Refused(verdict.refusals).into()) }
    }

    /// What was prepared by an earlier load, if it is whole.
    async fn find(&self, alias: &Alias, signed: &Signed) -> Result<Option<Prepared>, Ended> {
        let content = signed.release.content;
        let id = self.loader.preparer.id(content);
        let mut changes = self.changes.subscribe();
        while !self.table().claim(alias, id) {
            changes.changed().await.map_err(interrupted)?;
        }
        let directory = self.loader.preparer.root().directory(&id);
        if !self.unbounded(move || directory.exists()).await? {
            return Ok(None);
        }
        self.stage(alias, State::Checking);
        let preparer = self.loader.preparer.clone();
        Ok(self.blocking(move || preparer.find(content)).await??)
    }

    async fn fetch(&self, alias: &Alias, signed: &Signed, files: Box<dyn Files>) -> Result<TempDir, Ended> {
        // Both the files as they come and what is made of them.
        let room = signed.size.saturating_mul(2);
        self.table().reserve(alias, room, Instant::now()).map_err(Ended::failed)?;
        self.stage(alias, State::Fetching);
        let begun = Instant::now();
        let disk = self.loader.disk.clone();
        let incoming = self.unbounded(move || disk.receive()).await?;
        let incoming = incoming.map_err(|error| Ended::failed(error.to_string()))?;
        let (progress, received) = watch::channel(Progress { bytes: 0, bytes_total: signed.size });
        self.table().show(alias, received);
        let fetched = timeout(self.config().fetch, files.write(incoming.path(), &progress)).await;
        self.metrics.took(Stage::Fetch, begun.elapsed());
        match fetched {
            Ok(Ok(())) => Ok(incoming),
            failed => {
                // Removing files blocks.
                self.unbounded(move || drop(incoming)).await?;
                failed.map_err(late)??;
                Err(Ended::failed("the transfer ended early"))
            }
        }
    }

    async fn prepare(&self, alias: &Alias, signed: &Signed, incoming: TempDir) -> Result<Prepared, Ended> {
        let _turn = self.loader.preparing.acquire().await.map_err(interrupted)?;
        self.stage(alias, State::Checking);
        let begun = Instant::now();
        let (preparer, content) = (self.loader.preparer.clone(), signed.release.content);
        let checked = self.in_pool(move || {
            let source = adapters::Source::open(incoming.path(), Some(&content))?;
            let verdict = preparer.check(&source, &[]);
            let refused = (!verdict.is_ok()).then_some(PrepareError::Refused(verdict.refusals));
            refused.map_or(Ok((source, incoming)), Err)
        });
        let checked = checked.await?;
        self.metrics.took(Stage::Check, begun.elapsed());
        let (source, incoming) = checked?;
        self.stage(alias, State::Preparing);
        let begun = Instant::now();
        let deadline = std::time::Instant::now() + self.config().prepare;
        let preparer = self.loader.preparer.clone();
        let prepared = self.in_pool(move || {
            let prepared = preparer.prepare(&source, &[], deadline);
            drop(incoming);
            prepared
        });
        let prepared = prepared.await?;
        self.metrics.took(Stage::Prepare, begun.elapsed());
        Ok(prepared?)
    }

    /// As many of these run as may prepare.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Ended> {
        let _turn = self.loader.preparing.acquire().await.map_err(interrupted)?;
        self.unbounded(work).await
    }

    async fn in_pool<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Ended> {
        let pool = self.loader.pool.clone();
        self.unbounded(move || pool.install(work)).await
    }

    /// For calls that do not take long.
    pub(super) async fn unbounded<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Ended> {
        tokio::task::spawn_blocking(work).await.map_err(interrupted)
    }
}

fn loaded(signed: Arc<Signed>, prepared: Prepared) -> Result<Loaded, Ended> {
    let Prepared { id, directory, report, .. } = prepared;
    let bytes = disk::bytes(&directory).unwrap_or(report.config.bytes + report.weights.bytes);
    Ok(Loaded { signed, prepared: id, directory, bytes })
}

fn late(_: tokio::time::error::Elapsed) -> Ended {
    Ended::failed("it did not come in time")
}

fn interrupted(error: impl std::fmt::Display) -> Ended {
    Ended::failed(format!("the load was interrupted: {error}"))
}

impl From<FetchError> for Ended {
    fn from(error: FetchError) -> Self {
        let kind = if matches!(error, FetchError::NotAdmitted(_)) { Kind::Refused } else { Kind::Failed };
        Self { kind, reason: error.to_string(), instead: None }
    }
}

/// What is wrong with an adapter stays wrong; what went wrong here may not.
impl From<PrepareError> for Ended {
    fn from(error: PrepareError) -> Self {
        let is_final = match &error {
            PrepareError::Refused(_) | PrepareError::Weights(_) => true,
            PrepareError::Source(source) => is_final(source),
            _ => false,
        };
        let kind = if is_final { Kind::Refused } else { Kind::Failed };
        Self { kind, reason: error.to_string(), instead: None }
    }
}

fn is_final(error: &SourceError) -> bool {
    !matches!(error, SourceError::Io { .. } | SourceError::Changed(_))
}
