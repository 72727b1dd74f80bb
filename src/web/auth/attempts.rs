//! Wrong tokens by where they come from: ten at once, then one every six seconds. The right one is never locked out: behind
//! an ingress all come from one address. A token has too many characters for guessing without a measure to find it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Refusal;

const BURST: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(6);

/// Sources that are told apart at a time. All others share what one has.
const MAX_SOURCES: usize = 1024;

/// An IPv4 address, or the network of an IPv6 one: a host has all the addresses of its /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
    Other,
}

impl From<IpAddr> for Source {
    fn from(addr: IpAddr) -> Self {
        match addr.to_canonical() {
            IpAddr::V4(addr) => Self::V4(addr.octets()),
            IpAddr::V6(addr) => Self::V6(std::array::from_fn(|i| addr.octets()[i])),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// When all of a source's wrong tokens are forgiven.
    forgiven: Mutex<HashMap<Source, Instant>>,
}

impl Attempts {
    /// Counts it against `from` if the token is not right; those beyond the measure are not counted.
    pub(super) fn guard(&self, from: IpAddr, now: Instant, is_right: bool) -> Result<(), Refusal> {
        if is_right {
            return Ok(());
        }
        let mut forgiven = self.forgiven.lock().unwrap_or_else(PoisonError::into_inner);
        let source = known(&mut forgiven, from.into(), now);
        let owed = forgiven.get(&source).map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let allowed = INTERVAL * (BURST - 1);
        if owed > allowed {
            return Err(Refusal::Locked(owed - allowed));
        }
        forgiven.insert(source, now + owed + INTERVAL);
        Err(Refusal::WrongToken)
    }
}

/// The source itself, unless there are too many.
fn known(forgiven: &mut HashMap<Source, Instant>, source: Source, now: Instant) -> Source {
    if forgiven.contains_key(&source) || forgiven.len() < MAX_SOURCES {
        return source;
    }
    forgiven.retain(|_, until| *until > now);
    if forgiven.len() < MAX_SOURCES { source } else { Source::Other }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(attempts: &Attempts, from: &str, now: Instant) -> Result<(), Refusal> {
        attempts.guard(from.parse().unwrap(), now, false)
    }

    #[test]
    fn a_network_has_ten_attempts_and_then_one_every_six_seconds() {
        let (attempts, mut now) = (Attempts::default(), Instant::now());
        for last in 0..BURST {
            assert_eq!(wrong(&attempts, &format!("2001:db8::{last}"), now), Err(Refusal::WrongToken));
        }
        assert_eq!(wrong(&attempts, "2001:db8::ffff", now), Err(Refusal::Locked(INTERVAL)));
        assert_eq!(wrong(&attempts, "2001:db8:0:1::", now), Err(Refusal::WrongToken));
        for _ in 0..3 {
            now += INTERVAL;
            assert_eq!(wrong(&attempts, "2001:db8::1", now), Err(Refusal::WrongToken));
            assert!(matches!(wrong(&attempts, "2001:db8::1", now), Err(Refusal::Locked(_))));
        }
        assert_eq!(wrong(&attempts, "::ffff:10.0.0.1", now), Err(Refusal::WrongToken));
        assert!(attempts.forgiven.lock().unwrap().contains_key(&Source::V4([10, 0, 0, 1])));
    }

    #[test]
    fn more_sources_than_are_remembered_share_one_measure() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..MAX_SOURCES as u32 {
            wrong(&attempts, &std::net::Ipv4Addr::from(n).to_string(), now).unwrap_err();
        }
        let outcomes: Vec<_> = (0..20).map(|n| wrong(&attempts, &format!("192.0.2.{n}"), now)).collect();
        assert!(matches!(outcomes[19], Err(Refusal::Locked(_))));
        assert_eq!(attempts.forgiven.lock().unwrap().len(), MAX_SOURCES + 1);
        let later = now + INTERVAL * 2;
        assert_eq!(wrong(&attempts, "192.0.2.1", later), Err(Refusal::WrongToken));
        assert!(attempts.forgiven.lock().unwrap().len() < 3);
    }
}
