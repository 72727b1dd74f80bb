//! Digests of package sources: their names and contents, whatever their times and order.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;

use super::Known;

/// Files of all trees of one fact.
const MAX_FILES: usize = 100_000;

/// Bytes of one of them; sources and headers are far smaller.
const MAX_FILE: u64 = 64 << 20;

/// A text with `{}` in the place of a digest, and what that is made of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sources {
    value: String,
    trees: Vec<Tree>,
    /// Names and digests of files that need not be read.
    known: Vec<(String, String)>,
}

/// Files below a directory, called by their path below it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tree {
    prefix: String,
    root: PathBuf,
    suffix: String,
}

impl Sources {
    /// Reads the files.
    pub(super) fn read(&self) -> Known {
        match self.digest() {
            Ok(digest) => Known::Value(self.value.replacen("{}", &digest, 1)),
            Err((path, error)) => Known::Failed(format!("read {}: {error}", path.display())),
        }
    }

    fn digest(&self) -> Result<String, Unread> {
        let mut files = Vec::new();
        // A package need not have all of them.
        for tree in self.trees.iter().filter(|tree| tree.root.exists()) {
            list(tree, &tree.root, &mut files).map_err(|error| (tree.root.clone(), error))?;
        }
        let read = |(name, path): (Vec<u8>, PathBuf)| match content(&path) {
            Ok(digest) => Ok((name, digest)),
            Err(error) => Err((path, error)),
        };
        let mut lines: Vec<(Vec<u8>, String)> = files.into_par_iter().map(read).collect::<Result<_, Unread>>()?;
        lines.extend(self.known.iter().map(|(name, digest)| (name.clone().into_bytes(), digest.clone())));
        lines.sort_unstable();
        let mut hasher = blake3::Hasher::new_derive_key("warmd 2026 package sources");
        for (name, digest) in &lines {
            for part in [name.as_slice(), digest.as_bytes()] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        Ok(hasher.finalize().to_hex()[..32].to_owned())
    }
}

/// What could not be read, and why.
type Unread = (PathBuf, io::Error);

fn content(path: &Path) -> io::Result<String> {
    let file = fs::File::open(path)?;
    if file.metadata()?.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too large for a source file"));
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE), &mut text)?;
    Ok(blake3::hash(&text).to_hex().to_string())
}

/// As Python walks: links to directories are not followed, links to files are.
fn list(tree: &Tree, directory: &Path, found: &mut Vec<(Vec<u8>, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let (entry, kind) = entry.and_then(|entry| entry.file_type().map(|kind| (entry, kind)))?;
        let path = entry.path();
        if kind.is_dir() {
            if entry.file_name() != "__pycache__" {
                list(tree, &path, found)?;
            }
        } else if entry.file_name().as_bytes().ends_with(tree.suffix.as_bytes()) && path.is_file() {
            if found.len() == MAX_FILES {
                return Err(io::Error::other(format!("more than {MAX_FILES} files")));
            }
            let below = path.strip_prefix(&tree.root).unwrap_or(&path);
            found.push(([tree.prefix.as_bytes(), below.as_os_str().as_bytes()].concat(), path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(root: &Path, known: &[(&str, &str)]) -> Sources {
        let tree = |below: &str, prefix: &str| Tree {
            prefix: prefix.to_owned(),
            root: root.join(below),
            suffix: ".py".to_owned(),
        };
        let known = known.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect();
        Sources { value: "3.7 {} {}".to_owned(), trees: vec![tree("a", "a/"), tree("b", "b/")], known }
    }

    fn written(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("a/x.py", "1"), ("b/y.py", "2")].iter().chain(files) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_same_sources_have_the_same_digest_wherever_they_are() {
        let (here, there) =
            (written(&[]), written(&[("a/__pycache__/x.py", "compiled"), ("a/notes.txt", "not a source")]));
        let known = [("_C/lib.so", "aa")];
        let digest = sources(here.path(), &known).read();
        assert_eq!(digest, sources(there.path(), &known).read());
        assert_eq!(digest, Known::Value("3.7 440dc20ef4275ad031ce776a116fa166 {}".to_owned()));
    }

    #[test]
    fn a_name_a_content_and_a_known_file_each_count() {
        let read = |files: &[(&str, &str)], known: &[(&str, &str)]| sources(written(files).path(), known).read();
        let all = [
            read(&[], &[]),
            read(&[("a/x.py", "2")], &[]),
            read(&[("a/z.py", "")], &[]),
            read(&[("b/x.py", "1")], &[]),
            read(&[], &[("_C/lib.so", "aa")]),
            read(&[], &[("_C/lib.so", "bb")]),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(matches!(one, Known::Value(_)) && !all[..n].contains(one), "{n}: {one:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = written(&[]);
        fs::remove_dir_all(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b"), "no directory").unwrap();
        let path = dir.path().join("b").display().to_string();
        assert!(matches!(sources(dir.path(), &[]).read(), Known::Failed(why) if why.contains(&path)));
    }
}
