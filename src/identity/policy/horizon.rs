//! Until when a policy is known to be the newest.

use super::{Policy, Refusal};
use crate::identity::time::UnixTime;

/// How far it is known that no newer policy was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Horizon {
    /// Nobody says: it counts until it expires.
    #[default]
    Unlimited,
    Until(UnixTime),
    /// It is said that there is a newer one.
    Superseded,
    /// Somebody has to say, and nobody did.
    Unknown,
}

impl Policy {
    /// The same policy, with another horizon.
    pub fn until(self, horizon: Horizon) -> Self {
        Self { horizon, ..self }
    }

    /// Why nothing is admitted at the moment, whatever it is. No leeway for the horizon: it is as short as the time in
    /// which a revocation has to be known.
    pub fn lapse(&self, now: UnixTime) -> Option<Refusal> {
        match self.horizon {
            _ if self.expires.has_passed(now) => Some(Refusal::PolicyExpired(self.expires)),
            Horizon::Until(until) if until < now => Some(Refusal::PolicyStale(until)),
            Horizon::Superseded => Some(Refusal::PolicySuperseded(self.version)),
            Horizon::Unknown => Some(Refusal::PolicyUnconfirmed(self.version)),
            Horizon::Until(_) | Horizon::Unlimited => None,
        }
    }
}
