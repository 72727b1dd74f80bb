//! Files are read some at a time, side by side into one buffer, and packed where they lie.

use std::ops::Range;

use rayon::prelude::*;

use super::reader::Reader;
use super::{BuildError, Outputs, SourceFile};
use crate::digest::Digest;

/// Bytes of content read at a time: for each core enough to keep it busy, and little enough that the same memory, warm in the
/// processor's caches, serves again and again. Two such windows exist at once.
const PER_CORE: usize = 4 * 1024 * 1024;
const MOST: usize = 32 * 1024 * 1024;

/// What is read at a time.
pub(super) enum Batch {
    /// Indices of files that fit into a window together.
    Few(Vec<usize>),
    /// One that does not fit.
    Huge(usize),
}

/// Everything that is not `placed` yet, in order.
pub(super) fn batches(files: &[SourceFile], placed: impl Fn(usize) -> bool) -> Vec<Batch> {
    let size = PER_CORE.saturating_mul(rayon::current_num_threads()).min(MOST) as u64;
    let (mut batches, mut few, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (index, file) in files.iter().enumerate().filter(|(index, _)| !placed(*index)) {
        if bytes + file.size() > size && !few.is_empty() {
            batches.push(Batch::Few(std::mem::take(&mut few)));
            bytes = 0;
        }
        if file.size() > size {
            batches.push(Batch::Huge(index));
        } else {
            few.push(index);
            bytes += file.size();
        }
    }
    if !few.is_empty() {
        batches.push(Batch::Few(few));
    }
    batches
}

/// The contents of a few files.
#[derive(Default)]
pub(super) struct Window {
    files: Vec<usize>,
    digests: Vec<Digest>,
    /// Where each file ends in `buffer`.
    ends: Vec<usize>,
    buffer: Vec<u8>,
}

impl Window {
    pub(super) fn files(&self) -> &[usize] {
        &self.files
    }

    /// Replaces what it holds.
    pub(super) fn read(
        &mut self,
        files: &[SourceFile],
        few: &[usize],
        outputs: &Outputs<'_>,
    ) -> Result<(), BuildError> {
        self.files.clear();
        self.ends.clear();
        let mut end = 0;
        for &index in few {
            // All of them together fit into a window.
            end += files[index].size() as usize;
            self.ends.push(end);
        }
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        let mut rest = &mut self.buffer[..];
        let mut parts = Vec::with_capacity(few.len());
        for &index in few {
            let (part, after) = rest.split_at_mut(files[index].size() as usize);
            parts.push((&files[index], part));
            rest = after;
        }
        self.digests = parts.into_par_iter().map(|(file, part)| read(file, part, outputs)).collect::<Result<_, _>>()?;
        self.files.extend_from_slice(few);
        Ok(())
    }

    /// Each file's index, digest and place in the window.
    pub(super) fn contents(&self) -> impl Iterator<Item = (usize, Digest, Range<usize>)> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        let parts = begins.zip(&self.ends).map(|(begin, end)| begin..*end);
        self.files.iter().zip(&self.digests).zip(parts).map(|((index, digest), part)| (*index, *digest, part))
    }
}

fn read(file: &SourceFile, into: &mut [u8], outputs: &Outputs<'_>) -> Result<Digest, BuildError> {
    let reader = Reader::open(file)?;
    reader.read(0, into)?;
    reader.check()?;
    reader.check_key(0, into)?;
    (outputs.progress)(into.len() as u64);
    Ok(Digest::of(into))
}

/// The content of a chunk to be: what is left of the window before, and parts of this one.
#[derive(Default)]
pub(super) struct Pack {
    head: Vec<u8>,
    parts: Vec<Range<usize>>,
    len: usize,
}

impl Pack {
    pub(super) fn of(part: Range<usize>) -> Self {
        Self { head: Vec::new(), len: part.len(), parts: vec![part] }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, part: Range<usize>) {
        self.len += part.len();
        match self.parts.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => self.parts.push(part),
        }
    }

    /// Makes it independent of the window.
    pub(super) fn detach(&mut self, window: &Window) {
        for part in self.parts.drain(..) {
            self.head.extend_from_slice(&window.buffer[part]);
        }
    }

    /// In the window where they lie side by side, else put together in `buffer`.
    pub(super) fn bytes<'b>(&self, window: &'b Window, buffer: &'b mut Vec<u8>) -> &'b [u8] {
        if self.head.is_empty()
            && let [one] = &self.parts[..]
        {
            return &window.buffer[one.clone()];
        }
        buffer.clear();
        buffer.extend_from_slice(&self.head);
        self.parts.iter().for_each(|part| buffer.extend_from_slice(&window.buffer[part.clone()]));
        buffer
    }
}
