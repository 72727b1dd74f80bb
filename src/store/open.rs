//! Opening: the directory is ours alone, the lock is free, the rest of dead processes is cleaned, and what is there is
//! listed.

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use tokio::sync::watch;

use super::artifact::{Artifact, Role, State};
use super::index::{ChunkFile, Index};
use super::layout::Layout;
use super::{Config, Limits, Metrics, Shared, Store, StoreError, chunks, space};
use crate::artifact::{MAX_ENVELOPE, ManifestError, SignedManifest};
use crate::digest::{ArtifactId, Digest};
use crate::durable::{self, Lock, LockError};
use crate::identity::UnixTime;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Store {
    /// Takes the store's lock for as long as a handle lives.
    pub fn open(config: &Config, metrics: Metrics) -> Result<Self, StoreError> {
        let boot = std::fs::read_to_string(BOOT_ID)
            .map_err(|error| StoreError::io("read", Path::new(BOOT_ID), error))?
            .trim()
            .to_owned();
        Self::open_on_boot(config, metrics, boot)
    }

    pub(super) fn open_on_boot(config: &Config, metrics: Metrics, boot: String) -> Result<Self, StoreError> {
        let root = &config.directory;
        own_directory(root)?;
        let layout = Layout::new(root);
        let lock = lock(&layout)?;
        make_directories(&layout)?;
        empty_directory(&layout.tmp())?;
        empty_directory(&layout.trash())?;
        let reserve = space::reserve(root, config.reserve_bytes)
            .map_err(|error| StoreError::io("look at free space of", root, error))?;
        let limits = Limits { max_bytes: config.max_bytes, reserve };
        metrics.limited(limits);
        let store = Self {
            shared: Arc::new(Shared {
                layout,
                config: config.clone(),
                limits: Mutex::new(limits),
                boot,
                index: Index::new(),
                artifacts: RwLock::default(),
                syncing: Mutex::default(),
                changing: Mutex::default(),
                changes: watch::Sender::new(0),
                sequence: AtomicU64::new(0),
                metrics,
                _lock: lock,
            }),
        };
        store.list_chunks()?;
        store.load_artifacts()?;
        store.free_space()?;
        store.changed(&store.change());
        Ok(store)
    }

    /// In a store without chunks there is nothing to distrust.
    fn list_chunks(&self) -> Result<(), StoreError> {
        let trusted = self.is_trusted();
        let now = UnixTime::now();
        for directory in self.shared.layout.chunk_directories() {
            for (name, meta) in entries(&directory)? {
                let path = directory.join(&name);
                match Digest::from_str(&name) {
                    Ok(digest) if meta.is_file() && path == self.shared.layout.chunk(&digest) => {
                        let file = ChunkFile { len: meta.len(), verified: trusted };
                        self.shared
                            .index
                            .put(&digest, file, now, || Ok(()))
                            .map_err(|e| StoreError::io("list", &path, e))?;
                    }
                    _ => tracing::warn!(path = %path.display(), "not a chunk: ignored"),
                }
            }
        }
        if trusted {
            return Ok(());
        }
        match self.shared.index.chunks() {
            0 => self.record_boot(),
            chunks => tracing::info!(chunks, "not known to be from this boot: chunks are verified before use"),
        }
        Ok(())
    }

    /// Every chunk was hashed on this boot, or written on it. Otherwise [`Store::verify`] should run in the background.
    pub fn is_trusted(&self) -> bool {
        match durable::read_record(&self.shared.layout.boot()) {
            Ok(recorded) => recorded.as_ref() == Some(&self.shared.boot),
            Err(error) => {
                tracing::warn!(%error, "no boot record: chunks are verified before use");
                false
            }
        }
    }

    fn load_artifacts(&self) -> Result<(), StoreError> {
        let layout = &self.shared.layout;
        let pinned = ids(&layout.pins())?;
        let published = ids(&layout.published())?;
        for (directory, state) in [(layout.manifests(), State::Complete), (layout.partials(), State::Partial)] {
            for (name, meta) in entries(&directory)? {
                let path = directory.join(&name);
                let signed = match load_manifest(&path, &name) {
                    Ok(signed) => signed,
                    Err(NotLoaded::Read(error)) => {
                        tracing::warn!(path = %path.display(), %error, "manifest not read: its artifact is not served");
                        continue;
                    }
                    // A torn write, or of a build with other limits. Its chunks are orphans until somebody asks for it.
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "manifest deleted: publish its artifact again");
                        std::fs::remove_file(&path).map_err(|error| StoreError::io("delete", &path, error))?;
                        continue;
                    }
                };
                let role = if published.contains(&signed.id()) { Role::Published } else { Role::Fetched };
                let last_used = UnixTime::from_seconds(u64::try_from(meta.mtime()).unwrap_or(0));
                let artifact = Artifact::new(Arc::new(signed), role, last_used);
                artifact.pinned.store(pinned.contains(&artifact.id()), Ordering::Release);
                self.load_artifact(artifact, state);
            }
        }
        Ok(())
    }

    fn load_artifact(&self, artifact: Artifact, state: State) {
        // Killed between the two steps of sealing: the complete one was loaded first.
        if self.get(&artifact.id()).is_some() {
            return chunks::empty([self.shared.layout.partial(&artifact.id())]);
        }
        let artifact = self.add(artifact, UnixTime::now());
        artifact.set_state(state);
        self.demote(&[artifact]);
    }
}

