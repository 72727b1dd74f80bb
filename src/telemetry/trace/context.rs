//! W3C trace context, as it goes from one process to the next.

use std::fmt;
use std::str::FromStr;

/// A longer text is no trace context: version, trace, span and flags of the version that is known.
const LEN: usize = 55;

/// Names a span of a trace. Neither id is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub(super) trace: u128,
    pub(super) span: u64,
    /// Whoever has the span records it.
    pub(super) sampled: bool,
}

/// The text names no span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a trace context: expected 00-TRACE-SPAN-FLAGS in lower-case hexadecimal")]
pub struct NotTraceParent;

impl TraceParent {
    /// A trace of its own.
    pub(super) fn root(sampled: bool) -> Self {
        Self { trace: rand::random::<u128>().max(1), span: new_span(), sampled }
    }

    /// Of a trace that nobody records.
    pub fn unrecorded() -> Self {
        Self::root(false)
    }

    /// 32 hexadecimal digits.
    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace)
    }

    /// Whether somebody records it.
    pub fn is_recorded(self) -> bool {
        self.sampled
    }

    /// A span below this one.
    pub(super) fn child(self, sampled: bool) -> Self {
        Self { span: new_span(), sampled, ..self }
    }
}

fn new_span() -> u64 {
    rand::random::<u64>().max(1)
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl FromStr for TraceParent {
    type Err = NotTraceParent;

    /// A later version may have more behind these fields, after a dash.
    fn from_str(text: &str) -> Result<Self, NotTraceParent> {
        let bytes = text.as_bytes();
        let is_long_enough = bytes.len() == LEN || (bytes.len() > LEN && !text.starts_with("00") && bytes[LEN] == b'-');
        let mut parts = text.get(..LEN).filter(|_| is_long_enough).ok_or(NotTraceParent)?.split('-');
        let mut hex = |len: usize| {
            let part = parts.next().filter(|part| part.len() == len)?;
            let is_hex = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            u128::from_str_radix(part, 16).ok().filter(|_| is_hex)
        };
        let (version, trace, span, flags) = (hex(2), hex(32), hex(16), hex(2));
        let version = version.filter(|version| *version != 0xff);
        let (Some(_), Some(trace), Some(span), Some(flags)) = (version, trace, span, flags) else {
            return Err(NotTraceParent);
        };
        let span = u64::try_from(span).map_err(|_| NotTraceParent)?;
        if trace == 0 || span == 0 { Err(NotTraceParent) } else { Ok(Self { trace, span, sampled: flags & 1 == 1 }) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_standards_example_is_read_and_written() {
        let context: TraceParent = TEXT.parse().unwrap();
        assert!(context.sampled);
        assert_eq!(context.to_string(), TEXT);
        assert_eq!(TEXT.replace("00-4b", "01-4b").parse(), Ok(context));
        assert_eq!(format!("{}-new", TEXT.replace("00-4b", "01-4b")).parse(), Ok(context));
    }

    #[test]
    fn what_is_no_context_is_none() {
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_span = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
        let more = format!("{TEXT}-x");
        let ff = TEXT.replace("00-4b", "ff-4b");
        for text in ["", "00-1-2-3", &TEXT.to_uppercase(), &zero_trace, &zero_span, &more, &ff, &TEXT.replace('-', "+")]
        {
            assert_eq!(text.parse::<TraceParent>(), Err(NotTraceParent), "{text}");
        }
    }

    proptest! {
        #[test]
        fn contexts_come_back_and_noise_is_refused_without_a_panic(trace in 1u128.., span in 1u64.., sampled: bool, noise: String) {
            let context = TraceParent { trace, span, sampled };
            prop_assert_eq!(context.to_string().parse(), Ok(context));
            let _ = noise.parse::<TraceParent>();
        }
    }
}
