//! What goes by of an answer: the model's name is put back where it is the engine's, tokens are counted, and the ends of
//! events are known. Bytes are handed on as they come; only the beginning of what may become the name is held back.

use bytes::{Bytes, BytesMut};

use super::json::{Kind, Scanner, Visitor, WATCHED};
use super::request::quoted;

#[cfg(test)]
mod tests;

const DATA: &[u8] = b"data:";

/// How an answer's body is cut into JSON texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// One text.
    Json,
    /// Server-sent events, each with one text in its `data` lines.
    Events,
    /// Not looked into.
    Opaque,
}

#[derive(Debug)]
pub(super) struct Rewriter {
    framing: Framing,
    line: Line,
    /// The last byte was a carriage return that ended a line.
    returned: bool,
    /// Nothing of an event has gone by since the last blank line.
    between_events: bool,
    scanner: Scanner,
    /// The text is not JSON.
    given_up: bool,
    watch: Watch,
    /// Where the name that goes on began in the present chunk.
    begun: usize,
    names: Option<Names>,
    /// What may become the engine's name, with its quote; never longer than that.
    held: Vec<u8>,
    out: BytesMut,
    events: u64,
}

/// As JSON strings.
#[derive(Debug)]
struct Names {
    engine: Box<[u8]>,
    client: Box<[u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// So many bytes agree with `data:`.
    Start(usize),
    /// After the colon.
    Colon,
    Data,
    Other,
}

impl Rewriter {
    /// `names`: the engine's and the client's, where they differ.
    pub(super) fn new(framing: Framing, names: Option<(&str, &str)>) -> Self {
        let bytes = |name: &str| quoted(name).into_bytes().into_boxed_slice();
        Self {
            framing,
            line: Line::Start(0),
            returned: false,
            between_events: true,
            scanner: Scanner::new(),
            given_up: false,
            watch: Watch::default(),
            begun: 0,
            names: names.map(|(engine, client)| Names { engine: bytes(engine), client: bytes(client) }),
            held: Vec::new(),
            out: BytesMut::new(),
            events: 0,
        }
    }

    /// Whether the body's length can change.
    pub(super) fn changes_length(&self) -> bool {
        self.names.as_ref().is_some_and(|names| names.engine.len() != names.client.len())
            && self.framing != Framing::Opaque
    }

    /// What to send of `chunk` and of what was held; may be empty.
    pub(super) fn push(&mut self, chunk: Bytes) -> Bytes {
        let mut copied = 0;
        match self.framing {
            _ if chunk.is_empty() => return chunk,
            Framing::Opaque => return chunk,
            Framing::Json => self.text(&chunk, 0..chunk.len(), &mut copied),
            Framing::Events => self.lines(&chunk, &mut copied),
        }
        if self.watch.begun.is_some() {
            self.hold(&chunk, &mut copied);
        }
        if copied == 0 && self.out.is_empty() {
            return chunk;
        }
        self.out.extend_from_slice(&chunk[copied..]);
        self.out.split().freeze()
    }

    /// As [`Self::push`] and [`Self::finish`], of a whole body.
    pub(super) fn whole(&mut self, body: Bytes) -> Bytes {
        let pushed = self.push(body);
        if self.held.is_empty() { pushed } else { [pushed, self.finish()].concat().into() }
    }

    pub(super) fn is_events(&self) -> bool {
        self.framing == Framing::Events
    }

