//! Archives between the store's blocking reader and writer and the caller's stream.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::Parts;
use super::status::store_status;
use super::turns::Turn;
use crate::artifact::{Admitted, ManifestError};
use crate::digest::ArtifactId;
use crate::local;
use crate::protocol::pb::ArchiveBytes;
use crate::store::{ArchiveError, Held, Store};

/// Bytes of a message.
const PIECE: usize = 1024 * 1024;

/// For the caller to send or to take one message: a thread waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn export(parts: Arc<Parts>, held: Held, turn: Turn, out: mpsc::Sender<Result<ArchiveBytes, Status>>) {
    let pieces = Pieces { out: out.clone(), runtime: Handle::current(), is_over: false };
    let exported = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let mut writer = io::BufWriter::with_capacity(PIECE, pieces);
        parts.store.export(&held.id(), &mut writer)?;
        writer.flush().map_err(ArchiveError::Write)
    });
    let failed = match exported.await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => archive_status(&error),
        Err(_) => Status::internal("the exporting thread panicked"),
    };
    // The caller is gone, or does not listen.
    let _ = timeout(PATIENCE, out.send(Err(failed))).await;
}

pub(super) async fn import(
    store: Store,
    turn: Turn,
    archive: Streaming<ArchiveBytes>,
    admit: impl Fn(Bytes) -> Result<Admitted, ManifestError> + Send + 'static,
) -> Result<ArtifactId, Status> {
    let runtime = Handle::current();
    let imported = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let mut reader = Messages { archive, piece: Bytes::new(), runtime };
        store.import(&mut reader, &admit)
    });
    match imported.await {
        Ok(Ok(id)) => Ok(id),
        Ok(Err(error)) => Err(archive_status(&error)),
        Err(_) => Err(Status::internal("the importing thread panicked")),
    }
}

fn archive_status(error: &ArchiveError) -> Status {
    match error {
        ArchiveError::Store(error) => store_status(error),
        error => Status::invalid_argument(local::chain(error)),
    }
}

/// A writer whose writes become messages.
struct Pieces {
    out: mpsc::Sender<Result<ArchiveBytes, Status>>,
    runtime: Handle,
    /// Once the caller has not taken one: a buffer writes what it has left when it is dropped, and would wait again.
    is_over: bool,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if std::mem::replace(&mut self.is_over, true) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let piece = ArchiveBytes { data: Bytes::copy_from_slice(bytes) };
        let taken = self.runtime.block_on(async { timeout(PATIENCE, self.out.send(Ok(piece))).await });
        taken.map_err(|_| silent())?.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.is_over = false;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader over the caller's messages, for a blocking thread.
struct Messages<S> {
    archive: S,
    piece: Bytes,
    runtime: Handle,
}

impl<S: Stream<Item = Result<ArchiveBytes, Status>> + Unpin> Read for Messages<S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let next = self.runtime.block_on(async { timeout(PATIENCE, self.archive.next()).await });
            match next.map_err(|_| silent())?.transpose().map_err(io::Error::other)? {
                Some(message) => self.piece = message.data,
                None => return Ok(0),
            }
        }
        let len = out.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut out[..len]);
        Ok(len)
    }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("nothing from the caller for {PATIENCE:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_sends_nothing_gives_its_thread_back() {
        let begun = futures_util::stream::iter([Ok(ArchiveBytes { data: Bytes::from_static(b"begun") })]);
        let archive = begun.chain(futures_util::stream::pending());
        let mut reader = Messages { archive, piece: Bytes::new(), runtime: Handle::current() };
        let reading = std::thread::spawn(move || {
            let mut read = Vec::new();
            (reader.read_to_end(&mut read).unwrap_err().kind(), read)
        });
        assert_eq!(joined(reading).await, (io::ErrorKind::TimedOut, b"begun".to_vec()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_takes_nothing_gives_its_thread_back() {
        let (out, _taken) = mpsc::channel(1);
        let mut pieces = Pieces { out, runtime: Handle::current(), is_over: false };
        let writing = std::thread::spawn(move || {
            assert_eq!(pieces.write(b"one").unwrap(), 3);
            [b"two", b"two"].map(|bytes| pieces.write(bytes).unwrap_err().kind())
        });
        let once = [io::ErrorKind::TimedOut, io::ErrorKind::BrokenPipe];
        assert_eq!(joined(writing).await, once, "and is not waited for again");
    }

    /// While time runs ahead.
    async fn joined<T>(thread: std::thread::JoinHandle<T>) -> T {
        while !thread.is_finished() {
            tokio::time::advance(PATIENCE).await;
        }
        thread.join().unwrap()
    }
}
