//! Random choice of holders: rather the near, idle and complete ones, but never always the same.

use rand::{Rng, RngExt};

use super::table::Holding;
use crate::protocol::metadata::{Closeness, Load};

/// Free slots beyond this do not make a holder more attractive: the number is the node's own claim.
const MOST_SLOTS: u32 = 64;

/// Candidates weighed exactly; of more holders a uniform sample of this size is weighed.
const CANDIDATES: usize = 256;

/// How likely a holder is to be chosen, relative to others. A holder that lacks
/// one chunk counts less than half of a complete one.
pub(super) fn weight(load: Load, closeness: Closeness, chunks_held: u32, chunks: u32) -> f64 {
    let near = match closeness {
        Closeness::SameRack => 8.0,
        Closeness::SameZone => 4.0,
        Closeness::SameRegion => 2.0,
        Closeness::Other => 1.0,
    };
    let slots = 1.0 + f64::from(load.free_slots().min(MOST_SLOTS));
    let part = if chunks_held >= chunks { 1.0 } else { 0.5 * f64::from(chunks_held) / f64::from(chunks) };
    near * slots * part
}

/// Up to `want` of `holders` without repetition, each drawn with a probability that grows with its weight; a weight of 0 (or
/// `None`) is never drawn.
pub(super) fn sample<R: Rng + ?Sized>(
    holders: &[Holding],
    want: usize,
    rng: &mut R,
    weigh: impl Fn(&Holding) -> Option<f64>,
) -> Vec<Holding> {
    if holders.len() > CANDIDATES {
        let some = rand::seq::index::sample(rng, holders.len(), CANDIDATES);
        let chosen = draw(some.iter().map(|at| &holders[at]), want, rng, &weigh);
        if chosen.len() >= want {
            return chosen;
        }
    }
    draw(holders.iter(), want, rng, &weigh)
}

/// Efraimidis and Spirakis: the smallest of exponential variates with the weights as rates (2006,
/// doi:10.1016/j.ipl.2005.11.003).
fn draw<'a, R: Rng + ?Sized>(
    holders: impl Iterator<Item = &'a Holding>,
    want: usize,
    rng: &mut R,
    weigh: &impl Fn(&Holding) -> Option<f64>,
) -> Vec<Holding> {
    let mut drawn: Vec<(f64, Holding)> = holders
        .filter_map(|holding| {
            let weight = weigh(holding).filter(|weight| *weight > 0.0)?;
            let uniform: f64 = rng.random();
            Some((-(1.0 - uniform).ln() / weight, *holding))
        })
        .collect();
    if drawn.len() > want {
        drawn.select_nth_unstable_by(want, |a, b| a.0.total_cmp(&b.0));
        drawn.truncate(want);
    }
    drawn.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    drawn.into_iter().map(|(_, holding)| holding).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn holders(count: u32) -> Vec<Holding> {
        (0..count).map(|node| Holding { node, chunks: 1 }).collect()
    }

    /// How often each of `count` holders was drawn first in `rounds` rounds.
    fn firsts(count: u32, rounds: u32, weigh: impl Fn(&Holding) -> Option<f64>) -> Vec<u32> {
        let mut rng = StdRng::seed_from_u64(7);
        let mut hits = vec![0; count as usize];
        for _ in 0..rounds {
            hits[sample(&holders(count), 1, &mut rng, &weigh)[0].node as usize] += 1;
        }
        hits
    }

    #[test]
    fn holders_are_drawn_in_proportion_to_their_weights() {
        let hits = firsts(4, 10_000, |holding| Some(f64::from(holding.node)));
        assert_eq!(hits[0], 0);
        for (node, expected) in [(1, 1667), (2, 3333), (3, 5000)] {
            let off = hits[node].abs_diff(expected);
            assert!(off < 200, "holder {node} was drawn {} times, expected {expected}", hits[node]);
        }
    }

    #[test]
    fn of_thousands_of_equal_holders_each_has_its_turn() {
        let hits = firsts(1_000, 20_000, |_| Some(1.0));
        assert!(hits.iter().all(|hits| (2..=50).contains(hits)), "{hits:?}");
    }

    #[test]
    fn the_few_that_may_be_offered_are_found_among_thousands() {
        let mut rng = StdRng::seed_from_u64(7);
        let found = sample(&holders(5_000), 8, &mut rng, |holding| (holding.node % 2_000 == 1).then_some(1.0));
        let mut nodes: Vec<_> = found.iter().map(|holding| holding.node).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, [1, 2_001, 4_001]);
    }

    #[test]
    fn near_idle_and_complete_holders_weigh_more_and_claims_are_capped() {
        let idle = Load { uploads: 0, upload_slots: 3 };
        let busy = Load { uploads: 3, upload_slots: 3 };
        assert_eq!(weight(idle, Closeness::SameRack, 4, 4), 32.0);
        assert_eq!(weight(busy, Closeness::SameRack, 4, 4), 8.0);
        assert_eq!(weight(idle, Closeness::Other, 4, 4), 4.0);
        assert_eq!(weight(idle, Closeness::Other, 2, 4), 1.0);
        assert_eq!(weight(idle, Closeness::Other, 0, 4), 0.0);
        assert_eq!(weight(Load { uploads: 0, upload_slots: u32::MAX }, Closeness::Other, 1, 1), 65.0);
        assert_eq!(weight(Load { uploads: 9, upload_slots: 1 }, Closeness::Other, 1, 1), 1.0);
    }
}
