//! One artifact's install: chunks come from the agent, a few blocking threads check and write them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Failure, Witness};
use crate::artifact::{Admitted, RelPath};
use crate::digest::{ArtifactId, KeyId};
use crate::install::{CacheRoot, InstallError, InstallLock, Installation, Installed, Limits, NegativeClass};
use crate::local::chunks::Buffer;
use crate::local::{Client, chain};
use crate::serve::admissions::{self, Admission};
use crate::serve::quarantine::Release;
use crate::serve::received::Received;

/// Chunks between the agent's stream and the writing threads: keeps both busy, and few enough stay in the caches.
const QUEUE: usize = 4;

const MAX_THREADS: usize = 8;

/// What an install needs, in one movable piece.
pub(super) struct InstallWork {
    pub(super) root: Arc<CacheRoot>,
    pub(super) lock: Arc<InstallLock>,
    pub(super) admitted: Arc<Admitted>,
    pub(super) limits: Limits,
    /// Whose signatures let it in. Absent: nobody will ask again, since it is not used from here.
    pub(super) signed_by: Option<Vec<KeyId>>,
    pub(super) witness: Arc<dyn Witness>,
}

/// Where the chunks come from, until `ended`: no more will come then.
pub(super) struct Feed {
    client: Client,
    id: ArtifactId,
    ended: CancellationToken,
}

type Chunk = (usize, Buffer);

/// Buffers that no chunk is in.
type Buffers = Mutex<Vec<Buffer>>;

impl Feed {
    pub(super) fn new(client: Client, id: ArtifactId, ended: CancellationToken) -> Self {
        Self { client, id, ended }
    }

    async fn pump(&self, needed: Vec<u32>, chunks: mpsc::Sender<Chunk>, free: &Buffers) -> Result<(), Failure> {
        let mut stream = self.client.read_chunks(self.id, needed).await?;
        loop {
            let mut buffer = free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            let next = self.ended.run_until_cancelled(stream.next(&mut buffer)).await;
            let Some(index) = next.transpose()?.flatten() else { return Ok(()) };
            if chunks.send((index, buffer)).await.is_err() {
                // The install has failed and says why.
                return Ok(());
            }
        }
    }
}

/// Installs, or fails with nothing visible. Dropping it lets the staging directory be removed.
pub(super) async fn run(work: InstallWork, feed: Feed) -> Result<Installed, Failure> {
    let (needed_tx, needed_rx) = oneshot::channel();
    let (chunks_tx, chunks_rx) = mpsc::channel(QUEUE);
    let free = Arc::new(Buffers::default());
    let used = free.clone();
    let installing = tokio::task::spawn_blocking(move || install(&work, needed_tx, chunks_rx, &used));
    let pumped = match needed_rx.await {
        Ok(needed) if !needed.is_empty() => feed.pump(needed, chunks_tx, &free).await,
        // Nothing is needed, or the install did not even begin.
        _ => {
            drop(chunks_tx);
            Ok(())
        }
    };
    let panicked = |_| Failure { class: NegativeClass::Transient, detail: "the install thread panicked".to_owned() };
    let installed = installing.await.map_err(panicked)?;
    // If the agent's stream broke, that is the cause, and the missing chunks are what follows from it.
    pumped?;
    installed
}

fn install(
    work: &InstallWork,
    needed: oneshot::Sender<Vec<u32>>,
    chunks: mpsc::Receiver<Chunk>,
    free: &Buffers,
) -> Result<Installed, Failure> {
    let installation = Installation::begin(&work.root, &work.lock, work.admitted.clone(), work.limits)?;
    let indices = spread(installation.needed().ones().filter_map(|index| u32::try_from(index).ok()).collect());
    // If nobody waits any more, the channel of chunks is closed too.
    let _ = needed.send(indices);
    let chunks = Mutex::new(chunks);
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(MAX_THREADS);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| write(&installation, &chunks, free))).collect();
        let panicked = || InstallError::Incomplete { missing: installation.needed().count() };
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(panicked())))
    })?;
    if installation.missing().next().is_some() {
        let (release, missing): (_, BTreeSet<RelPath>) =
            (Release::of(&work.admitted), installation.missing().cloned().collect());
        if let Some(keys) = &work.signed_by {
            let admission = Admission::new(release.clone(), keys.clone(), missing.clone());
            // What cannot be asked about again is not installed.
            admissions::add(work.root.path(), admission)
                .map_err(|error| Failure { class: NegativeClass::Transient, detail: chain(&error) })?;
        }
        work.witness.before_commit(release, work.root.path(), missing)?;
    }
    let installed = installation.commit()?;
    remember(work);
    Ok(installed)
}

/// From both halves in turn: neighbours are pieces of one large file, and two threads that write to it wait for each other.
fn spread(indices: Vec<u32>) -> Vec<u32> {
    let (left, right) = indices.split_at(indices.len().div_ceil(2));
    let mut right = right.iter();
    left.iter().flat_map(|index| [Some(index), right.next()]).flatten().copied().collect()
}

/// In the thread that made the entries visible: it goes on when nobody waits for it any more.
fn remember(work: &InstallWork) {
    let (manifest, root) = (work.admitted.manifest(), work.root.path());
    let identity = manifest.identity.id();
    let added = Received::add(root, identity, &manifest.subject, &manifest.entries, SystemTime::now());
    if let Err(error) = added {
        tracing::warn!(%error, "what was installed is not recorded: it may be published again from here");
    }
}

fn write(
    installation: &Installation<'_>,
    chunks: &Mutex<mpsc::Receiver<Chunk>>,
    free: &Buffers,
) -> Result<(), InstallError> {
    loop {
        let next = chunks.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some((index, encoded)) = next else { return Ok(()) };
        if let Err(error) = installation.chunk(index, &encoded) {
            chunks.lock().unwrap_or_else(PoisonError::into_inner).close();
            return Err(error);
        }
        free.lock().unwrap_or_else(PoisonError::into_inner).push(encoded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_chunks_are_not_asked_for_together_and_none_is_forgotten() {
        assert_eq!(spread((0..7).collect()), [0, 4, 1, 5, 2, 6, 3]);
        assert_eq!(spread(vec![5, 8]), [5, 8]);
        assert_eq!(spread(vec![5]), [5]);
        assert_eq!(spread(vec![]), [0; 0]);
    }
}
