//! Whatever is logged, exported, counted, shown and answered: no secret is in it. Others are as talkative as they can be: the
//! object store and the shared store tell in their errors all that they were told.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use hyper::Method;
use rustix::process::{Pid, Signal};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use warmd::config::{AgentFile, EngineSection, MetadataConfig, ServedEngine};
use warmd::lifecycle::Tasks;
use warmd::telemetry::trace::OtlpProtocol;

use super::super::all_in_one::start_with;
use super::super::harness::cluster::{Cluster, DEADLINE};
use super::super::harness::engine::own_proc;
use super::super::harness::http::Connection;
use super::super::harness::ports;
use super::super::harness::program::Program;
use super::super::harness::served::{Adapter, Fleet, until};
use super::super::serve::wallet::{AUDIENCE, WALLETS, session};

const PROMPT: &str = "canary-prompt-7f3a";
const HEADER: &str = "canary-header-51c2";
const TOKEN: &str = "eyJhbGciOiJFZERTQSJ9.canary-claims-90be.canary-signature-33d1";
const PAGE: &str = "canary-page-token-0f6b";
const WRONG_PAGE: &str = "canary-page-token-wrong";

/// What an origin is given in its environment.
const ORIGIN: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "CANARYACCESSKEY42"),
    ("AWS_SECRET_ACCESS_KEY", "canary-origin-secret-8d21"),
    ("AWS_SESSION_TOKEN", "canary-origin-session-77aa"),
];

/// A collector that speaks HTTP, and keeps the bodies as they come.
async fn collector(tasks: &Tasks) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, bodies) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let kept = bodies.clone();
    tasks.spawn("collector", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let body = take(stream).await.unwrap();
            kept.lock().unwrap().extend(body);
        }
    });
    (addr, bodies)
}

async fn take(stream: TcpStream) -> std::io::Result<Vec<u8>> {
    let mut stream = BufReader::new(stream);
    let (mut length, mut line) = (0, String::new());
    while stream.read_line(&mut line).await? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
    Ok(body)
}

/// The first line of a key in PEM form that only this key has.
fn key_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().nth(1).unwrap()[24..].to_owned()
}

