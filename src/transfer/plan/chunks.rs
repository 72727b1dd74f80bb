//! Which chunks are missing, how rare each is, who has it, and how often it is in flight.

use crate::artifact::Bitmap;

use super::MAX_HOLDERS;
use super::set::ChunkSet;

/// The place, behind those of all holders, of whoever was given a chunk by one of them.
const GIVEN: usize = MAX_HOLDERS;

/// Chunks with as many partial holders or more count as equally common.
const MOST_COMMON: usize = 16;

/// What a holder has.
#[derive(Debug, Clone)]
enum Held {
    Nothing,
    Part(ChunkSet),
    All,
}

/// A chunk is *wanted* while it is missing and in flight nowhere.
pub(super) struct Chunks {
    lens: Vec<u32>,
    /// Where each chunk ends, when all lie behind each other.
    ends: Vec<u64>,
    done: ChunkSet,
    bytes: u64,
    bytes_done: u64,
    bytes_wanted: u64,
    count_wanted: usize,
    /// Requests that carry the chunk.
    copies: Vec<u8>,
    /// Wanted chunks by the number of partial holders. Full holders count everywhere, so they need not count.
    wanted: Vec<ChunkSet>,
    /// For each chunk the slots of its partial holders, one bit each.
    partial: Vec<u64>,
    held: Vec<Held>,
    /// For each slot of a partial holder how many wanted chunks it has.
    offered: [u32; MAX_HOLDERS + 1],
}

impl Chunks {
    pub(super) fn new(lens: Vec<u32>, have: &Bitmap) -> Self {
        let count = lens.len();
        let end = |end: &mut u64, len: &u32| {
            *end += u64::from(*len);
            Some(*end)
        };
        let mut chunks = Self {
            done: ChunkSet::new(count),
            bytes: lens.iter().map(|len| u64::from(*len)).sum(),
            bytes_done: 0,
            bytes_wanted: 0,
            count_wanted: 0,
            copies: vec![0; count],
            wanted: vec![ChunkSet::new(count); MOST_COMMON + 1],
            partial: vec![0; count],
            held: vec![Held::Nothing; MAX_HOLDERS],
            offered: [0; MAX_HOLDERS + 1],
            ends: lens.iter().scan(0, end).collect(),
            lens,
        };
        for index in 0..count as u32 {
            match have.get(index as usize) {
                true => {
                    chunks.done.insert(index);
                    chunks.bytes_done += u64::from(chunks.len_of(index));
                }
                false => chunks.want(index),
            }
        }
        chunks
    }

    pub(super) fn count(&self) -> usize {
        self.lens.len()
    }

