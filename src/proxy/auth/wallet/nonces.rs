//! Nonces that were used. A nonce is never forgotten before its text has expired: where there is no room, the address is
//! refused.

use std::collections::HashMap;

use super::super::denied::Denied;
use crate::adapters::Address;
use crate::identity::UnixTime;

/// Of one address.
const MAX_OF_ADDRESS: usize = 1024;

/// Of all addresses that are not listed. Anybody can make addresses, so these share one bound, and those that are listed
/// have each their own.
const MAX_OF_STRANGERS: usize = 64 * 1024;

/// Whether the operator listed the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Known,
    Stranger,
}

#[derive(Debug, Default)]
struct Seen {
    /// When its text has expired.
    until: HashMap<Box<str>, UnixTime>,
}

#[derive(Debug, Default)]
pub(super) struct Nonces {
    known: HashMap<Address, Seen>,
    strangers: HashMap<Address, Seen>,
    /// Nonces in `strangers`.
    of_strangers: usize,
    /// When `strangers` was last looked through.
    swept: Option<UnixTime>,
}

impl Nonces {
    /// Takes `nonce` if it is unseen. Call it after the signature was verified.
    pub(super) fn insert(
        &mut self,
        address: Address,
        nonce: &str,
        standing: Standing,
        until: UnixTime,
        now: UnixTime,
    ) -> Result<(), Denied> {
        if standing == Standing::Stranger && self.of_strangers >= MAX_OF_STRANGERS {
            self.sweep(now);
            if self.of_strangers >= MAX_OF_STRANGERS {
                return Err(Denied::NoncesFull);
            }
        }
        let table = match standing {
            Standing::Known => &mut self.known,
            Standing::Stranger => &mut self.strangers,
        };
        let seen = table.entry(address).or_default();
        if seen.until.contains_key(nonce) {
            return Err(Denied::Replayed);
        }
        let before = seen.until.len();
        if before >= MAX_OF_ADDRESS {
            seen.until.retain(|_, until| *until > now);
        }
        let full = seen.until.len() >= MAX_OF_ADDRESS;
        if !full {
            seen.until.insert(nonce.into(), until);
        }
        if standing == Standing::Stranger {
            self.of_strangers = self.of_strangers + seen.until.len() - before;
        }
        if full { Err(Denied::NoncesFull) } else { Ok(()) }
    }

    /// At most once a second, however many knock.
    fn sweep(&mut self, now: UnixTime) {
        if self.swept == Some(now) {
            return;
        }
        self.swept = Some(now);
        self.strangers.retain(|_, seen| {
            seen.until.retain(|_, until| *until > now);
            !seen.until.is_empty()
        });
        self.of_strangers = self.strangers.values().map(|seen| seen.until.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> Address {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Address::from_array(bytes)
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::from_seconds(1_800_000_000 + seconds)
    }

    #[test]
    fn a_nonce_counts_once_for_each_address() {
        let mut nonces = Nonces::default();
        let mut insert = |who, nonce| nonces.insert(address(who), nonce, Standing::Known, at(300), at(0));
        assert_eq!(insert(1, "aaaaaaaa"), Ok(()));
        assert_eq!(insert(1, "aaaaaaaa"), Err(Denied::Replayed));
        assert_eq!(insert(1, "aaaaaaab"), Ok(()));
        assert_eq!(insert(2, "aaaaaaaa"), Ok(()));
    }

    #[test]
    fn an_address_with_too_many_nonces_is_refused_and_others_are_not() {
        let mut nonces = Nonces::default();
        for number in 0..MAX_OF_ADDRESS {
            nonces.insert(address(1), &format!("nonce{number}"), Standing::Known, at(300), at(0)).unwrap();
        }
        let mut insert = |who, nonce, now| nonces.insert(address(who), nonce, Standing::Known, at(300), now);
        assert_eq!(insert(1, "one-more", at(299)), Err(Denied::NoncesFull));
        assert_eq!(insert(1, "nonce7", at(299)), Err(Denied::Replayed), "full is no way to a replay");
        assert_eq!(insert(2, "one-more", at(299)), Ok(()));
        assert_eq!(insert(1, "one-more", at(300)), Ok(()), "there is room again when texts have expired");
    }

    #[test]
    fn strangers_by_the_thousand_use_up_their_own_room_only() {
        let mut nonces = Nonces::default();
        for number in 0..MAX_OF_STRANGERS {
            nonces.insert(address(number), "aaaaaaaa", Standing::Stranger, at(300), at(0)).unwrap();
        }
        let stranger = MAX_OF_STRANGERS;
        assert_eq!(
            nonces.insert(address(stranger), "aaaaaaaa", Standing::Stranger, at(400), at(100)),
            Err(Denied::NoncesFull)
        );
        assert_eq!(nonces.insert(address(stranger + 1), "aaaaaaaa", Standing::Known, at(400), at(100)), Ok(()));
        assert_eq!(nonces.insert(address(stranger), "aaaaaaaa", Standing::Stranger, at(700), at(301)), Ok(()));
        assert_eq!((nonces.strangers.len(), nonces.of_strangers), (1, 1));
    }
}
