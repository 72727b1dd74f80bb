//! What came of the last start, kept beside the caches for `warmd doctor`.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::start::Proof;
use crate::caches::CONTROL;
use crate::durable;
use crate::identity::UnixTime;

const NAME: &str = "last-start.json";

/// A larger file is none of ours.
const MAX_BYTES: u64 = 1024 * 1024;

/// A start after which the engine was ready.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastStart {
    /// When it was ready.
    pub at: UnixTime,
    /// The command, as [`crate::caches::Launch::canonical`] has it.
    pub launch: BTreeMap<String, String>,
    pub proof: Proof,
}

impl LastStart {
    pub fn new(launch: &BTreeMap<String, String>, proof: Proof) -> Self {
        Self { at: UnixTime::now(), launch: launch.clone(), proof }
    }

    /// Replaces the one before. That it could not is no reason to disturb the engine: it is logged.
    pub async fn keep(self, root: PathBuf) {
        let written = tokio::task::spawn_blocking(move || self.write(&root).map_err(|error| (root, error))).await;
        if let Ok(Err((root, error))) = written {
            tracing::warn!(root = %root.display(), %error, "what came of the start is not kept");
        }
    }

    fn write(&self, root: &Path) -> io::Result<()> {
        let control = root.join(CONTROL);
        DirBuilder::new().recursive(true).mode(0o700).create(&control)?;
        durable::replace(&control.join(NAME), &serde_json::to_vec_pretty(self)?, 0o600)
    }

    /// `None` if there is none below this root.
    pub fn read(root: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(root.join(CONTROL).join(NAME)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text)?;
        Ok(Some(serde_json::from_str(&text)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::start::FamilyProof;

    #[test]
    fn a_start_is_read_as_it_was_written() {
        let root = tempfile::tempdir().unwrap();
        assert!(LastStart::read(root.path()).unwrap().is_none());
        let family = FamilyProof {
            family: "vllm-aot".to_owned(),
            offered: 1,
            installed: 2,
            existing: 3,
            made: 4,
            used: Some(false),
            saved_seconds: None,
            reason: Some("compiled it".to_owned()),
        };
        let proof =
            Proof { ready_seconds: 57.0, compile_seconds: Some(6.5), families: vec![family], quarantined: Vec::new() };
        let launch = BTreeMap::from([("--model".to_owned(), "./m".to_owned())]);
        let start = LastStart::new(&launch, proof);
        start.write(root.path()).unwrap();
        let read = LastStart::read(root.path()).unwrap().unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&start).unwrap());
        assert_eq!((read.at, read.launch), (start.at, launch));
    }

    #[test]
    fn a_damaged_record_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(CONTROL)).unwrap();
        std::fs::write(root.path().join(CONTROL).join(NAME), "{").unwrap();
        assert!(LastStart::read(root.path()).is_err());
    }
}
