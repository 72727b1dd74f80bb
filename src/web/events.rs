//! The stream of documents, as server-sent events (WHATWG HTML, 9.2). Made when the client takes it: one that is slow gets
//! less often what is newer, and nothing waits for it.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::board::{Changes, Cursor};
use super::live::LiveBoard;

/// Bytes of documents in one event, but for one that is larger itself.
const PAGE: usize = 256 * 1024;

/// Between two looks at what changed.
const PACE: Duration = Duration::from_millis(250);

/// A stream that says nothing for longer may be dead.
const SILENCE: Duration = Duration::from_secs(15);

/// Window of the compression, as a power of two: all that a stream has to keep of what it said.
const WINDOW: u32 = 17;
const LEVEL: i32 = 1;

/// As bytes that go out as they are, or compressed together.
enum Coding {
    Plain,
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

impl Coding {
    fn new(compressed: bool) -> io::Result<Self> {
        if !compressed {
            return Ok(Self::Plain);
        }
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
        encoder.window_log(WINDOW)?;
        Ok(Self::Zstd(Box::new(encoder)))
    }

    /// Whole: the client can read all of it.
    fn encode(&mut self, text: Vec<u8>) -> io::Result<Bytes> {
        let Self::Zstd(encoder) = self else { return Ok(text.into()) };
        encoder.write_all(&text)?;
        encoder.flush()?;
        Ok(std::mem::take(encoder.get_mut()).into())
    }
}

struct Events<S> {
    board: LiveBoard,
    changed: watch::Receiver<u64>,
    cursor: Cursor,
    coding: Coding,
    begun: bool,
    /// When to look again.
    next: Instant,
    ends: Instant,
    _slot: S,
}

/// What happened since `cursor`, and what happens until `ends`. Holds `slot` as long as it lives.
pub(super) fn events(
    board: LiveBoard,
    cursor: Cursor,
    ends: Instant,
    slot: impl Send,
    compressed: bool,
) -> io::Result<impl Stream<Item = Bytes> + Send> {
    let (changed, coding) = (board.follow(), Coding::new(compressed)?);
    let events = Events { board, changed, cursor, coding, begun: false, next: Instant::now(), ends, _slot: slot };
    Ok(stream::unfold(events, async |mut events| {
        let text = events.next().await?;
        let bytes = events.coding.encode(text).ok()?;
        Some((bytes, events))
    }))
}

impl<S> Events<S> {
    /// The next event or comment. `None` at the end.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let silent = (Instant::now() + SILENCE).min(self.ends);
        loop {
            if Instant::now() >= self.ends {
                return None;
            }
            sleep_until(self.next.min(silent)).await;
            self.changed.borrow_and_update();
            let changes = self.board.since(self.cursor, PAGE);
            if !changes.is_empty() || !self.begun {
                self.begun = true;
                self.cursor = changes.cursor;
                self.next = if changes.more { Instant::now() } else { Instant::now() + PACE };
                return Some(event(&self.board.mark(changes.cursor), &changes, now()));
            }
            match timeout_at(silent, self.changed.changed()).await {
                Ok(Ok(())) => {}
                // Whoever wrote is gone with the board's last clone, and this is one.
                Ok(Err(_)) => return None,
                Err(_) if silent < self.ends => return Some(b":\n\n".to_vec()),
                Err(_) => return None,
            }
        }
    }
}

/// Milliseconds since 1970.
fn now() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis()
}

fn event(mark: &str, changes: &Changes, now: u128) -> Vec<u8> {
    let size: usize =
        changes.set.iter().map(|(key, document)| key.as_str().len() + document.as_bytes().len() + 8).sum();
    let mut text = Vec::with_capacity(size + 256);
    let head = format!("id: {mark}\ndata: {{\"now\":{now},\"reset\":{},\"more\":{},", changes.reset, changes.more);
    text.extend_from_slice(head.as_bytes());
    text.extend_from_slice(b"\"set\":{");
    separated(&mut text, &changes.set, |text, (key, document)| {
        text.extend_from_slice(format!("\"{key}\":").as_bytes());
        text.extend_from_slice(document.as_bytes());
    });
    text.extend_from_slice(b"},\"del\":[");
    separated(&mut text, &changes.removed, |text, key| text.extend_from_slice(format!("\"{key}\"").as_bytes()));
    text.extend_from_slice(b"]}\n\n");
    text
}

/// With commas between them.
fn separated<T>(text: &mut Vec<u8>, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            text.push(b',');
        }
        write(text, item);
    }
}

#[cfg(test)]
mod tests;
