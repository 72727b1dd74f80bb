use http_body_util::{BodyExt, Full};
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, LOCATION};
use serde_json::{Value, json};

use super::super::board::Document;
use super::*;
use crate::telemetry::{Format, Registry};

const TOKEN: &str = "0123456789abcdef";
const EVERYWHERE: &str = "0.0.0.0:80";

struct Visit {
    site: Site,
    registry: Registry,
    _token: tempfile::NamedTempFile,
}

impl Visit {
    fn new(https: bool) -> Self {
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), format!("{TOKEN}\n")).unwrap();
        let section = WebSection { token_file: Some(token.path().into()), https, ..WebSection::default() };
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let site = Site::new(&section, EVERYWHERE.parse().unwrap(), LiveBoard::default(), metrics).unwrap();
        Self { site, registry, _token: token }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        self.site.answer(request, "10.0.0.1:1000".parse().unwrap()).await
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.ask("GET", path, headers, "").await
    }

    async fn try_login(&self, token: &str) -> Reply {
        self.ask("POST", "/login", &[], &format!("username=warmd&token={token}")).await
    }
}

fn header(reply: &Reply, name: impl hyper::header::AsHeaderName) -> String {
    reply.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

const BEARER: [(&str, &str); 1] = [("authorization", "Bearer 0123456789abcdef")];

#[tokio::test]
async fn nothing_is_told_without_the_token() {
    let visit = Visit::new(false);
    let page = visit.get("/", &[]).await;
    assert_eq!((page.status(), header(&page, LOCATION).as_str()), (StatusCode::SEE_OTHER, "login"));
    for path in ["/events", "/api/fleet"] {
        for headers in [vec![], vec![("authorization", "Bearer wrong")], vec![("cookie", "warmd=1.2")]] {
            assert_eq!(visit.get(path, &headers).await.status(), StatusCode::UNAUTHORIZED, "{path} {headers:?}");
        }
        assert_eq!(visit.get(path, &BEARER).await.status(), StatusCode::OK);
    }
    assert_eq!(visit.get("/login", &[]).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_form_opens_a_session_and_logging_out_ends_it() {
    for (https, name) in [(false, "warmd"), (true, "__Host-warmd")] {
        let visit = Visit::new(https);
        assert_eq!(visit.try_login("wrong").await.status(), StatusCode::FORBIDDEN);
        let opened = visit.try_login(TOKEN).await;
        assert_eq!((opened.status(), header(&opened, LOCATION).as_str()), (StatusCode::SEE_OTHER, "./"));
        let cookie = header(&opened, SET_COOKIE);
        assert!(cookie.contains("HttpOnly; SameSite=Strict") && cookie.contains("; Secure") == https, "{cookie}");
        assert!(cookie.starts_with(&format!("{name}=")) && !cookie.contains(TOKEN), "{cookie}");
        let session = cookie.split(';').next().unwrap();
        let events = visit.get("/events", &[("cookie", session)]).await;
        assert_eq!((events.status(), header(&events, SESSION).as_str()), (StatusCode::OK, "open"));
        assert_eq!(visit.get("/", &[("cookie", session)]).await.status(), StatusCode::OK);
        let ended = visit.ask("POST", "/logout", &[("cookie", session)], "").await;
        assert!(header(&ended, SET_COOKIE).starts_with(&format!("{name}=; Path=/; Max-Age=0;")));
    }
}

#[tokio::test]
async fn guessing_is_slow_by_header_and_by_form() {
    let visit = Visit::new(false);
    for _ in 0..5 {
        visit.try_login("wrong").await;
        visit.get("/events", &[("authorization", "Bearer wrong")]).await;
    }
    let locked = visit.try_login("wrong").await;
    assert_eq!((locked.status(), header(&locked, RETRY_AFTER).is_empty()), (StatusCode::TOO_MANY_REQUESTS, false));
    let wrong = [("authorization", "Bearer wrong")];
    assert_eq!(visit.get("/", &wrong).await.status(), StatusCode::TOO_MANY_REQUESTS);
    // All come from one address where something stands in front.
    assert_eq!(visit.get("/", &BEARER).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn other_sites_and_other_methods_get_nowhere() {
    let visit = Visit::new(false);
    let foreign = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    assert_eq!(visit.ask("POST", "/login", &foreign, "token=0123456789abcdef").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        visit.get("/events", &[("sec-fetch-site", "same-site"), BEARER[0]]).await.status(),
        StatusCode::FORBIDDEN
    );
    for (method, path) in [("POST", "/events"), ("PUT", "/"), ("DELETE", "/api/fleet"), ("OPTIONS", "/app.js")] {
        let refused = visit.ask(method, path, &BEARER, "").await;
        assert_eq!((refused.status(), header(&refused, ALLOW).as_str()), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD"));
    }
    assert_eq!(visit.ask("PUT", "/logout", &[], "").await.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn paths_lead_to_the_programs_own_files_only() {
    let visit = Visit::new(false);
    for path in
        ["/../Cargo.toml", "/page/app.js", "/app.js/", "//app.js", "/%61pp.js", "/..%2fetc/passwd", "/index.html"]
    {
        assert_eq!(visit.get(path, &BEARER).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(visit.get("/app.js?x=1", &[]).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn every_answer_is_guarded_and_only_files_are_kept() {
    let visit = Visit::new(false);
    let answers = [
        (visit.get("/", &BEARER).await, "no-cache"),
        (visit.get("/style.css", &[]).await, "no-cache"),
        (visit.get("/events", &BEARER).await, "no-store"),
        (visit.get("/api/fleet", &BEARER).await, "no-store"),
        (visit.get("/login", &[]).await, "no-store"),
        (visit.get("/nowhere", &[]).await, "no-store"),
        (visit.ask("PUT", "/", &[], "").await, "no-store"),
        (visit.get("/events", &[]).await, "no-store"),
    ];
    for (answer, kept) in answers {
        let policy = header(&answer, CONTENT_SECURITY_POLICY);
        assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"));
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        assert_eq!(
            (header(&answer, "x-content-type-options").as_str(), header(&answer, "referrer-policy").as_str()),
            ("nosniff", "no-referrer")
        );
        assert_eq!(header(&answer, CACHE_CONTROL), kept);
    }
}

#[tokio::test]
async fn the_snapshot_is_json_and_a_head_has_no_documents() {
    let visit = Visit::new(false);
    let document = Document::new(&json!({"name": "n"})).unwrap();
    visit.site.board.set(&"node/1".parse().unwrap(), document).unwrap();
    let body = visit.get("/api/fleet", &BEARER).await.into_body().collect().await.unwrap().to_bytes();
    let snapshot: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(snapshot, json!({"version": 2, "documents": {"node/1": {"name": "n"}}}));
    let head = visit.ask("HEAD", "/events", &BEARER, "").await;
    assert_eq!(header(&head, "content-type"), EVENTS);
    assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn one_stream_too_many_is_told_to_come_again_and_a_closed_one_makes_room() {
    let visit = Visit::new(false);
    let mut open = Vec::new();
    for _ in 0..MAX_STREAMS {
        let stream = visit.get("/events", &BEARER).await;
        assert_eq!(stream.status(), StatusCode::OK);
        open.push(stream);
    }
    let refused = visit.get("/events", &BEARER).await;
    assert_eq!(
        (refused.status(), header(&refused, RETRY_AFTER).as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, COME_AGAIN)
    );
    assert_eq!(visit.get("/api/fleet", &BEARER).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    open.pop();
    assert_eq!(visit.get("/api/fleet", &BEARER).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_local_page_is_open_to_its_own_names() {
    let (section, board) = (WebSection::default(), LiveBoard::default());
    let site = Site::new(&section, "127.0.0.1:80".parse().unwrap(), board, Metrics::default()).unwrap();
    let ask = async |host: &str, path: &str| {
        let request = Request::builder().uri(path).header("host", host).body(Full::new(Bytes::new())).unwrap();
        site.answer(request, "127.0.0.1:1000".parse().unwrap()).await
    };
    assert_eq!(ask("localhost:80", "/").await.status(), StatusCode::OK);
    assert_eq!(header(&ask("[::1]:80", "/login").await, LOCATION), "./");
    assert_eq!(ask("evil.example", "/api/fleet").await.status(), StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn requests_open_streams_and_what_is_taken_are_counted() {
    let visit = Visit::new(false);
    let told = |line: &str| {
        let text = Format::Prometheus.encode(&visit.registry);
        assert!(text.lines().any(|told| told == line), "{line}: {text}");
    };
    let asset = visit.get("/style.css", &[]).await;
    let size = asset.size_hint().exact().unwrap();
    told("warmd_web_sent_bytes_total 0");
    assert_eq!(asset.into_body().collect().await.unwrap().to_bytes().len() as u64, size);
    told(&format!("warmd_web_sent_bytes_total {size}"));
    let stream = visit.get("/events", &BEARER).await;
    told("warmd_web_open_streams 1");
    drop(stream);
    told("warmd_web_open_streams 0");
    visit.get("/api/fleet", &[]).await;
    visit.get("/api/config", &[]).await;
    visit.get("/nothing/of/the/kind", &[]).await;
    visit.try_login("wrong").await;
    let answered = [("page", 200), ("events", 200), ("fleet", 401), ("config", 401), ("other", 404), ("login", 403)];
    for (route, code) in answered {
        told(&format!("warmd_web_requests_total{{route=\"{route}\",code=\"{code}\"}} 1"));
    }
}
