//! A resumable scanner of JSON text (RFC 8259): it checks the syntax, and tells where the members of the outer objects are,
//! without building or copying anything. Text may come in pieces of any size.

#[cfg(test)]
pub(super) mod tests;

/// Deeper text is refused; what parsers behind us build for each level costs them, not us.
pub(super) const MAX_DEPTH: u32 = 128;

/// Members are told of objects at most so deep; the outermost is 1.
pub(super) const WATCHED: u32 = 3;

/// Longest unescaped name that is told in full.
const MAX_NAME: usize = 24;

/// The text is refused, for ever: the scanner is not used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("not JSON at byte {0}")]
    Syntax(usize),
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("cut off at byte {0}")]
    Cut(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Object,
    Array,
    String,
    Number,
    True,
    False,
    Null,
}

/// Is told the members of objects whose ancestors are all objects. Positions are bytes from the beginning of the text.
pub(super) trait Visitor {
    /// A member begins with its name, unescaped; empty if it is longer than any that is asked for. `at`: its quote.
    fn name(&mut self, depth: u32, name: &[u8], at: usize);
    /// The member's value begins.
    fn begin(&mut self, depth: u32, kind: Kind, at: usize);
    /// The member's value ended before `at`; `integer` is the integral part of a number.
    fn end(&mut self, depth: u32, at: usize, integer: u64);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    FirstValue,
    Name,
    FirstName,
    Colon,
    AfterValue,
    Text,
    Escape,
    /// Hex digits still missing.
    Unicode(u8),
    Literal(&'static [u8]),
    Number(Number),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

#[derive(Debug)]
pub(super) struct Scanner {
    state: State,
    /// One bit a level, the outermost lowest: set where it is an object.
    levels: u128,
    depth: u32,
    offset: usize,
    /// Whether the string that is being read is a name.
    naming: bool,
    name: Name,
    hex: u32,
    integer: u64,
}

#[derive(Debug)]
struct Name {
    bytes: [u8; MAX_NAME],
    len: usize,
    at: usize,
}

impl Name {
    fn push(&mut self, bytes: &[u8]) {
        match self.bytes.get_mut(self.len..self.len + bytes.len()) {
            Some(place) => place.copy_from_slice(bytes),
            None => return self.len = MAX_NAME + 1,
        }
        self.len += bytes.len();
    }
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self {
            state: State::Value,
            levels: 0,
            depth: 0,
            offset: 0,
            naming: false,
            name: Name { bytes: [0; MAX_NAME], len: 0, at: 0 },
            hex: 0,
            integer: 0,
        }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn scan(&mut self, bytes: &[u8], visitor: &mut impl Visitor) -> Result<(), Malformed> {
        let start = self.offset;
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            self.offset = start + at;
            if self.state == State::Text {
                let rest = &bytes[at..];
                let run = rest.iter().position(|&b| b == b'"' || b == b'\\' || b < 0x20).unwrap_or(rest.len());
                if self.naming {
                    self.name.push(&rest[..run]);
                }
                at += run;
                let Some(&byte) = bytes.get(at) else { break };
                self.offset = start + at;
                self.text(byte, visitor)?;
                at += 1;
            } else if self.step(byte, visitor)? {
                at += 1;
            }
        }
        self.offset = start + bytes.len();
        Ok(())
    }

    /// Nothing follows.
    pub(super) fn finish(&mut self, visitor: &mut impl Visitor) -> Result<(), Malformed> {
        if let State::Number(Number::Zero | Number::Integer | Number::Fraction | Number::Power) = self.state {
            self.value_ended(self.offset, visitor);
        }
        let whole = self.state == State::AfterValue && self.depth == 0;
        if whole { Ok(()) } else { Err(Malformed::Cut(self.offset)) }
    }

    /// Whether `byte` was taken; a number ends before the byte that follows it.
    fn step(&mut self, byte: u8, visitor: &mut impl Visitor) -> Result<bool, Malformed> {
        match self.state {
            State::Literal([expected, rest @ ..]) if byte == *expected => match rest {
                [] => self.value_ended(self.offset + 1, visitor),
                rest => self.state = State::Literal(rest),
            },
            State::Number(number) => return self.number(number, byte, visitor),
            State::Escape => self.escape(byte)?,
            State::Unicode(missing) => self.unicode(missing, byte)?,
            _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') && !matches!(self.state, State::Literal(_)) => {}
            State::FirstValue if byte == b']' => self.close(visitor),
            State::Value | State::FirstValue => self.value(byte, visitor)?,
            State::FirstName if byte == b'}' => self.close(visitor),
            State::Name | State::FirstName if byte == b'"' => {
                self.name.len = 0;
                self.name.at = self.offset;
                self.naming = true;
                self.state = State::Text;
            }
            State::Colon if byte == b':' => self.state = State::Value,
            State::AfterValue if self.depth > 0 => self.separator(byte, visitor)?,
            _ => return Err(self.syntax()),
        }
        Ok(true)
    }

    fn syntax(&self) -> Malformed {
        Malformed::Syntax(self.offset)
    }

    fn value(&mut self, byte: u8, visitor: &mut impl Visitor) -> Result<(), Malformed> {
        let (kind, state) = match byte {
            b'{' => (Kind::Object, State::FirstName),
            b'[' => (Kind::Array, State::FirstValue),
            b'"' => (Kind::String, State::Text),
            b't' => (Kind::True, State::Literal(b"rue")),
            b'f' => (Kind::False, State::Literal(b"alse")),
            b'n' => (Kind::Null, State::Literal(b"ull")),
            b'-' => (Kind::Number, State::Number(Number::Minus)),
            b'0' => (Kind::Number, State::Number(Number::Zero)),
            b'1'..=b'9' => (Kind::Number, State::Number(Number::Integer)),
            _ => return Err(self.syntax()),
        };
        if self.is_told() {
            visitor.begin(self.depth, kind, self.offset);
        }
        self.state = state;
        self.naming = false;
        self.integer = if byte.is_ascii_digit() { u64::from(byte - b'0') } else { 0 };
        if matches!(kind, Kind::Object | Kind::Array) {
            if self.depth == MAX_DEPTH {
                return Err(Malformed::TooDeep);
            }
            let bit = 1 << self.depth;
            self.levels = if kind == Kind::Object { self.levels | bit } else { self.levels & !bit };
            self.depth += 1;
        }
        Ok(())
    }

    /// Whether a member of the innermost container is told.
    fn is_told(&self) -> bool {
        let all = (1 << self.depth.min(WATCHED)) - 1;
        (1..=WATCHED).contains(&self.depth) && self.levels & all == all
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.levels >> (self.depth - 1) & 1 == 1
    }

    fn separator(&mut self, byte: u8, visitor: &mut impl Visitor) -> Result<(), Malformed> {
        match (byte, self.in_object()) {
            (b',', true) => self.state = State::Name,
            (b',', false) => self.state = State::Value,
            (b'}', true) | (b']', false) => self.close(visitor),
            _ => return Err(self.syntax()),
        }
        Ok(())
    }

    fn close(&mut self, visitor: &mut impl Visitor) {
        self.depth -= 1;
        self.integer = 0;
        self.value_ended(self.offset + 1, visitor);
    }

    fn value_ended(&mut self, at: usize, visitor: &mut impl Visitor) {
        self.state = State::AfterValue;
        if self.is_told() {
            visitor.end(self.depth, at, self.integer);
        }
    }

    /// The end of a run of plain text.
    fn text(&mut self, byte: u8, visitor: &mut impl Visitor) -> Result<(), Malformed> {
        match byte {
            b'\\' => self.state = State::Escape,
            b'"' if self.naming => {
                self.state = State::Colon;
                if self.is_told() {
                    let name = self.name.bytes.get(..self.name.len).unwrap_or_default();
                    visitor.name(self.depth, name, self.name.at);
                }
            }
            b'"' => self.value_ended(self.offset + 1, visitor),
            _ => return Err(self.syntax()),
        }
        Ok(())
    }

    fn escape(&mut self, byte: u8) -> Result<(), Malformed> {
        let meant = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.hex = 0;
                self.state = State::Unicode(4);
                return Ok(());
            }
            _ => return Err(self.syntax()),
        };
        self.name.push(&[meant]);
        self.state = State::Text;
        Ok(())
    }

    fn unicode(&mut self, missing: u8, byte: u8) -> Result<(), Malformed> {
        let digit = char::from(byte).to_digit(16).ok_or_else(|| self.syntax())?;
        self.hex = self.hex << 4 | digit;
        self.state = if missing == 1 { State::Text } else { State::Unicode(missing - 1) };
        if missing == 1 {
            // No name that is asked for has anything but ASCII; a replacement keeps others unequal to it.
            let meant = u8::try_from(self.hex).ok().filter(u8::is_ascii).unwrap_or(0xff);
            self.name.push(&[meant]);
        }
        Ok(())
    }

    fn number(&mut self, number: Number, byte: u8, visitor: &mut impl Visitor) -> Result<bool, Malformed> {
        let next = match (number, byte) {
            (Number::Minus, b'0') => Number::Zero,
            (Number::Minus, b'1'..=b'9') | (Number::Integer, b'0'..=b'9') => {
                self.integer = self.integer.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
                Number::Integer
            }
            (Number::Zero | Number::Integer, b'.') => Number::Point,
            (Number::Point | Number::Fraction, b'0'..=b'9') => Number::Fraction,
            (Number::Zero | Number::Integer | Number::Fraction, b'e' | b'E') => Number::Exponent,
            (Number::Exponent, b'+' | b'-') => Number::Sign,
            (Number::Exponent | Number::Sign | Number::Power, b'0'..=b'9') => Number::Power,
            (Number::Zero | Number::Integer | Number::Fraction | Number::Power, _) => {
                self.value_ended(self.offset, visitor);
                return Ok(false);
            }
            _ => return Err(self.syntax()),
        };
        self.state = State::Number(next);
        Ok(true)
    }
}