    pub(super) fn done(&self) -> usize {
        self.done.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The chunk that has this byte.
    pub(super) fn at(&self, byte: u64) -> u32 {
        self.ends.partition_point(|end| *end <= byte) as u32
    }

    pub(super) fn bytes_done(&self) -> u64 {
        self.bytes_done
    }

    pub(super) fn bytes_wanted(&self) -> u64 {
        self.bytes_wanted
    }

    pub(super) fn is_complete(&self) -> bool {
        self.done.len() == self.lens.len()
    }

    pub(super) fn is_done(&self, index: u32) -> bool {
        self.done.contains(index)
    }

    pub(super) fn wanted(&self) -> usize {
        self.count_wanted
    }

    /// Wanted chunks that no partial holder has and none was given.
    pub(super) fn wanted_of_nobody(&self) -> usize {
        self.wanted[0].len()
    }

    /// Wanted chunks that no partial holder has; one step for each chunk.
    pub(super) fn count_held_by_nobody(&self) -> usize {
        let held = |index: &usize| self.partial[*index] & !(1 << GIVEN) != 0;
        let wanted = |index: &usize| self.copies[*index] == 0 && !self.is_done(*index as u32);
        (0..self.lens.len()).filter(|index| wanted(index) && !held(index)).count()
    }

    /// What was given to others counts as less rare.
    pub(super) fn add_given(&mut self, bits: &Bitmap) {
        for index in bits.ones() {
            if self.partial[index] & 1 << GIVEN == 0 {
                self.hold(GIVEN, index as u32, true);
            }
        }
    }

    pub(super) fn forget_given(&mut self) {
        for index in 0..self.lens.len() as u32 {
            self.hold(GIVEN, index, false);
        }
    }

    /// Bytes; 0 for an index past the end.
    pub(super) fn len_of(&self, index: u32) -> u32 {
        self.lens.get(index as usize).copied().unwrap_or(0)
    }

    pub(super) fn copies(&self, index: u32) -> u8 {
        self.copies[index as usize]
    }

    pub(super) fn holds(&self, slot: usize, index: u32) -> bool {
        match &self.held[slot] {
            Held::Nothing => false,
            Held::Part(set) => set.contains(index),
            Held::All => true,
        }
    }

    /// Chunks that the holder is known to have; `None` if it never said or has all.
    pub(super) fn held(&self, slot: usize) -> Option<u32> {
        match &self.held[slot] {
            Held::Part(set) => Some(set.len() as u32),
            Held::Nothing | Held::All => None,
        }
    }

    /// Wanted chunks that the holder has.
    pub(super) fn offered(&self, slot: usize) -> usize {
        match &self.held[slot] {
            Held::Nothing => 0,
            Held::Part(_) => self.offered[slot] as usize,
            Held::All => self.wanted(),
        }
    }

    /// Up to `max_chunks` wanted chunks of the holder, the rarest first and among equals from `start` upwards, until
    /// `max_bytes` are reached; at least one if there is one. They are in flight from now on.
    pub(super) fn take(&mut self, slot: usize, start: u32, max_chunks: usize, max_bytes: u64) -> Vec<u32> {
        self.take_of(MOST_COMMON + 1, slot, start, max_chunks, max_bytes)
    }

    /// As [`take`](Self::take), of those that no partial holder has.
    pub(super) fn take_unshared(&mut self, slot: usize, start: u32, max_chunks: usize, max_bytes: u64) -> Vec<u32> {
        self.take_of(1, slot, start, max_chunks, max_bytes)
    }

    /// Of the so many rarest kinds.
    fn take_of(&mut self, kinds: usize, slot: usize, start: u32, max_chunks: usize, max_bytes: u64) -> Vec<u32> {
        let limit = max_chunks.min(self.offered(slot));
        let within = match &self.held[slot] {
            Held::Nothing => return Vec::new(),
            Held::Part(set) => Some(set),
            Held::All => None,
        };
        let (mut taken, mut bytes, mut full) = (Vec::with_capacity(limit), 0, false);
        for set in &self.wanted[..kinds] {
            if full || taken.len() == limit {
                break;
            }
            set.walk(start, within, |index| {
                let len = u64::from(self.lens[index as usize]);
                full = !taken.is_empty() && bytes + len > max_bytes;
                if !full {
                    taken.push(index);
                    bytes += len;
                }
                !full && taken.len() < limit
            });
        }
        for index in &taken {
            self.unwant(*index);
            self.copies[*index as usize] = 1;
        }
        taken
    }

    /// One more request carries the chunk.
    pub(super) fn duplicate(&mut self, index: u32) {
        self.copies[index as usize] += 1;
    }

    /// One request less carries the chunk; the last one makes it wanted again.
    pub(super) fn release(&mut self, index: u32) {
        let copies = &mut self.copies[index as usize];
        *copies -= 1;
        if *copies == 0 && !self.is_done(index) {
            self.want(index);
        }
    }

    /// False if it was here already.
    pub(super) fn finish(&mut self, index: u32) -> bool {
        if index as usize >= self.lens.len() || !self.done.insert(index) {
            return false;
        }
        self.bytes_done += u64::from(self.len_of(index));
        if self.copies[index as usize] == 0 {
            self.unwant(index);
        }
        true
    }

    pub(super) fn set_all(&mut self, slot: usize) {
        self.set_none(slot);
        self.held[slot] = Held::All;
    }

    pub(super) fn set_none(&mut self, slot: usize) {
        self.set_part(slot, &Bitmap::empty(self.lens.len()));
        self.held[slot] = Held::Nothing;
    }

    /// True if the holder has something that it lacked before.
    pub(super) fn set_part(&mut self, slot: usize, bits: &Bitmap) -> bool {
        let mut set = match std::mem::replace(&mut self.held[slot], Held::Nothing) {
            Held::Part(set) => set,
            Held::Nothing | Held::All => ChunkSet::new(self.lens.len()),
        };
        let mut grew = false;
        set.assign(bits, |index, has| {
            grew |= has;
            self.hold(slot, index, has);
        });
        self.held[slot] = Held::Part(set);
        grew
    }

    fn hold(&mut self, slot: usize, index: u32, has: bool) {
        let wanted = self.copies[index as usize] == 0 && !self.is_done(index);
        if wanted {
            self.unwant(index);
        }
        match has {
            true => self.partial[index as usize] |= 1 << slot,
            false => self.partial[index as usize] &= !(1 << slot),
        }
        if wanted {
            self.want(index);
        }
    }

    fn want(&mut self, index: u32) {
        let rarity = self.rarity(index);
        self.wanted[rarity].insert(index);
        self.count_wanted += 1;
        self.bytes_wanted += u64::from(self.len_of(index));
        self.each_partial(index, |offered| *offered += 1);
    }

    fn unwant(&mut self, index: u32) {
        let rarity = self.rarity(index);
        self.wanted[rarity].remove(index);
        self.count_wanted -= 1;
        self.bytes_wanted -= u64::from(self.len_of(index));
        self.each_partial(index, |offered| *offered -= 1);
    }

    fn rarity(&self, index: u32) -> usize {
        (self.partial[index as usize].count_ones() as usize).min(MOST_COMMON)
    }

    fn each_partial(&mut self, index: u32, mut change: impl FnMut(&mut u32)) {
        let mut slots = self.partial[index as usize];
        while slots != 0 {
            change(&mut self.offered[slots.trailing_zeros() as usize]);
            slots &= slots - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_in_the_chunk_that_has_it_and_an_empty_chunk_has_none() {
        let chunks = Chunks::new(vec![2, 0, 3], &Bitmap::empty(3));
        assert_eq!((0..5).map(|byte| chunks.at(byte)).collect::<Vec<_>>(), [0, 0, 2, 2, 2]);
    }
}
