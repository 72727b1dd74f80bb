//! Whatever is logged, exported and counted: no secret is in it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use hyper::Method;
use rustix::process::{Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use warmd::config::{AgentFile, EngineSection, ServedEngine};
use warmd::lifecycle::Tasks;
use warmd::telemetry::trace::OtlpProtocol;

use super::super::all_in_one::Process;
use super::super::harness::engine::own_proc;
use super::super::harness::http::Connection;
use super::super::harness::served::{Adapter, Fleet, until};

const PROMPT: &str = "canary-prompt-7f3a";
const HEADER: &str = "canary-header-51c2";
const TOKEN: &str = "eyJhbGciOiJFZERTQSJ9.canary-claims-90be.canary-signature-33d1";

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

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_logs_at_trace_level_in_metrics_or_in_what_is_exported() {
    if !own_proc() {
        return;
    }
    let tasks = Tasks::new();
    let (addr, bodies) = collector(&tasks).await;
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let (keys, headers) = (fleet.cluster.path("keys.toml"), fleet.cluster.path("headers"));
    let mut made = Command::new(env!("CARGO_BIN_EXE_warmd"));
    made.args(["keys", "api", "--id", "team", "--tenant", "team"]).arg(&keys);
    let api_key = String::from_utf8(made.output().unwrap().stdout).unwrap().trim().to_owned();
    assert!(api_key.len() > 16, "{api_key}");
    std::fs::write(&headers, format!("authorization: Bearer {HEADER}\n")).unwrap();

    let engine = EngineSection {
        command: fleet.command(""),
        cache_root: Some(fleet.cluster.path("caches")),
        reserve_bytes: 0,
        ..EngineSection::default()
    };
    let mut serve = fleet.config();
    serve.auth = toml::from_str(&format!("[keys]\nfile = {keys:?}")).unwrap();
    let mut file = AgentFile { agent: fleet.cluster.config("all"), served: Some(ServedEngine { engine, serve }) };
    file.agent.metrics.listen = Some(std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let tracing = &mut file.agent.tracing;
    tracing.endpoint = Some(format!("http://{addr}").parse().unwrap());
    (tracing.protocol, tracing.headers_file) = (OtlpProtocol::Http, Some(headers));

    let mut process = Process::start_at(&fleet, &file, "trace");
    let proxy: SocketAddr = process.says("clients connect to http://").await.parse().unwrap();
    let ask = async |bearer: &str, path: &str, body: String| {
        let method = if body.is_empty() { Method::GET } else { Method::POST };
        Connection::tcp(proxy, Some(bearer)).await.unwrap().ask(method, path, &body).await.unwrap()
    };
    let pid = process.pid();
    // While somebody reads what it says, or it waits.
    let asked = async {
        until("it is not ready", async || ask(&api_key, "/health", String::new()).await.status == 200).await;
        let body = json!({"model": "sql", "prompt": PROMPT, "max_tokens": 1, "wait_for_model": true}).to_string();
        let answered = ask(&api_key, "/v1/completions", body.clone()).await.status;
        let refused = ask(TOKEN, "/v1/completions", body).await.status;
        let mut metrics = Connection::tcp(file.agent.metrics.listen.unwrap(), None).await.unwrap();
        let metrics = metrics.ask(Method::GET, "/metrics", "").await.unwrap().text;
        kill_process(pid, Signal::TERM).unwrap();
        (answered, refused, metrics)
    };
    let ((answered, refused, metrics), code) = tokio::join!(asked, process.end());
    assert_eq!(code, Some(0));
    assert!((answered, refused) == (200, 401), "{answered} {refused}");
    let exported = String::from_utf8_lossy(&bodies.lock().unwrap()).into_owned();
    assert!(exported.contains("load adapter") && exported.contains("agent ready"), "spans and lines are exported");
    let node_key = key_of(&file.agent.state_dir.join("node.key"));
    let signer_key = key_of(&fleet.cluster.path("signer.key"));
    let secrets = [PROMPT, HEADER, TOKEN, "canary-claims", &api_key, &node_key, &signer_key];
    for (place, text) in [("the log", process.said()), ("metrics", metrics), ("exports", exported)] {
        assert!(!text.is_empty());
        for secret in secrets {
            let line = text.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "`{secret}` is in {place}: {line:?}");
        }
    }
}
