//! Which chunks of an artifact somebody has.

/// A fixed number of bits, least significant bit of each byte first on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    len: usize,
}

impl Bitmap {
    pub fn empty(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len }
    }

    pub fn full(len: usize) -> Self {
        let mut bits = Self { words: vec![u64::MAX; len.div_ceil(64)], len };
        bits.clear_tail();
        bits
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// False past the end.
    pub fn get(&self, index: usize) -> bool {
        index < self.len && self.words[index / 64] >> (index % 64) & 1 == 1
    }

    /// Ignored past the end.
    pub fn set(&mut self, index: usize, value: bool) {
        if index < self.len {
            let mask = 1 << (index % 64);
            match value {
                true => self.words[index / 64] |= mask,
                false => self.words[index / 64] &= !mask,
            }
        }
    }

    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub fn is_full(&self) -> bool {
        self.count() == self.len
    }

    pub fn ones(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len).filter(|&index| self.get(index))
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.len.div_ceil(8));
        bytes
    }

    /// `None` unless `bytes` is exactly as long as `len` bits need and no bit past the end is set.
    pub fn from_bytes(bytes: &[u8], len: usize) -> Option<Self> {
        if bytes.len() != len.div_ceil(8) {
            return None;
        }
        let mut bits = Self::empty(len);
        for (index, byte) in bytes.iter().enumerate() {
            bits.words[index / 8] |= u64::from(*byte) << (index % 8 * 8);
        }
        let set = bits.count();
        bits.clear_tail();
        (bits.count() == set).then_some(bits)
    }

    fn clear_tail(&mut self) {
        if let Some(last) = self.words.last_mut()
            && !self.len.is_multiple_of(64)
        {
            *last &= (1 << (self.len % 64)) - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes_are_least_significant_bit_first() {
        let mut bits = Bitmap::empty(10);
        bits.set(0, true);
        bits.set(9, true);
        assert_eq!(bits.to_bytes(), [0b0000_0001, 0b0000_0010]);
    }

    #[test]
    fn bits_past_the_end_and_wrong_lengths_are_refused() {
        assert_eq!(Bitmap::from_bytes(&[0xff, 0b0000_0111], 10), None);
        assert_eq!(Bitmap::from_bytes(&[0xff], 10), None);
        assert_eq!(Bitmap::from_bytes(&[0xff, 0b0000_0011], 10), Some(Bitmap::full(10)));
    }

    proptest! {
        #[test]
        fn wire_form_round_trips(bits in prop::collection::vec(any::<bool>(), 0..200)) {
            let mut map = Bitmap::empty(bits.len());
            bits.iter().enumerate().for_each(|(i, bit)| map.set(i, *bit));
            prop_assert_eq!(map.count(), bits.iter().filter(|bit| **bit).count());
            prop_assert_eq!(Bitmap::from_bytes(&map.to_bytes(), bits.len()), Some(map));
        }
    }
}
