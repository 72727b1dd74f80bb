//! Which artifacts go when room is needed. Pure.

use crate::digest::ArtifactId;
use crate::identity::UnixTime;

/// An artifact as eviction sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: ArtifactId,
    /// What goes with it once everything that may go and was used before it is gone: a chunk that several such artifacts
    /// share counts for the one used last, and a chunk shared with one that must stay counts for none.
    pub bytes: u64,
    pub last_used: UnixTime,
    /// By the trust policy: nobody may use it.
    pub revoked: bool,
    pub pinned: bool,
    pub in_use: bool,
}

impl Candidate {
    pub fn may_go(&self) -> bool {
        !self.pinned && !self.in_use
    }

    /// What is revoked first, then the least recently used; ids decide ties, so that the order is one.
    pub fn order(&self) -> (bool, UnixTime, ArtifactId) {
        (!self.revoked, self.last_used, self.id)
    }
}

/// The first artifacts of that order that together free `need` bytes, or all that free anything if that is not enough.
/// None of the chosen could be left out.
pub fn decide(inventory: &[Candidate], need: u64) -> Vec<ArtifactId> {
    let mut order: Vec<&Candidate> = inventory.iter().filter(|one| one.may_go() && one.bytes > 0).collect();
    order.sort_unstable_by_key(|one| one.order());
    let mut freed = 0;
    let mut chosen = Vec::new();
    for one in order {
        if freed >= need {
            break;
        }
        freed += one.bytes;
        chosen.push(one);
    }
    // A large one at the end can make small ones before it unnecessary: the most recently used of those stay.
    for index in (0..chosen.len()).rev() {
        if freed - chosen[index].bytes >= need {
            freed -= chosen[index].bytes;
            chosen.remove(index);
        }
    }
    chosen.into_iter().map(|one| one.id).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn candidate(name: u8, bytes: u64, last_used: u64) -> Candidate {
        let last_used = UnixTime::from_seconds(last_used);
        Candidate { id: ArtifactId::of(&[name]), bytes, last_used, revoked: false, pinned: false, in_use: false }
    }

    fn ids(names: &[u8]) -> Vec<ArtifactId> {
        names.iter().map(|name| ArtifactId::of(&[*name])).collect()
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let inventory = [candidate(1, 10, 300), candidate(2, 10, 100), candidate(3, 10, 200)];
        assert_eq!(decide(&inventory, 1), ids(&[2]));
        assert_eq!(decide(&inventory, 11), ids(&[2, 3]));
        assert_eq!(decide(&inventory, 0), ids(&[]));
    }

    #[test]
    fn what_is_revoked_goes_before_all_that_is_older() {
        let revoked = Candidate { revoked: true, ..candidate(1, 10, 300) };
        let inventory = [revoked, candidate(2, 10, 100), candidate(3, 10, 200)];
        assert_eq!(decide(&inventory, 1), ids(&[1]));
        assert_eq!(decide(&inventory, 11), ids(&[1, 2]));
    }

    #[test]
    fn a_small_old_one_stays_if_a_large_one_must_go_anyway() {
        let inventory = [candidate(1, 1, 100), candidate(2, 1000, 200), candidate(3, 1000, 300)];
        assert_eq!(decide(&inventory, 1000), ids(&[2]));
        assert_eq!(decide(&inventory, 1001), ids(&[1, 2]));
    }

    fn inventories() -> impl Strategy<Value = Vec<Candidate>> {
        let flag = || prop::bool::weighted(0.2);
        let one = (0..2000u64, 0..20u64, flag(), flag(), flag());
        prop::collection::vec(one, 0..20).prop_map(|all| {
            let with_name = all.into_iter().zip(0..);
            let build = |((bytes, last_used, revoked, pinned, in_use), name)| Candidate {
                revoked,
                pinned,
                in_use,
                ..candidate(name, bytes, last_used)
            };
            with_name.map(build).collect()
        })
    }

    proptest! {
        #[test]
        fn what_must_stay_stays_and_what_goes_is_enough_and_not_more(inventory in inventories(), need in 0..20_000u64) {
            let by_id: HashMap<ArtifactId, &Candidate> = inventory.iter().map(|one| (one.id, one)).collect();
            let chosen = decide(&inventory, need);
            let freed: u64 = chosen.iter().map(|id| by_id[id].bytes).sum();
            let possible: u64 = inventory.iter().filter(|one| one.may_go()).map(|one| one.bytes).sum();
            prop_assert!(chosen.iter().all(|id| by_id[id].may_go()));
            prop_assert!(freed >= need.min(possible));
            if possible >= need {
                prop_assert!(chosen.iter().all(|id| freed - by_id[id].bytes < need), "one could have stayed");
            }
            // Whoever was used longer ago than the last chosen one and stays would not have spared any of the chosen.
            if let Some(last) = chosen.iter().map(|id| by_id[id]).max_by_key(|one| one.order()) {
                let older = |one: &&Candidate| one.may_go() && one.order() < last.order();
                let prefix: u64 = inventory.iter().filter(older).map(|one| one.bytes).sum();
                prop_assert!(prefix < need, "older ones alone would have been enough");
            }
        }
    }
}
