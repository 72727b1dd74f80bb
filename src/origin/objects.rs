//! Single objects: every request has a deadline, every read a limit, everything is counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt};
use tokio::time::{Instant, timeout};

use super::OriginError;
use super::metrics::{Metrics, Operation, Outcome};

/// Bytes of a value that could be a secret: a shorter one would tear words apart.
const MIN_SECRET: usize = 8;

/// Characters of a store's own words that we repeat.
const MAX_WORDS: usize = 300;

#[derive(Debug, Clone)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    deadline: Duration,
    metrics: Metrics,
}

impl Objects {
    pub(super) fn new(store: Arc<dyn ObjectStore>, deadline: Duration, metrics: Metrics) -> Self {
        Self { store, deadline, metrics }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A whole object of at most `limit` bytes; a larger one is damaged.
    pub(super) async fn get(&self, path: &Path, limit: usize) -> Result<Bytes, OriginError> {
        let read = async { collect(self.store.get(path).await?, limit).await };
        let found = self.request(Operation::Read, path, read).await?;
        let Some(bytes) = found else {
            self.metrics.bad_objects.inc();
            return Err(OriginError::Damaged(path.to_string()));
        };
        self.metrics.count_bytes(Operation::Read, bytes.len());
        Ok(bytes)
    }

    pub(super) async fn put(&self, path: &Path, bytes: Bytes) -> Result<(), OriginError> {
        let len = bytes.len();
        self.request(Operation::Write, path, self.store.put(path, bytes.into())).await?;
        self.metrics.count_bytes(Operation::Write, len);
        Ok(())
    }

    /// Bytes of an object, if there is one.
    pub(super) async fn size(&self, path: &Path) -> Result<Option<u64>, OriginError> {
        match self.request(Operation::Look, path, self.store.head(path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(OriginError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The first `limit` names below `prefix`, in the store's order.
    pub(super) async fn list(&self, prefix: &Path, limit: usize) -> Result<Vec<Path>, OriginError> {
        let names = async {
            let mut objects = self.store.list(Some(prefix));
            let mut names = Vec::new();
            while names.len() < limit
                && let Some(object) = objects.try_next().await?
            {
                names.push(object.location);
            }
            Ok(names)
        };
        self.request(Operation::List, prefix, names).await
    }

    async fn request<T>(
        &self,
        operation: Operation,
        path: &Path,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, OriginError> {
        let started = Instant::now();
        let path = path.to_string();
        let (outcome, result) = match timeout(self.deadline, work).await {
            Ok(Ok(value)) => (Outcome::Ok, Ok(value)),
            // Of a write or listing it means that there is no bucket.
            Ok(Err(Error::NotFound { .. })) if matches!(operation, Operation::Read | Operation::Look) => {
                (Outcome::Missing, Err(OriginError::Missing(path)))
            }
            Ok(Err(error)) => (Outcome::Failed, Err(OriginError::Failed { path, reason: words(&error) })),
            Err(_) => (Outcome::Late, Err(OriginError::Deadline { path, seconds: self.deadline.as_secs() })),
        };
        self.metrics.count(operation, outcome, started.elapsed());
        result
    }
}

/// `None` if it is longer than `limit`, whatever the store said of its size before.
async fn collect(found: GetResult, limit: usize) -> object_store::Result<Option<Bytes>> {
    let size = usize::try_from(found.meta.size).unwrap_or(usize::MAX);
    if size > limit {
        return Ok(None);
    }
    if matches!(found.payload, GetResultPayload::File(..)) {
        return found.bytes().await.map(Some);
    }
    let mut bytes = BytesMut::with_capacity(size);
    let mut parts = found.into_stream();
    while let Some(part) = parts.try_next().await? {
        if bytes.len() + part.len() > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&part);
    }
    Ok(Some(bytes.freeze()))
}

/// What the store says, made harmless for logs and terminals. Stores tell in their errors what they were asked, with headers:
/// S3's session token is one (`SignatureDoesNotMatch`, its `CanonicalRequest`).
pub(super) fn words(error: &Error) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let variables =
        std::env::vars_os().filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok()));
    without_secrets(error.to_string(), variables).chars().take(MAX_WORDS).map(plain).collect()
}

/// Takes out the values of variables that clients of stores read secrets from.
fn without_secrets(text: String, variables: impl Iterator<Item = (String, String)>) -> String {
    let is_of_store = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|cloud| name.starts_with(cloud));
    let is_secret = |name: &str| ["KEY", "TOKEN", "SECRET", "SAS"].iter().any(|word| name.contains(word));
    let secrets = variables.filter(|(name, value)| is_of_store(name) && is_secret(name) && value.len() >= MIN_SECRET);
    secrets.fold(text, |text, (_, secret)| text.replace(&secret, "..."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_the_environment_are_not_said_again_and_names_of_regions_are() {
        let variables =
            [("AWS_SESSION_TOKEN", "token-12345"), ("AWS_REGION", "eu-central-1"), ("HOME_KEY", "elsewhere-1")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let said = "x-amz-security-token: token-12345, eu-central-1, elsewhere-1".to_owned();
        assert_eq!(
            without_secrets(said, variables.into_iter()),
            "x-amz-security-token: ..., eu-central-1, elsewhere-1"
        );
    }
}
