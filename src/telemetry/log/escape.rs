//! Lines in which nothing but their own end is a control character: text from peers, engines and files stays text, in a
//! terminal and in a file that is shown in one.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// Whether a character could move, hide or reorder what is around it: controls, line ends, and the marks of bidirectional
/// text (Unicode Standard Annex 9, section 2).
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with `\uXXXX` for each such character, which JSON reads as the character itself.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if is_active(c) => _ = write!(out, "\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// One line, as a formatter has made it. Its colours are kept if there are any: formatters escape what is not their own.
fn line(text: &str, colours: bool) -> String {
    let (body, end) = text.strip_suffix('\n').map_or((text, ""), |body| (body, "\n"));
    let mut out = String::with_capacity(text.len());
    let mut rest = body;
    while let Some(at) = rest.find('\u{1b}').filter(|_| colours) {
        out.push_str(&escaped(&rest[..at]));
        let parameters = rest[at + 1..].strip_prefix('[').unwrap_or_default();
        let len = parameters.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
        let is_colour = parameters.as_bytes().get(len) == Some(&b'm');
        let sequence = if is_colour { len + 3 } else { 1 };
        let (sequence, more) = rest[at..].split_at(sequence);
        out.push_str(&if is_colour { Cow::Borrowed(sequence) } else { escaped(sequence) });
        rest = more;
    }
    out.push_str(&escaped(rest));
    out.push_str(end);
    out
}

/// What a formatter makes in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One line.
    Text { colours: bool },
    /// Lines: JSON has no line end within a text.
    Json,
}

/// Writes lines to what `make` makes, escaped.
#[derive(Debug, Clone)]
pub(super) struct Escaping<M> {
    make: M,
    form: Form,
}

impl<M> Escaping<M> {
    pub(super) fn new(make: M, form: Form) -> Self {
        Self { make, form }
    }
}

/// Of one event.
pub(super) struct Writer<W> {
    inner: W,
    form: Form,
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Escaping<M> {
    type Writer = Writer<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Writer { inner: self.make.make_writer(), form: self.form }
    }
}

impl<W: Write> Write for Writer<W> {
    /// A formatter writes all that it makes of an event at once.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let told = String::from_utf8_lossy(text);
        let told: String = match self.form {
            Form::Text { colours } => line(&told, colours),
            Form::Json => told.split_inclusive('\n').map(|told| line(told, false)).collect(),
        };
        self.inner.write_all(told.as_bytes())?;
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_moves_or_hides_text_is_shown_as_what_it_is() {
        assert_eq!(escaped("plain, ünïcode"), "plain, ünïcode");
        assert_eq!(escaped("a\u{1b}[2Jb\nc\u{202e}d\u{9b}e"), "a\\u001b[2Jb\\u000ac\\u202ed\\u009be");
        let json = format!("\"{}\"", escaped("a\u{2066}b"));
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), "a\u{2066}b");
    }

    #[test]
    fn a_line_keeps_its_end_and_its_own_colours() {
        assert_eq!(line("\u{1b}[32m INFO\u{1b}[0m x\n", true), "\u{1b}[32m INFO\u{1b}[0m x\n");
        assert_eq!(line("\u{1b}[2J\u{1b}]0;x\u{7}\n", true), "\\u001b[2J\\u001b]0;x\\u0007\n");
        assert_eq!(line("a\nb\u{1b}[32m\n", false), "a\\u000ab\\u001b[32m\n");
    }

    proptest! {
        #[test]
        fn nothing_active_is_left_in_a_line(text in any::<String>()) {
            let told = line(&text, false);
            let body = told.strip_suffix('\n').unwrap_or(&told);
            prop_assert!(!body.contains(is_active));
        }
    }
}
