//! What came of one artifact.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::artifact::{Admitted, RelPath};
use crate::digest::ArtifactId;

/// One artifact that was offered.
#[derive(Debug, Clone, Serialize)]
pub struct ArtifactReport {
    pub artifact: ArtifactId,
    pub subject: String,
    pub generation: u64,
    pub signers: Vec<String>,
    /// Entries that were installed, and those that were there before.
    pub installed: usize,
    pub existing: usize,
    /// Entries in whose place there is something else.
    pub in_the_way: Vec<RelPath>,
    pub files: u64,
    pub bytes: u64,
    /// Encoded bytes that crossed the network, and those that the node had before.
    pub wire_bytes: u64,
    pub reused_bytes: u64,
    pub holders: u32,
    /// All of its entries, and what its signer says about it.
    #[serde(skip)]
    pub entries: Vec<RelPath>,
    /// Those of its entries that were installed.
    #[serde(skip)]
    pub added: Vec<RelPath>,
    #[serde(skip)]
    pub attributes: BTreeMap<String, String>,
}

impl ArtifactReport {
    pub(super) fn of(admitted: &Admitted) -> Self {
        Self {
            artifact: admitted.id(),
            subject: admitted.manifest().subject.clone(),
            generation: admitted.manifest().generation,
            signers: admitted.signers().to_vec(),
            installed: 0,
            existing: 0,
            in_the_way: Vec::new(),
            files: 0,
            bytes: 0,
            wire_bytes: 0,
            reused_bytes: 0,
            holders: 0,
            entries: admitted.manifest().entries.clone(),
            added: Vec::new(),
            attributes: admitted.manifest().attributes.clone(),
        }
    }
}
