//! Which address tells whether an engine is ready.

use std::path::PathBuf;

use super::{Address, HEALTH, Probe, ProbeError, Tls};
use crate::caches::Environment;

/// What an engine's command line says about where it listens, and about its place among several nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// `--host`
    pub host: Option<String>,
    /// `--port`
    pub port: u16,
    /// `--uds`, which makes vLLM ignore host and port.
    pub socket: Option<PathBuf>,
    /// `--ssl-certfile`, which makes it HTTPS.
    pub certificate: Option<PathBuf>,
    /// `--headless`: it has no API server.
    pub headless: bool,
    /// `--node-rank`
    pub node_rank: u32,
    /// External load balancing (`--data-parallel-external-lb`, `--data-parallel-hybrid-lb`): every node has an API server.
    pub server_on_every_node: bool,
    /// `--data-parallel-address`
    pub data_parallel_address: Option<String>,
    /// `--master-addr`; of SGLang the host in `--dist-init-addr`.
    pub master_address: Option<String>,
}

impl Default for Serving {
    /// As vLLM without options.
    fn default() -> Self {
        Self {
            host: None,
            port: 8000,
            socket: None,
            certificate: None,
            headless: false,
            node_rank: 0,
            server_on_every_node: false,
            data_parallel_address: None,
            master_address: None,
        }
    }
}

impl Probe {
    /// The engine itself, or, on a node of a group that serves no requests, the head of the group. The head is taken to
    /// listen at the same port and in the same way. `LWS_LEADER_ADDRESS` is what LeaderWorkerSet gives to every pod of a
    /// group; it counts where the command line names no head.
    pub fn of_engine(serving: &Serving, environment: &Environment) -> Result<Self, ProbeError> {
        let tls = serving.certificate.clone().map(|certificate| Tls { certificate: Some(certificate) });
        let follows = serving.headless || serving.node_rank > 0;
        let address = match (&serving.socket, follows && !serving.server_on_every_node) {
            (Some(socket), false) => Address::Unix(socket.clone()),
            (Some(socket), true) => return Err(ProbeError::HeadBehindSocket(socket.clone())),
            (None, false) => {
                let host = reachable(serving.host.as_deref().unwrap_or_default());
                Address::Tcp { host: if host.is_empty() { "127.0.0.1".to_owned() } else { host }, port: serving.port }
            }
            (None, true) => {
                let head = head(serving, environment).ok_or(ProbeError::NoHead)?;
                Address::Tcp { host: reachable(head), port: serving.port }
            }
        };
        Ok(Self { address, tls, path: HEALTH.to_owned() })
    }
}

fn head<'a>(serving: &'a Serving, environment: &'a Environment) -> Option<&'a str> {
    let told = [&serving.data_parallel_address, &serving.master_address];
    told.into_iter()
        .flatten()
        .map(String::as_str)
        .find(|head| !head.is_empty())
        .or_else(|| environment.get("LWS_LEADER_ADDRESS"))
}

/// A server that listens at every address is asked at the loopback one. Without the brackets that URLs put around IPv6.
pub(super) fn reachable(host: &str) -> String {
    match host.trim_start_matches('[').trim_end_matches(']') {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        other => other,
    }
    .to_owned()
}
