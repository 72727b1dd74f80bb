//! Chunks on their way to a peer: a slot for as long as it takes, read ahead, not faster than the cap, and not slower than
//! a peer may be.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::desk::{Ask, Slot};
use super::{Provider, Refused};
use crate::artifact::Chunk;
use crate::identity::UnixTime;
use crate::protocol::peer::{Answer, chunk_head};
use crate::store::{Artifact, State, StoreError};
use crate::transfer::metrics::{Direction, Holder};
use crate::transport::SendStream;

/// A peer must take bytes at least this fast, and every chunk has this time at least.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of chunks opened ahead of the one that is being sent.
const READ_AHEAD: u64 = 8 * 1024 * 1024;

impl Provider {
    /// A slot, when its turn has come.
    pub(super) async fn slot(&self, ask: &Ask<'_>) -> Result<Upload<'_>, Refused> {
        let now = Instant::now();
        let at_once = self.cap.at_once(now);
        let slot = {
            let mut desk = self.desk();
            desk.at_most(at_once);
            desk.ask(ask, now, &mut rand::rng()).map_err(Refused::NotNow)?
        };
        self.uploads.send_modify(|uploads| *uploads += 1);
        self.metrics.uploads.inc();
        let upload = Upload { provider: self, slot: Some(slot) };
        upload.turn().await;
        Ok(upload)
    }

    pub(super) async fn send_chunks(
        &self,
        artifact: &Arc<Artifact>,
        indices: &[u32],
        chunks: Vec<Chunk>,
        send: &mut SendStream,
    ) -> Result<(), Refused> {
        let len = chunks.iter().map(|chunk| u64::from(chunk.encoded_len)).sum();
        self.write(send, Answer::Chunks { len }.encode()).await?;
        let holder = if artifact.state() == State::Complete { Holder::Peer } else { Holder::Partial };
        let sent = self.metrics.bytes(artifact.manifest().identity.family(), Direction::Sent, holder);
        let mut rest = chunks.as_slice();
        let mut indices = indices.iter();
        let mut opening = self.open(artifact, &mut rest);
        while let Some(opened) = opening.take() {
            let opened = opened.await?;
            // The next ones are opened while these are on their way.
            opening = self.open(artifact, &mut rest);
            for (bytes, index) in opened.into_iter().zip(&mut indices) {
                let len = bytes.len();
                let head = chunk_head(*index, u32::try_from(len).unwrap_or(u32::MAX));
                self.throttle(len as u64).await;
                self.write_all(send, &mut [Bytes::copy_from_slice(&head), bytes]).await?;
                sent.inc_by(len as u64);
                self.sent.fetch_add(len as u64, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Opens the next chunks on a blocking thread: their pages must be in memory before a network thread touches them.
    fn open(
        &self,
        artifact: &Arc<Artifact>,
        rest: &mut &[Chunk],
    ) -> Option<impl Future<Output = Result<Vec<Bytes>, Refused>> + use<>> {
        let mut bytes = 0;
        let count = rest
            .iter()
            .take_while(|chunk| {
                let first = bytes == 0;
                bytes += u64::from(chunk.encoded_len);
                first || bytes <= READ_AHEAD
            })
            .count();
        let (now, later) = rest.split_at(count);
        *rest = later;
        if now.is_empty() {
            return None;
        }
        let (store, artifact, now) = (self.store.clone(), artifact.clone(), now.to_vec());
        Some(opened(move || {
            store.touch(&artifact, UnixTime::now());
            now.iter().map(|chunk| store.read_chunk(chunk)).collect()
        }))
    }

    async fn throttle(&self, bytes: u64) {
        let wait = self.cap.wait(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    pub(super) async fn write(&self, send: &mut SendStream, bytes: Bytes) -> Result<(), Refused> {
        self.write_all(send, &mut [bytes]).await
    }

    async fn write_all(&self, send: &mut SendStream, parts: &mut [Bytes]) -> Result<(), Refused> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        let time = STALL_TIMEOUT + Duration::from_secs(len as u64 / SLOWEST_BYTES_PER_SECOND);
        tokio::time::timeout(time, send.write_all(parts)).await.map_err(|_| Refused::TooSlow)??;
        Ok(())
    }
}

/// Begins at once, on a blocking thread.
fn opened<T: Send + 'static>(
    open: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> impl Future<Output = Result<T, Refused>> {
    let opening = tokio::task::spawn_blocking(open);
    async move { opening.await.map_err(Refused::Thread)?.map_err(Refused::Store) }
}

/// Given back when dropped.
pub(super) struct Upload<'p> {
    provider: &'p Provider,
    slot: Option<Slot>,
}

impl Upload<'_> {
    async fn turn(&self) {
        loop {
            let given_back = self.provider.given_back.notified();
            let wait = self.slot.as_ref().and_then(|slot| self.provider.desk().begin(slot, Instant::now()));
            let Some(at) = wait else { return };
            // Whatever came first: the desk is asked again.
            let _ = tokio::time::timeout_at(at.into(), given_back).await;
        }
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.provider.desk().end(slot, Instant::now());
            self.provider.given_back.notify_waiters();
        }
        self.provider.uploads.send_modify(|uploads| *uploads -= 1);
        self.provider.metrics.uploads.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reading_thread_that_panics_is_a_failed_upload_and_not_the_end_of_the_chunks() {
        let opened = opened::<Vec<Bytes>>(|| panic!("of the test")).await;
        assert!(matches!(opened, Err(Refused::Thread(error)) if error.is_panic()));
    }
}
