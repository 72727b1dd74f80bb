//! A model's weights in a local directory: one safetensors file, or shards and their index. The operator has put them
//! there, so links are followed, as the caches of model hubs need it; sizes are bounded as everybody's.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::json::{self, JsonError};
use super::super::safetensors::{Limits, SafetensorsError, Tensor, Weights};
use crate::digest::Digest;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX: u64 = 64 << 20;
const MAX_SHARDS: usize = 4096;

/// Elements of the largest weight: 4 GiB of `f32`.
const MAX_ELEMENTS: u64 = 1 << 30;

/// The same layer under the names that loaders and checkpoints of one model give it.
const PREFIXES: [&str; 4] = ["model.language_model.", "language_model.model.", "language_model.", "model."];

/// The base model's weights cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: holds neither {SINGLE} nor {INDEX}", path = .0.display())]
    Absent(PathBuf),
    #[error("{path}: more than {MAX_INDEX} bytes", path = .0.display())]
    IndexTooLarge(PathBuf),
    #[error("{path}: {source}", path = .path.display())]
    Json { path: PathBuf, source: JsonError },
    #[error("{path}: {what}", path = .path.display())]
    Index { path: PathBuf, what: String },
    #[error(transparent)]
    Weights(#[from] SafetensorsError),
    #[error("{base}: has no weight for `{module}`", base = .base.display())]
    NoWeight { base: PathBuf, module: String },
    #[error("{base}: the weight of `{module}` is no matrix but {shape:?}", base = .base.display())]
    NoMatrix { base: PathBuf, module: String, shape: Vec<u64> },
}

/// Open shards of a model.
#[derive(Debug)]
pub struct BaseWeights {
    directory: PathBuf,
    shards: Vec<Weights>,
    /// Shard and tensor by name.
    places: BTreeMap<String, (usize, usize)>,
}

impl BaseWeights {
    pub fn open(directory: &Path) -> Result<Self, BaseError> {
        let single = directory.join(SINGLE);
        let paths = if directory.join(INDEX).exists() {
            shards_of(directory)?
        } else if single.exists() {
            vec![single]
        } else {
            return Err(BaseError::Absent(directory.to_owned()));
        };
        let mut shards = Vec::with_capacity(paths.len());
        let mut places = BTreeMap::new();
        for (shard, path) in paths.iter().enumerate() {
            let weights = Weights::open_following(path, &Limits::BASE)?;
            for (at, tensor) in weights.header().tensors().iter().enumerate() {
                places.insert(tensor.name.clone(), (shard, at));
            }
            shards.push(weights);
        }
        Ok(Self { directory: directory.to_owned(), shards, places })
    }

    /// Rows (outputs) and columns (inputs) of a linear layer, by its path in the model.
    pub fn shape(&self, module: &str) -> Result<[u64; 2], BaseError> {
        let (_, tensor) = self.find(module)?;
        let no_matrix = || BaseError::NoMatrix {
            base: self.directory.clone(),
            module: module.to_owned(),
            shape: tensor.shape.clone(),
        };
        <[u64; 2]>::try_from(tensor.shape.as_slice()).map_err(|_| no_matrix())
    }

    /// Row by row.
    pub fn read(&self, module: &str) -> Result<Vec<f32>, BaseError> {
        let (weights, tensor) = self.find(module)?;
        Ok(weights.floats(tensor, MAX_ELEMENTS)?)
    }

