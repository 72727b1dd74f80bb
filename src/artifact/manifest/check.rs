//! The rules that make a manifest safe to act on, checked before any of its numbers is used.

use std::borrow::Cow;
use std::collections::HashSet;

use super::{Chunk, Draft, File, ManifestError};
use crate::artifact::{Codec, MAX_CHUNK, MAX_CHUNKS, MAX_FILES, RelPath};

/// Bytes of the longest text outside of paths.
const MAX_TEXT: usize = 4096;

/// The offsets of the chunks and the stream's end, if everything fits together.
pub(super) fn check(draft: &Draft) -> Result<Vec<u64>, ManifestError> {
    if draft.files.is_empty() {
        return Err(ManifestError::Empty);
    }
    at_most("files", draft.files.len(), MAX_FILES)?;
    at_most("chunks", draft.chunks.len(), MAX_CHUNKS)?;
    at_most("entries", draft.entries.len(), MAX_FILES)?;
    check_texts(draft)?;
    check_paths(&draft.files)?;
    check_entries(&draft.entries, &draft.files)?;
    let offsets = check_chunks(&draft.chunks)?;
    check_places(&draft.files, &draft.chunks, &offsets)?;
    Ok(offsets)
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<(), ManifestError> {
    if found > limit { Err(ManifestError::TooMany { what, limit }) } else { Ok(()) }
}

fn check_texts(draft: &Draft) -> Result<(), ManifestError> {
    let provenance = &draft.provenance;
    let single = [&draft.subject, &provenance.image_digest, &provenance.engine_version, &provenance.builder];
    let pairs = draft.attributes.iter().flat_map(|(key, value)| [key, value]);
    let fits = |text: &String| text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    if single.into_iter().chain(pairs).all(fits) { Ok(()) } else { Err(ManifestError::Text) }
}

fn check_paths(files: &[File]) -> Result<(), ManifestError> {
    if let Some(two) = files.windows(2).find(|two| two[0].path >= two[1].path) {
        return Err(ManifestError::FileOrder(two[1].path.clone()));
    }
    let mut directories = HashSet::new();
    for file in files {
        let path = file.path.as_str();
        // Paths are sorted, so most files share their parents with the one before.
        for (at, _) in path.rmatch_indices('/') {
            if !directories.insert(&path[..at]) {
                break;
            }
        }
    }
    let mut folded = HashSet::with_capacity(files.len());
    for file in files {
        if directories.contains(file.path.as_str()) {
            return Err(ManifestError::FileAndDirectory(file.path.clone()));
        }
        let path = file.path.as_str();
        let lower = path.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase());
        let fold = if lower { Cow::Borrowed(path) } else { Cow::Owned(path.to_lowercase()) };
        if !folded.insert(fold) {
            return Err(ManifestError::CaseCollision(file.path.clone()));
        }
    }
    Ok(())
}

fn check_entries(entries: &[RelPath], files: &[File]) -> Result<(), ManifestError> {
    if let Some(two) = entries.windows(2).find(|two| two[0] >= two[1]) {
        return Err(ManifestError::Entry(two[1].clone()));
    }
    let mut used = HashSet::with_capacity(entries.len());
    let mut current: Option<&RelPath> = None;
    for file in files {
        // Paths are sorted, so most files lie in the entry of the one before.
        if current.is_some_and(|entry| file.path.is_within(entry)) {
            continue;
        }
        let entry = entry_of(entries, &file.path).ok_or_else(|| ManifestError::NoEntry(file.path.clone()))?;
        used.insert(entry);
        current = Some(entry);
    }
    for entry in entries {
        let nested = entry_of(entries, entry).is_some_and(|topmost| topmost != entry);
        if nested || !used.contains(entry) {
            return Err(ManifestError::Entry(entry.clone()));
        }
    }
    Ok(())
}

/// The topmost entry that `path` is or lies in; `entries` is sorted.
pub(super) fn entry_of<'e>(entries: &'e [RelPath], path: &RelPath) -> Option<&'e RelPath> {
    let path = path.as_str();
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let mut found = ends.filter_map(|end| entries.binary_search_by(|entry| entry.as_str().cmp(&path[..end])).ok());
    found.next().map(|index| &entries[index])
}

fn check_chunks(chunks: &[Chunk]) -> Result<Vec<u64>, ManifestError> {
    let mut offsets = Vec::with_capacity(chunks.len() + 1);
    let mut offset = 0u64;
    let allowed = 1..=MAX_CHUNK as u32;
    for (index, chunk) in chunks.iter().enumerate() {
        let lengths = allowed.contains(&chunk.decoded_len) && allowed.contains(&chunk.encoded_len);
        let codec = match chunk.codec {
            Codec::Raw => chunk.encoded_len == chunk.decoded_len,
            Codec::Zstd => chunk.encoded_len < chunk.decoded_len,
        };
        if !lengths || !codec {
            return Err(ManifestError::ChunkLength(index));
        }
        offsets.push(offset);
        // No overflow: MAX_CHUNKS times MAX_CHUNK is 2^39.
        offset += u64::from(chunk.decoded_len);
    }
    offsets.push(offset);
    Ok(offsets)
}

/// Each file lies in one chunk, or begins with a chunk and fills whole ones up to its last; files of the same place have
/// the same content, others do not touch; every chunk is used.
fn check_places(files: &[File], chunks: &[Chunk], offsets: &[u64]) -> Result<(), ManifestError> {
    let end = offsets.last().copied().unwrap_or(0);
    let mut placed: Vec<&File> = files.iter().filter(|file| file.size > 0).collect();
    placed.sort_unstable_by_key(|file| (file.offset, file.size));
    let wrong = |file: &File| Err(ManifestError::FilePlace(file.path.clone()));
    if let Some(file) = files.iter().find(|file| file.size == 0 && file.offset != 0) {
        return wrong(file);
    }
    let mut used = vec![false; chunks.len()];
    let mut before: Option<&File> = None;
    for file in placed {
        let Some(file_end) = file.offset.checked_add(file.size).filter(|file_end| *file_end <= end) else {
            return wrong(file);
        };
        if let Some(other) = before.filter(|other| other.offset + other.size > file.offset) {
            if (other.offset, other.size, other.digest) != (file.offset, file.size, file.digest) {
                return wrong(file);
            }
            continue;
        }
        let first = offsets.partition_point(|offset| *offset <= file.offset) - 1;
        let past = offsets.partition_point(|offset| *offset < file_end);
        let whole = chunks[first..past - 1].iter().all(|chunk| chunk.decoded_len as usize == MAX_CHUNK);
        if past - first > 1 && !(offsets[first] == file.offset && whole) {
            return wrong(file);
        }
        used[first..past].fill(true);
        before = Some(file);
    }
    match used.iter().position(|used| !used) {
        Some(index) => Err(ManifestError::UnusedChunk(index)),
        None => Ok(()),
    }
}
