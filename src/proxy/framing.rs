//! Where each request of a connection begins, for one thing that hyper does not tell: whether its head has a
//! `Content-Length`. hyper removes it where there is a `Transfer-Encoding`, and with it the sign that somebody tries to
//! smuggle a request (RFC 9112, 6.1).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a line that are looked at; the headers that matter are shorter.
const MAX_LINE: usize = 256;

/// Heads that were read and whose requests have not begun: a client that sends so many ahead is not followed.
const MAX_AHEAD: usize = 64;

/// Whether the heads that were read have a `Content-Length`, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Heads(Arc<Mutex<VecDeque<bool>>>);

impl Heads {
    /// Of the next request. Of a head that was not followed it is taken for granted.
    pub(super) fn next_has_length(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or(true)
    }

    /// Whether there was room for it.
    fn add(&self, has_length: bool) -> bool {
        let mut heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = heads.len() < MAX_AHEAD;
        if has_room {
            heads.push_back(has_length);
        }
        has_room
    }
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Empty lines before a request are allowed.
    Before,
    Head,
    /// So many bytes are left of the body, and of a chunk with the line's end after it.
    Body(u64),
    Chunk(u64),
    ChunkSize,
    Trailer,
    /// Nobody knows where the next request begins.
    Lost,
}

/// What the head in hand says of its body.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    length: Option<u64>,
    is_chunked: bool,
    is_nonsense: bool,
}

/// Follows the bytes of a connection.
#[derive(Debug)]
pub(super) struct Framing {
    part: Part,
    line: Vec<u8>,
    said: Said,
    heads: Heads,
}

