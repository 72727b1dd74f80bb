//! The rate of uploads that leaves an engine alone. Pure.
//!
//! The engine's own pace while nothing is uploaded is what it is compared with. It goes down by a factor and up by a step,
//! as congestion control does: many nodes that share a link come to share it evenly.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::EngineId;

/// Slower than this many times its own pace: uploads are a likely cause.
const TOLERATED: f64 = 1.25;

const DOWN: f64 = 0.7;

/// Of the most that is ever uploaded.
const STEP: f64 = 1.0 / 16.0;
const LEAST: f64 = 1.0 / 20.0;

/// Bytes a second that remain whatever the engine says: a fetch must end some time.
const FLOOR: f64 = 1024.0 * 1024.0;

/// An engine that is not heard of for so long serves nobody.
const SILENCE: Duration = Duration::from_secs(5);

/// What is known of an engine that was not heard of for so long is of no use.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(15 * 60);

/// Of more engines nothing is known.
pub(super) const MAX_ENGINES: usize = 256;

/// Uploads that have yielded for so long help nobody, or who says so is no engine: for the rest after it they do not.
const LONGEST: Duration = Duration::from_secs(15 * 60);
const REST: Duration = Duration::from_secs(3 * 60);

/// How much a new word weighs in what is known of the engine's own pace.
const WEIGHT: f64 = 0.2;
/// The same while uploads are as slow as they get: what slows the engine now is something else.
const DRIFT: f64 = 0.02;

/// What happened since the last word of the engine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    /// From one token to the next.
    pub(super) between: Duration,
    /// Bytes.
    pub(super) uploaded: u64,
    pub(super) during: Duration,
}

/// What is known of one engine.
#[derive(Debug)]
struct Pace {
    /// Seconds between tokens while nothing is uploaded.
    own: f64,
    heard: Instant,
}

#[derive(Debug)]
pub(super) struct Yielding {
    most: Option<f64>,
    /// The most that was seen, where `most` is not given.
    seen: f64,
    /// Below the most; none: not needed.
    rate: Option<f64>,
    engines: HashMap<EngineId, Pace>,
    heard: Option<Instant>,
    /// Which engine suffered last.
    suffers: Option<(EngineId, Instant)>,
    /// When the rate went down first and last, without a [`REST`] between, nor having been back at the most.
    lowered: Option<(Instant, Instant)>,
}

impl Yielding {
    pub(super) fn new(most: Option<u64>) -> Self {
        Self {
            most: most.map(|most| most as f64),
            seen: 0.0,
            rate: None,
            engines: HashMap::new(),
            heard: None,
            suffers: None,
            lowered: None,
        }
    }

    /// Another most; below it the engine says how much, as before.
    pub(super) fn set_most(&mut self, most: Option<u64>) {
        self.most = most.map(|most| most as f64);
        self.rate = match (self.rate, self.most) {
            (Some(rate), Some(most)) => Some(rate.min(most)),
            (rate, _) => rate,
        };
    }

    /// Bytes a second; none: no cap.
    pub(super) fn rate(&self, now: Instant) -> Option<u64> {
        let yielded = self.rate.filter(|_| !self.is_silent(now) && !self.rests(now));
        yielded.or(self.most).map(|rate| rate as u64)
    }

    /// True if the rate went down.
    pub(super) fn hear(&mut self, engine: EngineId, heard: Heard, now: Instant) -> bool {
        if self.is_silent(now) || self.rests(now) {
            self.rate = None;
        }
        self.heard = Some(now);
        let between = heard.between.as_secs_f64();
        let uploaded = heard.uploaded as f64 / heard.during.as_secs_f64().max(0.001);
        self.seen = self.seen.max(uploaded);
        let Some(is_slow) = self.compare(engine, between, uploaded > 0.0, now) else { return false };
        if is_slow && uploaded > 0.0 && !self.rests(now) {
            self.suffers = Some((engine, now));
            let first = self.lowered.filter(|(_, last)| now.saturating_duration_since(*last) < REST);
            self.lowered = Some((first.map_or(now, |(first, _)| first), now));
            return self.lower(uploaded);
        }
        // That one engine is well says nothing of another.
        if !self.suffers.is_some_and(|(other, at)| other != engine && now.saturating_duration_since(at) < SILENCE) {
            self.raise();
        }
        false
    }

