use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::*;
use crate::caches::Environment;
use crate::lifecycle::Tasks;

const LONG: Duration = Duration::from_secs(60);

fn url(probe: Result<Probe, ProbeError>) -> String {
    probe.unwrap().to_string()
}

#[test]
fn an_operators_url_is_taken_as_it_is_but_for_wildcard_addresses() {
    for (given, asked) in [
        ("http://127.0.0.1:8000/health", "http://127.0.0.1:8000/health"),
        ("http://0.0.0.0:30000/health_generate?x=1", "http://127.0.0.1:30000/health_generate?x=1"),
        ("HTTP://[::]:8000", "http://[::1]:8000/"),
        ("https://engine.example/ping", "https://engine.example:443/ping"),
        ("http://[fd00::7]:80/health", "http://[fd00::7]:80/health"),
    ] {
        assert_eq!(url(Probe::of_url(given)), asked, "{given}");
    }
}

#[test]
fn other_schemes_are_refused_by_name_and_malformed_urls_with_the_reason() {
    for scheme in ["file", "gopher", "ftp", "unix", "httpx"] {
        let error = Probe::of_url(&format!("{scheme}://localhost/health")).unwrap_err();
        assert!(matches!(&error, ProbeError::Scheme { scheme: named, .. } if named == scheme), "{error}");
    }
    for wrong in ["", "localhost", "/health", "http://", "http:///health", "http://user:pw@localhost/", "http://a b/"] {
        let error = Probe::of_url(wrong).unwrap_err();
        assert!(matches!(error, ProbeError::Url { .. }), "{wrong}: {error}");
    }
    // What looks like a host and a port has a scheme in the eyes of a URL.
    assert!(matches!(Probe::of_url("localhost:8000"), Err(ProbeError::Scheme { .. })));
}

fn engine(change: impl FnOnce(&mut Serving)) -> Result<Probe, ProbeError> {
    engine_in(&[], change)
}

fn engine_in(variables: &[(&str, &str)], change: impl FnOnce(&mut Serving)) -> Result<Probe, ProbeError> {
    let mut serving = Serving::default();
    change(&mut serving);
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Probe::of_engine(&serving, &variables.collect::<Environment>())
}

#[test]
fn an_engine_is_asked_where_it_listens() {
    assert_eq!(url(engine(|_| ())), "http://127.0.0.1:8000/health");
    for (host, asked) in [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("[::]", "[::1]"), ("10.0.0.7", "10.0.0.7")] {
        let probe = engine(|serving| (serving.host, serving.port) = (Some(host.to_owned()), 81));
        assert_eq!(url(probe), format!("http://{asked}:81/health"));
    }
    let socket = engine(|serving| serving.socket = Some("/run/engine.sock".into()));
    assert_eq!(url(socket), "http://localhost/health at /run/engine.sock");
    let tls = engine(|serving| serving.certificate = Some("/tls.pem".into()));
    assert_eq!(url(tls), "https://127.0.0.1:8000/health");
}

#[test]
fn a_node_that_serves_no_requests_asks_its_head() {
    let lws = [("LWS_LEADER_ADDRESS", "leader.group.ns")];
    let headless = |serving: &mut Serving| serving.headless = true;
    assert_eq!(url(engine_in(&lws, headless)), "http://leader.group.ns:8000/health");
    assert_eq!(url(engine_in(&lws, |serving| serving.node_rank = 1)), "http://leader.group.ns:8000/health");
    let told = |serving: &mut Serving| {
        (serving.node_rank, serving.port) = (3, 9000);
        serving.master_address = Some("fd00::1".to_owned());
    };
    assert_eq!(url(engine_in(&lws, told)), "http://[fd00::1]:9000/health");
    let both = |serving: &mut Serving| {
        told(serving);
        serving.data_parallel_address = Some("10.0.0.1".to_owned());
    };
    assert_eq!(url(engine_in(&lws, both)), "http://10.0.0.1:9000/health");
    assert!(matches!(engine(headless), Err(ProbeError::NoHead)));
    assert!(matches!(engine_in(&[("LWS_LEADER_ADDRESS", "")], headless), Err(ProbeError::NoHead)));
    let socket = |serving: &mut Serving| (serving.headless, serving.socket) = (true, Some("/s".into()));
    assert!(matches!(engine_in(&lws, socket), Err(ProbeError::HeadBehindSocket(_))));
}

#[test]
fn a_head_and_a_node_with_an_api_server_of_its_own_are_asked_themselves() {
    let lws = [("LWS_LEADER_ADDRESS", "leader.group.ns")];
    assert_eq!(url(engine_in(&lws, |_| ())), "http://127.0.0.1:8000/health");
    let external = |serving: &mut Serving| (serving.node_rank, serving.server_on_every_node) = (2, true);
    assert_eq!(url(engine_in(&lws, external)), "http://127.0.0.1:8000/health");
}

