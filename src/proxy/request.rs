//! What a request's body says to the proxy, and the few bytes of it that the engine gets otherwise.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::json::{Kind, Malformed, Scanner, Visitor};

#[cfg(test)]
mod tests;

/// Longest name of a model, in bytes of UTF-8.
pub const MAX_MODEL_NAME: usize = 256;

/// The body is refused. `param` of the answer is the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadBody {
    #[error("the body is {0}")]
    Malformed(#[from] Malformed),
    #[error("the body is not UTF-8")]
    NotUtf8,
    #[error("the body is not a JSON object")]
    NotObject,
    #[error("`{0}` is given twice")]
    Twice(&'static str),
    #[error("`model` is required")]
    NoModel,
    #[error("`{field}` must be {wanted}")]
    Type { field: &'static str, wanted: &'static str },
    #[error("`model` is empty, longer than {MAX_MODEL_NAME} bytes, or has control characters")]
    ModelName,
}

impl BadBody {
    pub(super) fn param(&self) -> Option<&'static str> {
        match self {
            Self::Twice(field) | Self::Type { field, .. } => Some(field),
            Self::NoModel | Self::ModelName => Some("model"),
            Self::Malformed(_) | Self::NotUtf8 | Self::NotObject => None,
        }
    }
}

/// Whether the client waits for an adapter that is not loaded, as `wait_for_model` says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Waiting {
    No,
    /// As long as the server allows.
    Yes,
    AtMost(Duration),
}

/// A request for a model.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) waiting: Waiting,
    body: Bytes,
    model_at: Range<usize>,
    waiting_at: Option<Range<usize>>,
    salt: Salt,
    /// After the bracket that opens the object.
    inside: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Salt {
    Absent,
    Null(Range<usize>),
    /// Without its quotes.
    Text(Range<usize>),
}

impl Asked {
    pub(super) fn parse(body: Bytes) -> Result<Self, BadBody> {
        // vLLM's parser would also read UTF-16 and UTF-32: what it reads and what is judged here must be the same.
        std::str::from_utf8(&body).map_err(|_| BadBody::NotUtf8)?;
        let (mut scanner, mut fields) = (Scanner::new(), Fields::default());
        scanner.scan(&body, &mut fields)?;
        scanner.finish(&mut fields)?;
        if let Some(field) = fields.twice {
            return Err(BadBody::Twice(field));
        }
        let inside = body.iter().position(|&byte| !byte.is_ascii_whitespace()).unwrap_or(0) + 1;
        if body.get(inside - 1) != Some(&b'{') {
            return Err(BadBody::NotObject);
        }
        let model_at = fields.model.ok_or(BadBody::NoModel)?;
        let wanted = BadBody::Type { field: "model", wanted: "a string" };
        let model: String = serde_json::from_slice(&body[model_at.at.clone()]).map_err(|_| wanted)?;
        if model.is_empty() || model.len() > MAX_MODEL_NAME || model.chars().any(char::is_control) {
            return Err(BadBody::ModelName);
        }
        let waiting = waiting(fields.waiting.as_ref(), &body)?;
        let salt = salt(fields.salt)?;
        let waiting_at = fields.waiting_member;
        Ok(Self { model, waiting, model_at: model_at.at, waiting_at, salt, inside, body })
    }