    fn find(&self, module: &str) -> Result<(&Weights, &Tensor), BaseError> {
        let rest = PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix));
        let others = rest.into_iter().flat_map(|rest| PREFIXES.iter().map(move |prefix| format!("{prefix}{rest}")));
        let found = std::iter::once(module.to_owned())
            .chain(others)
            .find_map(|name| self.places.get(&format!("{name}.weight")));
        let (shard, at) = *found.ok_or_else(|| BaseError::NoWeight {
            base: self.directory.clone(),
            module: super::super::json::shown(module),
        })?;
        Ok((&self.shards[shard], &self.shards[shard].header().tensors()[at]))
    }

    /// Of what can be told of the files without reading them (names, sizes, times, tensors): whoever changes a weight
    /// changes it, and a copy of the same model on another node may have another one.
    pub fn fingerprint(&self) -> Result<Digest, BaseError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"warmd/base/1");
        for shard in &self.shards {
            let io = |source| BaseError::Io { path: shard.path().to_owned(), source };
            let meta = shard.file().metadata().map_err(io)?;
            let name = shard.path().file_name().unwrap_or_default().to_string_lossy();
            let line = format!("{name}\n{} {} {}\n", meta.len(), meta.mtime(), meta.mtime_nsec());
            hasher.update(line.as_bytes());
            for tensor in shard.header().tensors() {
                let line = format!("{} {} {:?} {:?}\n", tensor.name, tensor.dtype, tensor.shape, tensor.range);
                hasher.update(line.as_bytes());
            }
        }
        Ok(hasher.finalize().into())
    }
}

/// The files that the index names: in the directory itself, sorted.
fn shards_of(directory: &Path) -> Result<Vec<PathBuf>, BaseError> {
    let path = directory.join(INDEX);
    let io = |source| BaseError::Io { path: path.clone(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(&path).map_err(io)?.take(MAX_INDEX + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_INDEX {
        return Err(BaseError::IndexTooLarge(path));
    }
    let index = json::parse(&bytes).map_err(|source| BaseError::Json { path: path.clone(), source })?;
    let wrong = |what: String| BaseError::Index { path: path.clone(), what };
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| wrong("has no `weight_map`".to_owned()))?;
    let mut names = std::collections::BTreeSet::new();
    for name in map.values() {
        let plain =
            |name: &&str| name.ends_with(".safetensors") && !name.contains('/') && !name.contains(char::is_control);
        let name = name.as_str().filter(plain);
        names.insert(name.ok_or_else(|| wrong("names something that is no safetensors file beside it".to_owned()))?);
    }
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(wrong(format!("names {} files, expected 1 to {MAX_SHARDS}", names.len())));
    }
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters/base")
    }

    #[test]
    fn a_weight_is_found_under_every_name_of_its_layer() {
        let base = BaseWeights::open(&recorded()).unwrap();
        for module in [
            "model.layers.0.mlp.down_proj",
            "model.language_model.layers.0.mlp.down_proj",
            "language_model.model.layers.0.mlp.down_proj",
        ] {
            assert_eq!(base.shape(module).unwrap(), [32, 48]);
            assert_eq!(base.read(module).unwrap().len(), 32 * 48);
        }
        assert!(matches!(base.shape("model.layers.9.mlp.down_proj"), Err(BaseError::NoWeight { .. })));
        assert!(matches!(base.shape("model.norm"), Err(BaseError::NoMatrix { .. })));
    }

    #[test]
    fn shards_are_read_through_their_index() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(recorded().join(SINGLE), dir.path().join("model-00001-of-00001.safetensors")).unwrap();
        let index = r#"{"metadata":{},"weight_map":{"model.norm.weight":"model-00001-of-00001.safetensors"}}"#;
        std::fs::write(dir.path().join(INDEX), index).unwrap();
        assert_eq!(BaseWeights::open(dir.path()).unwrap().shape("model.layers.0.self_attn.q_proj").unwrap(), [32, 32]);
    }

    #[test]
    fn an_index_that_leads_out_of_its_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../secret.safetensors", "/etc/x.safetensors", "pytorch_model.bin", ""] {
            std::fs::write(dir.path().join(INDEX), format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#)).unwrap();
            assert!(matches!(BaseWeights::open(dir.path()), Err(BaseError::Index { .. })), "{name}");
        }
    }

    #[test]
    fn a_directory_without_weights_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(BaseWeights::open(dir.path()), Err(BaseError::Absent(_))));
    }

    #[test]
    fn the_fingerprint_follows_the_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(recorded().join(SINGLE), dir.path().join(SINGLE)).unwrap();
        let print = || BaseWeights::open(dir.path()).unwrap().fingerprint().unwrap();
        let before = print();
        assert_eq!(print(), before);
        let file = std::fs::File::options().write(true).open(dir.path().join(SINGLE)).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_ne!(print(), before);
    }
}
