//! A headless Chromium, spoken to through chromedriver in the words of W3C WebDriver: JSON over HTTP.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::harness::cluster::DEADLINE;
use crate::harness::engine::skipped;

const ATTEMPTS: usize = 5;

pub const TAB: char = '\u{e004}';
pub const ENTER: char = '\u{e007}';
pub const RIGHT: char = '\u{e014}';

const ARGUMENTS: [&str; 14] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-breakpad",
    "--no-proxy-server",
    "--window-size=1280,900",
    "--hide-scrollbars",
    // It ends with the driver's end of the pipe.
    "--remote-debugging-pipe",
];

/// Ends when dropped.
pub struct Browser {
    driver: Driver,
    session: String,
}

struct Driver {
    child: Child,
    addr: SocketAddr,
    home: TempDir,
    _output: JoinSet<()>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id as i32)) {
            // An error means that it has ended.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// That chromedriver says it has; `None` if it ends before.
async fn port(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<u16> {
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            return Some(port.trim_end_matches('.').parse().unwrap());
        }
    }
    None
}

impl Driver {
    async fn start() -> Option<Self> {
        // One that finds the port taken that it was given ends at once.
        for _ in 0..ATTEMPTS {
            let home = tempfile::tempdir().unwrap();
            let started = Command::new("chromedriver")
                .args(["--port=0"])
                .env("HOME", home.path())
                .env("TMPDIR", home.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn();
            let Ok(mut child) = started else {
                skipped("the page is looked at by chromedriver and chromium, and they are not here");
                return None;
            };
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let port = timeout(DEADLINE, port(&mut lines)).await.expect("chromedriver starts or ends");
            if let Some(port) = port {
                let addr = SocketAddr::from(([127, 0, 0, 1], port));
                let mut output = JoinSet::new();
                output.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return Some(Self { child, addr, home, _output: output });
            }
            child.wait().await.unwrap();
        }
        panic!("chromedriver does not say its port");
    }

    async fn ask(&self, method: Method, path: &str, body: &Value) -> Value {
        let answer = timeout(DEADLINE * 2, async {
            let stream = TcpStream::connect(self.addr).await.unwrap();
            let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
            let mut driving = JoinSet::new();
            driving.spawn(async { drop(connection.await) });
            let request = Request::builder().method(method).uri(path).header("host", self.addr.to_string());
            let request = request.body(Full::new(Bytes::from(body.to_string()))).unwrap();
            sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes()
        });
        let mut answer: Value = serde_json::from_slice(&answer.await.expect("the browser answers")).unwrap();
        let value = answer["value"].take();
        assert!(value.get("error").is_none(), "{path}: {value}");
        value
    }
}

impl Browser {
    /// `None`, and a line that says so, where there is none.
    pub async fn start() -> Option<Self> {
        let driver = Driver::start().await?;
        let mut arguments: Vec<String> = ARGUMENTS.iter().map(|argument| (*argument).to_owned()).collect();
        arguments.push(format!("--user-data-dir={}", driver.home.path().join("profile").display()));
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "timeouts": {"script": DEADLINE.as_millis() as u64},
        }}});
        let session = driver.ask(Method::POST, "/session", &capabilities).await;
        let session = session["sessionId"].as_str().unwrap().to_owned();
        Some(Self { driver, session })
    }

    async fn post(&self, what: &str, body: Value) -> Value {
        self.driver.ask(Method::POST, &format!("/session/{}/{what}", self.session), &body).await
    }

    pub async fn go(&self, url: &str) {
        self.post("url", json!({"url": url})).await;
    }

    /// The value of a JavaScript expression in the page.
    pub async fn value(&self, expression: &str) -> Value {
        self.post("execute/sync", json!({"script": format!("return ({expression});"), "args": []})).await
    }

    /// Waits in the page, from frame to frame, until the expression is true.
    pub async fn until(&self, expression: &str) {
        let script = format!(
            "const done = arguments[0]; (function look() {{ if ({expression}) done(true); else requestAnimationFrame(look); }})();"
        );
        self.post("execute/async", json!({"script": script, "args": []})).await;
    }

    /// Presses keys one after the other.
    pub async fn press(&self, keys: &str) {
        let strokes: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()})))
            .collect();
        self.post("actions", json!({"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})).await;
    }

    /// A command of the Chrome DevTools Protocol.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("goog/cdp/execute", json!({"cmd": command, "params": parameters})).await
    }

    /// Pixels of the page's area.
    pub async fn resize(&self, width: u32, height: u32) {
        let mobile = width < 500;
        let screen = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        self.devtools("Emulation.setDeviceMetricsOverride", screen).await;
    }

    /// `light` or `dark`, as the system would say.
    pub async fn scheme(&self, scheme: &str) {
        self.prefers("color-scheme", scheme).await;
    }

    /// `reduce` or `no-preference`, as the system would say.
    pub async fn motion(&self, motion: &str) {
        self.prefers("reduced-motion", motion).await;
    }

    async fn prefers(&self, feature: &str, value: &str) {
        let media = json!({"features": [{"name": format!("prefers-{feature}"), "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", media).await;
    }

    /// What was logged since the last time: `browser` is the console, `performance` the events of the protocol.
    pub async fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.post("se/log", json!({"type": kind})).await;
        entries.as_array().unwrap().clone()
    }

    /// What the network did since the last time: name and parameters of each event.
    pub async fn network(&self) -> Vec<(String, Value)> {
        let events = self.log("performance").await.into_iter().map(|entry| {
            let mut event: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            (event["message"]["method"].as_str().unwrap().to_owned(), event["message"]["params"].take())
        });
        events.filter(|(name, _)| name.starts_with("Network.")).collect()
    }

    pub async fn screenshot(&self, path: &Path) {
        let picture = self.devtools("Page.captureScreenshot", json!({"captureBeyondViewport": false})).await;
        std::fs::write(path, BASE64.decode(picture["data"].as_str().unwrap().as_bytes()).unwrap()).unwrap();
    }

    pub async fn stop(self) {
        self.driver.ask(Method::DELETE, &format!("/session/{}", self.session), &json!({})).await;
    }
}