/// Tells whoever asks, as an error, everything that it was told. `answer` makes that of the request.
async fn talkative(tasks: &Tasks, answer: fn(&str) -> String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, connections) = (listener.local_addr().unwrap(), tasks.child());
    tasks.spawn("talkative store", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn("talk", async move {
                let mut request = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = stream.read(&mut request).await {
                    let told = answer(&String::from_utf8_lossy(&request[..read]));
                    if stream.write_all(told.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

/// As S3 says why a signature is not right: with the headers that it was made of.
fn like_s3(request: &str) -> String {
    let mut headers: Vec<&str> = request.lines().collect();
    // The session token first: of a long error only the beginning is told.
    headers.sort_unstable_by(|a, b| b.cmp(a));
    let headers = headers.join(" | ");
    let body =
        format!("<Error><Code>SignatureDoesNotMatch</Code><CanonicalRequest>{headers}</CanonicalRequest></Error>");
    format!("HTTP/1.1 403 Forbidden\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// One error for each command.
fn like_redis(request: &str) -> String {
    let commands = request.lines().filter(|line| line.starts_with('*')).count();
    format!("-WRONGPASS invalid username-password pair in {}\r\n", request.replace("\r\n", " ")).repeat(commands)
}

/// Places and what is there.
struct Told(Vec<(&'static str, String)>);

impl Told {
    fn has_none_of(&self, secrets: &[&str]) {
        for (place, text) in &self.0 {
            assert!(!text.trim().is_empty(), "{place}");
            for secret in secrets {
                assert!(secret.len() > 8, "{secret}");
                let line = text.lines().find(|line| line.contains(secret));
                assert!(line.is_none(), "`{secret}` is in {place}: {line:?}");
            }
        }
    }
}

/// Standard output and standard error of a command that ends by itself.
async fn ran(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd"));
    let output = command.args(arguments).envs(environment.iter().copied()).output();
    let output = tokio::time::timeout(DEADLINE, output).await.expect("it does not end").unwrap();
    [output.stdout, output.stderr].iter().map(|bytes| String::from_utf8_lossy(bytes)).collect()
}

/// What the engine's process was started with.
fn engine_key(leader: i64) -> String {
    let environment = std::fs::read(format!("/proc/{leader}/environ")).unwrap();
    let variables = environment.split(|byte| *byte == 0);
    let key = variables.into_iter().find_map(|one| one.strip_prefix(b"VLLM_API_KEY="));
    String::from_utf8(key.expect("the engine has a key of this launch").to_vec()).unwrap()
}

/// A pod that is everything in one, with every kind of secret that it can have.
struct Pod {
    fleet: Fleet,
    file: AgentFile,
    path: PathBuf,
    api_key: String,
    wallet: String,
    endpoint: String,
}

impl Pod {
    async fn new(tasks: &Tasks, collector: SocketAddr) -> Self {
        let fleet = Fleet::start().await;
        fleet.publish(Adapter::new("sql", 1)).await;
        let path = |name: &str| fleet.cluster.path(name);
        let (keys, headers, page) = (path("keys.toml"), path("headers"), path("page-token"));
        let mut made = Command::new(env!("CARGO_BIN_EXE_warmd"));
        made.args(["keys", "api", "--id", "team", "--tenant", "team"]).arg(&keys);
        let api_key = String::from_utf8(made.output().unwrap().stdout).unwrap().trim().to_owned();
        std::fs::write(&headers, format!("authorization: Bearer {HEADER}\n")).unwrap();
        std::fs::write(&page, PAGE).unwrap();
        std::fs::set_permissions(&page, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();

        let engine = EngineSection {
            command: fleet.command(""),
            cache_root: Some(path("caches")),
            reserve_bytes: 0,
            ..EngineSection::default()
        };
        let mut serve = fleet.config();
        let wallets = format!("[wallet]\naudiences = [\"{AUDIENCE}\"]\nstrangers = true\n");
        serve.auth = toml::from_str(&format!("{wallets}[keys]\nfile = {keys:?}")).unwrap();
        let free = || Some(ports::free());
        serve.metrics.listen = free();
        let mut file = AgentFile { agent: fleet.cluster.config("all"), served: Some(ServedEngine { engine, serve }) };
        file.agent.metrics.listen = free();
        (file.agent.web.listen, file.agent.web.token_file) = (free(), Some(page));
        file.agent.web.hosts = vec!["x".to_owned()];
        file.agent.origin.url = Some("s3://bucket/warmd".parse().unwrap());
        let tracing = &mut file.agent.tracing;
        tracing.endpoint = Some(format!("http://{collector}").parse().unwrap());
        (tracing.protocol, tracing.headers_file) = (OtlpProtocol::Http, Some(headers));
        let endpoint = format!("http://{}", talkative(tasks, like_s3).await);
        let path = path("warmd.toml");
        Self { fleet, file, path, api_key, wallet: session(WALLETS[0]), endpoint }
    }

    /// Of whatever asks the origin.
    fn environment(&self) -> Vec<(&str, &str)> {
        let more = [("AWS_ENDPOINT", self.endpoint.as_str()), ("AWS_ALLOW_HTTP", "true"), ("AWS_REGION", "x")];
        ORIGIN.into_iter().chain(more).collect()
    }

    fn socket(&self) -> &str {
        self.file.agent.local.socket.to_str().unwrap()
    }

    async fn get(&self, addr: Option<SocketAddr>, bearer: Option<&str>, path: &str) -> String {
        let mut connection = Connection::tcp(addr.unwrap(), bearer).await.unwrap();
        connection.ask(Method::GET, path, "").await.unwrap().text
    }

    /// Uses every secret, rightly and wrongly, and gathers what is told meanwhile; with it the engine's key.
    async fn use_all(&self, proxy: SocketAddr) -> (Told, String) {
        let ask = async |bearer: &str, path: &str, body: String| {
            let method = if body.is_empty() { Method::GET } else { Method::POST };
            Connection::tcp(proxy, Some(bearer)).await.unwrap().ask(method, path, &body).await.unwrap()
        };
        until("it is not ready", async || ask(&self.api_key, "/health", String::new()).await.status == 200).await;
        let body = json!({"model": "sql", "prompt": PROMPT, "max_tokens": 1, "wait_for_model": true}).to_string();
        let mut answers = String::new();
        let forged = self.wallet.replace("eip191.", "eip191.AAAA");
        for (bearer, expected) in
            [(self.api_key.as_str(), 200), (self.wallet.as_str(), 200), (TOKEN, 401), (forged.as_str(), 401)]
        {
            let answer = ask(bearer, "/v1/completions", body.clone()).await;
            assert_eq!(answer.status, expected, "{}", answer.text);
            if expected != 200 {
                answers.push_str(&answer.text);
            }
        }
        let admin = self.file.served.as_ref().unwrap().serve.state_dir.clone().unwrap().join("admin.sock");
        let operator =
            async |path| Connection::unix(&admin, None).await.unwrap().ask(Method::GET, path, "").await.unwrap();
        let (health, config) = (operator("/admin/v1/health").await, operator("/admin/v1/config").await);
        let (agent, serve) = (&self.file.agent, &self.file.served.as_ref().unwrap().serve);
        let file = self.path.to_str().unwrap();
        let commands: [&[&str]; 8] = [
            &["status", "--json", "--socket", self.socket()],
            &["status", "--socket", self.socket()],
            &["doctor", "--fleet", "--socket", self.socket()],
            &["origin", "ls", "--socket", self.socket(), "--log-level", "trace"],
            &["config", "show", "agent", file, "--origin"],
            &["config", "check", "agent", file],
            &["config", "diff", "agent", file, "--socket", self.socket()],
            &["audit", "--state-dir", agent.state_dir.to_str().unwrap()],
        ];
        let mut commanded = String::new();
        for command in commands {
            commanded.push_str(&ran(command, &self.environment()).await);
        }
        let masked = "<CanonicalRequest>x-amz-security-token: ... | ";
        assert!(commanded.contains(masked), "the origin was asked, and says why not: {commanded}");
        let page = async |token| self.get(agent.web.listen, Some(token), "/api/fleet").await;
        let (open, shut) = (page(PAGE).await, page(WRONG_PAGE).await);
        assert!(open.contains("\"documents\"") && shut.contains("give the token"), "{open}{shut}");
        let told = vec![
            ("answers", answers),
            ("the admin API", health.text.clone() + &config.text),
            ("what commands say", commanded),
            ("the page", open + &shut),
            ("metrics", self.get(agent.metrics.listen, None, "/metrics").await),
            ("metrics of what is served", self.get(serve.metrics.listen, None, "/metrics").await),
        ];
        (Told(told), engine_key(health.json()["engine"]["leader"].as_i64().unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_logs_at_trace_level_in_answers_in_what_commands_show_or_in_what_is_exported() {
    if !own_proc() {
        return;
    }
    let tasks = Tasks::new();
    let (collector, bodies) = collector(&tasks).await;
    let pod = Pod::new(&tasks, collector).await;
    let environment: Vec<(&str, &str)> = pod.environment().into_iter().chain([("WARMD_LOG_LEVEL", "trace")]).collect();
    let mut process = start_with(&pod.fleet, &pod.file, &environment);
    let proxy: SocketAddr = process.says("clients connect to http://").await.parse().unwrap();
    let pid: Pid = process.pid();
    // While somebody reads what it says, or it waits.
    let used = async {
        let told = pod.use_all(proxy).await;
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        told
    };
    let ((mut told, engine_key), code) = tokio::join!(used, process.end());
    assert_eq!(code, Some(0));
    let exported = String::from_utf8_lossy(&bodies.lock().unwrap()).into_owned();
    assert!(exported.contains("load adapter") && exported.contains("agent ready"), "spans and lines are exported");
    told.0.extend([("the log", process.said()), ("exports", exported)]);

    let node_key = key_of(&pod.file.agent.state_dir.join("node.key"));
    let signer_key = key_of(&pod.fleet.cluster.path("signer.key"));
    let (signed, signature) = pod.wallet.rsplit_once('.').unwrap();
    let mut secrets = vec![PROMPT, HEADER, TOKEN, "canary-claims", PAGE, WRONG_PAGE, &pod.api_key, &engine_key];
    secrets.extend([node_key.as_str(), &signer_key, signed, signature]);
    secrets.extend(ORIGIN.iter().map(|(_, value)| *value));
    told.has_none_of(&secrets);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_of_a_shared_store_is_told_wherever_it_was_written() {
    const PASSWORD: &str = "canary-store-password-4b1e";
    let tasks = Tasks::new();
    let cluster = Cluster::without_server();
    let store = talkative(&tasks, like_redis).await;
    let state_dir = cluster.state_dir("metadata", &["localhost"]);
    let password = cluster.path("password");
    std::fs::write(&password, PASSWORD).unwrap();
    let mut config = MetadataConfig { state_dir, ..MetadataConfig::default() };
    config.server.listen = ([127, 0, 0, 1], 0).into();
    config.redis.url = Some(format!("redis://{store}").parse().unwrap());
    config.redis.password_file = Some(password);
    let path = cluster.path("metadata.toml");
    std::fs::write(&path, warmd::config::render(&config)).unwrap();
    let file = path.to_str().unwrap();
    let mut server = Program::start(&["metadata", "--config", file], &[("WARMD_LOG_LEVEL", "trace")]);
    assert_eq!(server.end().await, Some(1), "{}", server.said());
    assert!(server.said().contains("the shared store"), "{}", server.said());

    // Where it does not belong it is refused, and not said again.
    let url = format!("redis://user:{PASSWORD}@{store}");
    let wrong = cluster.path("wrong.toml");
    std::fs::write(&wrong, format!("[redis]\nurl = \"{url}\"\npasword = \"{PASSWORD}\"\n")).unwrap();
    let wrong = wrong.to_str().unwrap();
    let mut shown = String::new();
    for arguments in [
        &["config", "show", "metadata", file, "--origin"][..],
        &["config", "show", "metadata", wrong],
        &["config", "check", "metadata", wrong],
        &["config", "diff", "metadata", file, wrong],
        &["metadata", "--config", wrong],
    ] {
        shown.push_str(&ran(arguments, &[]).await);
        shown.push_str(&ran(arguments, &[("WARMD_REDIS_URL", &url)]).await);
    }
    assert!(shown.contains("redis.url"), "{shown}");
    Told(vec![("the log", server.said()), ("what commands say", shown)]).has_none_of(&[PASSWORD]);
}
