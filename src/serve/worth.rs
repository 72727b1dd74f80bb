//! In which order families are brought: what saves most time for its bytes comes first.
//!
//! A publisher's own measurement comes before the figure of the family. It reaches us as a hint of whoever holds the
//! artifact, before any manifest does: a lie in it costs order and nothing else.

use std::time::Duration;

/// A publisher who says more is not believed more.
const MOST_SAVED: Duration = Duration::from_secs(60 * 60);

/// Bytes: whatever is smaller takes as long.
const LEAST_BYTES: u64 = 64 * 1024;

const MIB: f64 = 1024.0 * 1024.0;

/// What there is of one family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offers {
    pub(super) artifacts: usize,
    /// Encoded bytes of all artifacts.
    wire_bytes: u64,
    /// Longest compilation of one of them: an engine uses one variant, and nobody knows which.
    measured: Duration,
}

impl Offers {
    /// `measured` is zero where its publisher did not say.
    pub(super) fn add(&mut self, wire_bytes: u64, measured: Duration) {
        self.artifacts += 1;
        self.wire_bytes = self.wire_bytes.saturating_add(wire_bytes);
        self.measured = self.measured.max(measured);
    }

    /// Seconds saved by each MiB; `usual` where nobody has measured.
    fn worth(self, usual: f64) -> f64 {
        if self.measured.is_zero() {
            return usual;
        }
        // More than 2^53 bytes need not be told apart.
        self.measured.min(MOST_SAVED).as_secs_f64() / (self.wire_bytes.max(LEAST_BYTES) as f64 / MIB)
    }
}

/// Sorts families, of which each has a usual worth in seconds a MiB; equal ones stay as they are.
pub(super) fn sort<T>(families: &mut [T], of: impl Fn(&T) -> (f64, Offers)) {
    let worth = |family: &T| {
        let (usual, offers) = of(family);
        offers.worth(usual)
    };
    families.sort_by(|a, b| worth(b).total_cmp(&worth(a)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offers(wire_bytes: u64, measured: Duration) -> Offers {
        Offers { artifacts: 1, wire_bytes, measured }
    }

    fn order(families: &[(f64, Offers)]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..families.len()).collect();
        sort(&mut order, |at| families[*at]);
        order
    }

    #[test]
    fn a_measured_family_comes_before_one_that_usually_saves_more_and_after_one_that_does_for_its_bytes() {
        let minute = Duration::from_secs(60);
        let (unmeasured, small) = ((5.0, offers(1 << 20, Duration::ZERO)), (0.5, offers(1 << 20, minute)));
        let large = (100.0, offers(1 << 30, minute));
        assert_eq!(order(&[unmeasured, large, small]), [2, 0, 1]);
    }

    #[test]
    fn of_variants_one_is_used_and_all_are_brought() {
        let mut variants = Offers::default();
        variants.add(1 << 20, Duration::from_secs(30));
        variants.add(3 << 20, Duration::from_secs(10));
        assert_eq!((variants.artifacts, variants.worth(1.0)), (2, 7.5));
    }

    fn families() -> impl Strategy<Value = Vec<(f64, Offers)>> {
        let measured = prop_oneof![Just(0), any::<u64>(), 0u64..100_000].prop_map(Duration::from_millis);
        let one = (0.0f64..10_000.0, any::<u64>(), measured).prop_map(|(usual, b, m)| (usual, offers(b, m)));
        prop::collection::vec(one, 1..20)
    }

    proptest! {
        #[test]
        fn whatever_is_claimed_every_family_has_its_turn(families in families()) {
            let mut turns = order(&families);
            turns.sort_unstable();
            prop_assert_eq!(turns, (0..families.len()).collect::<Vec<_>>());
        }

        #[test]
        fn without_measurements_the_usual_worth_decides(mut families in families()) {
            families.iter_mut().for_each(|(_, offers)| offers.measured = Duration::ZERO);
            let turns = order(&families);
            prop_assert!(turns.windows(2).all(|pair| families[pair[0]].0 >= families[pair[1]].0));
        }

        #[test]
        fn more_time_measured_brings_no_family_later(families in families(), at in any::<prop::sample::Index>(), more in 1u64..1_000_000) {
            let at = at.index(families.len());
            prop_assume!(!families[at].1.measured.is_zero());
            let turn = |families: &[(f64, Offers)]| order(families).into_iter().position(|one| one == at);
            let mut claimed = families.clone();
            claimed[at].1.measured = claimed[at].1.measured.saturating_add(Duration::from_millis(more));
            prop_assert!(turn(&claimed) <= turn(&families));
        }
    }
}