impl Framing {
    pub(super) fn new() -> (Self, Heads) {
        let heads = Heads::default();
        (Self { part: Part::Before, line: Vec::new(), said: Said::default(), heads: heads.clone() }, heads)
    }

    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            match self.part {
                Part::Lost => return,
                Part::Body(left) => {
                    let left = skip(&mut bytes, left);
                    self.part = if left == 0 { Part::Before } else { Part::Body(left) };
                }
                Part::Chunk(left) => {
                    let left = skip(&mut bytes, left);
                    self.part = if left == 0 { Part::ChunkSize } else { Part::Chunk(left) };
                }
                _ => {
                    bytes = rest;
                    self.take(*first);
                }
            }
        }
    }

    fn take(&mut self, byte: u8) {
        match (self.part, byte) {
            (Part::Before, b'\r' | b'\n') => {}
            (_, b'\n') => self.end_line(),
            _ => {
                if self.part == Part::Before {
                    self.part = Part::Head;
                }
                if self.line.len() < MAX_LINE {
                    self.line.push(byte);
                }
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let text = line.strip_suffix(b"\r").unwrap_or(&line);
        // hyper takes no bare line feed in a body, and may read on where this has stopped.
        let is_plain = line.len() < MAX_LINE && text.len() < line.len();
        self.part = match self.part {
            Part::ChunkSize | Part::Trailer if !is_plain => Part::Lost,
            Part::Head if text.is_empty() => self.end_head(),
            Part::Head => {
                self.said.hear(text, line.len() < MAX_LINE);
                Part::Head
            }
            Part::ChunkSize => match chunk_size(text) {
                Some(0) => Part::Trailer,
                Some(size) => Part::Chunk(size.saturating_add(2)),
                None => Part::Lost,
            },
            Part::Trailer if text.is_empty() => Part::Before,
            part => part,
        };
        // Its room serves the next line.
        self.line = line;
        self.line.clear();
    }

    fn end_head(&mut self) -> Part {
        let said = std::mem::take(&mut self.said);
        if said.is_nonsense || !self.heads.add(said.length.is_some()) {
            return Part::Lost;
        }
        match said.length {
            _ if said.is_chunked => Part::ChunkSize,
            Some(0) | None => Part::Before,
            Some(length) => Part::Body(length),
        }
    }
}

impl Said {
    fn hear(&mut self, line: &[u8], is_whole: bool) {
        let value_of = |name: &[u8]| {
            let (front, value) = line.split_at_checked(name.len())?;
            front.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
        };
        if let Some(value) = value_of(b"content-length:") {
            let length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            self.is_nonsense |= !is_whole || length.is_none() || self.length.is_some_and(|other| Some(other) != length);
            self.length = length.or(Some(0));
        }
        // Whatever else it says, hyper refuses.
        self.is_chunked |= value_of(b"transfer-encoding:").is_some();
    }
}

/// Passes over up to `count` bytes; how many are left to pass over.
fn skip(bytes: &mut &[u8], count: u64) -> u64 {
    let here = usize::try_from(count).map_or(bytes.len(), |count| count.min(bytes.len()));
    *bytes = &bytes[here..];
    count - here as u64
}

/// RFC 9112, 7.1: hexadecimal, and extensions that nobody knows.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| matches!(byte, b';' | b' ' | b'\t')).next()?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nab\n\nc\r\n0\r\nX: y\r\n\r\n";
    const SMUGGLED: &str = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n";

    fn verdicts<const N: usize>(pieces: &[&str]) -> [bool; N] {
        let (mut framing, heads) = Framing::new();
        pieces.iter().for_each(|piece| framing.read(piece.as_bytes()));
        std::array::from_fn(|_| heads.next_has_length())
    }

    #[test]
    fn a_length_is_seen_in_the_head_and_nowhere_else() {
        assert_eq!(verdicts(&["POST / HTTP/1.1\r\nConTent-le", "ngth: 3\r\n\r\nabc"]), [true]);
        assert_eq!(verdicts(&["POST / HTTP/1.1\nContent-Length: 3\n\n"]), [true]);
        assert_eq!(verdicts(&["POST / HTTP/1.1\r\nX-Content-Length: 3\r\n\r\na\r\ncontent-length: 1\r\n"]), [false]);
        assert_eq!(verdicts(&["POST /content-length: HTTP/1.1\r\nA: content-length:\r\n\r\n"]), [false]);
    }

    #[test]
    fn empty_lines_before_a_request_do_not_hide_its_head() {
        assert_eq!(verdicts(&["\r\n\r\n", SMUGGLED, "\n\n", CHUNKED]), [true, false]);
    }

    #[test]
    fn requests_that_come_together_are_told_apart() {
        let text =
            |length: usize| format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{}", "\n".repeat(length));
        let get = "GET / HTTP/1.1\r\n\r\n";
        let all = [CHUNKED, &text(7), get, SMUGGLED, CHUNKED, &text(0), CHUNKED].concat();
        let expected = [false, true, false, true, false, true, false];
        assert_eq!(verdicts(&[&all]), expected);
        // Wherever they are cut.
        let pieces: Vec<&str> = all.as_bytes().chunks(1).map(|byte| std::str::from_utf8(byte).unwrap()).collect();
        assert_eq!(verdicts(&pieces), expected);
    }

    #[test]
    fn chunks_and_trailers_that_can_be_read_in_two_ways_are_not_followed() {
        let zeros = "0".repeat(MAX_LINE);
        for body in [
            format!("{zeros}5\r\nabcde\r\n0\r\n\r\n"),
            format!("5;{zeros}\r\nabcde\r\n0\r\n\r\n"),
            "5\nabcde\r\n0\r\n\r\n".to_owned(),
            "0\r\nX: y\n\r\n".to_owned(),
            "0\r\n\n".to_owned(),
            format!("0\r\nX: {zeros}\r\n\r\n"),
        ] {
            let text = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}{CHUNKED}{CHUNKED}");
            assert_eq!(verdicts::<3>(&[&text]), [false, true, true], "{body}");
        }
    }

    #[test]
    fn after_nonsense_every_head_is_taken_to_have_a_length() {
        for nonsense in
            ["Content-Length: x", "Content-Length: 1\r\nContent-Length: 2", "Transfer-Encoding: chunked\r\n\r\nz"]
        {
            let text = format!("POST / HTTP/1.1\r\n{nonsense}\r\n\r\n{CHUNKED}{CHUNKED}");
            assert_eq!(verdicts::<3>(&[&text])[1..], [true, true], "{nonsense}");
        }
        let many = "GET / HTTP/1.1\r\n\r\n".repeat(MAX_AHEAD + 1) + CHUNKED;
        let verdicts = verdicts::<{ MAX_AHEAD + 2 }>(&[&many]);
        assert_eq!(verdicts[MAX_AHEAD - 1..], [false, true, true]);
    }
}
