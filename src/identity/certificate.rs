//! How this node's own certificate stands, and the word about its end before that comes.

use std::fmt;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use super::admission::NotAdmitted;
use super::membership::Membership;
use super::time::UnixTime;
use super::tls::RENEW;
use crate::telemetry::Registry;

/// Told of for so long before its end, or for the last quarter of a life that is short.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// Between two looks, and between two words about the same.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const TELL_EVERY: Duration = Duration::from_secs(24 * 3600);

/// While a certificate is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: UnixTime,
    pub(super) until: UnixTime,
}

impl Validity {
    fn ends_soon(self, now: UnixTime) -> bool {
        let life = self.until.seconds().saturating_sub(self.from.seconds());
        now.seconds() > self.until.seconds().saturating_sub(SOON.as_secs().min(life / 4))
    }
}

/// What other nodes make of this node's certificate. `Display` goes on after "its certificate".
#[derive(Debug, Clone, PartialEq)]
pub enum CertificateState {
    Good,
    /// For a few days only.
    EndsSoon(UnixTime),
    Bad(NotAdmitted),
}

impl CertificateState {
    pub(super) fn of(admitted: Result<(), NotAdmitted>, validity: Option<Validity>, now: UnixTime) -> Self {
        match (admitted, validity) {
            (Err(reason), _) => Self::Bad(reason),
            (Ok(()), Some(validity)) if validity.ends_soon(now) => Self::EndsSoon(validity.until),
            (Ok(()), _) => Self::Good,
        }
    }
}

impl fmt::Display for CertificateState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good => f.write_str("is good"),
            Self::EndsSoon(until) => write!(f, "expires at {until}"),
            Self::Bad(reason) => reason.fmt(f),
        }
    }
}

/// Of the role's own certificate.
#[derive(Debug, Clone)]
pub struct CertificateMetrics {
    until: Gauge,
}

impl CertificateMetrics {
    pub fn register(r: &mut Registry) -> Self {
        let help = "When this node's certificate expires, in seconds since 1970; 0 where no authority of this cluster certifies it";
        Self { until: r.add("warmd_certificate_expiry_timestamp_seconds", help) }
    }
}

/// Says what is wrong with the node's certificate, or will soon be, for as long as it is polled.
pub async fn watch(own: Membership, metrics: CertificateMetrics) {
    let mut changes = own.changes();
    let mut told: Option<(CertificateState, Instant)> = None;
    loop {
        let until = own.validity().map_or(0, |validity| validity.until.seconds());
        metrics.until.set(i64::try_from(until).unwrap_or(i64::MAX));
        let state = own.certificate(UnixTime::now());
        let is_news = told.as_ref().is_none_or(|(before, at)| *before != state || at.elapsed() >= TELL_EVERY);
        if is_news {
            match &state {
                CertificateState::Good => {}
                CertificateState::EndsSoon(_) => tracing::warn!("this node's certificate {state}. {RENEW}"),
                CertificateState::Bad(_) => {
                    tracing::error!("nobody will speak with this node: its certificate {state}. {RENEW}");
                }
            }
            told = Some((state, Instant::now()));
        }
        // Sooner, if it is another one now.
        let _ = tokio::time::timeout(LOOK_EVERY, changes.changed()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_soon_a_week_before_it_or_in_the_last_quarter_of_a_short_life() {
        let at = UnixTime::from_seconds;
        let day = 24 * 3600;
        let soon = |life: u64, left: u64| {
            let validity = Validity { from: at(day), until: at(day + life) };
            CertificateState::of(Ok(()), Some(validity), at(day + life - left))
        };
        assert_eq!(soon(3650 * day, 8 * day), CertificateState::Good);
        assert_eq!(soon(3650 * day, 6 * day), CertificateState::EndsSoon(at(3651 * day)));
        assert_eq!(soon(day, day / 2), CertificateState::Good);
        assert_eq!(soon(day, day / 5), CertificateState::EndsSoon(at(2 * day)));
        assert_eq!(CertificateState::of(Ok(()), None, at(0)), CertificateState::Good);
        let bad = CertificateState::of(Err(NotAdmitted::Expired(at(0))), None, at(day));
        assert_eq!(bad.to_string(), "expired at 1970-01-01T00:00:00Z");
    }
}
