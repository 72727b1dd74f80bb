//! No line drowns the others: so many of one kind in a while, and then how many were left out.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::LogFormat;

/// Lines of one kind in one window.
const LINES: u32 = 60;
const WINDOW: Duration = Duration::from_secs(10);

/// Kinds that are told apart; more share one count.
const MAX_KINDS: usize = 1024;

/// Fields that tell lines of one place in the code apart: a peer that makes noise hides no other.
const SUBJECTS: [&str; 5] = ["peer", "node", "server", "addr", "artifact"];

#[derive(Debug, Clone, Copy)]
struct Count {
    since: Instant,
    lines: u32,
    left_out: u64,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is written; so many before it were not.
    Written {
        left_out: u64,
    },
    LeftOut,
}

/// Counts lines by their kind.
#[derive(Debug, Default)]
struct Limiter(HashMap<u64, Count>);

impl Limiter {
    fn judge(&mut self, kind: u64, now: Instant) -> Verdict {
        if self.0.len() >= MAX_KINDS && !self.0.contains_key(&kind) {
            self.0.retain(|_, count| now.duration_since(count.since) < WINDOW || count.left_out > 0);
        }
        let kind = if self.0.len() >= MAX_KINDS && !self.0.contains_key(&kind) { 0 } else { kind };
        let count = self.0.entry(kind).or_insert(Count { since: now, lines: 0, left_out: 0 });
        if now.duration_since(count.since) >= WINDOW {
            let left_out = std::mem::replace(count, Count { since: now, lines: 1, left_out: 0 }).left_out;
            return Verdict::Written { left_out };
        }
        if count.lines < LINES {
            count.lines += 1;
            return Verdict::Written { left_out: 0 };
        }
        count.left_out += 1;
        Verdict::LeftOut
    }
}

/// A format of which not every line is written.
#[derive(Debug)]
pub(super) struct Limited<F> {
    format: F,
    json: bool,
    limiter: Mutex<Limiter>,
    hashes: RandomState,
}

impl<F> Limited<F> {
    pub(super) fn new(format: F, of: LogFormat) -> Self {
        Self { format, json: of == LogFormat::Json, limiter: Mutex::default(), hashes: RandomState::new() }
    }

    fn kind(&self, event: &Event<'_>) -> u64 {
        let mut hasher = self.hashes.build_hasher();
        event.metadata().callsite().hash(&mut hasher);
        event.record(&mut Subjects(&mut hasher));
        hasher.finish().max(1)
    }
}

/// Only the values of [`SUBJECTS`].
struct Subjects<'h>(&'h mut DefaultHasher);

impl Visit for Subjects<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if SUBJECTS.contains(&field.name()) {
            format!("{value:?}").hash(self.0);
        }
    }
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let kind = self.kind(event);
        let verdict = self.limiter.lock().unwrap_or_else(PoisonError::into_inner).judge(kind, Instant::now());
        match verdict {
            Verdict::LeftOut => return Ok(()),
            Verdict::Written { left_out: 0 } => {}
            Verdict::Written { left_out } => self.tell(left_out, &mut writer)?,
        }
        self.format.format_event(ctx, writer, event)
    }
}

impl<F> Limited<F> {
    /// In front of the next line of the kind.
    fn tell(&self, left_out: u64, writer: &mut Writer<'_>) -> fmt::Result {
        match self.json {
            true => writeln!(
                writer,
                "{{\"level\":\"INFO\",\"fields\":{{\"message\":\"lines like the next were left out\",\"left_out\":{left_out}}}}}"
            ),
            false => write!(writer, "({left_out} lines like this one were left out) "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_of_a_kind_are_written_and_then_how_many_were_not() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let written = (0..100).filter(|_| limiter.judge(1, start) != Verdict::LeftOut).count();
        assert_eq!(written, LINES as usize);
        assert_eq!(limiter.judge(2, start), Verdict::Written { left_out: 0 });
        assert_eq!(limiter.judge(1, start + WINDOW), Verdict::Written { left_out: 40 });
        assert_eq!(limiter.judge(1, start + WINDOW), Verdict::Written { left_out: 0 });
    }

    #[test]
    fn however_many_kinds_there_are_the_table_is_bounded() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        (1..10_000).for_each(|kind| _ = limiter.judge(kind, start));
        assert!(limiter.0.len() <= MAX_KINDS + 1);
        // Those that were seen lately share one count; later there is room again.
        assert_eq!(limiter.judge(20_000, start), Verdict::LeftOut);
        assert!(matches!(limiter.judge(20_000, start + WINDOW), Verdict::Written { .. }));
    }
}
