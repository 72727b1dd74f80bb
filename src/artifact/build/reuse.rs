//! Which chunks of the generation before are taken over.

use std::collections::{HashMap, HashSet};

use super::{Base, Chunk};
use crate::artifact::manifest::File;
use crate::digest::Digest;

/// Takes over chunks of which at least half is still in use, tells where their content lies in the new stream, and returns
/// their encoded bytes.
pub(super) fn keep(
    base: &Base<'_>,
    digests: &[Option<Digest>],
    chunks: &mut Vec<Chunk>,
    places: &mut HashMap<Digest, u64>,
    end: &mut u64,
) -> u64 {
    let manifest = base.manifest;
    let wanted: HashSet<Digest> = digests.iter().flatten().copied().collect();
    let mut distinct: HashMap<Digest, &File> = HashMap::new();
    for file in manifest.files.iter().filter(|file| file.size > 0 && wanted.contains(&file.digest)) {
        distinct.entry(file.digest).or_insert(file);
    }
    let mut live = vec![0usize; manifest.chunks.len()];
    for file in distinct.values() {
        for span in manifest.spans(file) {
            live[span.chunk] += span.in_chunk.len();
        }
    }
    let worth: Vec<bool> = manifest
        .chunks
        .iter()
        .zip(&live)
        .map(|(chunk, live)| live * 2 >= chunk.decoded_len as usize && (base.has_chunk)(&chunk.digest))
        .collect();
    distinct.retain(|_, file| manifest.spans(file).all(|span| worth[span.chunk]));
    let used: HashSet<usize> = distinct.values().flat_map(|file| manifest.spans(file).map(|span| span.chunk)).collect();

    let mut moved: HashMap<usize, u64> = HashMap::new();
    let mut reused = 0;
    for (index, chunk) in manifest.chunks.iter().enumerate().filter(|(index, _)| used.contains(index)) {
        moved.insert(index, *end);
        *end += u64::from(chunk.decoded_len);
        reused += u64::from(chunk.encoded_len);
        chunks.push(*chunk);
    }
    for (digest, file) in distinct {
        if let Some(span) = manifest.spans(file).next()
            && let Some(begin) = moved.get(&span.chunk)
        {
            places.insert(digest, begin + span.in_chunk.start as u64);
        }
    }
    reused
}
