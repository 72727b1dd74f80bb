//! The page: what the fleet is doing, live, for people. Read only.
//!
//! Whoever knows something puts documents on a [`LiveBoard`]; [`Server`] serves the page and sends each browser what
//! changes. Nothing here knows what a document means: `page/model.js` does.
//!
//! | route | what it is |
//! | --- | --- |
//! | `GET /` | the page, and its parts beside it, all from the program itself |
//! | `GET /events` | server-sent events: all documents, then what changes; `Last-Event-ID` goes on where a stream ended |
//! | `GET /api/fleet` | all documents at one moment: `{"version": 7, "documents": {"node/ID": {}}}` |
//! | `GET /api/config` | the configuration in force as TOML, where the role tells it |
//! | `GET /login`, `POST /login`, `POST /logout` | opens and ends a session with the token |
//!
//! `/`, `/events` and `/api/` are for those who have the token: `Authorization: Bearer`, or a session. A page that
//! only this machine reaches needs none. It speaks plain HTTP, because nodes have Ed25519 certificates of the cluster's own
//! authority, which browsers refuse: an ingress or a port-forward in front of it brings encryption.

mod assets;
mod auth;
mod board;
mod events;
mod live;
mod metrics;
mod reply;
mod request;
mod server;
mod site;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::auth::Door;
pub use self::board::{Board, BoardError, Changes, Cursor, Document, Key, Limits};
pub use self::live::LiveBoard;
pub use self::metrics::Metrics;
pub use self::server::Server;

/// `[web]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebSection {
    /// Address of the page, over plain HTTP. Absent: none.
    pub listen: Option<SocketAddr>,
    /// File with the token that opens it: 16 to 512 printable characters on one line. Read at the start. Absent: the
    /// page is refused unless it listens on loopback.
    pub token_file: Option<PathBuf>,
    /// Names that the page is reached by. Absent: any, and on loopback `localhost` only. Addresses always go.
    pub hosts: Vec<String>,
    /// Whether browsers reach it by HTTPS, through an ingress: its cookies are never sent in the clear then.
    pub https: bool,
    /// How long a session lasts. 12 h.
    #[serde(with = "humantime_serde")]
    pub session: Duration,
}

impl Default for WebSection {
    fn default() -> Self {
        Self {
            listen: None,
            token_file: None,
            hosts: Vec::new(),
            https: false,
            session: Duration::from_secs(12 * 3600),
        }
    }
}

impl WebSection {
    /// What opens the page, if it has a token.
    pub fn token(&self) -> Result<Option<String>, WebError> {
        self.token_file.as_deref().map(auth::read_token).transpose()
    }

    /// Whether the page could be served, but for the address: it may be taken.
    pub fn check(&self) -> Result<(), WebError> {
        self.listen.map_or(Ok(()), |addr| Door::new(self, addr).map(drop))
    }
}

/// The page cannot be served. `Display` says what to change.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    #[error("the page on {0} would be open to everyone: give `web.token_file`, or listen on 127.0.0.1")]
    NoToken(SocketAddr),
    #[error("read the token of the page, {path}", path = path.display())]
    TokenFile { path: PathBuf, source: io::Error },
    #[error("{path} holds no token: expected 16 to 512 printable characters on one line, such as `openssl rand -hex 32` makes",
        path = path.display())]
    Token { path: PathBuf },
    #[error("the token of the page, {path}, can be read by others (mode {mode:04o}): run `chmod 600 {path}`",
        path = path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("serve the page on {addr}")]
    Bind { addr: SocketAddr, source: io::Error },
}
