//! The trust policy as documents that are handed out by servers which nobody has to trust.
//!
//! | document | signed by a threshold of | says | lives |
//! | --- | --- | --- | --- |
//! | root | the root keys of itself and of the root before | which keys sign what | years; its keys are offline |
//! | policy | the root's policy keys | whose artifacts may be installed ([`super::Policy`]) | as long as it says |
//! | freshness | the root's freshness keys | at this moment no policy and no root was newer than these versions | a minute |
//!
//! Each is a DSSE envelope around TOML. A node begins with a root document from its own configuration and takes everything
//! else from whoever has it: [`Trusted`] decides, and does no I/O. The shape is that of The Update Framework
//! (<https://theupdateframework.github.io/specification/latest/>), with snapshot and targets in one document, since there is
//! one target.
//!
//! # What is taken
//!
//! - A root is the successor of the one in force: version plus one, signed by both thresholds. A root that is replaced takes
//!   with it what it alone had authorised: policy and freshness are verified again by the new one.
//! - A policy has a higher version than any that was seen. The same version with other bytes is refused, and so is one more
//!   than [`MAX_STEP`] ahead (fast-forward). A root that raises `policy.least` begins the counting anew, at that version:
//!   this is the way out after somebody who had stolen policy keys has used up versions.
//! - A freshness statement is not older than any that was seen.
//!
//! # When a policy is in force
//!
//! It has not expired, its root has not, and, if the root names freshness keys, a statement that is younger than `max_age`
//! names no newer version. Otherwise nothing is installed; what is installed stays, holders go on serving, and revocations
//! hold. The age is compared without leeway, so nodes have to keep time: one whose clock is ahead by more than `max_age`
//! installs nothing, one whose clock is behind notices a freeze later by as much. A root without freshness keys trades that
//! for one key less that has to be online: then a server that hands out nothing new is noticed when the policy expires.
//! With freshness keys, an outage of all metadata servers or of whoever signs statements is as a freeze: after `max_age`
//! nothing is installed until it is over.
//!
//! # What an attacker can do
//!
//! | who | can | cannot |
//! | --- | --- | --- |
//! | a metadata server, or whoever is in front of it | hand out nothing: installs stop within `max_age` | bring back, alter, mix or make documents |
//! | fewer policy keys than the threshold | nothing | |
//! | a threshold of policy keys | decide what is installed until the root names other keys | keep the root from doing so |
//! | a threshold of freshness keys | hide news until the policy expires; stop installs | bring anything back |
//! | fewer root keys than the threshold | nothing | |
//! | who rolls back a node's state | what the pinned root, freshness and expiry still allow | go behind the pinned root |
//! | an agent, seen from its pod | withhold news, as a server can | anything else: the pod verifies with its own root file |
//!
//! A node that has never seen a policy takes any version to begin with. An agent of before these documents goes on with its
//! own policy file and hears of no revocation.

mod chain;
mod documents;
mod file;
mod root;

use std::fmt;
use std::path::PathBuf;

use super::time::UnixTime;

pub use chain::{Documents, Known, MAX_ROOTS, MAX_STEP, Trusted};
pub use documents::{FRESHNESS_TYPE, Freshness, MAX_FRESHNESS_BYTES, MAX_ROOT_BYTES, ROOT_TYPE};
pub use file::{TrustFile, read_document, read_root};
pub use root::{FreshnessRole, PolicyRole, Role, Root};

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    Root,
    Policy,
    Freshness,
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root document",
            Self::Policy => "policy",
            Self::Freshness => "freshness statement",
        })
    }
}

/// Why a document is not taken. What was in force before stays.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{document}: {reason}")]
    Content { document: Document, reason: String },
    #[error("{document}: {valid} valid signatures of the {needed} that root version {root} asks for")]
    Unsigned { document: Document, root: u64, valid: usize, needed: usize },
    #[error("{document} version {found} is older than version {seen}, which was seen before")]
    Rollback { document: Document, found: u64, seen: u64 },
    #[error("{document} version {version} was seen before with other content: raise its version with every change")]
    OtherContent { document: Document, version: u64 },
    #[error(
        "policy version {found} is more than {MAX_STEP} after version {seen}: a root document that raises `policy.least` begins anew"
    )]
    FastForward { found: u64, seen: u64 },
    #[error("root version {found} does not follow version {current}: documents in between are missing")]
    Gap { found: u64, current: u64 },
    #[error("the freshness statement is dated {0}, which is in the future: does this node keep time?")]
    Future(UnixTime),
    #[error("more than {MAX_ROOTS} root documents since the one of the configuration: put a newer one there")]
    TooManyRoots,
    #[error("{path} holds no signed document of the kind that is expected: see `warmd policy sign` and `warmd policy root`", path = .path.display())]
    NotSigned { path: PathBuf },
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

#[cfg(test)]
mod tests;
