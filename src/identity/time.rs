//! Wall-clock time as it appears in signed documents.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Seconds since 1970-01-01T00:00:00Z. Text form: RFC 3339, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(u64);

/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can write.
const LATEST: u64 = 253_402_300_799;

impl UnixTime {
    /// Nodes' clocks may differ by this much before a validity check notices.
    pub const LEEWAY: Duration = Duration::from_secs(5 * 60);

    pub fn from_seconds(seconds: u64) -> Self {
        Self(seconds.min(LATEST))
    }

    /// The only reading of the wall clock in this module; everything else takes `now`.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_seconds(since.as_secs())
    }

    pub fn seconds(self) -> u64 {
        self.0
    }

    pub fn after(self, duration: Duration) -> Self {
        Self::from_seconds(self.0.saturating_add(duration.as_secs()))
    }

    /// `self` as a not-before bound, seen from `now`.
    pub fn has_come(self, now: Self) -> bool {
        self.0 <= now.after(Self::LEEWAY).0
    }

    /// `self` as a not-after bound, seen from `now`.
    pub fn has_passed(self, now: Self) -> bool {
        self.after(Self::LEEWAY).0 < now.0
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.0)).fmt(f)
    }
}

impl Serialize for UnixTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnixTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339(&text).map_err(|error| {
            serde::de::Error::custom(format!("`{text}` is no RFC 3339 time such as 2027-01-31T12:00:00Z: {error}"))
        })?;
        let since = time.duration_since(UNIX_EPOCH).map_err(serde::de::Error::custom)?;
        Ok(Self::from_seconds(since.as_secs()))
    }
}
