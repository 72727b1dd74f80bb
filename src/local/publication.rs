//! What to publish, as it is asked for, and how it is captured: by the agent, or by the caller where the agent does not see
//! the directory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::artifact::{Base, Draft, Outputs, Provenance, SourceIdentity, SourceIdentityError, Tree};
use crate::caches::{CacheFamily, ScanRules, Selection, Snapshot, SnapshotError, Special, snapshot, snapshot_subject};
use crate::identity::{TrustClass, UnixTime};
use crate::protocol::agent::MAX_SKIPPED;
use crate::protocol::pb::PublishRequest;

/// A request to publish makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum PublicationError {
    #[error("the directory must be an absolute path")]
    NotAbsolute,
    #[error(transparent)]
    Identity(#[from] SourceIdentityError),
    #[error("{0}")]
    Class(String),
}

/// What to publish, checked.
#[derive(Debug)]
pub struct Publication {
    pub directory: PathBuf,
    pub identity: SourceIdentity,
    pub class: TrustClass,
    pub subject: String,
    pub attributes: BTreeMap<String, String>,
    pub provenance: Provenance,
    pub content: Content,
    pub expires: Option<UnixTime>,
}

/// Which files of the directory.
#[derive(Debug)]
pub enum Content {
    All(ScanRules),
    /// Those of the subject, in a family's root, but for entries with files younger than that.
    Family {
        family: &'static CacheFamily,
        settled_by: Option<SystemTime>,
    },
}

impl TryFrom<PublishRequest> for Publication {
    type Error = PublicationError;

    fn try_from(request: PublishRequest) -> Result<Self, PublicationError> {
        let directory = PathBuf::from(&request.directory);
        if !directory.is_absolute() {
            return Err(PublicationError::NotAbsolute);
        }
        let facts = request.facts.into_iter().collect();
        let identity = SourceIdentity::new(request.family.parse()?, facts)?;
        let (content, class) = match CacheFamily::by_name(&request.family).filter(|family| family.name != "directory") {
            Some(family) => {
                let settled_by = Duration::from_millis(request.settled_by_ms);
                let settled_by = (request.settled_by_ms > 0).then(|| SystemTime::UNIX_EPOCH + settled_by);
                (Content::Family { family, settled_by }, family.class)
            }
            None => {
                let class = request.trust_class.parse().map_err(PublicationError::Class)?;
                let rules = ScanRules {
                    entry_depth: (request.entry_depth as usize).max(1),
                    keep_mtime: request.keep_mtime,
                    special: if request.skip_special { Special::Skip } else { Special::Refuse },
                };
                (Content::All(rules), class)
            }
        };
        let expires = Duration::from_secs(request.expires_in_s);
        Ok(Self {
            directory,
            identity,
            class,
            subject: request.subject,
            attributes: request.attributes.into_iter().collect(),
            provenance: Provenance {
                image_digest: request.image_digest,
                engine_version: request.engine_version,
                builder: builder(),
            },
            content,
            expires: (!expires.is_zero()).then(|| UnixTime::now().after(expires)),
        })
    }
}

impl Publication {
    /// Reads the files of `tree`, which is the directory, on top of the generation before. Blocking.
    pub fn capture(
        &self,
        tree: &Tree,
        base: Option<&Base<'_>>,
        outputs: &Outputs<'_>,
    ) -> Result<Snapshot, SnapshotError> {
        match &self.content {
            Content::All(rules) => snapshot(tree, rules, base, outputs),
            Content::Family { family, settled_by } => {
                let selection = Selection { root: tree, family, subject: &self.subject, settled_by: *settled_by };
                snapshot_subject(&selection, base, outputs)
            }
        }
    }

    /// The manifest of what was captured, and some of what was left out. The generation and the time are for the agent.
    pub fn draft(self, taken: Snapshot) -> (Draft, Vec<String>) {
        let Snapshot { built, entries, mut skipped } = taken;
        skipped.truncate(MAX_SKIPPED);
        let draft = Draft {
            identity: self.identity,
            class: self.class,
            subject: self.subject,
            generation: 0,
            created: UnixTime::from_seconds(0),
            expires: self.expires,
            provenance: self.provenance,
            files: built.files,
            chunks: built.chunks,
            entries,
            attributes: self.attributes,
        };
        (draft, skipped)
    }
}

/// Who builds manifests here.
pub fn builder() -> String {
    format!("warmd {}", env!("CARGO_PKG_VERSION"))
}
