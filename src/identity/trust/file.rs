//! What a node remembers of the documents, so that a restart is no way back.

use std::io::Read;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::chain::{Documents, Seen, Trusted};
use super::documents::{FRESHNESS_TYPE, ROOT_TYPE};
use super::{Document, TrustError};
use crate::durable;
use crate::identity::envelope::Envelope;
use crate::identity::policy::POLICY_TYPE;
use crate::identity::time::UnixTime;

const FILE: &str = "trust.state";

/// Envelopes in binary form, in base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    roots: Vec<String>,
    policy: Option<String>,
    freshness: Option<String>,
    seen: Seen,
}

/// One record in a state directory. Whoever can write there is trusted: what is read is verified all the same.
#[derive(Debug, Clone)]
pub struct TrustFile {
    path: PathBuf,
}

impl TrustFile {
    pub fn new(state_directory: &Path) -> Self {
        Self { path: state_directory.join(FILE) }
    }

    /// Goes on where the node was. A configured root that is unknown and not newer is the beginning of something else:
    /// what was remembered is forgotten, since the configuration decides.
    pub fn load(&self, root: &Envelope) -> Result<Trusted, TrustError> {
        let Some(text) = durable::read_record(&self.path).map_err(|source| self.io(source))? else {
            return Trusted::new(root);
        };
        let record: Record = serde_json::from_str(&text).map_err(|error| self.io(error.into()))?;
        match restore(&record)?.pinned(root)? {
            Some(trusted) => Ok(trusted),
            None => {
                tracing::warn!(path = %self.path.display(), "another root document is configured: trust begins anew");
                Trusted::new(root)
            }
        }
    }

    /// After it returns, it survives a power cut.
    pub fn save(&self, trusted: &Trusted) -> Result<(), TrustError> {
        let Documents { roots, policy, freshness } = trusted.documents();
        let text = |envelope: &Envelope| BASE64.encode(&envelope.encode());
        let record = Record {
            roots: roots.iter().map(text).collect(),
            policy: policy.as_ref().map(text),
            freshness: freshness.as_ref().map(text),
            seen: trusted.seen(),
        };
        let text = serde_json::to_string(&record).map_err(|error| self.io(error.into()))?;
        durable::replace_record(&self.path, &text, 0o600).map_err(|source| self.io(source))
    }

    fn io(&self, source: std::io::Error) -> TrustError {
        TrustError::Io { path: self.path.clone(), source }
    }
}

fn restore(record: &Record) -> Result<Trusted, TrustError> {
    let damaged = |document| TrustError::Content { document, reason: "what was remembered is damaged".to_owned() };
    let read = |text: &str, payload_type, document| {
        let bytes = BASE64.decode(text.as_bytes()).map_err(|_| damaged(document))?;
        Envelope::decode(payload_type, bytes.into()).map_err(|_| damaged(document))
    };
    let roots = record.roots.iter().map(|text| read(text, ROOT_TYPE, Document::Root));
    let roots = roots.collect::<Result<Vec<_>, _>>()?;
    let first = roots.first().ok_or_else(|| damaged(Document::Root))?;
    let policy = record.policy.as_deref().map(|text| read(text, POLICY_TYPE, Document::Policy)).transpose()?;
    let freshness = record.freshness.as_deref().map(|text| read(text, FRESHNESS_TYPE, Document::Freshness));
    let freshness = freshness.transpose()?;
    let mut trusted = Trusted::new(first)?;
    trusted.take(&Documents { roots: roots.clone(), ..Documents::default() }, UnixTime::from_seconds(0))?;
    trusted.remember(record.seen);
    // Its time was checked when it came.
    let any_time = UnixTime::from_seconds(u64::MAX);
    trusted.take(&Documents { roots: Vec::new(), policy, freshness }, any_time)?;
    Ok(trusted)
}

/// Bytes of a file with one document: the longest in JSON, with room for signatures.
const MAX_FILE: u64 = 2 * 1024 * 1024;

/// A signed document, as `warmd policy` writes it: an envelope in JSON form. Nothing of it is verified.
pub fn read_document(path: &Path) -> Result<(Document, Envelope), TrustError> {
    let io = |source| TrustError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_FILE {
        return Err(TrustError::NotSigned { path: path.to_owned() });
    }
    let types = [(Document::Root, ROOT_TYPE), (Document::Policy, POLICY_TYPE), (Document::Freshness, FRESHNESS_TYPE)];
    let read = types
        .into_iter()
        .find_map(|(document, payload_type)| Some((document, Envelope::from_json(payload_type, &text).ok()?)));
    read.ok_or_else(|| TrustError::NotSigned { path: path.to_owned() })
}

/// A signed root document.
pub fn read_root(path: &Path) -> Result<Envelope, TrustError> {
    match read_document(path)? {
        (Document::Root, envelope) => Ok(envelope),
        _ => Err(TrustError::NotSigned { path: path.to_owned() }),
    }
}
