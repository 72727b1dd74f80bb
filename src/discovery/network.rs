//! The swarm: which protocols are spoken, and with what settings. Every number that differs from the library's default says
//! why.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use super::admit::Admit;
use super::exchange::{self, Codec};
use super::peer::{keypair, multiaddr};
use super::providers::{Limits, Providers};
use super::{DiscoveryError, publish};
use crate::identity::NodeTls;
use crate::lifecycle::Tasks;
use libp2p::core::transport::ListenerId;
use libp2p::core::upgrade::Version;
use libp2p::futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{
    StreamProtocol, Swarm, Transport, connection_limits, identify, kad, mdns, noise, request_response, swarm, tcp,
    yamux,
};

pub(super) const KAD: StreamProtocol = StreamProtocol::new("/warmd/kad/1");
const IDENTIFY: &str = "/warmd/1";

/// Connecting, with noise and certificates.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// For one question to one node.
const ANSWER: Duration = Duration::from_secs(2);

/// For one walk. Those of a look-up end with it; those that publish, or fill the routing table, have more time.
const WALK: Duration = Duration::from_secs(15);

/// A node that died is named for at most so long.
const RECORD_TTL: Duration = publish::AGAIN.saturating_mul(3);

/// Connections are kept between look-ups: the library's ten seconds would dial for each.
const IDLE: Duration = Duration::from_secs(60);

/// Asks for the neighbourhood again, so that two halves of a cluster find each other.
const REFRESH: Duration = Duration::from_secs(300);

/// Nodes that keep one record.
const REPLICAS: NonZeroUsize = kad::K_VALUE;

/// Nodes asked at the same time in one walk: the library's three make a dead one expensive.
const PARALLEL: NonZeroUsize = match NonZeroUsize::new(6) {
    Some(six) => six,
    None => NonZeroUsize::MIN,
};

/// Bytes of a message of the DHT: twenty providers and twenty nodes, with their addresses.
const MAX_MESSAGE: usize = 64 * 1024;

/// Streams of one connection, and questions among them.
const MAX_STREAMS: usize = 64;
const MAX_QUESTIONS: usize = 16;

/// Connections: to others that are not admitted yet, from them, and with one node.
const MAX_DIALLED: u32 = 128;
const MAX_ARRIVING: u32 = 64;
const MAX_PER_NODE: u32 = 2;

const LISTEN_DEADLINE: Duration = Duration::from_secs(5);

/// `exchange` comes before `kad`: who is asked because a walk named him is dialled while the walk still knows his address.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(super) exchange: request_response::Behaviour<Codec>,
    pub(super) kad: kad::Behaviour<Providers>,
    identify: identify::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

/// A swarm that listens, and where. `tasks` owns its connections.
pub(super) async fn open(
    tls: &NodeTls,
    listen: SocketAddr,
    advertise: &[SocketAddr],
    mdns: bool,
    limits: Limits,
    tasks: Arc<Tasks>,
) -> Result<(Swarm<Behaviour>, SocketAddr), DiscoveryError> {
    let keys = keypair(tls.seed()).ok_or(DiscoveryError::Key)?;
    let admit =
        Admit { noise: noise::Config::new(&keys).map_err(|_| DiscoveryError::Key)?, membership: tls.membership() };
    let mut muxer = yamux::Config::default();
    muxer.set_max_num_streams(MAX_STREAMS);
    let transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(admit)
        .multiplex(muxer)
        .timeout(HANDSHAKE)
        .boxed();
    let config = swarm::Config::with_executor(move |connection| tasks.spawn("discovery connection", connection))
        .with_idle_connection_timeout(IDLE);
    let behaviour = behaviour(&keys, mdns, limits).map_err(DiscoveryError::Mdns)?;
    let mut swarm = Swarm::new(transport, behaviour, keys.public().to_peer_id(), config);
    let failed = |source| DiscoveryError::Listen { addr: listen, source };
    let listener = swarm.listen_on(multiaddr(listen)).map_err(|error| failed(io::Error::other(error)))?;
    let opened = tokio::time::timeout(LISTEN_DEADLINE, opened(&mut swarm, listener)).await;
    let port = opened.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
    for addr in advertise {
        swarm.add_external_address(multiaddr(SocketAddr::new(addr.ip(), port)));
    }
    Ok((swarm, SocketAddr::new(listen.ip(), port)))
}

fn behaviour(keys: &Keypair, multicast: bool, limits: Limits) -> io::Result<Behaviour> {
    let node = keys.public().to_peer_id();
    let connections = connection_limits::ConnectionLimits::default()
        .with_max_pending_outgoing(Some(MAX_DIALLED))
        .with_max_pending_incoming(Some(MAX_ARRIVING))
        .with_max_established(Some(limits.connections))
        .with_max_established_per_peer(Some(MAX_PER_NODE));
    let questions =
        request_response::Config::default().with_request_timeout(ANSWER).with_max_concurrent_streams(MAX_QUESTIONS);
    let protocols = [(exchange::PROTOCOL, request_response::ProtocolSupport::Full)];
    let mut kad = kad::Behaviour::with_config(node, Providers::new(node, limits), kad_config());
    // By default a node answers only once an address of it was seen from outside, which never happens in a cluster.
    kad.set_mode(Some(kad::Mode::Server));
    let identify = identify::Config::new(IDENTIFY.to_owned(), keys.public())
        .with_agent_version("warmd".to_owned())
        .with_hide_listen_addrs(true);
    let mdns = multicast.then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), node)).transpose()?;
    Ok(Behaviour {
        limits: connection_limits::Behaviour::new(connections),
        exchange: request_response::Behaviour::with_codec(Codec, protocols, questions),
        kad,
        identify: identify::Behaviour::new(identify),
        mdns: mdns.into(),
    })
}

fn kad_config() -> kad::Config {
    let mut config = kad::Config::new(KAD);
    config
        .set_query_timeout(WALK)
        .set_substreams_timeout(ANSWER)
        .set_replication_factor(REPLICAS)
        .set_parallelism(PARALLEL)
        .set_provider_record_ttl(Some(RECORD_TTL))
        // Done by `publish`, which is fewer walks at a time.
        .set_provider_publication_interval(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_caching(kad::Caching::Disabled)
        .set_max_packet_size(MAX_MESSAGE)
        .set_periodic_bootstrap_interval(Some(REFRESH));
    config
}

/// The port of the listener.
async fn opened(swarm: &mut Swarm<Behaviour>, listener: ListenerId) -> io::Result<u16> {
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { listener_id, address } if listener_id == listener => {
                let port = |part| if let Protocol::Tcp(port) = part { Some(port) } else { None };
                return address.iter().find_map(port).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into());
            }
            SwarmEvent::ListenerError { error, .. } => return Err(error),
            SwarmEvent::ListenerClosed { reason, .. } => {
                return Err(reason.err().unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn multicast_is_there_only_where_it_is_wanted() {
        let keys = keypair([1; 32]).unwrap();
        assert!(behaviour(&keys, true, Limits::default()).unwrap().mdns.is_enabled());
        assert!(!behaviour(&keys, false, Limits::default()).unwrap().mdns.is_enabled());
    }
}
