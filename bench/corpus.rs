//! Seeded copies of the shapes of real caches: corpora A-F. The same kind, seed and scale give the same bytes on every machine.
//!
//! A corpus is planned first (paths, sizes, seeds; a pure function) and rendered afterwards, file by file, on all cores.

#[path = "corpus/content.rs"]
pub(crate) mod content;
#[path = "corpus/random.rs"]
pub(crate) mod random;
#[path = "corpus/shapes.rs"]
mod shapes;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rayon::prelude::*;

use content::Content;
use random::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum Kind {
    /// 8B dense, one rank, AOT: about 1,000 files, 50 MB.
    A,
    /// 8B dense, one rank, piecewise: 28 of 33 artifacts are the same bytes.
    B,
    /// DeepSeek-V3 class, eight ranks: 9,000 files.
    C,
    /// Many small files: 22,000, about 500 MB.
    D,
    /// Small MoE: 1,034 files, 35 MB.
    E,
    /// LoRA adapters, incompressible.
    F,
}

/// `scale` multiplies the number of entries, never the size of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Corpus {
    pub kind: Kind,
    pub seed: u64,
    pub scale: f64,
}

#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub path: String,
    pub content: Content,
    pub size: usize,
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Written {
    pub files: u64,
    pub bytes: u64,
}

impl Corpus {
    /// Every file of the corpus, ordered by path.
    pub(crate) fn plan(&self) -> Vec<Planned> {
        let mut files = shapes::plan(self.kind, self.seed, self.scale);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// Writes the corpus below `dir`, which is made when missing.
    pub(crate) fn write(&self, dir: &Path) -> Result<Written> {
        write(dir, &self.plan())
    }

    /// Makes the tree that `write` left into its next generation: half of `fraction` of the files get new content, the other half
    /// is new entries. Both are spread over the whole tree. Returns what was written.
    pub(crate) fn next_generation(&self, dir: &Path, fraction: f64) -> Result<Written> {
        write(dir, &self.changes(fraction))
    }

    /// The files that `next_generation` writes.
    pub(crate) fn changes(&self, fraction: f64) -> Vec<Planned> {
        let before = self.plan();
        let budget = (before.len() as f64 * fraction).round() as usize;
        let added = Self { seed: self.seed ^ 0x9e37_79b9, scale: self.scale * fraction / 2.0, ..*self };
        let known: BTreeSet<&str> = before.iter().map(|file| file.path.as_str()).collect();
        let mut changes: Vec<Planned> =
            added.plan().into_iter().filter(|file| !known.contains(file.path.as_str())).take(budget / 2).collect();

        let mut random = Random::new(self.seed ^ 0x7f4a_7c15);
        let mut left: Vec<usize> = (0..before.len()).collect();
        while changes.len() < budget && !left.is_empty() {
            let mut file = before[left.swap_remove(random.below(left.len()))].clone();
            file.seed = random.next();
            changes.push(file);
        }
        changes
    }
}

fn write(dir: &Path, files: &[Planned]) -> Result<Written> {
    let parents: BTreeSet<_> = files.iter().filter_map(|file| Path::new(&file.path).parent()).collect();
    for parent in parents {
        fs::create_dir_all(dir.join(parent)).with_context(|| format!("make {}", dir.join(parent).display()))?;
    }
    files.par_iter().try_for_each_init(Vec::new, |buffer, file| {
        file.content.render(file.size, file.seed, buffer);
        let path = dir.join(&file.path);
        // A changed file is a new one under the old name: caches are written so, and hard links elsewhere stay as they were.
        let _ = fs::remove_file(&path);
        fs::write(&path, &*buffer).with_context(|| format!("write {}", path.display()))
    })?;
    Ok(Written { files: files.len() as u64, bytes: files.iter().map(|file| file.size as u64).sum() })
}
