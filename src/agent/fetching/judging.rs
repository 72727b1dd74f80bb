//! What the trust policy says of manifests, which can be large.

use bytes::Bytes;
use tokio::task::JoinError;

use super::metrics::Refusal;
use super::{Failed, Fetching};
use crate::artifact::{Admitted, ManifestError, SignedManifest};
use crate::digest::ArtifactId;
use crate::identity::{Policy, UnixTime};
use crate::store::Artifact;

/// Larger envelopes are verified and read through on a thread of their own.
const LARGE: usize = 256 << 10;

impl Fetching {
    /// Whoever sent it: it must be what was asked for.
    pub(super) async fn admit_as(&self, id: ArtifactId, envelope: Bytes) -> Result<Admitted, Failed> {
        let admit = |policy: &Policy, envelope| SignedManifest::admit(envelope, policy, UnixTime::now());
        let len = envelope.len();
        let admitted = self.judge(len, move |policy| admit(policy, envelope)).await?;
        match admitted.id() == id {
            true => Ok(admitted),
            false => {
                self.metrics.refuse(Refusal::OtherArtifact);
                Err(Failed::new("transient", "another manifest came than the one asked for"))
            }
        }
    }

    /// What is in the store was trusted when it came; the policy may have changed since.
    pub(super) async fn readmit(&self, artifact: &Artifact) -> Result<Admitted, Failed> {
        let signed = artifact.signed().clone();
        self.judge(signed.envelope().len(), move |policy| signed.readmit(policy, UnixTime::now())).await
    }

    async fn judge(
        &self,
        len: usize,
        judge: impl FnOnce(&Policy) -> Result<Admitted, ManifestError> + Send + 'static,
    ) -> Result<Admitted, Failed> {
        let Some(policy) = self.trust.policy() else {
            self.metrics.refuse(Refusal::Policy);
            return Err(Failed::new("untrusted", "this agent has no trust policy: set `trust.policy`"));
        };
        let judged = aside(len, move || judge(&policy)).await;
        let judged = judged.map_err(|error| Failed::new("transient", format!("judge a manifest: {error}")))?;
        judged.map_err(|error| {
            let (class, reason) = match error {
                ManifestError::Refused(_) => ("untrusted", Refusal::Policy),
                _ => ("transient", Refusal::Malformed),
            };
            self.metrics.refuse(reason);
            Failed::new(class, error.to_string())
        })
    }
}

/// Work on so many bytes, where it holds up nobody.
async fn aside<T: Send + 'static>(len: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if len < LARGE { Ok(work()) } else { tokio::task::spawn_blocking(work).await }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn large_manifests_are_judged_on_another_thread() {
        let (here, id) = (thread::current().id(), || thread::current().id());
        assert_eq!(aside(LARGE - 1, id).await.unwrap(), here);
        assert_ne!(aside(LARGE, id).await.unwrap(), here);
    }
}
