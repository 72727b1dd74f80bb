//! Adapters that somebody has trained: each becomes an artifact that the whole fleet can serve under its alias.
//!
//! A watched directory holds one directory an adapter, named as its alias. What appears there, complete and not written to
//! for a while, is published; what changes is the next generation.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;

use super::push::{PushError, push};
use super::target::Say;
use crate::adapters::{Address, Alias, BaseModel, CONFIG, Release, Source, SourceError, WEIGHTS};
use crate::artifact::{Provenance, SourceIdentityError, Stamp};
use crate::caches::{CacheFamily, ScanRules};
use crate::local::{Client, ClientError, Content, Publication, builder, chain};
use crate::protocol::pb::Published;

/// Between two looks at a watched directory.
const EVERY: Duration = Duration::from_secs(2);

/// Names of a watched directory that are looked at.
const MAX_ADAPTERS: usize = 10_000;

/// Between two tries, while the agent takes nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum FinetuneError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{}: names no base model in {CONFIG}: say `--base`", .0.display())]
    NoBase(PathBuf),
    #[error(transparent)]
    Identity(#[from] SourceIdentityError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Push(#[from] PushError),
    #[error("the thread that reads the adapter panicked")]
    Thread,
}

/// What its publisher says of an adapter.
#[derive(Debug, Clone, Default)]
pub struct Signature {
    /// Counts where the adapter itself names no model.
    pub base: Option<BaseModel>,
    pub owner: Option<Address>,
    pub provenance: Option<String>,
}

/// What came of an adapter.
#[derive(Debug)]
pub struct Finetuned {
    pub release: Release,
    pub published: Published,
}