    /// Whether the engine is slower than by itself; `None` for its first word.
    fn compare(&mut self, engine: EngineId, between: f64, is_uploading: bool, now: Instant) -> Option<bool> {
        self.engines.retain(|_, pace| now.saturating_duration_since(pace.heard) < FORGOTTEN);
        let is_least = self.is_least();
        let Some(pace) = self.engines.get_mut(&engine) else {
            if self.engines.len() < MAX_ENGINES {
                self.engines.insert(engine, Pace { own: between, heard: now });
            }
            return None;
        };
        let is_slow = between > pace.own * TOLERATED;
        let weight = match (is_uploading, is_slow) {
            (false, _) => WEIGHT,
            (true, false) if between < pace.own => WEIGHT,
            (true, true) if is_least => DRIFT,
            (true, _) => 0.0,
        };
        *pace = Pace { own: pace.own + (between - pace.own) * weight, heard: now };
        Some(is_slow)
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.heard.is_none_or(|heard| now.saturating_duration_since(heard) >= SILENCE)
    }

    fn rests(&self, now: Instant) -> bool {
        let since = |from: Instant, to: Instant| to.saturating_duration_since(from);
        self.lowered.is_some_and(|(first, last)| since(first, last) >= LONGEST && since(last, now) < REST)
    }

    fn ceiling(&self) -> f64 {
        self.most.unwrap_or(self.seen)
    }

    fn least(&self) -> f64 {
        (self.ceiling() * LEAST).max(FLOOR).min(self.ceiling())
    }

    fn is_least(&self) -> bool {
        self.rate.is_some_and(|rate| rate <= self.least())
    }

    /// True if it went down. From what is really uploaded: a cap far above that would take long to be felt.
    fn lower(&mut self, uploaded: f64) -> bool {
        let before = self.rate.unwrap_or_else(|| self.ceiling());
        let rate = (before.min(uploaded.max(self.least())) * DOWN).max(self.least());
        self.rate = Some(rate);
        rate < before
    }

