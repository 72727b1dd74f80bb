//! What one installation has to do: which entries, which chunks, and which bytes of a chunk go to which files. Pure.

use std::collections::HashMap;

use crate::artifact::{Bitmap, File, Manifest, RelPath};

/// Bytes that a file may take beyond its size, and what a directory takes.
const BLOCK: u64 = 4096;

/// Bytes of one decoded chunk that go to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    chunk: u32,
    /// Bytes of the decoded chunk.
    pub(super) begin: u32,
    pub(super) end: u32,
    /// Index into the manifest's files.
    pub(super) file: u32,
    /// Index into [`Plan::cut`] if the file lies in several chunks.
    pub(super) cut: Option<u32>,
    pub(super) in_file: u64,
}

/// Content that lies in several chunks, with all files that have it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) files: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Plan {
    /// Indices of entries that are not there yet.
    pub(super) missing: Vec<usize>,
    pub(super) needed: Bitmap,
    /// Sorted by chunk, place in the chunk, file.
    parts: Vec<Part>,
    /// Where the parts of each chunk begin, and the end.
    first: Vec<u32>,
    pub(super) cut: Vec<Cut>,
    /// Indices of missing files without content.
    pub(super) empty: Vec<usize>,
    pub(super) files: u64,
    /// Of all missing files.
    pub(super) bytes: u64,
    /// What they take on a disk, at most.
    pub(super) disk_bytes: u64,
}

impl Plan {
    /// `missing` are indices of the manifest's entries, ascending.
    pub(super) fn new(manifest: &Manifest, missing: Vec<usize>) -> Self {
        let mut plan = Self {
            needed: Bitmap::empty(manifest.chunks.len()),
            parts: Vec::new(),
            first: vec![0; manifest.chunks.len() + 1],
            cut: Vec::new(),
            empty: Vec::new(),
            files: 0,
            bytes: 0,
            disk_bytes: missing.len() as u64 * BLOCK,
            missing,
        };
        let mut cuts = HashMap::new();
        let mut directory = "";
        let mut current: Option<(&RelPath, bool)> = None;
        for (index, file) in manifest.files.iter().enumerate() {
            // Paths are sorted, so most files lie in the entry of the one before.
            if !current.is_some_and(|(entry, _)| file.path.is_within(entry)) {
                let wanted = |entry| plan.missing.binary_search_by(|index| manifest.entries[*index].cmp(entry)).is_ok();
                current = manifest.entry_of(&file.path).map(|entry| (entry, wanted(entry)));
            }
            if !current.is_some_and(|(_, wanted)| wanted) {
                continue;
            }
            let parent = split(file).0;
            plan.disk_bytes = plan.disk_bytes.saturating_add(if parent == directory { 0 } else { BLOCK });
            directory = parent;
            plan.add(manifest, index, file, &mut cuts);
        }
        plan.parts.sort_unstable_by_key(|part| (part.chunk, part.begin, part.file));
        for chunk in 0..manifest.chunks.len() {
            plan.first[chunk + 1] = plan.parts.partition_point(|part| part.chunk as usize <= chunk) as u32;
        }
        plan
    }

    fn add(&mut self, manifest: &Manifest, index: usize, file: &File, cuts: &mut HashMap<u64, u32>) {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(file.size);
        self.disk_bytes = self.disk_bytes.saturating_add(file.size.next_multiple_of(BLOCK));
        if file.size == 0 {
            self.empty.push(index);
            return;
        }
        let spans: Vec<_> = manifest.spans(file).collect();
        let cut = (spans.len() > 1).then(|| {
            let cut = *cuts.entry(file.offset).or_insert_with(|| {
                self.cut.push(Cut::default());
                (self.cut.len() - 1) as u32
            });
            self.cut[cut as usize].files.push(index);
            cut
        });
        for span in spans {
            self.needed.set(span.chunk, true);
            // All fit: the limits of manifests are below 2^32.
            self.parts.push(Part {
                chunk: span.chunk as u32,
                begin: span.in_chunk.start as u32,
                end: span.in_chunk.end as u32,
                file: index as u32,
                cut,
                in_file: span.in_file,
            });
        }
    }

    /// Parts of one chunk; those of equal files are neighbours.
    pub(super) fn parts_of(&self, chunk: usize) -> impl Iterator<Item = &[Part]> + Clone {
        let range = self.first[chunk] as usize..self.first[chunk + 1] as usize;
        self.parts[range].chunk_by(|a, b| a.begin == b.begin)
    }
}

/// Directory and name.
pub(super) fn split(file: &File) -> (&str, &str) {
    file.path.as_str().rsplit_once('/').unwrap_or(("", file.path.as_str()))
}
