//! Where adapters come from.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use crate::adapters::{Address, Alias, BaseModel, Release};
use crate::digest::{ArtifactId, ContentId, KeyId};
use crate::identity::UnixTime;
use crate::proxy::BoxFuture;

/// What somebody says there is of an alias. A hint: only what is [`Signed`] counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub artifact: ArtifactId,
    pub content: Option<ContentId>,
    pub generation: u64,
    pub created: UnixTime,
    /// Bytes of its files.
    pub size: u64,
    pub holders: usize,
}

impl Offer {
    /// As everywhere in the fleet: generations count what one publisher has signed, and there may be several.
    pub(super) fn is_newer(&self, than: &Signed) -> bool {
        (self.created, self.generation) > (than.created, than.generation)
    }
}

/// What the fleet has under an alias for another base model than the served one. A hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    pub base: BaseModel,
    pub owner: Option<Address>,
}

/// What a publisher has signed, after the trust policy has admitted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub release: Release,
    pub artifact: ArtifactId,
    pub generation: u64,
    pub created: UnixTime,
    /// Bytes of its files.
    pub size: u64,
    /// As the policy names them.
    pub signers: Vec<String>,
    /// Their keys.
    pub keys: Vec<KeyId>,
    /// To be admitted again at a later start.
    pub envelope: Bytes,
}

/// How far a transfer is, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Progress {
    pub bytes: u64,
    pub bytes_total: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("adapters cannot be looked up: {0}")]
pub struct LookError(pub String);

/// What a look tells of one alias.
pub type Sighting = Result<Option<Offer>, LookError>;

/// An adapter did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Trying again changes nothing until a policy or a publisher does.
    #[error("no manifest of it is admitted: {0}")]
    NotAdmitted(String),
    #[error("nobody could deliver it: {0}")]
    Unavailable(String),
    #[error("{path}: {source}", path = .path.display())]
    Io { path: std::path::PathBuf, source: io::Error },
}

/// An admitted manifest whose files are on their way to this node. Dropped, they are not written anywhere.
pub struct Delivery {
    pub signed: Arc<Signed>,
    pub files: Box<dyn Files>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("signed", &self.signed).finish_non_exhaustive()
    }
}

/// The files of one delivery.
pub trait Files: Send {
    /// Brings them into `into`, a new private directory. When it has succeeded, the verified files of the manifest are there
    /// and nothing else; when it has failed, anything may be.
    fn write<'a>(
        self: Box<Self>,
        into: &'a Path,
        progress: &'a watch::Sender<Progress>,
    ) -> BoxFuture<'a, Result<(), FetchError>>
    where
        Self: 'a;
}

/// Where adapters come from: the node's agent, or an origin.
pub trait Source: Send + Sync + 'static {
    /// The newest version of each alias for the served base model, in the order asked; an error for those of which nobody
    /// can tell that there is none. Cheap.
    fn look<'a>(&'a self, aliases: &'a [Alias]) -> BoxFuture<'a, Result<Vec<Sighting>, LookError>>;

    /// Of each alias what there is for other base models, in the order asked. For names that [`Source::look`] has not found:
    /// it costs a manifest of each that exists.
    fn compare<'a>(&'a self, aliases: &'a [Alias]) -> BoxFuture<'a, Result<Vec<Option<Foreign>>, LookError>>;

    /// Gets and admits the manifest of this artifact, or of a newer one of the same alias; nothing else is transferred.
    fn manifest<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<Arc<Signed>, FetchError>>;

    /// As [`Source::manifest`], and begins to bring the files.
    fn open<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<Delivery, FetchError>>;

    /// Whether another holder or the origin has it: only then it leaves this node's disk.
    fn elsewhere<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, bool>;

    /// Whether the newest policy that is known revokes what was admitted once. Asked for each request: answers at once.
    fn is_revoked(&self, _: &Signed) -> bool {
        false
    }

    /// Judges by today's policy what was admitted once. Blocking, without network.
    fn readmit(&self, envelope: &[u8]) -> Result<Signed, FetchError>;
}
