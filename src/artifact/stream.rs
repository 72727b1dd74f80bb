//! Where files lie in the content stream, and how a file that is cut into chunks gets one digest.

use std::ops::Range;

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use super::MAX_CHUNK;
use crate::digest::Digest;

/// A part of one file inside one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Index into the manifest's chunks.
    pub chunk: usize,
    /// Bytes of the decoded chunk.
    pub in_chunk: Range<usize>,
    /// Where these bytes begin in the file.
    pub in_file: u64,
}

/// Hashes a file whose pieces of [`MAX_CHUNK`] bytes come in any order, each seen once and none kept.
///
/// A piece is a subtree of the file's BLAKE3 tree, so the pieces' chaining values merge into the ordinary digest.
pub struct FileHasher {
    size: u64,
    pieces: Vec<Option<ChainingValue>>,
    single: Option<Digest>,
}

impl FileHasher {
    pub fn new(size: u64) -> Self {
        let pieces = usize::try_from(size.div_ceil(MAX_CHUNK as u64)).unwrap_or(usize::MAX);
        let cut = if pieces > 1 { pieces } else { 0 };
        Self { size, pieces: vec![None; cut], single: None }
    }

    /// `bytes` at `offset`, which is a multiple of [`MAX_CHUNK`]; every piece but the last has that length.
    pub fn piece(&mut self, offset: u64, bytes: &[u8]) {
        if self.pieces.is_empty() {
            self.single = Some(Digest::of(bytes));
            return;
        }
        let value = piece_value(offset, bytes);
        self.set(offset, value);
    }

    /// As [`FileHasher::piece`] with a value that another thread computed by [`piece_value`].
    pub fn set(&mut self, offset: u64, value: ChainingValue) {
        if let Ok(index) = usize::try_from(offset / MAX_CHUNK as u64)
            && let Some(slot) = self.pieces.get_mut(index)
        {
            *slot = Some(value);
        }
    }

    /// `None` until every piece was seen.
    pub fn finish(&self) -> Option<Digest> {
        if self.pieces.is_empty() {
            return self.single.or_else(|| (self.size == 0).then(|| Digest::of(b"")));
        }
        let values: Option<Vec<ChainingValue>> = self.pieces.iter().copied().collect();
        let values = values?;
        let left = subtrees_left(self.size);
        let (a, b) = values.split_at(left);
        let left_len = left_subtree_len(self.size);
        let root = merge_subtrees_root(&merge(a, left_len), &merge(b, self.size - left_len), Mode::Hash);
        Some(root.into())
    }
}

/// The chaining value of one piece of a file that has more than one. `offset` is a multiple of [`MAX_CHUNK`].
pub fn piece_value(offset: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset).update(bytes);
    hasher.finalize_non_root()
}

fn merge(values: &[ChainingValue], len: u64) -> ChainingValue {
    match values {
        [one] => *one,
        _ => {
            let left_len = left_subtree_len(len);
            let (a, b) = values.split_at(subtrees_left(len));
            merge_subtrees_non_root(&merge(a, left_len), &merge(b, len - left_len), Mode::Hash)
        }
    }
}

/// Pieces in the left half of a tree over `len` bytes, `len` > [`MAX_CHUNK`].
fn subtrees_left(len: u64) -> usize {
    usize::try_from(left_subtree_len(len) / MAX_CHUNK as u64).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_give_the_plain_digest() {
        let bytes: Vec<u8> = (0..5 * MAX_CHUNK + 12_345).map(|i| (i / 7 % 251) as u8).collect();
        for size in [0, 1, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 2 * MAX_CHUNK, 3 * MAX_CHUNK + 5, bytes.len()] {
            let content = &bytes[..size];
            let mut hasher = FileHasher::new(size as u64);
            let pieces: Vec<(usize, &[u8])> = content.chunks(MAX_CHUNK).enumerate().collect();
            for (index, piece) in pieces.into_iter().rev() {
                hasher.piece((index * MAX_CHUNK) as u64, piece);
            }
            assert_eq!(hasher.finish(), Some(Digest::of(content)), "{size} bytes");
        }
    }

    #[test]
    fn a_missing_piece_gives_no_digest() {
        let mut hasher = FileHasher::new(2 * MAX_CHUNK as u64);
        hasher.piece(0, &vec![0; MAX_CHUNK]);
        assert_eq!(hasher.finish(), None);
    }
}
