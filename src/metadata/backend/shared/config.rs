//! `[redis]` of the configuration file.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use redis::IntoConnectionInfo;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The store that several metadata servers share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://HOST:PORT[/DATABASE]` or `unix:///PATH` of a Redis or Valkey server, 6.2 or newer. Absent: no store is
    /// shared.
    pub url: Option<StoreUrl>,
    pub user: Option<String>,
    /// File with the password, read at each connect; white space around it is not part of it.
    pub password_file: Option<PathBuf>,
    /// First part of every key in the store. One for each cluster.
    pub prefix: String,
    /// What is done at start where the settings of this server are not those that the cluster has agreed on.
    pub drift: Drift,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self { url: None, user: None, password_file: None, prefix: "warmd".to_owned(), drift: Drift::default() }
    }
}

/// What a server does whose settings differ from those in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drift {
    /// Says what differs and serves with its own.
    Warn,
    /// Says what differs and does not start.
    #[default]
    Abort,
    /// Makes its own settings those of the cluster. The other servers find out when they start.
    Adopt,
}

/// Where a store is. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUrl(String);

/// The text is no place of a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no store: expected `redis://HOST:PORT[/DATABASE]` or `unix:///PATH`, the password in `password_file`"
)]
pub struct InvalidStoreUrl(String);

impl FromStr for StoreUrl {
    type Err = InvalidStoreUrl;
    fn from_str(text: &str) -> Result<Self, InvalidStoreUrl> {
        // A secret must not come back in an error.
        let shown = if text.contains('@') { "..." } else { text };
        let invalid = || InvalidStoreUrl(shown.chars().take(200).collect());
        let plain = text.starts_with("redis://") || text.starts_with("unix:///");
        let info = text.into_connection_info().ok().filter(|_| plain).ok_or_else(invalid)?;
        let account = info.redis_settings();
        if text.contains('@') || account.password().is_some() || account.username().is_some() {
            return Err(invalid());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_without_secrets_are_taken_and_nothing_else_is() {
        for text in ["redis://store:6379", "redis://127.0.0.1:6379/3", "redis://[::1]:1", "unix:///run/redis.sock"] {
            assert_eq!(text.parse::<StoreUrl>().unwrap().to_string(), text);
        }
        let bad = ["", "store:6379", "http://store", "rediss://store:1", "redis://:hunter2@store:1", "unix:relative"];
        for text in bad {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!("unix:///run/redis.sock?pass=hunter2".parse::<StoreUrl>().is_err());
    }
}
