//! Settings of an endpoint. Every number that differs from quinn's default says why.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, MtuDiscoveryConfig, VarInt};
use serde::{Deserialize, Serialize};

use super::TransportError;

/// quinn 0.11 hands the kernel up to ten datagrams in one segmented send, and that must stay within 64 KiB: with a larger
/// datagram every full batch fails, which looks like a black hole and throws the path back to 1,200 bytes.
const MAX_DATAGRAM: u16 = 6_500;

const MIN_DATAGRAM: u16 = 1_200;

/// How a sender adapts to the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    #[default]
    Cubic,
    NewReno,
    Bbr,
}

/// What peers are reached over, and reach this node over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carriers {
    /// QUIC, and TCP with peers that UDP does not reach.
    #[default]
    Auto,
    Quic,
    Tcp,
}

/// `[transport]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportConfig {
    /// Address that peers reach this node at, over UDP and TCP. Port 0 takes any free one.
    pub listen: SocketAddr,
    pub carrier: Carriers,
    /// Largest UDP payload in bytes that path discovery tries, 1,200 to 6,500. Set it to 1,452 where jumbo frames get lost
    /// without a trace.
    pub max_datagram: u16,
    /// Bytes asked of the kernel for each socket buffer. The kernel may give less (`net.core.rmem_max`): the log says so.
    pub socket_buffer: usize,
    /// UDP sockets for dialling. One socket is served by one core; more help from about 10 Gbit/s on.
    pub dial_sockets: usize,
    pub congestion: Congestion,
    /// Requests that one peer may have open at once.
    pub max_streams: u32,
    /// A peer from which nothing was heard for this long is gone.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
}

impl Default for TransportConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4780)),
            carrier: Carriers::Auto,
            max_datagram: MAX_DATAGRAM,
            socket_buffer: 8 * 1024 * 1024,
            dial_sockets: (cores / 4).clamp(1, 4),
            congestion: Congestion::Cubic,
            max_streams: 64,
            idle_timeout: Duration::from_secs(10),
        }
    }
}

impl TransportConfig {
    pub(super) fn check(&self) -> Result<(), TransportError> {
        self.problems().into_iter().next().map_or(Ok(()), |problem| Err(TransportError::Config(problem)))
    }

    /// Each value that is out of its range: the key, and what it must be.
    pub fn problems(&self) -> Vec<&'static str> {
        let time = Duration::from_secs(1)..=Duration::from_secs(600);
        let rules = [
            (
                (MIN_DATAGRAM..=MAX_DATAGRAM).contains(&self.max_datagram),
                "`transport.max_datagram` must be 1200 to 6500",
            ),
            ((1..=64).contains(&self.dial_sockets), "`transport.dial_sockets` must be 1 to 64"),
            (self.max_streams > 0, "`transport.max_streams` must be at least 1"),
            (time.contains(&self.idle_timeout), "`transport.idle_timeout` must be 1s to 10min"),
        ];
        rules.into_iter().filter(|(holds, _)| !holds).map(|(_, problem)| problem).collect()
    }

    fn common(&self) -> quinn::TransportConfig {
        let mut transport = quinn::TransportConfig::default();
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.max_datagram);
        transport
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None)
            // In one cluster, round trips are far below the default of 333 ms; the first probe timeout follows from this.
            .initial_rtt(Duration::from_millis(10))
            .mtu_discovery_config(Some(discovery))
            .keep_alive_interval(Some(self.idle_timeout / 3))
            .max_idle_timeout(IdleTimeout::try_from(self.idle_timeout).ok());
        match self.congestion {
            Congestion::Cubic => {
                let mut cubic = quinn::congestion::CubicConfig::default();
                // 100 Gbit/s for 20 us: fills a rack's path at once, and a switch buffer takes it.
                cubic.initial_window(256 * 1024);
                transport.congestion_controller_factory(Arc::new(cubic));
            }
            Congestion::NewReno => {
                transport.congestion_controller_factory(Arc::new(quinn::congestion::NewRenoConfig::default()));
            }
            Congestion::Bbr => {
                transport.congestion_controller_factory(Arc::new(quinn::congestion::BbrConfig::default()));
            }
        }
        transport
    }

    /// Receives small requests, sends chunks that are mapped files.
    pub(super) fn holder_side(&self) -> quinn::TransportConfig {
        let mut transport = self.common();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(self.max_streams))
            .stream_receive_window(VarInt::from_u32(64 * 1024))
            .receive_window(VarInt::from_u32(1024 * 1024))
            .send_window(16 * 1024 * 1024);
        transport
    }

    /// Receives chunks. 32 MiB are 10 ms at 25 Gbit/s and bound what a connection can pin. quinn ends a connection of which
    /// one stream has more than 1,024 gaps: with datagrams of 1,452 bytes, a window of this size cannot have as many.
    pub(super) fn puller_side(&self) -> quinn::TransportConfig {
        let mut transport = self.common();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(2 * 1024 * 1452))
            .receive_window(VarInt::from_u32(32 * 1024 * 1024))
            .send_window(1024 * 1024);
        transport
    }
}
