//! Routes, and who may take them.

use std::iter;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use hyper::body::Body as HttpBody;
use hyper::header::{
    ALLOW, CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::assets::{self, Assets};
use super::auth::{self, Door, Entrance, Refusal};
use super::events::events;
use super::live::LiveBoard;
use super::metrics::{Metrics, Route};
use super::reply::{self, Reply, TEXT};
use super::request::{self, Hosts};
use super::{WebError, WebSection};

/// Streams and snapshots at a time.
pub(super) const MAX_STREAMS: usize = 64;

/// A stream ends then, and the client takes up a new one: who may not look any more has lost it by then.
const STREAM_LIFE: Duration = Duration::from_secs(3600);

/// Seconds after which a client may ask for a stream again.
const COME_AGAIN: &str = "10";

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// On a stream for whoever has a session that can be ended.
const SESSION: HeaderName = HeaderName::from_static("warmd-session");

/// Everything that requests are answered from.
#[derive(Debug)]
pub(super) struct Site {
    door: Door,
    hosts: Hosts,
    https: bool,
    assets: Assets,
    board: LiveBoard,
    streams: Arc<Semaphore>,
    metrics: Metrics,
}

impl Site {
    pub(super) fn new(
        section: &WebSection,
        listen: SocketAddr,
        board: LiveBoard,
        metrics: Metrics,
    ) -> Result<Self, WebError> {
        Ok(Self {
            door: Door::new(section, listen)?,
            hosts: Hosts::new(&section.hosts, listen.ip().is_loopback()),
            https: section.https,
            assets: Assets::new(),
            board,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            metrics,
        })
    }

    /// The answer to one request of the client at `from`.
    pub(super) async fn answer<B: HttpBody<Data = Bytes>>(&self, request: Request<B>, from: SocketAddr) -> Reply
    where
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let route = self.route(request.uri().path());
        let answer = self.admit(request, from).await;
        self.metrics.answered(route, reply::guarded(answer))
    }

    fn route(&self, path: &str) -> Route {
        match path {
            "/events" => Route::Events,
            "/api/fleet" => Route::Fleet,
            "/api/config" => Route::Config,
            "/login" => Route::Login,
            "/logout" => Route::Logout,
            path if self.assets.contains(path) => Route::Page,
            _ => Route::Other,
        }
    }

    async fn admit<B: HttpBody<Data = Bytes>>(&self, request: Request<B>, from: SocketAddr) -> Reply
    where
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let headers = &head.headers;
        if !self.hosts.admits(headers) {
            let why = "the page is not reached by this name: add it to `web.hosts`\n";
            return reply::whole(StatusCode::MISDIRECTED_REQUEST, TEXT, why);
        }
        if request::is_foreign(headers) {
            return reply::whole(StatusCode::FORBIDDEN, TEXT, "asked by a page of another site\n");
        }
        match (&head.method, head.uri.path()) {
            (&Method::GET | &Method::HEAD, path) => self.show(&head.method, path, headers, from),
            (&Method::POST, "/login" | "/logout") if request::comes_from_elsewhere(headers) => {
                reply::whole(StatusCode::FORBIDDEN, TEXT, "asked by a page of another site\n")
            }
            (&Method::POST, "/login") => self.log_in(request::token(body).await, from),
            (&Method::POST, "/logout") => self.log_out(),
            (_, path) => self.not_allowed(path),
        }
    }

    fn show(&self, method: &Method, path: &str, headers: &HeaderMap, from: SocketAddr) -> Reply {
        let entrance = || self.enter(headers, from);
        let is_head = method == Method::HEAD;
        match path {
            "/" => match entrance() {
                Err(Refusal::Unknown) => reply::elsewhere("login"),
                Err(refusal) => refused(refusal),
                Ok(_) => self.asset(path, headers),
            },
            "/login" => match self.door {
                Door::Loopback => reply::elsewhere("./"),
                Door::Token(_) => login(StatusCode::OK, ""),
            },
            "/events" => entrance().map_or_else(refused, |entrance| self.follow(headers, entrance, is_head)),
            "/api/fleet" => entrance().map_or_else(refused, |_| self.snapshot()),
            "/api/config" => entrance().map_or_else(refused, |_| self.configuration()),
            path => self.asset(path, headers),
        }
    }

    fn configuration(&self) -> Reply {
        match self.board.configuration() {
            Some(toml) => reply::whole(StatusCode::OK, TEXT, toml),
            None => reply::whole(StatusCode::NOT_FOUND, TEXT, "an agent tells it over its socket\n"),
        }
    }

    fn asset(&self, path: &str, headers: &HeaderMap) -> Reply {
        let missing = || reply::whole(StatusCode::NOT_FOUND, TEXT, "there is /, /events, /api/fleet and /api/config\n");
        self.assets.serve(path, headers).unwrap_or_else(missing)
    }

    fn not_allowed(&self, path: &str) -> Reply {
        let allowed = match path {
            "/login" => "GET, HEAD, POST",
            "/logout" => "POST",
            "/events" | "/api/fleet" | "/api/config" => "GET, HEAD",
            path if self.assets.contains(path) => "GET, HEAD",
            _ => return self.asset(path, &HeaderMap::new()),
        };
        let mut answer = reply::whole(StatusCode::METHOD_NOT_ALLOWED, TEXT, "the page can only be looked at\n");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        answer
    }

    fn enter(&self, headers: &HeaderMap, from: SocketAddr) -> Result<Entrance, Refusal> {
        let Door::Token(lock) = &self.door else { return Ok(Entrance::Loopback) };
        if let Some(token) = request::bearer(headers) {
            return lock.try_token(token.as_bytes(), from, Instant::now()).map(|()| Entrance::Bearer);
        }
        let now = auth::now();
        let session = request::cookies(headers, self.cookie()).find_map(|cookie| lock.session(cookie, now));
        session.map(Entrance::Session).ok_or(Refusal::Unknown)
    }

    fn follow(&self, headers: &HeaderMap, entrance: Entrance, is_head: bool) -> Reply {
        let Some(slot) = self.slot() else { return too_many() };
        let mark = headers.get("last-event-id").and_then(|mark| mark.to_str().ok()).unwrap_or_default();
        let left = match entrance {
            Entrance::Session(ends) => Duration::from_secs(ends.saturating_sub(auth::now())),
            Entrance::Loopback | Entrance::Bearer => STREAM_LIFE,
        };
        let ends = tokio::time::Instant::now() + left.min(STREAM_LIFE);
        let compressed = request::takes_zstd(headers);
        let open = self.metrics.open(slot);
        let events = match events(self.board.clone(), self.board.resume(mark), ends, open, compressed) {
            Ok(events) => events,
            Err(error) => return reply::whole(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        };
        let mut answer = match is_head {
            true => reply::streamed(EVENTS, stream::empty()),
            false => reply::streamed(EVENTS, events),
        };
        let head = answer.headers_mut();
        if compressed {
            head.insert(CONTENT_ENCODING, HeaderValue::from_static("zstd"));
        }
        if matches!(entrance, Entrance::Session(_)) {
            head.insert(SESSION, HeaderValue::from_static("open"));
        }
        // Ingresses keep back what they think is short (nginx).
        head.insert("x-accel-buffering", HeaderValue::from_static("no"));
        answer
    }

    /// Its documents are shared with the board until they are sent.
    fn snapshot(&self) -> Reply {
        let Some(slot) = self.slot() else { return too_many() };
        let (version, documents) = self.board.snapshot();
        let head = Bytes::from(format!("{{\"version\":{version},\"documents\":{{"));
        let members = documents.into_iter().enumerate().flat_map(|(n, (key, document))| {
            let comma = if n == 0 { "" } else { "," };
            [Bytes::from(format!("{comma}\n\"{key}\":")), document.as_bytes().clone()]
        });
        let pieces = iter::once(head).chain(members).chain(iter::once(Bytes::from_static(b"}}\n")));
        let held = (pieces, slot);
        let next = async |(mut pieces, slot): (_, _)| Some((Iterator::next(&mut pieces)?, (pieces, slot)));
        reply::streamed(JSON, stream::unfold(held, next))
    }

    fn slot(&self) -> Option<OwnedSemaphorePermit> {
        self.streams.clone().try_acquire_owned().ok()
    }

    fn log_in(&self, token: Option<Vec<u8>>, from: SocketAddr) -> Reply {
        let Door::Token(lock) = &self.door else { return reply::elsewhere("./") };
        let Some(token) = token else { return login(StatusCode::BAD_REQUEST, "Type the token.") };
        match lock.try_token(token.trim_ascii(), from, Instant::now()) {
            Ok(()) => {
                let mut answer = reply::elsewhere("./");
                self.set_cookie(&mut answer, &lock.open_session(auth::now()), lock.session_seconds());
                answer
            }
            Err(refusal @ Refusal::Locked(_)) => refused(refusal),
            Err(_) => login(StatusCode::FORBIDDEN, "That is not the token."),
        }
    }

    /// The browser forgets the session.
    fn log_out(&self) -> Reply {
        let mut answer = reply::elsewhere("login");
        self.set_cookie(&mut answer, "", 0);
        answer
    }

    fn set_cookie(&self, answer: &mut Reply, value: &str, seconds: u64) {
        let secure = if self.https { "; Secure" } else { "" };
        let cookie = format!("{}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}", self.cookie());
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            answer.headers_mut().insert(SET_COOKIE, cookie);
        }
    }

    /// With the prefix, browsers take it from this host by HTTPS only (RFC 6265bis, 4.1.3.2).
    fn cookie(&self) -> &'static str {
        if self.https { "__Host-warmd" } else { "warmd" }
    }
}

fn login(status: StatusCode, message: &str) -> Reply {
    reply::whole(status, "text/html; charset=utf-8", assets::LOGIN.replace("{{message}}", message))
}

fn refused(refusal: Refusal) -> Reply {
    match refusal {
        Refusal::Unknown | Refusal::WrongToken => {
            let why = "give the token: `Authorization: Bearer TOKEN`, or by the form at /login\n";
            let mut answer = reply::whole(StatusCode::UNAUTHORIZED, TEXT, why);
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            answer
        }
        Refusal::Locked(wait) => {
            let seconds = wait.as_secs() + 1;
            let why = format!("too many wrong tokens: try again in {seconds} s\n");
            let mut answer = reply::whole(StatusCode::TOO_MANY_REQUESTS, TEXT, why);
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            answer
        }
    }
}

fn too_many() -> Reply {
    let why = "too many look at the page: try again in a while\n";
    let mut answer = reply::whole(StatusCode::SERVICE_UNAVAILABLE, TEXT, why);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(COME_AGAIN));
    answer
}

#[cfg(test)]
mod tests;
