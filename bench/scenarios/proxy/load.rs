//! Clients that ask as fast as they are answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::engine::now_ns;

/// How a client asks.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) addr: SocketAddr,
    pub(super) model: String,
    pub(super) key: Option<String>,
}

/// Of all clients together.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) requests: usize,
    pub(super) seconds: f64,
    /// Sorted, in microseconds.
    pub(super) latencies: Vec<f64>,
}

/// Of streams: delays of each token, and how many came together with another one.
#[derive(Debug, Default)]
pub(super) struct Streamed {
    pub(super) tokens: usize,
    pub(super) coalesced: usize,
    /// Sorted, in microseconds: from the engine's write to the client's read.
    pub(super) delays: Vec<f64>,
}

/// The value below which `part` of all are.
pub(super) fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// A connection, closed when this is dropped.
struct Client {
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

impl Ask {
    async fn connect(&self) -> Result<Client> {
        let stream = TcpStream::connect(self.addr).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Whoever asks over it hears of its end.
            let _ = connection.await;
        });
        Ok(Client { sender, _driver: driver })
    }

    fn request(&self, stream: bool) -> Result<Request<Full<Bytes>>> {
        let body = format!(
            r#"{{"model":"{}","messages":[{{"role":"user","content":"What are the capitals of France and Italy?"}}],"max_tokens":64,"stream":{stream}}}"#,
            self.model
        );
        let mut request =
            Request::post("/v1/chat/completions").header("host", "bench").header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        Ok(request.body(Full::new(Bytes::from(body)))?)
    }
}

/// `clients` connections, each asking again when it was answered, for `time`, and once at least.
pub(super) fn requests(ask: &Ask, clients: usize, time: Duration) -> Result<Measured> {
    runtime()?.block_on(async {
        let over = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        let begun = Instant::now();
        for _ in 0..clients {
            let (ask, over) = (ask.clone(), over.clone());
            running.spawn(async move {
                let mut client = ask.connect().await?;
                let mut latencies = Vec::new();
                loop {
                    let asked = Instant::now();
                    client.sender.ready().await?;
                    let response = client.sender.send_request(ask.request(false)?).await?;
                    let status = response.status();
                    let body = response.into_body().collect().await?.to_bytes();
                    ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
                    latencies.push(asked.elapsed().as_secs_f64() * 1e6);
                    if over.load(Ordering::Relaxed) {
                        return anyhow::Ok(latencies);
                    }
                }
            });
        }
        tokio::time::sleep(time).await;
        over.store(true, Ordering::Relaxed);
        let mut measured = Measured::default();
        while let Some(client) = running.join_next().await {
            measured.latencies.extend(client??);
        }
        measured.seconds = begun.elapsed().as_secs_f64();
        measured.requests = measured.latencies.len();
        measured.latencies.sort_by(f64::total_cmp);
        Ok(measured)
    })
}

/// `streams` at once, each to its end.
pub(super) fn streams(ask: &Ask, streams: usize) -> Result<Streamed> {
    runtime()?.block_on(async {
        let mut running = JoinSet::new();
        for _ in 0..streams {
            let ask = ask.clone();
            running.spawn(async move {
                let mut client = ask.connect().await?;
                let response = client.sender.send_request(ask.request(true)?).await?;
                ensure!(response.status() == 200, "{}", response.status());
                one_stream(response.into_body()).await
            });
        }
        let mut all = Streamed::default();
        while let Some(stream) = running.join_next().await {
            let stream = stream??;
            all.tokens += stream.tokens;
            all.coalesced += stream.coalesced;
            all.delays.extend(stream.delays);
        }
        all.delays.sort_by(f64::total_cmp);
        Ok(all)
    })
}

async fn one_stream(mut body: Incoming) -> Result<Streamed> {
    let mut seen = Streamed::default();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let now = now_ns();
        let text = std::str::from_utf8(&data).context("a stream of text")?;
        let times: Vec<u64> = text
            .split("\"sent_ns\":")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
            .collect();
        seen.tokens += times.len();
        seen.coalesced += times.len().saturating_sub(1);
        seen.delays.extend(times.iter().map(|sent| now.saturating_sub(*sent) as f64 / 1e3));
    }
    Ok(seen)
}

/// Clients that ask for a stream and go away after its first token.
pub(super) fn aborts(ask: &Ask, aborts: usize, at_once: usize) -> Result<()> {
    runtime()?.block_on(async {
        let mut running = JoinSet::new();
        for _ in 0..aborts {
            if running.len() >= at_once
                && let Some(one) = running.join_next().await
            {
                one??;
            }
            let ask = ask.clone();
            running.spawn(async move {
                let mut client = ask.connect().await?;
                let response = client.sender.send_request(ask.request(true)?).await?;
                ensure!(response.status() == 200, "{}", response.status());
                let mut body = response.into_body();
                body.frame().await.context("the first token")??;
                anyhow::Ok(())
            });
        }
        while let Some(one) = running.join_next().await {
            one??;
        }
        Ok(())
    })
}
