//! Times that clients name: seconds, as a number.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// Seconds. Nobody waits longer and no lease lasts longer.
pub const MAX_SECONDS: u32 = 3600;

/// The text or number is no such time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a number of seconds from 0 to {MAX_SECONDS}")]
pub struct InvalidSeconds;

/// 0 to [`MAX_SECONDS`], to the millisecond. In JSON a number; in a query digits, with a fraction or without. Not a
/// number, infinite, negative, in another notation, too large: refused, never clamped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(Duration);

impl Seconds {
    pub fn get(self) -> Duration {
        self.0
    }
}

impl TryFrom<f64> for Seconds {
    type Error = InvalidSeconds;
    fn try_from(seconds: f64) -> Result<Self, InvalidSeconds> {
        // A minus before zero is a sign all the same; NaN is in no range.
        if seconds.is_sign_negative() || !(0.0..=f64::from(MAX_SECONDS)).contains(&seconds) {
            return Err(InvalidSeconds);
        }
        Ok(Self(Duration::from_millis((seconds * 1000.0).round() as u64)))
    }
}

impl FromStr for Seconds {
    type Err = InvalidSeconds;
    fn from_str(text: &str) -> Result<Self, InvalidSeconds> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| (1..=12).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return Err(InvalidSeconds);
        }
        Self::try_from(text.parse::<f64>().map_err(|_| InvalidSeconds)?)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Seconds;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number of seconds from 0 to {MAX_SECONDS}")
            }
            fn visit_f64<E: Error>(self, seconds: f64) -> Result<Seconds, E> {
                Seconds::try_from(seconds).map_err(E::custom)
            }
            fn visit_u64<E: Error>(self, seconds: u64) -> Result<Seconds, E> {
                let seconds = u32::try_from(seconds).map_err(|_| E::custom(InvalidSeconds))?;
                self.visit_f64(f64::from(seconds))
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<Seconds, E> {
                Err(E::custom(InvalidSeconds))
            }
        }
        deserializer.deserialize_f64(Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_numbers_of_seconds_are_read_alike_in_queries_and_in_json() {
        for (text, millis) in [("0", 0), ("60", 60_000), ("0.5", 500), ("3600", 3_600_000), ("59.9994", 59_999)] {
            let expected = Seconds(Duration::from_millis(millis));
            assert_eq!(text.parse(), Ok(expected), "{text}");
            assert_eq!(serde_json::from_str::<Seconds>(text).unwrap(), expected, "{text}");
        }
        assert_eq!(serde_json::from_str::<Seconds>("6e1").unwrap().get(), Duration::from_secs(60));
    }

    #[test]
    fn nan_infinity_negative_textual_and_huge_times_are_refused_in_queries() {
        for text in [
            "",
            "nan",
            "NaN",
            "inf",
            "-inf",
            "infinity",
            "-1",
            "-0",
            "+1",
            "1e3",
            "1e400",
            "0x10",
            " 1",
            "1 ",
            "1_000",
            "1.",
            ".5",
            "1.2.3",
            "1,5",
            "\u{661}",
            "3600.001",
            "3601",
            "99999999999999999999",
        ] {
            assert_eq!(text.parse::<Seconds>(), Err(InvalidSeconds), "{text}");
        }
    }

    #[test]
    fn nan_infinity_negative_textual_and_huge_times_are_refused_in_json() {
        for text in [
            "NaN",
            "Infinity",
            "-Infinity",
            "-1",
            "-0.0",
            "-0.5",
            "1e400",
            "1e308",
            "3600.001",
            "3601",
            "18446744073709551615",
            "184467440737095516160",
            "\"60\"",
            "null",
            "true",
            "[60]",
            "{}",
        ] {
            assert!(serde_json::from_str::<Seconds>(text).is_err(), "{text}");
        }
        assert_eq!(Seconds::try_from(f64::NAN), Err(InvalidSeconds));
        assert_eq!(Seconds::try_from(f64::INFINITY), Err(InvalidSeconds));
    }
}
