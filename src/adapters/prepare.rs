//! From an adapter as it was trained to one that the engine can load. Blocking, and on all cores: for threads that may
//! wait.

mod id;
mod inspect;
mod report;
mod rewrite;
mod root;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub use id::PreparationId;
pub use report::{DoraReport, Dropped, FileReport, Loss, Report};
pub use root::AdapterRoot;

use super::safetensors::{Hashed, SafetensorsError, write};
use super::{
    BaseError, BaseModel, BaseWeights, CONFIG, Claim, Engine, Policy, PolicyError, Refusal, Release, Requirements,
    Source, SourceError, Verdict, WEIGHTS, Warning, check, check_release,
};
use crate::digest::{ContentId, Digest};
use report::REPORT;
use rewrite::Rewritten;
use root::{Place, Staging};

/// Nobody else reads them, and nobody writes them again.
const FILE_MODE: u32 = 0o400;

/// Nothing was prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("no name of the base model is given: adapters cannot be checked against it")]
    NoBase,
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The adapter cannot be served, and trying again changes nothing.
    #[error("{}", reasons(.0))]
    Refused(Vec<Refusal>),
    #[error(transparent)]
    Weights(#[from] SafetensorsError),
    #[error("{path}: {what}", path = .path.display())]
    Root { path: PathBuf, what: &'static str },
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Another process may still be at it.
    #[error("adapter {0} was not prepared in time")]
    Deadline(PreparationId),
}

/// The first ones: what is wrong in one tensor is often wrong in all.
fn reasons(refusals: &[Refusal]) -> String {
    const MOST: usize = 3;
    let told: Vec<String> = refusals.iter().take(MOST).map(Refusal::to_string).collect();
    let more = refusals.len().saturating_sub(MOST);
    told.join("; ") + &if more > 0 { format!("; and {more} more") } else { String::new() }
}

/// What decides what is made of adapters on a node.
#[derive(Debug)]
pub struct Settings {
    pub policy: Policy,
    pub engine: Engine,
    /// Names of the model that the engine serves; at least one.
    pub base: Vec<BaseModel>,
    /// Its weights. An approximation needs them; with them, shapes are checked.
    pub weights: Option<BaseWeights>,
}

/// A directory that an engine can load.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    pub id: PreparationId,
    pub directory: PathBuf,
    pub report: Report,
    /// Of this check; the report has those of the preparation.
    pub warnings: Vec<Warning>,
}

/// Prepares adapters for one engine.
#[derive(Debug)]
pub struct Preparer {
    root: AdapterRoot,
    settings: Settings,
    policy: Digest,
}

impl Preparer {
    pub fn new(root: AdapterRoot, settings: Settings) -> Result<Self, PrepareError> {
        settings.policy.check()?;
        settings.engine.check()?;
        if settings.base.is_empty() {
            return Err(PrepareError::NoBase);
        }
        let weights = settings.weights.as_ref().filter(|_| settings.policy.needs_base());
        let fingerprint = weights.map(BaseWeights::fingerprint).transpose()?;
        let policy = settings.policy.digest(&settings.engine, fingerprint.as_ref());
        Ok(Self { root, settings, policy })
    }

    pub fn root(&self) -> &AdapterRoot {
        &self.root
    }

    /// What an adapter of this content becomes here.
    pub fn id(&self, content: ContentId) -> PreparationId {
        PreparationId { content, policy: self.policy }
    }

    /// Before anything is fetched.
    pub fn judge(&self, release: &Release) -> Verdict {
        check_release(release, &self.requirements())
    }

    pub fn check(&self, source: &Source, claims: &[Claim]) -> Verdict {
        check(source.config(), source.weights().header(), claims, &self.requirements())
    }

    fn requirements(&self) -> Requirements<'_> {
        let Settings { policy, engine, base, weights } = &self.settings;
        Requirements { engine, policy, base, weights: weights.as_ref() }
    }

    /// What is there already, if it is whole.
    pub fn find(&self, content: ContentId) -> Result<Option<Prepared>, PrepareError> {
        self.root.find(&self.id(content))
    }

    /// Prepares the adapter, or finds that it was. Of several at the same time, in whatever processes, one does the work,
    /// and the others wait for it.
    pub fn prepare(&self, source: &Source, claims: &[Claim], deadline: Instant) -> Result<Prepared, PrepareError> {
        let Verdict { refusals, warnings } = self.check(source, claims);
        if !refusals.is_empty() {
            return Err(PrepareError::Refused(refusals));
        }
        let id = self.id(source.content());
        let prepared = match self.root.place(&id, deadline)? {
            Place::Taken(prepared) => *prepared,
            Place::Free(staging) => self.make(source, &warnings, staging, deadline)?,
        };
        Ok(Prepared { warnings, ..prepared })
    }

    fn make(
        &self,
        source: &Source,
        warnings: &[Warning],
        staging: Staging<'_>,
        deadline: Instant,
    ) -> Result<Prepared, PrepareError> {
        let id = self.id(source.content());
        let in_time = || if Instant::now() < deadline { Ok(()) } else { Err(PrepareError::Deadline(id)) };
        let inspected = inspect::inspect(&source.weights, &self.settings.policy, &in_time)?;
        let rewritten = rewrite::rewrite(source, &self.settings, &in_time)?;
        let Rewritten { tensors, config, changes } = rewritten;
        let weights = write_weights(&staging.path().join(WEIGHTS), |out| {
            write(out, tensors, source.weights.header().metadata())
        })?;
        let config = write_file(&staging.path().join(CONFIG), config.as_bytes())?;
        in_time()?;
        source.check_unchanged()?;
        let report = Report {
            schema: report::SCHEMA,
            content: id.content,
            policy: id.policy,
            config,
            weights,
            base_model: source.config.base_model.clone(),
            served_base: self.settings.base.clone(),
            template: self.settings.policy.remap.as_ref().map(|remap| remap.template.clone()),
            dropped: inspected.dropped,
            warnings: warnings.iter().map(Warning::to_string).collect(),
            ..changes
        };
        write_file(&staging.path().join(REPORT), report.to_text().as_bytes())?;
        let directory = staging.publish()?;
        Ok(Prepared { id, directory, report, warnings: Vec::new() })
    }
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(FILE_MODE).open(path)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<FileReport, PrepareError> {
    let io = |source| PrepareError::Io { path: path.to_owned(), source };
    let mut file = create(path).map_err(io)?;
    io::Write::write_all(&mut file, bytes).and_then(|()| file.sync_all()).map_err(io)?;
    Ok(FileReport { bytes: bytes.len() as u64, digest: Digest::of(bytes) })
}

fn write_weights(
    path: &Path,
    content: impl FnOnce(&mut dyn io::Write) -> Result<(), SafetensorsError>,
) -> Result<FileReport, PrepareError> {
    let io = |source| PrepareError::Io { path: path.to_owned(), source };
    let mut out = Hashed::new(io::BufWriter::with_capacity(1 << 20, create(path).map_err(io)?));
    content(&mut out)?;
    let (buffered, digest, bytes) = out.finish();
    let file = buffered.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    Ok(FileReport { bytes, digest })
}

#[cfg(test)]
mod tests;
