//! Bare quinn, file to file: what the library gives with the settings that suit a cluster, and nothing added.
//!
//! The puller opens streams and asks for ranges; the holder answers from its mapped file; the puller writes unordered reads in place.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AckFrequencyConfig, Connection, Endpoint, EndpointConfig, TokioRuntime, TransportConfig, VarInt};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{keys, report};

#[derive(clap::Args, Clone)]
pub struct Tuning {
    /// Where the certificate and the key are.
    #[arg(long)]
    keys: PathBuf,
    /// UDP payload. 10 of them must stay within 64 KiB: quinn sends up to ten segments in one call.
    #[arg(long, default_value_t = 6500)]
    mtu: u16,
    /// Connections, each from a socket of its own.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Streams of each connection.
    #[arg(long, default_value_t = 4)]
    streams: usize,
    /// Bytes that one stream carries.
    #[arg(long, default_value_t = 4 << 20)]
    range: u64,
    /// Threads of the runtime; 0: one thread, that of the caller.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    #[arg(long, default_value_t = 8 << 20)]
    socket_buffer: usize,
    #[arg(long, default_value_t = 16 << 20)]
    window: u32,
    #[arg(long, default_value_t = 40)]
    ack_threshold: u32,
}

impl Tuning {
    pub fn runtime(&self) -> Result<tokio::runtime::Runtime> {
        let mut builder = match self.workers {
            0 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        if self.workers > 0 {
            builder.worker_threads(self.workers);
        }
        Ok(builder.enable_all().build()?)
    }

    fn transport(&self) -> TransportConfig {
        let mut transport = TransportConfig::default();
        let window = VarInt::from_u32(self.window);
        transport
            .initial_mtu(self.mtu)
            .min_mtu(1200)
            .mtu_discovery_config(None)
            .initial_rtt(Duration::from_millis(5))
            .stream_receive_window(window)
            .receive_window(VarInt::from_u32(self.window * 4))
            .send_window(u64::from(self.window) * 4)
            .max_concurrent_bidi_streams(VarInt::from_u32(256));
        if self.ack_threshold > 1 {
            let mut ack = AckFrequencyConfig::default();
            ack.ack_eliciting_threshold(VarInt::from_u32(self.ack_threshold))
                .max_ack_delay(Some(Duration::from_millis(5)));
            transport.ack_frequency_config(Some(ack));
        }
        transport
    }

    fn endpoint(&self, server: Option<quinn::ServerConfig>) -> Result<Endpoint> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_recv_buffer_size(self.socket_buffer)?;
        socket.set_send_buffer_size(self.socket_buffer)?;
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>()?.into())?;
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(self.mtu)?;
        Ok(Endpoint::new(config, server, socket.into(), Arc::new(TokioRuntime))?)
    }
}

pub async fn serve(file: &Path, ready: &Path, tuning: &Tuning) -> Result<()> {
    let source = File::open(file).with_context(|| format!("open {}", file.display()))?;
    // SAFETY: the comparison's own input, which nobody changes while it runs.
    let content = Bytes::from_owner(unsafe { memmap2::Mmap::map(&source)? });
    let tls = QuicServerConfig::try_from(keys::server(&tuning.keys)?)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(tuning.transport()));
    let endpoint = tuning.endpoint(Some(config))?;
    report::ready(ready, &endpoint.local_addr()?.to_string())?;
    while let Some(incoming) = endpoint.accept().await {
        let content = content.clone();
        tokio::spawn(async move {
            let connection = incoming.await?;
            while let Ok((send, receive)) = connection.accept_bi().await {
                tokio::spawn(answer(content.clone(), send, receive));
            }
            anyhow::Ok(())
        });
    }
    Ok(())
}

/// A request is an offset and a length; length 0 asks for the size of the file.
async fn answer(content: Bytes, mut send: quinn::SendStream, mut receive: quinn::RecvStream) -> Result<()> {
    let (mut offset, mut length) = ([0; 8], [0; 8]);
    receive.read_exact(&mut offset).await?;
    receive.read_exact(&mut length).await?;
    let (offset, length) = (u64::from_le_bytes(offset) as usize, u64::from_le_bytes(length) as usize);
    if length == 0 {
        send.write_all(&(content.len() as u64).to_le_bytes()).await?;
    } else {
        send.write_chunk(content.slice(offset..offset + length)).await?;
    }
    Ok(send.finish()?)
}

pub async fn get(addr: SocketAddr, file: &Path, tuning: &Tuning) -> Result<()> {
    let begin = Instant::now();
    let tls = QuicClientConfig::try_from(keys::client(&tuning.keys)?)?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(tuning.transport()));
    let mut connections = Vec::new();
    for _ in 0..tuning.connections {
        let endpoint = tuning.endpoint(None)?;
        let connection = endpoint.connect_with(config.clone(), addr, "localhost")?.await?;
        connections.push((endpoint, connection));
    }
    let size = size(&connections[0].1).await?;
    let out = Arc::new(File::create(file)?);
    out.set_len(size)?;
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for (_, connection) in &connections {
        for _ in 0..tuning.streams {
            tasks.spawn(pull(connection.clone(), out.clone(), next.clone(), size, tuning.range));
        }
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let received: Vec<_> = connections.iter().map(|(_, connection)| connection.stats().udp_rx).collect();
    let (datagrams, wire): (u64, u64) =
        (received.iter().map(|rx| rx.datagrams).sum(), received.iter().map(|rx| rx.bytes).sum());
    report::print(
        json!({ "seconds": seconds, "bytes": size, "wire_bytes": wire, "datagram_bytes": wire as f64 / datagrams as f64 }),
        false,
    );
    for (endpoint, connection) in connections {
        connection.close(0u32.into(), b"");
        endpoint.wait_idle().await;
    }
    Ok(())
}

async fn size(connection: &Connection) -> Result<u64> {
    let mut receive = request(connection, 0, 0).await?;
    let mut size = [0; 8];
    receive.read_exact(&mut size).await?;
    Ok(u64::from_le_bytes(size))
}

async fn pull(connection: Connection, out: Arc<File>, next: Arc<AtomicU64>, size: u64, range: u64) -> Result<()> {
    loop {
        let begin = next.fetch_add(range, Ordering::Relaxed);
        if begin >= size {
            return Ok(());
        }
        let length = range.min(size - begin);
        let mut receive = request(&connection, begin, length).await?;
        let mut got = 0;
        while let Some(chunk) = receive.read_chunk(usize::MAX, false).await? {
            out.write_all_at(&chunk.bytes, begin + chunk.offset)?;
            got += chunk.bytes.len() as u64;
        }
        ensure!(got == length, "the stream ended at {got} of {length} bytes");
    }
}

async fn request(connection: &Connection, offset: u64, length: u64) -> Result<quinn::RecvStream> {
    let (mut send, receive) = connection.open_bi().await?;
    send.write_all(&offset.to_le_bytes()).await?;
    send.write_all(&length.to_le_bytes()).await?;
    send.finish()?;
    Ok(receive)
}
