//! The whole terminal for one page that is drawn again and again. It is as it was before when this is dropped.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Keys that may wait.
const QUEUE: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Up,
    Down,
    Node,
    Fleet,
    /// The window has another size.
    Resized,
}

pub(super) struct Screen {
    before: Termios,
    keys: mpsc::Receiver<Key>,
    ended: Arc<AtomicBool>,
}

impl Screen {
    /// Standard input and output must be a terminal.
    pub(super) fn open() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // A read waits a tenth of a second at most, so that whoever reads notices the end.
        raw.special_codes[SpecialCodeIndex::VMIN] = 0;
        raw.special_codes[SpecialCodeIndex::VTIME] = 1;
        tcsetattr(stdin(), OptionalActions::Flush, &raw)?;
        let (tell, keys) = mpsc::channel(QUEUE);
        let ended = Arc::new(AtomicBool::new(false));
        let screen = Self { before, keys, ended: ended.clone() };
        write(ENTER)?;
        tokio::task::spawn_blocking(move || read_keys(&tell, &ended));
        Ok(screen)
    }

    /// Columns and lines.
    pub(super) fn size(&self) -> (usize, Option<usize>) {
        let size = tcgetwinsize(stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        size.map_or((80, Some(24)), |size| (usize::from(size.ws_col), Some(usize::from(size.ws_row))))
    }

    pub(super) fn draw(&self, lines: &[String]) -> io::Result<()> {
        let lines = lines.join(&format!("{CLEAR_LINE}\r\n"));
        write(&format!("{HOME}{lines}{CLEAR_LINE}{CLEAR_BELOW}"))
    }

    /// `None` when the terminal is gone.
    pub(super) async fn key(&mut self) -> Option<Key> {
        self.keys.recv().await
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // A terminal that is gone needs no mending.
        let _ = write(LEAVE);
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.before);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn read_keys(tell: &mpsc::Sender<Key>, ended: &AtomicBool) {
    let mut size = tcgetwinsize(stdout()).map(|size| (size.ws_col, size.ws_row)).ok();
    let mut buffer = [0; 64];
    while !ended.load(Ordering::Relaxed) {
        let Ok(len) = rustix::io::read(stdin(), &mut buffer) else { return };
        let now = tcgetwinsize(stdout()).map(|size| (size.ws_col, size.ws_row)).ok();
        let resized = (now != size).then_some(Key::Resized);
        size = now;
        for key in keys(&buffer[..len]).into_iter().chain(resized) {
            // A full queue: somebody leans on the keyboard.
            let _ = tell.try_send(key);
        }
    }
}

/// What a terminal sends for keys.
fn keys(mut bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while let Some((first, rest)) = bytes.split_first() {
        let (key, rest) = match (first, rest) {
            (0x1b, [b'[' | b'O', b'A', rest @ ..]) => (Some(Key::Up), rest),
            (0x1b, [b'[' | b'O', b'B', rest @ ..]) => (Some(Key::Down), rest),
            // Other keys that send more than one byte.
            (0x1b, [b'[' | b'O', _, rest @ ..]) => (None, rest),
            // Control-C does not raise a signal here.
            (b'q' | b'Q' | 3, rest) => (Some(Key::Quit), rest),
            (b'k', rest) => (Some(Key::Up), rest),
            (b'j', rest) => (Some(Key::Down), rest),
            (b'n' | b'\r', rest) => (Some(Key::Node), rest),
            (b'f', rest) => (Some(Key::Fleet), rest),
            (_, rest) => (None, rest),
        };
        keys.extend(key);
        bytes = rest;
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_however_they_come() {
        assert_eq!(keys(b"nf"), [Key::Node, Key::Fleet]);
        assert_eq!(keys(b"\x1b[A\x1b[B\x1bOA\x1b[Cq"), [Key::Up, Key::Down, Key::Up, Key::Quit]);
        assert_eq!(keys(b"\x03"), [Key::Quit]);
        assert_eq!(keys(b"\x1b"), []);
        assert_eq!(keys("ä\x1b[".as_bytes()), []);
    }
}
