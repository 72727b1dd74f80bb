//! Documents of trust of servers that share a store: what one is handed, all have.

use super::link::Link;
use super::{ATTEMPTS, Shared, StoreError};
use crate::identity::UnixTime;
use crate::identity::trust::{Documents, Known};
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

/// Takes what the store has, then `documents`; the store gets what it does not have.
pub(super) async fn merge(link: &Link, trust: &TrustStore, documents: &Documents) -> Result<Known, PutError> {
    for _ in 0..ATTEMPTS {
        let read = link.trust_stamp().await?;
        if read.is_some_and(|read| read != trust.stamp()) {
            trust.put(&link.trust().await?, UnixTime::now())?;
        }
        let known = trust.put(documents, UnixTime::now())?;
        let stamp = trust.stamp();
        if read == Some(stamp) || link.put_trust(read, stamp, &trust.after(Known::default())).await? {
            return Ok(known);
        }
    }
    Err(StoreError::Contended.into())
}
