//! Archives between the store's blocking reader and writer and the caller's stream.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::Parts;
use super::status::store_status;
use crate::artifact::{Admitted, ManifestError};
use crate::digest::ArtifactId;
use crate::local;
use crate::protocol::pb::ArchiveBytes;
use crate::store::{ArchiveError, Held, Store};

/// Bytes of a message.
const PIECE: usize = 1024 * 1024;

pub(super) async fn export(parts: Arc<Parts>, held: Held, out: mpsc::Sender<Result<ArchiveBytes, Status>>) {
    let pieces = out.clone();
    let exported = tokio::task::spawn_blocking(move || {
        let mut writer = io::BufWriter::with_capacity(PIECE, Pieces(pieces));
        parts.store.export(&held.id(), &mut writer)?;
        writer.flush().map_err(ArchiveError::Write)
    });
    let failed = match exported.await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => archive_status(&error),
        Err(_) => Status::internal("the exporting thread panicked"),
    };
    // The caller is gone.
    let _ = out.send(Err(failed)).await;
}

pub(super) async fn import(
    store: Store,
    archive: Streaming<ArchiveBytes>,
    admit: impl Fn(Bytes) -> Result<Admitted, ManifestError> + Send + 'static,
) -> Result<ArtifactId, Status> {
    let runtime = tokio::runtime::Handle::current();
    let imported = tokio::task::spawn_blocking(move || {
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
struct Pieces(mpsc::Sender<Result<ArchiveBytes, Status>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = ArchiveBytes { data: Bytes::copy_from_slice(bytes) };
        self.0.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader over the caller's messages, for a blocking thread.
struct Messages {
    archive: Streaming<ArchiveBytes>,
    piece: Bytes,
    runtime: tokio::runtime::Handle,
}

impl Read for Messages {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.runtime.block_on(self.archive.message()).map_err(io::Error::other)? {
                Some(message) => self.piece = message.data,
                None => return Ok(0),
            }
        }
        let len = out.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut out[..len]);
        Ok(len)
    }
}
