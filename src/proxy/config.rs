//! What can be tuned.

use std::num::NonZeroU8;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a request for a model that is loading is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loading {
    /// 503 with `Retry-After`, which OpenAI's clients try again.
    #[default]
    Unavailable,
    /// 202, which OpenAI's clients take for an answer.
    Accepted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Threads that serve clients, each with its own connections to the engine. 2.
    pub threads: NonZeroU8,
    /// Connections of clients; few more are told that the server is busy. 4096.
    pub max_connections: usize,
    /// Requests between their head and the end of their answer. 1024.
    pub max_requests: usize,
    /// Requests that wait for a model to be loaded. 256.
    pub max_waiting: usize,
    /// Bytes of one request's head. 64 KiB.
    pub max_head_bytes: usize,
    /// Bytes of one request's body. 32 MiB.
    pub max_body_bytes: usize,
    /// Bytes of all requests' bodies that are held at a time. 512 MiB.
    pub max_held_bytes: usize,
    /// From one answer, or the connection, to the end of the next request's head. 60 s.
    #[serde(with = "humantime_serde")]
    pub head: Duration,
    /// From the end of the head to the end of the body. 60 s.
    #[serde(with = "humantime_serde")]
    pub body: Duration,
    /// How long a client may take nothing of what is sent to it. 60 s.
    #[serde(with = "humantime_serde")]
    pub stalled: Duration,
    /// Connecting to the engine. 2 s.
    #[serde(with = "humantime_serde")]
    pub connect: Duration,
    /// From the request to the head of the engine's answer; without streaming that is the whole answer. 600 s.
    #[serde(with = "humantime_serde")]
    pub first_byte: Duration,
    /// Between two pieces of the engine's answer. 300 s.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// Most that `wait_for_model` waits. 300 s.
    #[serde(with = "humantime_serde")]
    pub wait_for_model: Duration,
    /// How long a connection to the engine is kept for the next request. 4 s; vLLM closes its side after 5 s.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// Connections to the engine that are kept, of all threads together. 512.
    pub max_kept: usize,
    /// Most that a request waits while its adapter is paused. 60 s.
    #[serde(with = "humantime_serde")]
    pub at_gate: Duration,
    /// After SIGTERM: how long requests are still taken, each being told to close its connection. 2 s.
    #[serde(with = "humantime_serde")]
    pub notice: Duration,
    pub loading: Loading,
    /// When to come again, while the engine is not ready. 5 s.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            threads: NonZeroU8::MIN.saturating_add(1),
            max_connections: 4096,
            max_requests: 1024,
            max_waiting: 256,
            max_head_bytes: 64 << 10,
            max_body_bytes: 32 << 20,
            max_held_bytes: 512 << 20,
            head: Duration::from_secs(60),
            body: Duration::from_secs(60),
            stalled: Duration::from_secs(60),
            connect: Duration::from_secs(2),
            first_byte: Duration::from_secs(600),
            idle: Duration::from_secs(300),
            wait_for_model: Duration::from_secs(300),
            keep_alive: Duration::from_secs(4),
            max_kept: 512,
            at_gate: Duration::from_secs(60),
            notice: Duration::from_secs(2),
            loading: Loading::default(),
            retry_after: Duration::from_secs(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_option_is_refused_and_times_have_units() {
        let config: Config = toml::from_str("idle = \"30s\"\nloading = \"accepted\"").unwrap();
        assert_eq!((config.idle, config.loading), (Duration::from_secs(30), Loading::Accepted));
        assert!(toml::from_str::<Config>("timeout = \"30s\"").is_err());
    }
}