    /// What was held when the body ended.
    pub(super) fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.held).into()
    }

    /// Whether something can be said to the client here that is not in the midst of something else.
    pub(super) fn between_events(&self) -> bool {
        self.framing == Framing::Events && self.between_events
    }

    /// What the engine says it used, or else how many events have gone by.
    pub(super) fn tokens(&self) -> u64 {
        let used = &self.watch;
        let sum = used.input.saturating_add(used.output);
        if used.total.max(sum) > 0 { used.total.max(sum) } else { self.events }
    }

    /// A name goes on at the end of the chunk: keeps it if it can still be the engine's.
    fn hold(&mut self, chunk: &[u8], copied: &mut usize) {
        let Some(names) = &self.names else { return };
        let rest = &chunk[self.begun..];
        if names.engine.strip_prefix(&*self.held).is_some_and(|missing| missing.starts_with(rest)) {
            self.out.extend_from_slice(&chunk[*copied..self.begun]);
            self.held.extend_from_slice(rest);
            *copied = chunk.len();
        } else {
            self.let_go();
        }
    }

    /// It was not the name. What is held came before everything of the present chunk.
    fn let_go(&mut self) {
        self.watch.begun = None;
        self.out.extend_from_slice(&self.held);
        self.held.clear();
    }

    fn lines(&mut self, chunk: &[u8], copied: &mut usize) {
        let mut at = 0;
        while let Some(&byte) = chunk.get(at) {
            let ends = matches!(byte, b'\n' | b'\r');
            let second = byte == b'\n' && std::mem::take(&mut self.returned);
            self.returned = byte == b'\r';
            match self.line {
                _ if second => at += 1,
                _ if ends => {
                    self.line_ended();
                    at += 1;
                }
                Line::Start(agreed) => {
                    self.between_events = false;
                    let agrees = byte == DATA[agreed];
                    self.line = if !agrees { Line::Other } else { Line::Start(agreed + 1) };
                    if self.line == Line::Start(DATA.len()) {
                        self.line = Line::Colon;
                    }
                    at += 1;
                }
                Line::Colon => {
                    self.line = Line::Data;
                    at += usize::from(byte == b' ');
                }
                Line::Data | Line::Other => {
                    let rest = &chunk[at..];
                    let end = at + rest.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(rest.len());
                    if self.line == Line::Data {
                        self.text(chunk, at..end, copied);
                    }
                    at = end;
                }
            }
        }
    }

    fn line_ended(&mut self) {
        match self.line {
            Line::Start(0) => {
                self.between_events = true;
                self.events += u64::from(self.scanner.offset() > 0 && !self.given_up);
                self.scanner = Scanner::new();
                self.given_up = false;
                self.let_go();
            }
            // Lines of one event are joined by line feeds.
            Line::Data if !self.given_up && self.scanner.scan(b"\n", &mut self.watch).is_err() => self.give_up(),
            _ => {}
        }
        self.line = Line::Start(0);
    }

    fn give_up(&mut self) {
        self.given_up = true;
        self.let_go();
    }

    /// A piece of a text, at `part` of `chunk`; up to `copied`, the chunk is in `out`.
    fn text(&mut self, chunk: &[u8], part: std::ops::Range<usize>, copied: &mut usize) {
        if self.given_up {
            return;
        }
        let before = self.scanner.offset();
        self.watch.found.clear();
        let fine = self.scanner.scan(&chunk[part.clone()], &mut self.watch).is_ok();
        let place = |offset: usize| part.start + offset.saturating_sub(before);
        if let Some(names) = &self.names {
            for (from, to) in self.watch.found.drain(..) {
                let (from, to) = (place(from), place(to));
                let is_engine = names.engine.strip_prefix(&*self.held).is_some_and(|rest| *rest == chunk[from..to]);
                if is_engine {
                    self.out.extend_from_slice(&chunk[*copied..from]);
                    self.out.extend_from_slice(&names.client);
                    *copied = to;
                } else {
                    self.out.extend_from_slice(&self.held);
                }
                self.held.clear();
            }
        }
        self.begun = self.watch.begun.map_or(0, place);
        if !fine {
            self.give_up();
        }
    }
}

/// What a member means, by its name and that of the member around it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Node {
    #[default]
    Other,
    Root,
    /// `message` of Anthropic's events, `response` of those of `/v1/responses`.
    Inner,
    Name,
    Usage,
    Input,
    Output,
    Total,
}

impl Node {
    fn child(self, name: &[u8]) -> Self {
        match (self, name) {
            (Self::Root, b"message" | b"response") => Self::Inner,
            (Self::Root | Self::Inner, b"model") => Self::Name,
            (Self::Root | Self::Inner, b"usage") => Self::Usage,
            (Self::Usage, b"input_tokens") => Self::Input,
            (Self::Usage, b"output_tokens") => Self::Output,
            (Self::Usage, b"total_tokens") => Self::Total,
            _ => Self::Other,
        }
    }
}

#[derive(Debug, Default)]
struct Watch {
    /// The member that is being read at each depth.
    members: [Node; WATCHED as usize],
    /// A name that is not over.
    begun: Option<usize>,
    /// Names that are over; their quotes are included.
    found: Vec<(usize, usize)>,
    input: u64,
    output: u64,
    total: u64,
}

impl Watch {
    fn member(&mut self, depth: u32) -> &mut Node {
        &mut self.members[depth as usize - 1]
    }
}

impl Visitor for Watch {
    fn name(&mut self, depth: u32, name: &[u8], _: usize) {
        let around = if depth == 1 { Node::Root } else { *self.member(depth - 1) };
        *self.member(depth) = around.child(name);
    }

    fn begin(&mut self, depth: u32, kind: Kind, at: usize) {
        if kind == Kind::String && *self.member(depth) == Node::Name {
            self.begun = Some(at);
        }
    }

    fn end(&mut self, depth: u32, at: usize, integer: u64) {
        match *self.member(depth) {
            Node::Name => self.found.extend(self.begun.take().map(|begun| (begun, at))),
            Node::Input => self.input = self.input.max(integer),
            Node::Output => self.output = self.output.max(integer),
            Node::Total => self.total = self.total.max(integer),
            Node::Other | Node::Root | Node::Inner | Node::Usage => {}
        }
    }
}
