//! Documents of trust of servers that share a store: what one is handed, all have.

use super::link::Link;
use super::{ATTEMPTS, Shared, StoreError};
use crate::identity::UnixTime;
use crate::identity::trust::{Documents, Known, TrustError};
use crate::metadata::trust::{PutError, TrustStore};

impl Shared {
    /// Takes documents here and in the store.
    pub(in crate::metadata) async fn put_trust(
        &self,
        trust: &TrustStore,
        documents: &Documents,
    ) -> Result<Known, PutError> {
        let (link, _) = self.link()?;
        merge(&link, trust, documents).await
    }
}

/// Takes what the store has, then `documents`; the store gets what it does not have. What is older there, or damaged, is
/// replaced: this server has verified what it has.
pub(super) async fn merge(link: &Link, trust: &TrustStore, documents: &Documents) -> Result<Known, PutError> {
    for _ in 0..ATTEMPTS {
        let read = link.trust_stamp().await?;
        if read.as_ref().is_some_and(|read| *read != trust.stamp().to_string()) {
            match link.trust().await {
                Ok(stored) => match trust.put(&stored, UnixTime::now()) {
                    Ok(_) | Err(PutError::Refused(TrustError::Rollback { .. })) => {}
                    Err(error) => return Err(error),
                },
                Err(StoreError::Damaged(what)) => tracing::warn!(what, "damaged in the shared store: replaced"),
                Err(error) => return Err(error.into()),
            }
        }
        let known = trust.put(documents, UnixTime::now())?;
        let stamp = trust.stamp().to_string();
        let is_there = read.as_ref() == Some(&stamp);
        if is_there || link.put_trust(read.as_deref(), &stamp, &trust.after(Known::default())).await? {
            return Ok(known);
        }
    }
    Err(StoreError::Contended.into())
}
