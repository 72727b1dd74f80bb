//! Names of metadata servers.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::ServerName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::identity::{NodeId, server_name};

/// Where a metadata server is and how it is known. Text form: `host:port`, where the host must be named by the server's
/// certificate, or `<node id>@host:port`, where only that node will do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerAddr {
    node: Option<NodeId>,
    host: String,
    port: u16,
}

/// The text names no metadata server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no metadata server: expected `host:port` or `<node id>@host:port`")]
pub struct InvalidServerAddr(String);

impl ServerAddr {
    pub fn new(node: Option<NodeId>, addr: std::net::SocketAddr) -> Self {
        Self { node, host: addr.ip().to_string(), port: addr.port() }
    }

    /// Host name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the server's certificate must be for.
    pub(super) fn tls_name(&self) -> Result<ServerName<'static>, rustls::pki_types::InvalidDnsNameError> {
        ServerName::try_from(self.node.map_or_else(|| self.host.clone(), server_name))
    }
}

impl FromStr for ServerAddr {
    type Err = InvalidServerAddr;
    fn from_str(text: &str) -> Result<Self, InvalidServerAddr> {
        let invalid = || InvalidServerAddr(text.chars().take(200).collect());
        let (node, place) = match text.split_once('@') {
            Some((node, place)) => (Some(node.parse().map_err(|_| invalid())?), place),
            None => (None, text),
        };
        let (host, port) = place.rsplit_once(':').ok_or_else(invalid)?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if host.contains(':') && bare.is_none() {
            return Err(invalid());
        }
        let host = bare.unwrap_or(host).to_owned();
        ServerName::try_from(host.as_str()).map_err(|_| invalid())?;
        Ok(Self { node, host, port })
    }
}

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = &self.node {
            write!(f, "{node}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for ServerAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServerAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn text_forms_round_trip() {
        let node = PrivateKey::from_seed(1).node_id();
        for text in ["metadata.example:7400", "10.0.0.1:1", "[::1]:65535", &format!("{node}@metadata:7400")] {
            assert_eq!(text.parse::<ServerAddr>().unwrap().to_string(), text);
        }
        let pinned: ServerAddr = format!("{node}@10.0.0.1:1").parse().unwrap();
        assert_eq!(pinned.tls_name().unwrap().to_str(), server_name(node));
        assert_eq!("10.0.0.1:1".parse::<ServerAddr>().unwrap().tls_name().unwrap().to_str(), "10.0.0.1");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "host",
            "host:",
            "host:0",
            "host:70000",
            ":1",
            "::1:1",
            "http://host:1",
            "a b:1",
            "x@host:1",
            "[host:1",
            "user:password@host:1",
            "host:1/path",
        ] {
            assert!(text.parse::<ServerAddr>().is_err(), "{text}");
        }
    }
}