/// The directory is made or is ours alone: whoever can write here could change what is served after it was verified.
fn own_directory(root: &Path) -> Result<(), StoreError> {
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent).map_err(|error| StoreError::io("make", parent, error))?;
    }
    make_directory(root)?;
    let meta = std::fs::symlink_metadata(root).map_err(|error| StoreError::io("look at", root, error))?;
    let refuse = |problem, mend: String| Err(StoreError::Directory { path: root.to_owned(), problem, mend });
    let shown = root.display();
    if meta.is_symlink() {
        return refuse("is a symbolic link", "name the directory that it points to".to_owned());
    }
    if !meta.is_dir() {
        return refuse("is not a directory", "name another one".to_owned());
    }
    let uid = rustix::process::geteuid().as_raw();
    if meta.uid() != uid {
        return refuse("belongs to another user", format!("run `chown -R {uid} {shown}`"));
    }
    if meta.mode() & 0o077 != 0 {
        return refuse("is open to other users", format!("run `chmod 700 {shown}`"));
    }
    Ok(())
}

fn lock(layout: &Layout) -> Result<Lock, StoreError> {
    let path = layout.lock();
    Lock::take(&path).map_err(|error| match error {
        LockError::Held { pid } => StoreError::Locked { path: layout.root().to_owned(), pid },
        LockError::Io(error) => StoreError::io("lock", &path, error),
    })
}

fn make_directories(layout: &Layout) -> Result<(), StoreError> {
    let root = layout.root();
    let single =
        [layout.manifests(), layout.partials(), layout.pins(), layout.published(), layout.tmp(), layout.trash()];
    make_directory(&root.join("chunks"))?;
    single.into_iter().chain(layout.chunk_directories()).try_for_each(|path| make_directory(&path))
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(StoreError::io("make", path, error)),
        _ => Ok(()),
    }
}

/// What is in `tmp` and `trash` belongs to processes that had the lock before us.
fn empty_directory(directory: &Path) -> Result<(), StoreError> {
    for (name, _) in entries(directory)? {
        let path = directory.join(name);
        std::fs::remove_file(&path).map_err(|error| StoreError::io("delete", &path, error))?;
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<(String, std::fs::Metadata)>, StoreError> {
    let list = || {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            // Metadata of the entry itself: links are not followed.
            found.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?));
        }
        Ok(found)
    };
    list().map_err(|error| StoreError::io("list", directory, error))
}

fn ids(directory: &Path) -> Result<HashSet<ArtifactId>, StoreError> {
    Ok(entries(directory)?.into_iter().filter_map(|(name, _)| name.parse().ok()).collect())
}

/// A file among the manifests is not used.
#[derive(Debug, thiserror::Error)]
enum NotLoaded {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("its name is no artifact id")]
    Name,
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("it holds the manifest of {0}")]
    Other(ArtifactId),
}

/// Who signed it was checked before it was stored.
fn load_manifest(path: &Path, name: &str) -> Result<SignedManifest, NotLoaded> {
    let id = ArtifactId::from_str(name).map_err(|_| NotLoaded::Name)?;
    let mut envelope = Vec::new();
    let mut limited = File::open(path)?.take(MAX_ENVELOPE as u64 + 1);
    limited.read_to_end(&mut envelope)?;
    let signed = SignedManifest::decode_unverified(Bytes::from(envelope))?;
    if signed.id() == id { Ok(signed) } else { Err(NotLoaded::Other(signed.id())) }
}

/// Kept as the time of the manifest file. Losing it costs only a worse choice of what to evict.
pub(super) fn set_last_used(path: &Path, at: UnixTime) {
    let time = Timespec { tv_sec: i64::try_from(at.seconds()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    if let Err(error) = rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW) {
        tracing::debug!(path = %path.display(), %error, "note last use");
    }
}
