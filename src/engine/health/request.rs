//! One bounded HTTP/1.1 request.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::{Address, Probe, ProbeFailure, tls};

const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);

/// Of the answer's head.
const MAX_ANSWER: usize = 16 * 1024;

pub(super) async fn status(probe: &Probe) -> Result<StatusCode, ProbeFailure> {
    match &probe.address {
        Address::Tcp { host, port } => {
            let stream = connected(TcpStream::connect((host.as_str(), *port))).await?;
            secured(probe, host, stream).await
        }
        Address::Unix(path) => secured(probe, "localhost", connected(UnixStream::connect(path)).await?).await,
    }
}

async fn connected<S>(connecting: impl Future<Output = io::Result<S>>) -> Result<S, ProbeFailure> {
    let connected = within(CONNECT_DEADLINE, "connection", connecting).await?;
    connected.map_err(ProbeFailure::Connect)
}

async fn secured<S>(probe: &Probe, host: &str, stream: S) -> Result<StatusCode, ProbeFailure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Some(settings) = &probe.tls else { return ask(probe, stream).await };
    let handshake = tls::handshake(settings, host, stream);
    let stream = within(CONNECT_DEADLINE, "TLS handshake", handshake).await?.map_err(ProbeFailure::Tls)?;
    ask(probe, stream).await
}

async fn ask<S>(probe: &Probe, stream: S) -> Result<StatusCode, ProbeFailure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = Request::get(&probe.path).header(HOST, probe.authority()).header(CONNECTION, "close");
    // The path comes from a parsed URL and the host has no bytes that a header cannot hold, or nothing was connected.
    let request =
        request.body(Empty::<Bytes>::new()).map_err(|error| ProbeFailure::Connect(io::Error::other(error)))?;
    let answer = async {
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(MAX_ANSWER).handshake(TokioIo::new(stream)).await?;
        let mut answer = pin!(sender.send_request(request));
        // The connection does the work, and may be over in the moment in which the answer is there.
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ = connection => answer.await,
        };
        answer.map(|answer| answer.status())
    };
    Ok(within(ANSWER_DEADLINE, "answer", answer).await??)
}

async fn within<T>(deadline: Duration, what: &'static str, future: impl Future<Output = T>) -> Result<T, ProbeFailure> {
    tokio::time::timeout(deadline, future).await.map_err(|_| ProbeFailure::TimedOut(what))
}
