//! One load: manifest, verdict, files, check, preparation. It belongs to nobody who waits for it.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::Shared;
use super::config::AdaptersConfig;
use super::disk::{self, Disk};
use super::entry::{Job, Kind, Loaded};
use super::metrics::Stage;
use super::source::{Delivery, FetchError, Files, Offer, Progress, Signed, Source};
use super::state::State;
use crate::adapters::{self, Alias, PrepareError, Prepared, Preparer, SourceError};
use crate::digest::ArtifactId;

/// For one manifest.
const OPEN: Duration = Duration::from_secs(30);

/// Manifests that are asked for at a time. Those who wait for one do not hold up transfers.
const MANIFESTS: usize = 16;

/// Why a load ended early.
#[derive(Debug)]
pub(super) enum Ended {
    Failed {
        kind: Kind,
        reason: String,
    },
    /// This version was published meanwhile: it is wanted, and nothing is wrong.
    Superseded(Box<Offer>),
    /// Nobody who may use it has asked for it.
    Unwanted,
}

impl Ended {
    pub(super) fn failed(reason: impl Into<String>) -> Self {
        Self::Failed { kind: Kind::Failed, reason: reason.into() }
    }

    fn refused(reason: String) -> Self {
        Self::Failed { kind: Kind::Refused, reason }
    }
}

/// What loads need, and what bounds them.
pub(super) struct Loader {
    pub(super) source: Arc<dyn Source>,
    pub(super) preparer: Arc<Preparer>,
    pub(super) disk: Arc<Disk>,
    pub(super) manifests: Semaphore,
    pub(super) loading: Semaphore,
    pub(super) preparing: Semaphore,
    /// The cores that checks and preparations may have: requests need the others.
    pub(super) pool: Arc<rayon::ThreadPool>,
}

impl Loader {
    pub(super) fn new(
        source: Arc<dyn Source>,
        preparer: Arc<Preparer>,
        disk: Arc<Disk>,
        config: &AdaptersConfig,
    ) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.prepare_threads.max(1))
            .thread_name(|number| format!("prepare-{number}"))
            .build()?;
        Ok(Self {
            source,
            preparer,
            disk,
            manifests: Semaphore::new(MANIFESTS),
            loading: Semaphore::new(config.max_loading.max(1)),
            preparing: Semaphore::new(config.max_preparing.max(1)),
            pool: Arc::new(pool),
        })
    }
}

impl Shared {
    pub(super) async fn load(&self, alias: &Alias, job: Job) -> Result<Loaded, Ended> {
        let signed = match job.signed.clone() {
            Some(signed) => signed,
            None => self.manifest(alias, &job.artifact).await?,
        };
        if !self.update(|table, now| table.saw(alias, &signed, &*self.access, now)) {
            return Err(Ended::Unwanted);
        }
        let _turn = self.loader.loading.acquire().await.map_err(interrupted)?;
        self.stage(alias, State::Fetching);
        self.judge(alias, &job, &signed)?;
        if let Some(prepared) = self.find(alias, &signed).await? {
            return loaded(signed, prepared);
        }
        let Delivery { signed: delivered, files } =
            timeout(OPEN, self.loader.source.open(&signed.artifact)).await.map_err(late)??;
        self.expect(alias, &signed.artifact, &delivered)?;
        let incoming = self.fetch(alias, &signed, files).await?;
        let prepared = self.prepare(alias, &signed, incoming).await?;
        loaded(signed, prepared)
    }

    async fn manifest(&self, alias: &Alias, artifact: &ArtifactId) -> Result<Arc<Signed>, Ended> {
        let _turn = self.loader.manifests.acquire().await.map_err(interrupted)?;
        let begun = Instant::now();
        let signed = timeout(OPEN, self.loader.source.manifest(artifact)).await;
        self.metrics.took(alias, Stage::Open, begun.elapsed());
        let signed = signed.map_err(late)??;
        self.expect(alias, artifact, &signed)?;
        Ok(signed)
    }

    /// The version that was asked for, and none that was published meanwhile.
    fn expect(&self, alias: &Alias, artifact: &ArtifactId, signed: &Signed) -> Result<(), Ended> {
        if signed.artifact == *artifact {
            return Ok(());
        }
        let is_newest = self
            .table()
            .offer(alias)
            .is_some_and(|offer| (offer.created, offer.generation) <= (signed.created, signed.generation));
        if !is_newest {
            return Err(Ended::failed(format!("artifact {} came instead", signed.artifact)));
        }
        Err(Ended::Superseded(Box::new(Offer {
            artifact: signed.artifact,
            content: Some(signed.release.content),
            generation: signed.generation,
            created: signed.created,
            size: signed.size,
            holders: 1,
        })))
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
        self.metrics.took(alias, Stage::Fetch, begun.elapsed());
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
        self.metrics.took(alias, Stage::Check, begun.elapsed());
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
        self.metrics.took(alias, Stage::Prepare, begun.elapsed());
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
        let under_way = self.blocking.token();
        let work = move || {
            let done = work();
            drop(under_way);
            done
        };
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
        Self::Failed { kind, reason: error.to_string() }
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
        Self::Failed { kind, reason: error.to_string() }
    }
}

fn is_final(error: &SourceError) -> bool {
    !matches!(error, SourceError::Io { .. } | SourceError::Changed(_))
}
