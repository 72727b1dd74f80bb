//! The rules that make a manifest safe to act on, checked before any of its numbers is used.

use std::collections::HashSet;

use super::{Chunk, Draft, File, ManifestError};
use crate::artifact::{Codec, MAX_ATTRIBUTES, MAX_CHUNK, MAX_CHUNKS, MAX_FILES, RelPath};

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
    at_most("attributes", draft.attributes.len(), MAX_ATTRIBUTES)?;
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
    check_directories(files)?;
    check_case(files)
}

/// In a sorted list, the texts that begin with another one follow it.
fn check_directories(files: &[File]) -> Result<(), ManifestError> {
    let mut begun: Vec<&File> = Vec::new();
    for file in files {
        let path = file.path.as_str();
        while begun.pop_if(|last| !path.starts_with(last.path.as_str())).is_some() {}
        let holds = |other: &&&File| path.as_bytes().get(other.path.as_str().len()) == Some(&b'/');
        if let Some(directory) = begun.iter().find(holds) {
            return Err(ManifestError::FileAndDirectory(directory.path.clone()));
        }
        begun.push(file);
    }
    Ok(())
}

fn check_case(files: &[File]) -> Result<(), ManifestError> {
    if !both_cases_follow_somewhere(files) {
        return Ok(());
    }
    let mut folded = HashSet::with_capacity(files.len());
    match files.iter().find(|file| !folded.insert(file.path.as_str().to_lowercase())) {
        Some(file) => Err(ManifestError::CaseCollision(file.path.clone())),
        None => Ok(()),
    }
}

/// Whether some text is followed by a letter in one path and by the same letter in the other case in another one: only then
/// can paths differ only in case. Takes a fraction of the time of folding and comparing all, which most artifacts need not.
fn both_cases_follow_somewhere(files: &[File]) -> bool {
    let upper = |byte: u8| if byte.is_ascii_uppercase() { 1u32 << (byte - b'A') } else { 0 };
    // Where paths part, and the upper-case letters that followed there. Sorted, so those of one place come together.
    let mut forks: Vec<(usize, u32)> = Vec::new();
    for two in files.windows(2) {
        let (before, path) = (two[0].path.as_str().as_bytes(), two[1].path.as_str().as_bytes());
        let at = before.iter().zip(path).take_while(|(one, other)| one == other).count();
        while forks.pop_if(|(place, _)| *place > at).is_some() {}
        let seen = forks.pop_if(|(place, _)| *place == at).map_or(0, |(_, seen)| seen);
        let seen = seen | before.get(at).map_or(0, |byte| upper(*byte));
        let next = path.get(at).copied().unwrap_or_default();
        if next.is_ascii_lowercase() && seen & upper(next.to_ascii_uppercase()) != 0 {
            return true;
        }
        forks.push((at, seen | upper(next)));
    }
    // Outside of ASCII, case is more than a bit.
    files.iter().any(|file| !file.path.as_str().is_ascii())
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
        // No overflow: MAX_CHUNKS times MAX_CHUNK is 2^37.
        offset += u64::from(chunk.decoded_len);
    }
    offsets.push(offset);
    Ok(offsets)
}

/// Each file lies in one chunk, or begins with a chunk and fills whole ones up to its last; files of the same place have
/// the same content, others do not touch; every chunk is used.
fn check_places(files: &[File], chunks: &[Chunk], offsets: &[u64]) -> Result<(), ManifestError> {
    let end = offsets.last().copied().unwrap_or(0);
    // With the keys beside each other, which sorts twice as fast.
    let mut placed: Vec<_> =
        files.iter().filter(|file| file.size > 0).map(|file| (file.offset, file.size, file)).collect();
    placed.sort_unstable_by_key(|(offset, size, _)| (*offset, *size));
    let wrong = |file: &File| Err(ManifestError::FilePlace(file.path.clone()));
    if let Some(file) = files.iter().find(|file| file.size == 0 && file.offset != 0) {
        return wrong(file);
    }
    let mut used = vec![false; chunks.len()];
    let mut before: Option<&File> = None;
    for (_, _, file) in placed {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::Digest;

    fn files(paths: &std::collections::BTreeSet<String>) -> Vec<File> {
        let file = |path: &String| File {
            path: RelPath::new(path).unwrap(),
            executable: false,
            mtime_ns: 0,
            size: 0,
            digest: Digest::of(b""),
            offset: 0,
        };
        paths.iter().map(file).collect()
    }

    proptest! {
        #[test]
        fn paths_collide_when_folding_makes_them_equal_or_one_lies_in_another(
            paths in prop::collection::btree_set("[aAb-]{1,3}(/[aAB.]{1,2}x){0,2}|\u{c4}|\u{e4}", 1..12),
        ) {
            let files = files(&paths);
            let folded: HashSet<String> = paths.iter().map(|path| path.to_lowercase()).collect();
            prop_assert_eq!(check_case(&files).is_err(), folded.len() < paths.len());
            let within = |path: &String| paths.iter().any(|other| other.starts_with(&format!("{path}/")));
            prop_assert_eq!(check_directories(&files).is_err(), paths.iter().any(within));
        }
    }
}
