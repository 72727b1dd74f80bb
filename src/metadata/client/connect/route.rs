//! Which address of a name is tried first. Pure.

use std::collections::HashSet;
use std::net::SocketAddr;

use rand::Rng;
use rand::seq::SliceRandom;

/// What is known of the addresses of one name.
#[derive(Debug, Default)]
pub(super) struct Route {
    /// Connected to last.
    reached: Option<SocketAddr>,
    /// Gave no answer since the last one that did.
    avoided: HashSet<SocketAddr>,
    /// Addresses when the name was last looked up.
    known: usize,
}

impl Route {
    /// The one that served us so far, then the others in a random order, so that clients spread; at last those that gave no
    /// answer.
    pub(super) fn order<R: Rng + ?Sized>(&mut self, mut found: Vec<SocketAddr>, rng: &mut R) -> Vec<SocketAddr> {
        found.sort_unstable();
        found.dedup();
        found.shuffle(rng);
        let before = self.reached.take();
        found.sort_by_key(|addr| (self.avoided.contains(addr), Some(*addr) != before));
        self.known = found.len();
        found
    }

    pub(super) fn reached(&mut self, addr: SocketAddr) {
        self.reached = Some(addr);
    }

    pub(super) fn answered(&mut self) {
        self.avoided.clear();
    }

    pub(super) fn turn_away(&mut self) -> bool {
        // Nothing was reached: all were tried.
        let Some(addr) = self.reached else { return false };
        self.avoided.insert(addr);
        let more = self.avoided.len() < self.known;
        if !more {
            self.avoided.clear();
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn addr(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 1))
    }

    #[test]
    fn clients_spread_and_stay_where_they_were_served() {
        let mut rng = StdRng::seed_from_u64(1);
        let all = vec![addr(1), addr(2), addr(3)];
        let firsts: HashSet<_> = (0..50).map(|_| Route::default().order(all.clone(), &mut rng)[0]).collect();
        assert_eq!(firsts.len(), 3);
        let mut route = Route::default();
        for _ in 0..50 {
            route.reached(addr(2));
            assert_eq!(route.order(all.clone(), &mut rng)[0], addr(2));
        }
    }

    #[test]
    fn each_address_is_tried_once_until_one_answers() {
        let mut rng = StdRng::seed_from_u64(1);
        let all = vec![addr(1), addr(2), addr(3)];
        let mut route = Route::default();
        let mut tried = HashSet::new();
        loop {
            let first = route.order(all.clone(), &mut rng)[0];
            assert!(tried.insert(first));
            route.reached(first);
            if !route.turn_away() {
                break;
            }
        }
        assert_eq!(tried.len(), 3);
        route.order(all, &mut rng);
        assert!(!route.turn_away(), "no address was reached, so none is left");
    }
}
