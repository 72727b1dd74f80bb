//! Names by which one request is found in the client's, our and the engine's logs: `X-Request-Id`, and W3C trace context
//! (<https://www.w3.org/TR/trace-context/>).

use data_encoding::HEXLOWER;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tracing::Span;

use super::route::Endpoint;
use crate::telemetry::trace;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PARENT: HeaderName = HeaderName::from_static("traceparent");
const STATE: HeaderName = HeaderName::from_static("tracestate");

/// Longer ids of clients are replaced.
const MAX_ID: usize = 128;
/// What the standard asks to be handed on at least.
const MAX_STATE: usize = 512;

/// Of one request. The engine gets the client's id, and our span as its parent.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    id: HeaderValue,
    /// As the client gave it; none if it gave none.
    given: Option<HeaderValue>,
    parent: HeaderValue,
    state: Option<HeaderValue>,
}

impl Trace {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut random = [0; 80];
        HEXLOWER.encode_mut(&rand::random::<[u8; 40]>(), &mut random);
        let (ours, random) = random.split_at(32);
        let (trace, span) = random.split_at(32);
        let id = headers.get(REQUEST_ID).filter(|id| is_id(id.as_bytes())).cloned();
        let id = id.unwrap_or_else(|| value(ours));
        // A trace that is named twice is named by neither.
        let mut parents = headers.get_all(PARENT).iter();
        let parent =
            parents.next().filter(|_| parents.next().is_none()).and_then(|parent| Parent::parse(parent.as_bytes()));
        let state = headers.get(STATE).filter(|state| parent.is_some() && state.len() <= MAX_STATE).cloned();
        let given = headers.get(PARENT).filter(|_| parent.is_some()).cloned();
        let theirs = parent.as_ref().map(|parent| (parent.trace.as_bytes(), parent.flags.as_bytes()));
        let (trace, flags) = theirs.unwrap_or((trace, b"00"));
        let parent = value(&[&b"00"[..], trace, span, flags].join(&b'-'));
        Self { id, given, parent, state }
    }

    /// The span of the request, if traces are exported; the engine gets it as its parent.
    pub(super) fn span(&mut self, endpoint: Endpoint) -> Span {
        let traceparent = self.given.as_ref().and_then(|given| given.to_str().ok());
        let span =
            tracing::debug_span!(target: trace::OPERATIONS, "request", request = self.id(), ?endpoint, traceparent);
        if let Some(context) = trace::of(&span) {
            self.parent = value(context.to_string().as_bytes());
        }
        span
    }

    pub(super) fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    pub(super) fn ask(&self, headers: &mut HeaderMap) {
        self.answer(headers);
        if let Some(state) = &self.state {
            headers.insert(STATE, state.clone());
        }
    }

    pub(super) fn answer(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.id.clone());
        headers.insert(PARENT, self.parent.clone());
    }
}

/// Of hex digits and dashes.
fn value(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn is_id(id: &[u8]) -> bool {
    (1..=MAX_ID).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(b))
}

struct Parent<'h> {
    trace: &'h str,
    flags: &'h str,
}

impl<'h> Parent<'h> {
    fn parse(header: &'h [u8]) -> Option<Self> {
        let text = std::str::from_utf8(header).ok()?;
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex =
            |text: &str, len| text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let is_id = |text: &str, len| is_hex(text, len) && text.bytes().any(|b| b != b'0');
        let is_known = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        (is_known && is_id(trace, 32) && is_id(span, 16) && is_hex(flags, 2)).then_some(Self { trace, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn traced(headers: &[(HeaderName, &str)]) -> HeaderMap {
        let given = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect();
        let mut told = HeaderMap::new();
        Trace::of(&given).ask(&mut told);
        told
    }

    #[test]
    fn the_clients_id_and_trace_go_on_with_a_span_of_our_own() {
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let told = traced(&[(REQUEST_ID, "req-1"), (PARENT, &parent), (STATE, "a=1")]);
        assert_eq!(
            (&told[REQUEST_ID], &told[STATE]),
            (&HeaderValue::from_static("req-1"), &HeaderValue::from_static("a=1"))
        );
        let ours = told[PARENT].to_str().unwrap();
        assert!(ours.starts_with(&format!("00-{TRACE}-")) && ours.ends_with("-01") && ours != parent, "{ours}");
    }

    #[test]
    fn an_id_or_a_trace_that_is_no_such_thing_is_replaced() {
        let long = "x".repeat(129);
        for id in ["", "a b", "a\"b", &long] {
            let told = traced(&[(REQUEST_ID, id)]);
            assert_eq!(told[REQUEST_ID].len(), 32);
        }
        let zero = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let more = format!("00-{TRACE}-00f067aa0ba902b7-01-x");
        for parent in ["", "00-1-2-3", &zero, &more, &format!("ff-{TRACE}-00f067aa0ba902b7-01"), &TRACE.to_uppercase()]
        {
            let told = traced(&[(PARENT, parent), (STATE, "a=1")]);
            assert!(
                told[PARENT].to_str().unwrap().starts_with("00-") && !told[PARENT].to_str().unwrap().contains(TRACE)
            );
            assert!(told.get(STATE).is_none());
        }
        assert!(
            traced(&[(PARENT, &format!("01-{TRACE}-00f067aa0ba902b7-01-new"))])[PARENT]
                .to_str()
                .unwrap()
                .contains(TRACE)
        );
    }
}
