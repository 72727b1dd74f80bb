//! When the engine is ready: its own `/health` answers 200. Before vLLM listens there is nothing to ask; it has no 503
//! phase at the start.

mod request;
mod target;
mod tls;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use hyper::{StatusCode, Uri};
use tokio::time::{Instant, sleep};

use super::process::Exit;

pub use target::Serving;

/// Between two questions, at first and at most; 1.5 times longer each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What vLLM and SGLang call it.
const HEALTH: &str = "/health";

/// Where a health endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    address: Address,
    tls: Option<Tls>,
    /// Path and query.
    path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    /// An IPv6 address is without brackets.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

/// Whom to believe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tls {
    /// The engine's own `--ssl-certfile`: who presents this very certificate is the engine, whatever name it is for.
    /// Other certificates are checked against `SSL_CERT_FILE` or the system's bundle, and against the host's name.
    certificate: Option<PathBuf>,
}

/// Nothing can be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("health URL `{url}`: {reason}")]
    Url { url: String, reason: String },
    #[error("health URL `{url}`: only http and https can be asked, not `{scheme}`")]
    Scheme { url: String, scheme: String },
    #[error(
        "this node serves no requests, and its head is not known: give --data-parallel-address or --master-addr, or set LWS_LEADER_ADDRESS"
    )]
    NoHead,
    #[error("this node serves no requests, and the head's Unix socket `{}` is on another machine: give a health URL", .0.display())]
    HeadBehindSocket(PathBuf),
}

/// A question had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeFailure {
    #[error("connect: {0}")]
    Connect(std::io::Error),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no {0} in time")]
    TimedOut(&'static str),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// Redirects are not followed.
    #[error("status {0}")]
    Status(StatusCode),
}

impl Probe {
    /// Of a URL that an operator gives, such as `http://127.0.0.1:8000/health`.
    pub fn of_url(url: &str) -> Result<Self, ProbeError> {
        let refused = |reason: &str| ProbeError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        let (tls, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (None, 80),
            "https" => (Some(Tls::default()), 443),
            "" => return Err(refused("it has no scheme: give http://HOST:PORT/health")),
            _ => return Err(ProbeError::Scheme { url: url.to_owned(), scheme: scheme.to_owned() }),
        };
        let uri: Uri = url.parse().map_err(|error: hyper::http::uri::InvalidUri| refused(&error.to_string()))?;
        let authority = uri.authority().ok_or_else(|| refused("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(refused("it holds a user name"));
        }
        let host = target::reachable(authority.host());
        if host.is_empty() {
            return Err(refused("it names no host"));
        }
        let port = authority.port_u16().unwrap_or(default_port);
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { address: Address::Tcp { host, port }, tls, path })
    }

    /// Asks once: at most 2 s to connect, and 3 s for the answer, whose body is not read.
    pub async fn ask(&self) -> Result<(), ProbeFailure> {
        match request::status(self).await? {
            StatusCode::OK => Ok(()),
            other => Err(ProbeFailure::Status(other)),
        }
    }

    /// As in `Host`.
    fn authority(&self) -> String {
        match &self.address {
            Address::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp { host, port } => format!("{host}:{port}"),
            Address::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// A URL; behind a Unix socket it has no standard form.
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)?;
        match &self.address {
            Address::Unix(path) => write!(f, " at {}", path.display()),
            Address::Tcp { .. } => Ok(()),
        }
    }
}

/// How waiting for an engine ended.
#[derive(Debug)]
pub enum Readiness {
    Ready {
        after: Duration,
    },
    Exited(Exit),
    /// With what the last question met.
    Deadline(Option<ProbeFailure>),
}

/// Asks until the answer is 200, the engine has exited, or `deadline` is over. The answer can come from a stranger that has
/// the engine's port; the engine ends by itself then, but only seconds later.
pub async fn wait(probe: &Probe, deadline: Duration, exited: impl Future<Output = Exit>) -> Readiness {
    let begun = Instant::now();
    let mut last = None;
    let asking = async {
        let mut pause = FIRST_PAUSE;
        while let Err(failure) = probe.ask().await {
            tracing::trace!(%probe, %failure, "not ready");
            last = Some(failure);
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    };
    tokio::select! {
        biased;
        exit = exited => Readiness::Exited(exit),
        () = asking => Readiness::Ready { after: begun.elapsed() },
        () = sleep(deadline) => Readiness::Deadline(last),
    }
}

#[cfg(test)]
mod tests;
