//! A client that hyper speaks for: whole answers, or their pieces as they come.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HeaderMap;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::cluster::DEADLINE;

/// One connection; closed when dropped.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    bearer: Option<String>,
    _driver: JoinSet<()>,
}

/// An answer whose body is on its way.
pub struct Stream {
    pub status: u16,
    pub headers: HeaderMap,
    body: Incoming,
    _connection: Option<Connection>,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    /// False if the connection ended before the body did.
    pub is_whole: bool,
}

impl Connection {
    /// `bearer` is sent with each request.
    pub async fn tcp(addr: SocketAddr, bearer: Option<&str>) -> Option<Self> {
        Self::over(TcpStream::connect(addr).await.ok()?, bearer).await
    }

    pub async fn unix(path: &Path, bearer: Option<&str>) -> Option<Self> {
        Self::over(UnixStream::connect(path).await.ok()?, bearer).await
    }

    async fn over<S>(stream: S, bearer: Option<&str>) -> Option<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.ok()?;
        let mut driver = JoinSet::new();
        driver.spawn(async { drop(connection.await) });
        Some(Self { sender, bearer: bearer.map(str::to_owned), _driver: driver })
    }

    /// `None` if the connection ends before the answer's head.
    pub async fn begin(&mut self, method: Method, path: &str, body: &str) -> Option<Stream> {
        let mut request = Request::builder().method(method).uri(path).header("host", "x");
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        let answer = timeout(DEADLINE, self.sender.send_request(request)).await.expect("no answer").ok()?;
        let (head, body) = answer.into_parts();
        Some(Stream { status: head.status.as_u16(), headers: head.headers, body, _connection: None })
    }

    pub async fn ask(&mut self, method: Method, path: &str, body: &str) -> Option<Reply> {
        Some(self.begin(method, path, body).await?.whole().await)
    }
}

impl Stream {
    /// With the connection, which lives as long as this.
    pub fn on(self, connection: Connection) -> Self {
        Self { _connection: Some(connection), ..self }
    }

    /// The next piece: `Ok(None)` at the end, `Err` if there was none.
    pub async fn piece(&mut self) -> Result<Option<String>, hyper::Error> {
        loop {
            let frame = timeout(DEADLINE, self.body.frame()).await.expect("no piece");
            let Some(frame) = frame.transpose()? else { return Ok(None) };
            if let Ok(data) = frame.into_data() {
                return Ok(Some(String::from_utf8(data.to_vec()).unwrap()));
            }
        }
    }

    pub async fn whole(mut self) -> Reply {
        let (mut text, mut is_whole) = (String::new(), true);
        loop {
            match self.piece().await {
                Ok(Some(piece)) => text.push_str(&piece),
                Ok(None) => break,
                Err(_) => {
                    is_whole = false;
                    break;
                }
            }
        }
        Reply { status: self.status, headers: self.headers, text, is_whole }
    }
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status and code of a refusal.
    pub fn refusal(&self) -> (u16, String) {
        (self.status, self.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    pub fn retry_after(&self) -> Option<u64> {
        self.headers.get("retry-after")?.to_str().ok()?.parse().ok()
    }

    /// The digests that the fake's words name: of a whole answer, or of a stream's events.
    pub fn digests(&self) -> Vec<String> {
        digests(&self.text)
    }

    /// The only weights that the answer was made with.
    pub fn weights(&self) -> String {
        let mut digests = self.digests();
        assert!(self.status == 200 && self.is_whole && !digests.is_empty(), "{self:?}");
        digests.dedup();
        assert_eq!(digests.len(), 1, "an answer of several weights: {self:?}");
        digests.remove(0)
    }
}

/// What follows `kv=` and `w=`.
pub fn digests(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '='));
    words.filter_map(|word| Some(word.strip_prefix("kv=").or_else(|| word.strip_prefix("w="))?.to_owned())).collect()
}