    /// The body with `model` for the engine, `salt` before the client's own `cache_salt`, and without `wait_for_model`;
    /// nothing is copied where nothing changes. `salt` is plain text that needs no escapes in JSON.
    pub(super) fn body_for(&self, model: &str, salt: Option<&str>) -> Bytes {
        let mut edits: Vec<(Range<usize>, String)> = Vec::with_capacity(3);
        if model != self.model {
            edits.push((self.model_at.clone(), quoted(model)));
        }
        edits.extend(self.waiting_at.clone().map(|member| (member, String::new())));
        edits.extend(salt.map(|salt| match &self.salt {
            Salt::Absent => (self.inside..self.inside, format!(r#""cache_salt":"{salt}","#)),
            Salt::Null(at) => (at.clone(), quoted(salt)),
            Salt::Text(at) => (at.start..at.start, format!("{salt}:")),
        }));
        if edits.is_empty() {
            return self.body.clone();
        }
        edits.sort_by_key(|(at, _)| (at.start, at.end));
        let added: usize = edits.iter().map(|(_, text)| text.len()).sum();
        let mut body = Vec::with_capacity(self.body.len() + added);
        let mut copied = 0;
        for (at, text) in edits {
            body.extend_from_slice(&self.body[copied..at.start]);
            body.extend_from_slice(text.as_bytes());
            copied = at.end;
        }
        body.extend_from_slice(&self.body[copied..]);
        body.into()
    }
}

/// As a JSON string.
pub(super) fn quoted(text: &str) -> String {
    let is_plain = text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\');
    if is_plain { format!("\"{text}\"") } else { serde_json::Value::from(text).to_string() }
}

fn flag(field: &'static str, value: Option<&Value>) -> Result<bool, BadBody> {
    match value.map(|value| value.kind) {
        None | Some(Kind::False | Kind::Null) => Ok(false),
        Some(Kind::True) => Ok(true),
        Some(_) => Err(BadBody::Type { field, wanted: "true or false" }),
    }
}

fn waiting(value: Option<&Value>, body: &[u8]) -> Result<Waiting, BadBody> {
    let wanted = BadBody::Type { field: "wait_for_model", wanted: "true, false, or seconds" };
    match value {
        Some(value) if value.kind == Kind::Number => {
            let seconds: f64 = serde_json::from_slice(&body[value.at.clone()]).map_err(|_| wanted.clone())?;
            Duration::try_from_secs_f64(seconds).map(Waiting::AtMost).map_err(|_| wanted)
        }
        value => Ok(if flag("wait_for_model", value).map_err(|_| wanted)? { Waiting::Yes } else { Waiting::No }),
    }
}

fn salt(value: Option<Value>) -> Result<Salt, BadBody> {
    match value {
        None => Ok(Salt::Absent),
        Some(Value { kind: Kind::Null, at }) => Ok(Salt::Null(at)),
        Some(Value { kind: Kind::String, at }) => Ok(Salt::Text(at.start + 1..at.end - 1)),
        Some(_) => Err(BadBody::Type { field: "cache_salt", wanted: "a string" }),
    }
}

#[derive(Debug)]
struct Value {
    kind: Kind,
    at: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Model,
    Stream,
    Waiting,
    Salt,
    Other,
}

/// Collects the fields that matter while the body is scanned.
#[derive(Debug)]
struct Fields {
    current: Field,
    kind: Kind,
    named_at: usize,
    begun_at: usize,
    /// The end of the member before the current one.
    previous: Option<usize>,
    /// `wait_for_model` was the last member, so far.
    waiting_is_last: bool,
    model: Option<Value>,
    stream: Option<Value>,
    waiting: Option<Value>,
    waiting_member: Option<Range<usize>>,
    salt: Option<Value>,
    twice: Option<&'static str>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            current: Field::Other,
            kind: Kind::Null,
            named_at: 0,
            begun_at: 0,
            previous: None,
            waiting_is_last: false,
            model: None,
            stream: None,
            waiting: None,
            waiting_member: None,
            salt: None,
            twice: None,
        }
    }
}

impl Visitor for Fields {
    fn name(&mut self, depth: u32, name: &[u8], at: usize) {
        if depth != 1 {
            return;
        }
        if let Some(member) = self.waiting_member.as_mut().filter(|_| self.waiting_is_last) {
            // Something follows: the comma behind goes, not the one before.
            *member = self.named_at..at;
            self.waiting_is_last = false;
        }
        self.named_at = at;
        self.current = match name {
            b"model" => Field::Model,
            b"stream" => Field::Stream,
            b"wait_for_model" => Field::Waiting,
            b"cache_salt" => Field::Salt,
            _ => Field::Other,
        };
    }

    fn begin(&mut self, depth: u32, kind: Kind, at: usize) {
        if depth == 1 {
            (self.kind, self.begun_at) = (kind, at);
        }
    }

    fn end(&mut self, depth: u32, at: usize, _: u64) {
        if depth != 1 {
            return;
        }
        let (place, name) = match self.current {
            Field::Model => (&mut self.model, "model"),
            Field::Stream => (&mut self.stream, "stream"),
            Field::Salt => (&mut self.salt, "cache_salt"),
            Field::Waiting => {
                self.waiting_is_last = true;
                self.waiting_member = Some(self.previous.unwrap_or(self.named_at)..at);
                (&mut self.waiting, "wait_for_model")
            }
            Field::Other => return self.previous = Some(at),
        };
        if place.replace(Value { kind: self.kind, at: self.begun_at..at }).is_some() {
            self.twice = Some(name);
        }
        self.previous = Some(at);
    }
}
