//! Keccak-256 as Ethereum has it: the padding of the contest's winner, not the one of SHA-3.
//! <https://keccak.team/files/Keccak-reference-3.0.pdf>

const ROUNDS: usize = 24;
/// Bytes of a block.
const RATE: usize = 136;

pub(super) fn keccak256(message: &[u8]) -> [u8; 32] {
    let mut state = [0u64; 25];
    let mut padded = message.to_vec();
    padded.push(0x01);
    padded.resize(padded.len().next_multiple_of(RATE), 0);
    if let Some(last) = padded.last_mut() {
        *last |= 0x80;
    }
    for block in padded.chunks_exact(RATE) {
        for (lane, bytes) in state.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane ^= u64::from_le_bytes(*bytes);
        }
        permute(&mut state);
    }
    let mut out = [0; 32];
    for (bytes, lane) in out.as_chunks_mut::<8>().0.iter_mut().zip(state) {
        *bytes = lane.to_le_bytes();
    }
    out
}

/// Keccak-f\[1600\]. Lane (x, y) is at `x + 5 * y`.
fn permute(a: &mut [u64; 25]) {
    let mut lfsr = 1u8;
    for _ in 0..ROUNDS {
        let column: [u64; 5] = std::array::from_fn(|x| a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20]);
        for (at, lane) in a.iter_mut().enumerate() {
            *lane ^= column[(at + 4) % 5] ^ column[(at + 1) % 5].rotate_left(1);
        }
        let (mut x, mut y, mut moved) = (1, 0, a[1]);
        for step in 1..=24 {
            (x, y) = (y, (2 * x + 3 * y) % 5);
            moved = std::mem::replace(&mut a[x + 5 * y], moved.rotate_left(step * (step + 1) / 2 % 64));
        }
        for row in a.as_chunks_mut::<5>().0 {
            let before = *row;
            for x in 0..5 {
                row[x] = before[x] ^ (!before[(x + 1) % 5] & before[(x + 2) % 5]);
            }
        }
        for bit in 0..7 {
            a[0] ^= u64::from(lfsr & 1) << ((1u32 << bit) - 1);
            lfsr = (lfsr << 1) ^ if lfsr >> 7 == 1 { 0x71 } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn known_digests() {
        for (message, digest) in [
            ("", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"),
            ("abc", "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
        ] {
            assert_eq!(HEXLOWER.encode(&keccak256(message.as_bytes())), digest);
        }
    }

    #[test]
    fn every_length_around_a_block_is_padded_to_another_digest() {
        let digests: std::collections::HashSet<_> = (100..300).map(|n| keccak256(&vec![7; n])).collect();
        assert_eq!(digests.len(), 200);
    }
}
