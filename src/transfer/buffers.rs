//! Buffers for arriving chunks, used again and again: no allocation a chunk, and a bound on what stays.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers come in powers of two from 64 KiB to 1 MiB, the largest chunk.
const SMALLEST: u32 = 16;
const CLASSES: usize = 5;

/// Bytes that wait for their next use, at most.
const MAX_IDLE: usize = 32 * 1024 * 1024;

/// Shared by all transfers of a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Idle>>);

#[derive(Debug, Default)]
struct Idle {
    classes: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
}

/// A buffer of the asked length; goes back when dropped. Its content is whatever it was last used for.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    home: Buffers,
}

impl Buffers {
    /// `len` is at most 1 MiB; a longer one is allocated and not kept.
    pub(super) fn take(&self, len: usize) -> Buffer {
        let class = class_of(len);
        let idle = {
            let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let found = idle.classes.get_mut(class).and_then(Vec::pop);
            if let Some(bytes) = &found {
                idle.bytes -= bytes.len();
            }
            found
        };
        let bytes = idle.unwrap_or_else(|| vec![0; len.max(1usize << (SMALLEST as usize + class.min(CLASSES - 1)))]);
        Buffer { bytes, len, home: self.clone() }
    }
}

fn class_of(len: usize) -> usize {
    (len.max(1).next_power_of_two().trailing_zeros().max(SMALLEST) - SMALLEST) as usize
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let class = class_of(bytes.len());
        let mut idle = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if class < CLASSES && idle.bytes + bytes.len() <= MAX_IDLE {
            idle.bytes += bytes.len();
            idle.classes[class].push(bytes);
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_for_the_next_chunk_of_its_size() {
        let buffers = Buffers::default();
        let mut first = buffers.take(700_000);
        first[0] = 7;
        assert_eq!(first.len(), 700_000);
        drop(first);
        let again = buffers.take(1024 * 1024);
        assert_eq!((again[0], again.len()), (7, 1024 * 1024));
        assert_eq!(buffers.take(10).len(), 10);
    }

    #[test]
    fn idle_buffers_are_bounded() {
        let buffers = Buffers::default();
        let many: Vec<Buffer> = (0..40).map(|_| buffers.take(1024 * 1024)).collect();
        drop(many);
        assert_eq!(buffers.0.lock().unwrap().bytes, MAX_IDLE);
    }
}
