//! What the engine prints: passed on unchanged, and told line by line to an observer.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of a line that reach the observer.
pub const MAX_LINE: usize = 8 * 1024;

/// Read at once, and all that is held of a stream.
const BUFFER: usize = 64 * 1024;

/// How long an ended engine's pipe may stay open: somebody below it may hold it without being of use.
const LINGER: Duration = Duration::from_secs(2);

/// What is still taken out of a pipe after that: its largest size, unless the administrator raised it (pipe(7)).
const LAST: usize = 1024 * 1024;

/// Which of the two a line was printed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Is told every line that holds more than blanks, without colours and line end, cut to [`MAX_LINE`] bytes. A carriage
/// return ends a line too: progress bars use it. Runs between reading and writing, so it must be quick.
pub type Observer = Arc<dyn Fn(Stream, &str) + Send + Sync>;

/// Where an engine's output goes.
pub struct Output {
    pub stdout: Box<dyn AsyncWrite + Send + Unpin>,
    pub stderr: Box<dyn AsyncWrite + Send + Unpin>,
    pub observer: Observer,
}

impl Output {
    /// To warmd's own standard output and error.
    pub fn inherited(observer: Observer) -> Self {
        Self { stdout: Box::new(tokio::io::stdout()), stderr: Box::new(tokio::io::stderr()), observer }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}

/// Passes on what comes until the pipe is closed, or until the engine has been `gone` for [`LINGER`]. A slow reader of ours
/// makes the engine wait; one that has gone away is replaced by nobody, and the observer still sees the lines.
pub(super) async fn pump<T>(
    mut from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    gone: impl Future<Output = T>,
    line: impl FnMut(&str),
) {
    let mut sink = Sink { to: Some(to), lines: Lines::default(), line };
    let mut buffer = vec![0; BUFFER];
    let mut over = pin!(async {
        gone.await;
        tokio::time::sleep(LINGER).await;
    });
    loop {
        let read = tokio::select! {
            biased;
            () = &mut over => break,
            read = from.read(&mut buffer) => read,
        };
        match read {
            Ok(0) => return sink.end().await,
            Ok(len) => sink.take(&buffer[..len]).await,
            Err(error) => {
                tracing::warn!(%error, "read the engine's output");
                return sink.end().await;
            }
        }
    }
    let mut left = LAST;
    // What the engine printed before its end is in the pipe already: nothing is waited for.
    while let Some(Ok(len @ 1..)) = tokio::task::unconstrained(from.read(&mut buffer)).now_or_never() {
        sink.take(&buffer[..len]).await;
        left = left.saturating_sub(len);
        if left == 0 {
            break;
        }
    }
    sink.end().await;
}

struct Sink<W, F> {
    to: Option<W>,
    lines: Lines,
    line: F,
}

impl<W: AsyncWrite + Unpin, F: FnMut(&str)> Sink<W, F> {
    async fn take(&mut self, bytes: &[u8]) {
        self.lines.feed(bytes, &mut self.line);
        let Some(to) = &mut self.to else { return };
        let written = async {
            to.write_all(bytes).await?;
            to.flush().await
        };
        if let Err(error) = written.await {
            // Stopping to read would stop the engine.
            tracing::warn!(%error, "nobody reads the engine's output any more: it is dropped");
            self.to = None;
        }
    }

    async fn end(mut self) {
        self.lines.end(&mut self.line);
        if let Some(to) = &mut self.to {
            let _ = to.flush().await;
        }
    }
}

/// Cuts a stream into lines.
#[derive(Debug, Default)]
struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], line: &mut impl FnMut(&str)) {
        let mut pieces = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).peekable();
        while let Some(piece) = pieces.next() {
            let room = MAX_LINE - self.pending.len();
            self.pending.extend_from_slice(&piece[..piece.len().min(room)]);
            if pieces.peek().is_some() {
                self.end(line);
            }
        }
    }

    fn end(&mut self, line: &mut impl FnMut(&str)) {
        let plain = plain(&self.pending);
        let text = String::from_utf8_lossy(&plain);
        if !text.trim_ascii().is_empty() {
            line(text.trim_ascii_end());
        }
        self.pending.clear();
    }
}

/// Without the sequences that colour a terminal's text and move its cursor (ECMA-48 section 5.4), and without what links
/// and titles hold (OSC).
fn plain(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(escape) = rest.iter().position(|byte| *byte == 0x1b) {
        out.extend_from_slice(&rest[..escape]);
        rest = after_sequence(&rest[escape + 1..]);
    }
    out.extend_from_slice(rest);
    out
}

/// What follows the sequence that begins after an escape.
fn after_sequence(bytes: &[u8]) -> &[u8] {
    let Some((first, rest)) = bytes.split_first() else { return bytes };
    let from = match first {
        b'[' => rest.iter().position(|byte| (0x40..=0x7e).contains(byte)).map(|end| end + 1),
        // The escape that ends such a string begins a sequence of its own.
        b']' => {
            rest.iter().position(|byte| matches!(byte, 0x07 | 0x1b)).map(|end| end + usize::from(rest[end] == 0x07))
        }
        _ => Some(0),
    };
    from.map_or(&[], |from| &rest[from..])
}

#[cfg(test)]
mod tests;
