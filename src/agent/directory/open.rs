//! Makes the directory of an agent, and what the agent says of itself in it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use super::super::{AgentConfig, AgentError, Metrics, epoch};
use super::{Directory, Server};
use crate::discovery::{Discovery, LocalNode, Mode, beside};
use crate::identity::NodeTls;
use crate::lifecycle::Tasks;
use crate::metadata::{AnnounceConfig, AnnouncedNode, Announcer, Client};
use crate::protocol::metadata::Endpoint;

/// The metadata server and the other agents, as far as `discovery.mode` wants them.
pub(in crate::agent) async fn open(
    config: &AgentConfig,
    tls: &NodeTls,
    bound: SocketAddr,
    metrics: &Metrics,
    tasks: &Tasks,
) -> Result<Arc<Directory>, AgentError> {
    let endpoints: Arc<[Endpoint]> = advertised(config, bound)?.into();
    let locality = Arc::new(config.locality.clone());
    let server = match config.discovery.mode {
        Mode::Server | Mode::Hybrid => {
            let client = Client::new(config.metadata.clone(), tls, metrics.client.clone())?;
            let epoch = epoch::next(&config.state_dir)?;
            let node =
                AnnouncedNode { node: tls.node_id(), epoch, endpoints: endpoints.clone(), locality: locality.clone() };
            let announcer = Announcer::spawn(client.clone(), node, AnnounceConfig::default(), tasks);
            Some(Server { client, announcer })
        }
        Mode::Serverless => None,
    };
    let agents = match config.discovery.mode {
        Mode::Server => None,
        Mode::Hybrid | Mode::Serverless => {
            let listen = beside(SocketAddr::new(config.transport.listen.ip(), bound.port()));
            let listen = config.discovery.listen.unwrap_or(listen);
            let memory = Some(config.state_dir.join("agents"));
            let node = LocalNode { listen, endpoints, locality, memory };
            Some(Discovery::start(&config.discovery, node, tls, metrics.discovery.clone(), tasks).await?)
        }
    };
    Ok(Directory::new(server, agents))
}

/// What peers dial: as configured, or the bound address, or the address of the route towards the metadata server or a
/// bootstrap agent.
fn advertised(config: &AgentConfig, bound: SocketAddr) -> Result<Vec<Endpoint>, AgentError> {
    let mut addrs = config.advertise.clone();
    if addrs.is_empty() && !bound.ip().is_unspecified() {
        addrs.push(bound);
    }
    if addrs.is_empty() {
        let servers = config.metadata.servers.iter().map(|server| (server.host(), server.port()));
        let agents = config.discovery.bootstrap.iter().map(|agent| (agent.host(), agent.port()));
        let route = servers.chain(agents).find_map(route_to);
        addrs.extend(route.map(|ip| SocketAddr::new(ip, bound.port())));
    }
    let advertised: Vec<Endpoint> = addrs.into_iter().filter_map(|addr| Endpoint::new(addr).ok()).collect();
    if advertised.is_empty() { Err(AgentError::NoAddress) } else { Ok(advertised) }
}

/// This node's address on the way there. Nothing is sent.
fn route_to(there: (&str, u16)) -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).or_else(|_| UdpSocket::bind(("::", 0))).ok()?;
    socket.connect(there).ok()?;
    socket.local_addr().ok().map(|addr| addr.ip())
}