/// Checks the adapter's files and has the agent sign and offer them.
pub async fn publish(
    client: &Client,
    directory: &Path,
    alias: Alias,
    signature: Signature,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Finetuned, FinetuneError> {
    let path = directory.to_owned();
    let release =
        spawn_blocking(move || release(&path, alias, signature)).await.map_err(|_| FinetuneError::Thread)??;
    let family = CacheFamily::by_name(crate::adapters::release::FAMILY);
    let publication = Publication {
        directory: directory.to_owned(),
        identity: release.identity()?,
        class: crate::identity::TrustClass::Data,
        subject: release.alias.to_string(),
        attributes: release.attributes(),
        provenance: Provenance { builder: builder(), ..Provenance::default() },
        content: family
            .map_or_else(|| Content::All(ScanRules::default()), |family| Content::Family { family, settled_by: None }),
        expires: None,
    };
    let published = push(client, publication, progress).await?;
    Ok(Finetuned { release, published })
}

fn release(directory: &Path, alias: Alias, signature: Signature) -> Result<Release, FinetuneError> {
    let source = Source::open(directory, None)?;
    let Signature { base, owner, provenance } = signature;
    let base =
        source.config().base_model.clone().or(base).ok_or_else(|| FinetuneError::NoBase(directory.to_owned()))?;
    Ok(Release { owner, provenance, ..Release::of(&source, alias, base) })
}

/// Both files of an adapter, as they were seen.
type Seen = [Stamp; 2];

/// A watched directory.
#[derive(Debug)]
pub struct Watched {
    pub directory: PathBuf,
    pub signature: Signature,
    /// An adapter is complete when nothing was written to it for this long.
    pub quiet: Duration,
}

impl Watched {
    /// Publishes what appears and what changes, until this is dropped. Whatever is wrong is told once for each version.
    pub async fn publish(self, client: &Client, say: &Say) {
        let mut done: HashMap<Alias, Seen> = HashMap::new();
        let mut trouble = None;
        loop {
            match self.settled(SystemTime::now()).await {
                Ok(settled) => {
                    trouble = None;
                    for (alias, seen) in settled {
                        if done.get(&alias) != Some(&seen) && self.one(client, &alias, say).await {
                            done.insert(alias, seen);
                        }
                    }
                }
                Err(error) if trouble.as_ref() != Some(&error.kind()) => {
                    say(&format!("{}: {error}; it is looked at again", self.directory.display()));
                    trouble = Some(error.kind());
                }
                Err(_) => {}
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// False if it is to be tried again.
    async fn one(&self, client: &Client, alias: &Alias, say: &Say) -> bool {
        let directory = self.directory.join(alias.as_str());
        match publish(client, &directory, alias.clone(), self.signature.clone(), |_| ()).await {
            Ok(Finetuned { published, .. }) if published.unchanged => true,
            Ok(Finetuned { release, published }) => {
                say(&format!("{alias}: generation {} for {} is published", published.generation, release.base));
                true
            }
            Err(error) => {
                say(&format!("{alias}: not published: {}", chain(&error)));
                let for_now = matches!(error, FinetuneError::Client(_) | FinetuneError::Push(PushError::Client(_)));
                if for_now {
                    tokio::time::sleep(PATIENCE).await;
                }
                !for_now
            }
        }
    }

    /// Adapters that nobody has written to for long enough.
    async fn settled(&self, now: SystemTime) -> io::Result<Vec<(Alias, Seen)>> {
        let (directory, quiet) = (self.directory.clone(), self.quiet);
        let looking = spawn_blocking(move || look(&directory, quiet, now));
        looking.await.map_err(|_| io::Error::other("the thread that looks at it panicked"))?
    }
}

fn look(directory: &Path, quiet: Duration, now: SystemTime) -> io::Result<Vec<(Alias, Seen)>> {
    let mut settled = Vec::new();
    for entry in std::fs::read_dir(directory)?.take(MAX_ADAPTERS) {
        let entry = entry?;
        let alias = entry.file_name().to_str().and_then(|name| name.parse::<Alias>().ok());
        let (Some(alias), true) = (alias, entry.file_type()?.is_dir()) else { continue };
        let stamp = |name| -> Option<Stamp> {
            let meta = entry.path().join(name).symlink_metadata().ok()?;
            let age = now.duration_since(meta.modified().ok()?).unwrap_or_default();
            (meta.is_file() && age >= quiet).then(|| Stamp::of(&meta))
        };
        if let (Some(config), Some(weights)) = (stamp(CONFIG), stamp(WEIGHTS)) {
            settled.push((alias, [config, weights]));
        }
    }
    settled.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(directory: &Path, alias: &str) {
        let here = directory.join(alias);
        std::fs::create_dir(&here).unwrap();
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters/plain");
        for name in [CONFIG, WEIGHTS] {
            std::fs::copy(recorded.join(name), here.join(name)).unwrap();
        }
    }

    fn names(found: Vec<(Alias, Seen)>) -> Vec<String> {
        found.into_iter().map(|(alias, _)| alias.to_string()).collect()
    }

    #[test]
    fn what_is_still_written_to_or_incomplete_waits() {
        let dir = tempfile::tempdir().unwrap();
        trained(dir.path(), "sql");
        trained(dir.path(), "half");
        std::fs::remove_file(dir.path().join("half").join(WEIGHTS)).unwrap();
        std::fs::create_dir(dir.path().join("not an alias")).unwrap();
        std::fs::write(dir.path().join("notes.txt"), b"x").unwrap();
        let (quiet, now) = (Duration::from_secs(5), SystemTime::now());
        assert_eq!(names(look(dir.path(), quiet, now).unwrap()), [""; 0]);
        assert_eq!(names(look(dir.path(), quiet, now + quiet).unwrap()), ["sql"]);
    }

    #[test]
    fn another_version_of_the_same_name_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        trained(dir.path(), "sql");
        let later = SystemTime::now() + Duration::from_secs(60);
        let first = look(dir.path(), Duration::ZERO, later).unwrap();
        assert_eq!(look(dir.path(), Duration::ZERO, later).unwrap(), first);
        std::fs::write(dir.path().join("sql").join(CONFIG), b"{}").unwrap();
        assert_ne!(look(dir.path(), Duration::ZERO, later).unwrap(), first);
    }

    #[test]
    fn an_adapter_that_names_no_model_needs_to_be_told_one() {
        let dir = tempfile::tempdir().unwrap();
        trained(dir.path(), "sql");
        let path = dir.path().join("sql");
        let config = std::fs::read_to_string(path.join(CONFIG)).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config.as_object_mut().unwrap().remove("base_model_name_or_path");
        std::fs::write(path.join(CONFIG), config.to_string()).unwrap();
        let alias: Alias = "sql".parse().unwrap();
        let error = release(&path, alias.clone(), Signature::default()).unwrap_err();
        assert!(matches!(&error, FinetuneError::NoBase(found) if *found == path), "{error}");
        let told = Signature { base: Some("acme/base".parse().unwrap()), ..Signature::default() };
        assert_eq!(release(&path, alias, told).unwrap().base.as_str(), "acme/base");
    }
}
