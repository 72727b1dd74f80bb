//! A set of chunk indices that can be walked from any place, alone or cut with another set, 64 chunks at a step.

use crate::artifact::Bitmap;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChunkSet {
    words: Vec<u64>,
    count: usize,
}

impl ChunkSet {
    pub(super) fn new(chunks: usize) -> Self {
        Self { words: vec![0; chunks.div_ceil(64)], count: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.words.get(index as usize / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// False if it was there before.
    ///
    /// Counts in a branch of its own: written as `count += usize::from(new)`, rustc 1.95 (LLVM 22) loses the addition in
    /// optimised builds.
    pub(super) fn insert(&mut self, index: u32) -> bool {
        let (at, mask) = place(index);
        let before = self.words[at];
        self.words[at] = before | mask;
        if before & mask != 0 {
            return false;
        }
        self.count += 1;
        true
    }

    /// False if it was not there.
    pub(super) fn remove(&mut self, index: u32) -> bool {
        let (at, mask) = place(index);
        let before = self.words[at];
        self.words[at] = before & !mask;
        if before & mask == 0 {
            return false;
        }
        self.count -= 1;
        true
    }

    /// Calls `visit` for the members that are also in `within`, upwards from `start` and round to it again, until it
    /// says false.
    pub(super) fn walk(&self, start: u32, within: Option<&ChunkSet>, mut visit: impl FnMut(u32) -> bool) {
        let words = self.words.len();
        if self.count == 0 || within.is_some_and(|within| within.count == 0) {
            return;
        }
        let (first, below_start) = (start as usize / 64, (1u64 << (start % 64)) - 1);
        for step in 0..=words {
            let at = (first + step) % words;
            let mut word = self.words[at] & within.map_or(u64::MAX, |within| within.words[at]);
            if step == 0 {
                word &= !below_start;
            } else if step == words {
                word &= below_start;
            }
            while word != 0 {
                if !visit(at as u32 * 64 + word.trailing_zeros()) {
                    return;
                }
                word &= word - 1;
            }
        }
    }

    /// Becomes `bits`; calls `changed` for each index that was not equal, with whether it is set now.
    pub(super) fn assign(&mut self, bits: &Bitmap, mut changed: impl FnMut(u32, bool)) {
        let bytes = bits.to_bytes();
        for (at, (word, new)) in self.words.iter_mut().zip(bytes.chunks(8)).enumerate() {
            let mut padded = [0; 8];
            padded[..new.len()].copy_from_slice(new);
            let new = u64::from_le_bytes(padded);
            let mut differs = *word ^ new;
            while differs != 0 {
                let bit = differs.trailing_zeros();
                changed(at as u32 * 64 + bit, new >> bit & 1 == 1);
                differs &= differs - 1;
            }
            *word = new;
        }
        self.count = self.words.iter().map(|word| word.count_ones() as usize).sum();
    }
}

/// The word and the bit of a member.
fn place(index: u32) -> (usize, u64) {
    (index as usize / 64, 1 << (index % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_insertion_and_removal_is_counted_once() {
        let mut set = ChunkSet::new(256);
        for index in 0..256 {
            assert!(set.insert(index) && !set.insert(index));
            assert_eq!(set.len(), index as usize + 1);
        }
        for index in 0..256 {
            assert!(set.remove(index) && !set.remove(index));
        }
        assert_eq!(set.len(), 0);
    }

    proptest! {
        #[test]
        fn walking_visits_each_common_member_once_in_ring_order(
            mine in prop::collection::btree_set(0u32..200, 0..200),
            theirs in prop::collection::btree_set(0u32..200, 0..200),
            start in 0u32..200,
        ) {
            let build = |members: &BTreeSet<u32>| {
                let mut set = ChunkSet::new(200);
                members.iter().for_each(|index| { set.insert(*index); });
                set
            };
            let mut seen = Vec::new();
            build(&mine).walk(start, Some(&build(&theirs)), |index| { seen.push(index); true });
            let common: Vec<u32> = mine.intersection(&theirs).copied().collect();
            let split = common.partition_point(|index| *index < start);
            prop_assert_eq!(seen, [&common[split..], &common[..split]].concat());
        }

        #[test]
        fn assigning_reports_exactly_what_changed(
            old in prop::collection::vec(any::<bool>(), 130),
            new in prop::collection::vec(any::<bool>(), 130),
        ) {
            let bitmap = |bits: &[bool]| {
                let mut map = Bitmap::empty(bits.len());
                bits.iter().enumerate().for_each(|(index, bit)| map.set(index, *bit));
                map
            };
            let mut set = ChunkSet::new(130);
            set.assign(&bitmap(&old), |_, _| ());
            let mut shadow = old;
            set.assign(&bitmap(&new), |index, value| shadow[index as usize] = value);
            prop_assert_eq!(set.len(), new.iter().filter(|bit| **bit).count());
            prop_assert_eq!(shadow, new);
        }
    }
}
