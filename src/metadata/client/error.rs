//! Why a call gave no answer.

use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};

use super::ServerAddr;
use crate::identity::TlsError;
use crate::metadata::room::RETRY_AFTER_MS;
use crate::protocol::ProtocolError;

/// Characters of a server's own words that we repeat.
const MAX_WORDS: usize = 200;

/// A server may not send us away for longer than this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(2);

/// Why a server refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The caller may not do this.
    Forbidden,
    /// The epoch is over, or the change of state impossible.
    Ended,
    /// A later message of this epoch arrived before.
    Overtaken,
    /// A table or a cap of the server is full.
    Full,
    /// The server finds the message invalid.
    Invalid,
}

/// A call gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no metadata server is configured: set `metadata.servers`, or `discovery.mode = \"serverless\"`")]
    NoServer,
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No server answered in time; the reason is the last one's.
    #[error("metadata server {server} is unavailable: {words}")]
    Unavailable { server: ServerAddr, words: Words },
    /// It has too much to do; `retry_after` is what it asks for, bounded.
    #[error("metadata server {server} is overloaded: {words}")]
    Overloaded { server: ServerAddr, retry_after: Duration, words: Words },
    #[error("metadata server {server} refused: {words}")]
    Refused { server: ServerAddr, refusal: Refusal, words: Words },
    #[error("metadata server {server} answered nonsense")]
    Protocol { server: ServerAddr, source: ProtocolError },
}

/// What a server said, made harmless for logs and terminals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(String);

impl Words {
    pub(super) fn of(text: &str) -> Self {
        let plain = |c: char| if c.is_control() { '?' } else { c };
        Self(text.chars().take(MAX_WORDS).map(plain).collect())
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) fn error_of(server: &ServerAddr, status: &Status) -> ClientError {
    let server = server.clone();
    let refusal = match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => Refusal::Forbidden,
        Code::FailedPrecondition => Refusal::Ended,
        Code::Aborted => Refusal::Overtaken,
        Code::ResourceExhausted => Refusal::Full,
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists => Refusal::Invalid,
        // tonic and our codec report so what they could not decode: too long, too many, not the message.
        Code::OutOfRange | Code::DataLoss | Code::Internal | Code::Unimplemented => {
            return ClientError::Protocol { server, source: ProtocolError::Frame };
        }
        Code::Unavailable if status.metadata().contains_key(RETRY_AFTER_MS) => {
            let asked = status.metadata().get(RETRY_AFTER_MS).and_then(|value| value.to_str().ok()?.parse().ok());
            let retry_after = Duration::from_millis(asked.unwrap_or(0)).min(MAX_RETRY_AFTER);
            return ClientError::Overloaded { server, retry_after, words: Words::of(status.message()) };
        }
        Code::Ok | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Unavailable => {
            return ClientError::Unavailable { server, words: Words::of(status.message()) };
        }
    };
    ClientError::Refused { server, refusal, words: Words::of(status.message()) }
}