/// Gives the answers in turn, the last one again and again, and counts the requests.
async fn answering<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answers: &[&str], asked: &AtomicUsize) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read_exact(&mut byte).await.is_err() {
            return;
        }
        request.push(byte[0]);
    }
    assert!(request.starts_with(b"GET /health HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&request));
    let turn = asked.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
    let _ = stream.write_all(answers[turn].as_bytes()).await;
}

struct Server {
    probe: Probe,
    asked: Arc<AtomicUsize>,
    _tasks: Tasks,
}

async fn server(answers: &'static [&'static str]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let probe = Probe::of_url(&format!("http://{}/health", listener.local_addr().unwrap())).unwrap();
    let (asked, tasks) = (Arc::new(AtomicUsize::new(0)), Tasks::new());
    let count = asked.clone();
    tasks.spawn("server", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            answering(stream, answers, &count).await;
        }
    });
    Server { probe, asked, _tasks: tasks }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn an_engine_is_ready_with_the_first_200() {
    let server = server(&[UNAVAILABLE, "nonsense\r\n\r\n", "", OK]).await;
    let readiness = wait(&server.probe, LONG, pending()).await;
    assert!(matches!(readiness, Readiness::Ready { .. }), "{readiness:?}");
    assert_eq!(server.asked.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn redirects_are_not_followed_and_bodies_are_not_read() {
    let server = server(&[
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: /health\r\ncontent-length: 0\r\n\r\n",
        // Without an end.
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nx",
    ])
    .await;
    let refused = server.probe.ask().await.unwrap_err();
    assert!(matches!(refused, ProbeFailure::Status(StatusCode::TEMPORARY_REDIRECT)), "{refused}");
    server.probe.ask().await.unwrap();
}

#[tokio::test]
async fn waiting_ends_at_once_when_the_engine_exits() {
    let server = server(&[UNAVAILABLE]).await;
    let readiness = wait(&server.probe, LONG, ready(Exit::Code(1))).await;
    assert!(matches!(readiness, Readiness::Exited(Exit::Code(1))), "{readiness:?}");
    assert_eq!(server.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_deadline_tells_what_the_last_question_met() {
    let server = server(&[UNAVAILABLE]).await;
    let readiness = wait(&server.probe, Duration::from_secs(3), pending()).await;
    let told = matches!(readiness, Readiness::Deadline(Some(ProbeFailure::Status(StatusCode::SERVICE_UNAVAILABLE))));
    assert!(told, "{readiness:?}");
    // Nobody listens there, and nobody else gets it.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = socket.local_addr().unwrap();
    let probe = Probe::of_url(&format!("http://{nobody}/health")).unwrap();
    let readiness = wait(&probe, Duration::from_secs(3), pending()).await;
    assert!(matches!(readiness, Readiness::Deadline(Some(ProbeFailure::Connect(_)))), "{readiness:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_accepts_and_says_nothing_costs_one_question_its_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let probe = Probe::of_url(&format!("http://{}/health", listener.local_addr().unwrap())).unwrap();
    let failure = probe.ask().await.unwrap_err();
    assert!(matches!(failure, ProbeFailure::TimedOut(_)), "{failure}");
}

#[tokio::test]
async fn an_engine_behind_a_unix_socket_is_asked_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("engine.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let probe = engine(|serving| serving.socket = Some(path)).unwrap();
    let asked = AtomicUsize::new(0);
    let serve = async { answering(listener.accept().await.unwrap().0, &[OK], &asked).await };
    let (answer, ()) = tokio::join!(probe.ask(), serve);
    answer.unwrap();
}

mod certificates {
    use std::path::Path;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::identity::{ClusterCa, PrivateKey};

    /// A certificate for `names`, of an authority that no system knows; (certificate, key) as PEM files.
    fn issue(dir: &Path, seed: u8, names: &[&str]) -> (PathBuf, PathBuf) {
        let ca = ClusterCa::create("test", &PrivateKey::from_seed(seed)).unwrap();
        let key = PrivateKey::from_seed(seed + 1);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let chain = ca.issue(&key, &names, Duration::from_secs(3600)).unwrap();
        let (certificate, private) = (dir.join(format!("{seed}.pem")), dir.join(format!("{seed}.key")));
        std::fs::write(&certificate, chain).unwrap();
        key.save_new(&private).unwrap();
        (certificate, private)
    }

    /// Asks once an engine that has one certificate, believing in another.
    async fn ask(serves: &(PathBuf, PathBuf), believed: &Path) -> Result<(), ProbeFailure> {
        let chain = CertificateDer::pem_file_iter(&serves.0).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&serves.1).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let probe = engine(|serving| (serving.port, serving.certificate) = (port, Some(believed.to_owned()))).unwrap();
        let asked = AtomicUsize::new(0);
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await {
                answering(stream, &[OK], &asked).await;
            }
        };
        tokio::join!(probe.ask(), serve).0
    }

    #[tokio::test]
    async fn the_engines_own_certificate_is_believed_for_any_name_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let own = issue(dir.path(), 10, &["engine.example"]);
        let other = issue(dir.path(), 20, &["127.0.0.1"]);
        ask(&own, &own.0).await.unwrap();
        let refused = ask(&own, &other.0).await.unwrap_err();
        assert!(matches!(refused, ProbeFailure::Tls(_)), "{refused}");
    }
}
