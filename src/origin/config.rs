//! Which object store, and how much may be asked of it.

use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::objects::words;
use crate::artifact::Family;

/// More often than this a request is not tried again; the deadline may end it before.
const MAX_RETRIES: usize = 3;

/// `[origin]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OriginConfig {
    /// `file:///directory`, or `s3://`, `gs://` or `az://` with a bucket and perhaps a prefix. Credentials, endpoint and
    /// region come from the environment. Absent: no origin.
    pub url: Option<OriginUrl>,
    /// Families of which this node uploads what it publishes.
    pub push: Vec<Family>,
    /// For one object or listing, retries included.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// For the question what there is of identities that no node offers: starts wait for it.
    #[serde(with = "humantime_serde")]
    pub find_deadline: Duration,
    /// Objects read or written at the same time, by each push and pull.
    pub parallel: NonZeroU16,
}

impl Default for OriginConfig {
    fn default() -> Self {
        Self {
            url: None,
            push: Vec::new(),
            deadline: Duration::from_secs(30),
            find_deadline: Duration::from_secs(2),
            parallel: NonZeroU16::MIN.saturating_add(7),
        }
    }
}

/// The text is no origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an origin: expected `file:///DIRECTORY` or `s3://`, `gs://` or `az://` with BUCKET[/PREFIX], without credentials"
)]
pub struct InvalidUrl;

/// Where an origin is. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginUrl {
    /// Absolute; taken as it is, without escapes.
    Directory(PathBuf),
    Bucket {
        cloud: Cloud,
        bucket: String,
        /// Without a slash at either end; empty for none.
        prefix: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// S3 and what speaks its protocol: `AWS_*` in the environment, `AWS_ENDPOINT` among them.
    S3,
    /// `GOOGLE_*`.
    Gcs,
    /// A container; `AZURE_*`, with the account's name in `AZURE_STORAGE_ACCOUNT_NAME`.
    Azure,
}

impl Cloud {
    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }
}

impl OriginUrl {
    /// In words, why not.
    pub(super) fn store(&self, deadline: Duration) -> Result<Arc<dyn ObjectStore>, String> {
        match self {
            Self::Directory(directory) => {
                std::fs::create_dir_all(directory).map_err(|error| error.to_string())?;
                let store = LocalFileSystem::new_with_prefix(directory).map_err(|error| words(&error))?;
                // Without syncs a power cut could leave an entry whose artifact is not whole.
                Ok(Arc::new(store.with_fsync(true)))
            }
            Self::Bucket { cloud, bucket, prefix } => {
                let retry = RetryConfig { max_retries: MAX_RETRIES, retry_timeout: deadline, ..Default::default() };
                let store: object_store::Result<Arc<dyn ObjectStore>> = match cloud {
                    Cloud::S3 => {
                        let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
                        builder.build().map(|store| Arc::new(store) as _)
                    }
                    Cloud::Gcs => {
                        let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry);
                        builder.build().map(|store| Arc::new(store) as _)
                    }
                    Cloud::Azure => {
                        let builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry);
                        builder.build().map(|store| Arc::new(store) as _)
                    }
                };
                Ok(Arc::new(PrefixStore::new(store.map_err(|error| words(&error))?, prefix.as_str())))
            }
        }
    }
}

impl FromStr for OriginUrl {
    type Err = InvalidUrl;
    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(InvalidUrl)?;
        let cloud = match scheme {
            "file" if rest.starts_with('/') => return Ok(Self::Directory(PathBuf::from(rest))),
            "s3" => Cloud::S3,
            "gs" => Cloud::Gcs,
            "az" => Cloud::Azure,
            _ => return Err(InvalidUrl),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if bucket.is_empty() || !bucket.chars().all(plain) {
            return Err(InvalidUrl);
        }
        let prefix = Path::parse(prefix).map_err(|_| InvalidUrl)?.to_string();
        Ok(Self::Bucket { cloud, bucket: bucket.to_owned(), prefix })
    }
}

impl fmt::Display for OriginUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "file://{}", directory.display()),
            Self::Bucket { cloud, bucket, prefix } => {
                write!(f, "{}://{bucket}", cloud.scheme())?;
                if prefix.is_empty() { Ok(()) } else { write!(f, "/{prefix}") }
            }
        }
    }
}

impl Serialize for OriginUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OriginUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_round_trip() {
        for text in ["file:///srv/warmd", "s3://bucket", "s3://bucket/fleet/one", "gs://bucket/fleet", "az://container"]
        {
            let url: OriginUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), text);
        }
        assert_eq!("s3://bucket/fleet/".parse::<OriginUrl>().unwrap().to_string(), "s3://bucket/fleet");
    }

    #[test]
    fn what_is_no_origin_or_holds_a_secret_is_refused() {
        let wrong =
            ["", "/srv", "file://srv", "s3://", "s3:///prefix", "s3://key:secret@bucket", "s3://b/a//c", "http://h/b"];
        for text in wrong {
            assert_eq!(text.parse::<OriginUrl>(), Err(InvalidUrl), "{text}");
        }
    }

    #[test]
    fn a_store_of_each_kind_is_made_without_asking_anybody() {
        let dir = tempfile::tempdir().unwrap();
        let directory = OriginUrl::Directory(dir.path().join("made/here"));
        assert!(directory.store(Duration::from_secs(1)).is_ok());
        assert!(dir.path().join("made/here").is_dir());
        for text in ["s3://bucket/fleet", "gs://bucket"] {
            assert!(text.parse::<OriginUrl>().unwrap().store(Duration::from_secs(1)).is_ok(), "{text}");
        }
        // The account is part of an address there, and the environment of a test names none.
        let azure = "az://container".parse::<OriginUrl>().unwrap().store(Duration::from_secs(1));
        assert!(azure.is_ok() || azure.is_err_and(|reason| reason.contains("Account")));
    }
}
