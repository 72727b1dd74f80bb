//! `[discovery]` of the configuration file.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::telemetry::label;

label! {
    /// Who is asked for holders.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Mode {
        /// The metadata server alone.
        Server,
        /// The metadata server; while it does not answer, the other agents.
        #[default]
        Hybrid,
        /// The other agents alone.
        Serverless,
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Hybrid => "hybrid",
            Self::Serverless => "serverless",
        })
    }
}

/// How agents find each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscoveryConfig {
    pub mode: Mode,
    /// TCP address that other agents reach this one at. Absent: [`super::beside`] the peer endpoint.
    pub listen: Option<SocketAddr>,
    /// Some other agents, by TCP address; a name may stand for many. Needed where there is no metadata server.
    pub bootstrap: Vec<BootstrapAddr>,
    /// Looks for other agents by multicast. Most container networks and clouds carry none.
    pub mdns: bool,
    /// With at most so many known agents all of them are asked; with more, the DHT says whom.
    pub direct: usize,
    /// For one look-up.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            listen: None,
            bootstrap: Vec::new(),
            mdns: false,
            direct: 50,
            deadline: Duration::from_secs(2),
        }
    }
}

/// The text names no agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no agent's address: expected `host:port`")]
pub struct InvalidBootstrapAddr(String);

/// Where an agent, or a few of many, can be reached: `host:port`. A name may have many addresses, like a headless service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BootstrapAddr {
    host: String,
    port: u16,
}

impl BootstrapAddr {
    /// Name or address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl From<SocketAddr> for BootstrapAddr {
    fn from(addr: SocketAddr) -> Self {
        Self { host: addr.ip().to_string(), port: addr.port() }
    }
}

impl FromStr for BootstrapAddr {
    type Err = InvalidBootstrapAddr;
    fn from_str(text: &str) -> Result<Self, InvalidBootstrapAddr> {
        let invalid = || InvalidBootstrapAddr(text.chars().take(200).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(ip) => ip.parse::<std::net::Ipv6Addr>().map(|ip| ip.to_string()).map_err(|_| invalid())?,
            None => host.to_owned(),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let is_name = !host.is_empty() && host.len() <= 253 && host.chars().all(plain);
        if bare.is_some() || is_name { Ok(Self { host, port }) } else { Err(invalid()) }
    }
}

impl fmt::Display for BootstrapAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Serialize for BootstrapAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BootstrapAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_with_a_port_are_bootstrap_addresses() {
        for text in ["agents.warmd.svc:4780", "10.0.0.1:1", "[::1]:65535", "node_1:4780"] {
            assert_eq!(text.parse::<BootstrapAddr>().unwrap().to_string(), text);
        }
        for text in ["", "host", "host:", "host:0", "::1:1", "[host]:1", "http://host:1", "a b:1", ":1", "host:70000"] {
            assert!(text.parse::<BootstrapAddr>().is_err(), "{text}");
        }
    }
}