    fn raise(&mut self) {
        let raised = self.rate.map(|rate| rate + self.ceiling() * STEP);
        let raised = raised.filter(|rate| *rate < self.ceiling());
        if self.rate.is_some() && raised.is_none() {
            // To yield has helped.
            self.lowered = None;
        }
        self.rate = raised;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const GIB: u64 = 1 << 30;
    const ONE: EngineId = EngineId(1);

    fn heard(between_ms: u64, uploaded: u64) -> Heard {
        Heard { between: Duration::from_millis(between_ms), uploaded, during: SECOND }
    }

    #[test]
    fn whoever_says_for_ever_that_uploads_slow_it_stops_them_for_a_time_only() {
        let (mut yielding, mut now) = (Yielding::new(Some(GIB)), Instant::now());
        yielding.hear(ONE, heard(1, 0), now);
        let (mut yielded, mut free) = (0, 0);
        for second in 0..2 * 3600 {
            now += SECOND;
            // Its own pace is made out to be good again and again.
            let between = if second % 2 == 0 { 60_000 } else { 1 };
            yielding.hear(ONE, heard(between, yielding.rate(now).unwrap()), now);
            let is_free = yielding.rate(now) == Some(GIB);
            (yielded, free) = (yielded + u32::from(!is_free), free + u32::from(is_free));
        }
        assert!(yielded > 3600 && free >= 6 * 170, "{yielded} s of {}", yielded + free);
    }

    #[test]
    fn uploads_yield_each_time_anew_where_it_has_helped_before() {
        let (mut yielding, mut now) = (Yielding::new(Some(GIB)), Instant::now());
        yielding.hear(ONE, heard(10, 0), now);
        // For hours, a minute each.
        for minute in 0..3 * 60 {
            for second in 0..60 {
                now += SECOND;
                let between = if second < 5 { 50 } else { 10 };
                yielding.hear(ONE, heard(between, yielding.rate(now).unwrap()), now);
                assert!(second >= 5 || yielding.rate(now) < Some(GIB), "minute {minute}");
            }
            assert_eq!(yielding.rate(now), Some(GIB));
        }
    }

    #[test]
    fn uploads_go_down_while_the_engine_is_slower_than_by_itself_and_up_again_after() {
        let (mut yielding, mut now) = (Yielding::new(Some(GIB)), Instant::now());
        assert_eq!(yielding.rate(now), Some(GIB));
        yielding.hear(ONE, heard(10, 0), now);
        let mut before = GIB;
        for _ in 0..5 {
            now += SECOND;
            assert!(yielding.hear(ONE, heard(20, before), now));
            let rate = yielding.rate(now).unwrap();
            assert!(rate < before * 3 / 4, "{rate} after {before}");
            before = rate;
        }
        for _ in 0..20 {
            now += SECOND;
            assert!(!yielding.hear(ONE, heard(11, before), now));
        }
        assert_eq!(yielding.rate(now), Some(GIB));
    }

    #[test]
    fn an_engine_that_is_slow_by_itself_slows_nothing() {
        let (mut yielding, mut now) = (Yielding::new(None), Instant::now());
        yielding.hear(ONE, heard(10, 0), now);
        for _ in 0..30 {
            now += SECOND;
            assert!(!yielding.hear(ONE, heard(50, 0), now));
        }
        assert!(!yielding.hear(ONE, heard(50, GIB), now + SECOND), "that is its own pace by now");
        assert_eq!(yielding.rate(now + SECOND), None);
    }

    #[test]
    fn what_uploads_do_not_cause_does_not_hold_them_down_for_ever() {
        let (mut yielding, mut now) = (Yielding::new(Some(GIB)), Instant::now());
        yielding.hear(ONE, heard(10, 0), now);
        for _ in 0..600 {
            now += SECOND;
            let uploaded = yielding.rate(now).unwrap();
            yielding.hear(ONE, heard(30, uploaded), now);
        }
        assert_eq!(yielding.rate(now), Some(GIB));
    }

    #[test]
    fn each_engine_is_held_against_its_own_pace_and_one_that_is_well_does_not_speak_for_another() {
        let (mut yielding, mut now) = (Yielding::new(Some(GIB)), Instant::now());
        let other = EngineId(2);
        yielding.hear(ONE, heard(10, 0), now);
        yielding.hear(other, heard(15, 0), now);
        for _ in 0..30 {
            now += SECOND;
            assert!(!yielding.hear(ONE, heard(10, GIB), now) && !yielding.hear(other, heard(15, GIB), now));
        }
        assert_eq!(yielding.rate(now), Some(GIB));
        let mut before = GIB;
        for _ in 0..5 {
            now += SECOND;
            assert!(yielding.hear(other, heard(30, before), now) && !yielding.hear(ONE, heard(10, before), now));
            assert!(yielding.rate(now).unwrap() < before * 3 / 4);
            before = yielding.rate(now).unwrap();
        }
        now += SILENCE;
        yielding.hear(ONE, heard(10, before), now);
        assert!(yielding.rate(now).unwrap() > before, "the other one may be gone");
    }

    #[test]
    fn an_engine_that_is_not_heard_of_does_not_slow_uploads() {
        let (mut yielding, now) = (Yielding::new(Some(GIB)), Instant::now());
        yielding.hear(ONE, heard(10, 0), now);
        assert!(yielding.hear(ONE, heard(100, GIB), now + SECOND));
        assert!(yielding.rate(now + 2 * SECOND).unwrap() < GIB);
        assert_eq!(yielding.rate(now + SECOND + SILENCE), Some(GIB));
    }

    proptest! {
        #[test]
        fn the_rate_stays_between_the_floor_and_the_most_and_recovers(
            most in prop::option::of(2_000_000u64..10_000_000_000),
            words in prop::collection::vec((1u64..500, 0u64..20_000_000_000, 1u64..4), 1..200),
        ) {
            let (mut yielding, mut now) = (Yielding::new(most), Instant::now());
            for (between, uploaded, seconds) in words {
                now += SECOND * seconds as u32;
                yielding.hear(ONE, heard(between, uploaded), now);
                if let Some(rate) = yielding.rate(now) {
                    prop_assert!(rate as f64 >= FLOOR.min(yielding.ceiling()) - 1.0);
                    prop_assert!(most.is_none_or(|most| rate <= most));
                }
            }
            for _ in 0..40 {
                now += SECOND;
                let between = (yielding.engines[&ONE].own * 1000.0).max(1.0) as u64;
                yielding.hear(ONE, heard(between, 1), now);
            }
            prop_assert_eq!(yielding.rate(now), most);
        }
    }
}
