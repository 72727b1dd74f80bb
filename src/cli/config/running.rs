//! Asks a role that runs which configuration is in force.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::{Role, settings};
use crate::caches::{Directories, Environment};
use crate::cli::Socket;
use crate::config::{self, MetadataConfig, Problem};
use crate::lifecycle::Tasks;
use crate::local::Client;
use crate::serve::serving::ServeConfig;
use crate::web::WebSection;

/// For the whole of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of an answer: more than any configuration has.
const MAX_ANSWER: usize = 4 << 20;

/// As TOML. `file` is the role's, and says where it is asked.
pub(super) async fn configuration(role: Role, file: Option<&Path>, agent: &Socket) -> anyhow::Result<String> {
    match role {
        Role::Agent => Ok(agent.connect().await?.configuration().await?),
        Role::Metadata => page(&config::load::<MetadataConfig>(file, settings(role))?.web).await,
        Role::Serve => admin(&config::load::<ServeConfig>(file, settings(role))?).await,
        Role::Hook => bail!("a hook has ended before anybody could ask it: name a second file"),
    }
}

/// An agent that runs by the same file holds its addresses: that is no problem of the file.
pub(super) async fn excuse(found: &mut [Problem], file: &toml::Table) {
    let socket = value(file, "local.socket").and_then(toml::Value::as_str).map(Path::new);
    let Some(socket) = socket.filter(|_| found.iter().any(|problem| problem.is_taken)) else { return };
    let asked = async { anyhow::Ok(Client::connect(socket).await?.configuration().await?) };
    // Nobody answers: then somebody else holds them.
    let Ok(Ok(running)) = timeout(PATIENCE, asked).await else { return };
    let Ok(running) = running.parse::<toml::Table>() else { return };
    let is_same = |key: &str| value(file, key).is_some() && value(file, key) == value(&running, key);
    if !is_same("state_dir") {
        return;
    }
    for problem in found.iter_mut().filter(|problem| problem.is_taken) {
        if problem.keys.iter().all(|key| is_same(key)) {
            problem.excused(format!("the agent that is running by it listens there ({} says so)", socket.display()));
        }
    }
}

/// At `section.key`.
fn value<'t>(table: &'t toml::Table, key: &str) -> Option<&'t toml::Value> {
    match key.split_once('.') {
        Some((section, key)) => table.get(section)?.as_table()?.get(key),
        None => table.get(key),
    }
}

/// A metadata server's, over the page for people.
async fn page(web: &WebSection) -> anyhow::Result<String> {
    let Some(listen) = web.listen.filter(|addr| addr.port() != 0) else {
        bail!("a metadata server is asked over its page: say `web.listen`, with a port, or name a second file");
    };
    let own: IpAddr = if listen.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
    let addr = SocketAddr::new(if listen.ip().is_unspecified() { own } else { listen.ip() }, listen.port());
    let request = Request::get("/api/config").header(HOST, addr.to_string());
    let request = match web.token()? {
        Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
        None => request,
    };
    let asked = async { answer(TcpStream::connect(addr).await?, request.body(Empty::new())?).await };
    let text = timeout(PATIENCE, asked).await.context("it does not answer").and_then(|answer| answer);
    String::from_utf8(text.with_context(|| format!("ask the page of the metadata server at {addr}"))?.to_vec())
        .context("the server's answer")
}

/// Of `warmd serve`.
async fn admin(config: &ServeConfig) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Told {
        toml: String,
    }
    let beside = || anyhow::Ok(Directories::choose(None, &Environment::of_this_process())?.root().join("serve"));
    let in_state = || anyhow::Ok(config.state_dir.clone().map_or_else(beside, Ok)?.join("admin.sock"));
    let socket = config.admin.clone().map_or_else(in_state, Ok).context("say `admin` or `state_dir`")?;
    let request = Request::get("/admin/v1/config").header(HOST, "admin").body(Empty::new())?;
    let asked = async { answer(UnixStream::connect(&socket).await?, request).await };
    let text = timeout(PATIENCE, asked).await.context("it does not answer").and_then(|answer| answer);
    let text = text.with_context(|| format!("ask `warmd serve` over {}", socket.display()))?;
    Ok(serde_json::from_slice::<Told>(&text).context("the server's answer")?.toml)
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> anyhow::Result<Bytes> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let tasks = Tasks::new();
    tasks.spawn("question", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection ended");
        }
    });
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body).trim());
    Ok(body)
}
