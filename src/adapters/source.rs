//! An adapter as somebody trained it: a directory with two files that count.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::config::{AdapterConfig, ConfigError, MAX_CONFIG};
use super::json::shown;
use super::safetensors::{Limits, SafetensorsError, Weights};
use crate::artifact::{self, PathError, RelPath, Stamp, content_id};
use crate::digest::{ContentId, Digest};

/// The files of an adapter. Nothing else is published, installed or shown to an engine.
pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// More names than any training run leaves.
const MAX_NAMES: usize = 10_000;

/// Ends of names of files that run code when they are loaded, which engines fall back to where there is nothing else.
const PICKLES: [&str; 6] = [".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"];

/// The directory is no adapter.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: more than {MAX_NAMES} names", path = .0.display())]
    TooMany(PathBuf),
    #[error("{directory}: has no {file}", directory = .directory.display())]
    Missing { directory: PathBuf, file: &'static str },
    #[error("{path}: is a symbolic link or no regular file: copy what it points to", path = .0.display())]
    Special(PathBuf),
    #[error("{directory}: has no {WEIGHTS}, only `{name}`, which runs code when it is loaded: save the adapter as safetensors", directory = .directory.display())]
    Pickle { directory: PathBuf, name: String },
    #[error("{directory}: `{name}` is one part of several: save the adapter as one {WEIGHTS}", directory = .directory.display())]
    Sharded { directory: PathBuf, name: String },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Weights(#[from] SafetensorsError),
    #[error("{directory}: its content is {found}, expected {expected}", directory = .directory.display())]
    Content { directory: PathBuf, found: ContentId, expected: ContentId },
    #[error("{path}: changed while it was read", path = .0.display())]
    Changed(PathBuf),
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Both files, open, and their content id, for which all of their bytes were read.
#[derive(Debug)]
pub struct Source {
    pub(super) config: AdapterConfig,
    pub(super) weights: Weights,
    content: ContentId,
    stamps: [(PathBuf, Stamp); 2],
}

impl Source {
    /// Blocking. With `expected`, another content is an error.
    pub fn open(directory: &Path, expected: Option<&ContentId>) -> Result<Self, SourceError> {
        check_names(directory)?;
        let (config_path, weights_path) = (directory.join(CONFIG), directory.join(WEIGHTS));
        let (bytes, config_stamp, config_executable) = read_config(directory, &config_path)?;
        let weights = Weights::open(&weights_path, &Limits::ADAPTER)?;
        let meta =
            weights.file().metadata().map_err(|source| SourceError::Io { path: weights_path.clone(), source })?;
        let files = [
            file(CONFIG, bytes.len() as u64, config_executable, Digest::of(&bytes))?,
            file(WEIGHTS, meta.size(), is_executable(&meta), digest(&weights, &weights_path)?)?,
        ];
        let content = content_id(&files);
        if let Some(expected) = expected.filter(|expected| **expected != content) {
            return Err(SourceError::Content { directory: directory.to_owned(), found: content, expected: *expected });
        }
        let stamps = [(config_path, config_stamp), (weights_path, Stamp::of(&meta))];
        let source = Self { config: AdapterConfig::parse(&bytes)?, weights, content, stamps };
        source.check_unchanged()?;
        Ok(source)
    }

    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// As in the manifest of an artifact of these two files.
    pub fn content(&self) -> ContentId {
        self.content
    }

    /// What was read since is what the content id covers.
    pub(super) fn check_unchanged(&self) -> Result<(), SourceError> {
        for (path, stamp) in &self.stamps {
            let meta = path.symlink_metadata().map_err(|source| SourceError::Io { path: path.clone(), source })?;
            if Stamp::of(&meta) != *stamp {
                return Err(SourceError::Changed(path.clone()));
            }
        }
        Ok(())
    }
}

/// Both files are there, and nothing that an engine might load in their place.
fn check_names(directory: &Path) -> Result<(), SourceError> {
    let io = |source| SourceError::Io { path: directory.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)? {
        if names.len() == MAX_NAMES {
            return Err(SourceError::TooMany(directory.to_owned()));
        }
        names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    let has_weights = names.iter().any(|name| name == WEIGHTS);
    for name in &names {
        let lower = name.to_ascii_lowercase();
        // Beside the weights, training leaves pickles that are no part of the adapter.
        if !has_weights && PICKLES.iter().any(|end| lower.ends_with(end)) {
            return Err(SourceError::Pickle { directory: directory.to_owned(), name: shown(name) });
        }
        if lower.starts_with("adapter_model-") || lower == "adapter_model.safetensors.index.json" {
            return Err(SourceError::Sharded { directory: directory.to_owned(), name: shown(name) });
        }
    }
    for file in [CONFIG, WEIGHTS] {
        if !names.iter().any(|name| name == file) {
            return Err(SourceError::Missing { directory: directory.to_owned(), file });
        }
        let path = directory.join(file);
        let meta = path.symlink_metadata().map_err(|source| SourceError::Io { path: path.clone(), source })?;
        if !meta.is_file() {
            return Err(SourceError::Special(path));
        }
    }
    Ok(())
}

fn read_config(directory: &Path, path: &Path) -> Result<(Vec<u8>, Stamp, bool), SourceError> {
    let io = |source| SourceError::Io { path: directory.join(CONFIG), source };
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(SourceError::Special(path.to_owned()));
    }
    if meta.len() > MAX_CONFIG {
        return Err(ConfigError::TooLarge { found: meta.len() }.into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok((bytes, Stamp::of(&meta), is_executable(&meta)))
}

fn is_executable(meta: &std::fs::Metadata) -> bool {
    meta.mode() & 0o111 != 0
}

fn digest(weights: &Weights, path: &Path) -> Result<Digest, SourceError> {
    let mut hasher = blake3::Hasher::new();
    let mut file = weights.file();
    io::Seek::rewind(&mut file)
        .and_then(|()| hasher.update_reader(file).map(drop))
        .map_err(|source| SourceError::Io { path: path.to_owned(), source })?;
    Ok(hasher.finalize().into())
}

fn file(path: &str, size: u64, executable: bool, digest: Digest) -> Result<artifact::File, SourceError> {
    Ok(artifact::File { path: RelPath::new(path)?, executable, mtime_ns: 0, size, digest, offset: 0 })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn recorded(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters").join(name)
    }

    fn copy() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in [CONFIG, WEIGHTS] {
            std::fs::copy(recorded("plain").join(name), dir.path().join(name)).unwrap();
        }
        dir
    }

    #[test]
    fn the_same_bytes_have_the_same_content_id_wherever_they_are() {
        let (here, there) = (Source::open(copy().path(), None).unwrap(), copy());
        assert_eq!(Source::open(there.path(), Some(&here.content())).unwrap().content(), here.content());
        std::fs::write(there.path().join(CONFIG), r#"{"r":4}"#).unwrap();
        let error = Source::open(there.path(), Some(&here.content())).unwrap_err();
        assert!(matches!(error, SourceError::Content { expected, .. } if expected == here.content()));
    }

    #[test]
    fn pickles_in_place_of_the_weights_are_refused_by_name_and_beside_them_ignored() {
        for name in ["adapter_model.bin", "x.PT", "optimizer.pth", "training_args.bin", "a.pkl"] {
            let dir = copy();
            let alone = Source::open(dir.path(), None).unwrap().content();
            std::fs::write(dir.path().join(name), b"\x80\x02").unwrap();
            assert_eq!(Source::open(dir.path(), None).unwrap().content(), alone);
            std::fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
            let error = Source::open(dir.path(), None).unwrap_err();
            assert!(matches!(&error, SourceError::Pickle { name: found, .. } if found == name), "{error}");
        }
    }

    #[test]
    fn shards_are_refused_by_name() {
        for name in ["adapter_model-00001-of-00002.safetensors", "adapter_model.safetensors.index.json"] {
            let dir = copy();
            std::fs::write(dir.path().join(name), b"").unwrap();
            assert!(matches!(Source::open(dir.path(), None), Err(SourceError::Sharded { .. })));
        }
    }

    #[test]
    fn links_in_place_of_the_files_are_refused_and_other_files_do_not_matter() {
        for name in [CONFIG, WEIGHTS] {
            let dir = copy();
            std::fs::remove_file(dir.path().join(name)).unwrap();
            symlink(recorded("plain").join(name), dir.path().join(name)).unwrap();
            assert!(matches!(Source::open(dir.path(), None), Err(SourceError::Special(path)) if path.ends_with(name)));
        }
        let dir = copy();
        symlink("/etc/passwd", dir.path().join("README.md")).unwrap();
        assert!(Source::open(dir.path(), None).is_ok());
    }

    #[test]
    fn a_directory_that_lacks_one_of_the_files_says_which() {
        for name in [CONFIG, WEIGHTS] {
            let dir = copy();
            std::fs::remove_file(dir.path().join(name)).unwrap();
            assert!(matches!(Source::open(dir.path(), None), Err(SourceError::Missing { file, .. }) if file == name));
        }
    }

    #[test]
    fn a_configuration_of_a_hundred_megabytes_is_refused_unread() {
        let dir = copy();
        let file = File::options().write(true).open(dir.path().join(CONFIG)).unwrap();
        file.set_len(100 << 20).unwrap();
        let error = Source::open(dir.path(), None).unwrap_err();
        assert!(matches!(error, SourceError::Config(ConfigError::TooLarge { found }) if found == 100 << 20));
    }

    #[test]
    fn weights_cut_in_the_middle_are_refused() {
        let dir = copy();
        let file = File::options().write(true).open(dir.path().join(WEIGHTS)).unwrap();
        file.set_len(3000).unwrap();
        assert!(matches!(
            Source::open(dir.path(), None),
            Err(SourceError::Weights(SafetensorsError::Malformed { .. }))
        ));
    }

    #[test]
    fn what_changes_after_it_was_opened_is_told() {
        let dir = copy();
        let source = Source::open(dir.path(), None).unwrap();
        source.check_unchanged().unwrap();
        std::fs::write(dir.path().join(CONFIG), r#"{"r":5}"#).unwrap();
        assert!(matches!(source.check_unchanged(), Err(SourceError::Changed(_))));
    }
}
