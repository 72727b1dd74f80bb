//! Durations in JSON: seconds, to the millisecond.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::millis;

fn number(duration: Duration) -> f64 {
    // Milliseconds of any time that is told are far below 2^53.
    millis(duration) as f64 / 1000.0
}

/// NaN, infinities and negative numbers are no times.
fn duration(seconds: f64) -> Option<Duration> {
    let seconds = Duration::try_from_secs_f64(seconds).ok()?;
    Some(Duration::from_millis(millis(seconds.saturating_add(Duration::from_micros(500)))))
}

pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    number(*value).serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    duration(seconds).ok_or_else(|| serde::de::Error::custom("not a time in seconds"))
}

/// `null` for none.
pub(crate) mod option {
    use super::{Deserialize, Deserializer, Duration, Serialize, Serializer, duration, number};

    pub(crate) fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(number).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(deserializer)?;
        let told = |seconds| duration(seconds).ok_or_else(|| serde::de::Error::custom("not a time in seconds"));
        seconds.map(told).transpose()
    }
}
