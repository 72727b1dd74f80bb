//! `[compatibility]` of the configuration file.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::table::Limits;

/// What other systems' clients are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompatibilityConfig {
    /// Serves ModelExpress's `P2pService`. Its clients speak plaintext and are not authenticated.
    pub model_express: bool,
    /// TCP address that they reach it at: loopback, or one of this machine's own.
    pub listen: ExplicitAddr,
    /// How long a worker is listed as READY without a heartbeat.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long one that is STALE is remembered.
    #[serde(with = "humantime_serde")]
    pub forget: Duration,
    /// Workers that are known at a time, one for each accelerator and identity.
    pub max_workers: usize,
    /// Bytes of all that workers say of themselves.
    pub max_bytes: usize,
    pub max_connections: usize,
}

impl Default for CompatibilityConfig {
    fn default() -> Self {
        Self {
            model_express: false,
            listen: ExplicitAddr(SocketAddr::from((Ipv4Addr::LOCALHOST, 8001))),
            lease: Duration::from_secs(90),
            forget: Duration::from_secs(3600),
            max_workers: 20_000,
            max_bytes: 256 * 1024 * 1024,
            max_connections: 20_000,
        }
    }
}

impl CompatibilityConfig {
    pub(super) fn limits(&self) -> Limits {
        let Self { lease, forget, max_workers, max_bytes, .. } = *self;
        Limits { lease, forget, max_workers, max_bytes }
    }
}

/// An address that names one of the machine's, and not all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SocketAddr", into = "SocketAddr")]
pub struct ExplicitAddr(SocketAddr);

impl ExplicitAddr {
    pub fn addr(self) -> SocketAddr {
        self.0
    }
}

/// The address stands for every interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} stands for every interface, and what listens there is not authenticated: name the one address to listen on"
)]
pub struct NotExplicit(SocketAddr);

impl TryFrom<SocketAddr> for ExplicitAddr {
    type Error = NotExplicit;
    fn try_from(addr: SocketAddr) -> Result<Self, NotExplicit> {
        if addr.ip().to_canonical().is_unspecified() { Err(NotExplicit(addr)) } else { Ok(Self(addr)) }
    }
}

impl From<ExplicitAddr> for SocketAddr {
    fn from(addr: ExplicitAddr) -> Self {
        addr.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_off_and_on_loopback_unless_told_otherwise() {
        let config = CompatibilityConfig::default();
        assert!(!config.model_express && config.listen.addr().ip().is_loopback());
    }

    #[test]
    fn an_address_that_stands_for_every_interface_is_refused() {
        let read = |addr: &str| toml::from_str::<CompatibilityConfig>(&format!("listen = \"{addr}\""));
        for addr in ["127.0.0.1:8001", "10.0.0.7:8001", "[::1]:8001"] {
            assert_eq!(read(addr).unwrap().listen.addr(), addr.parse().unwrap());
        }
        for addr in ["0.0.0.0:8001", "[::]:8001", "[::ffff:0.0.0.0]:8001"] {
            let error = read(addr).unwrap_err().to_string();
            assert!(error.contains("every interface"), "{error}");
        }
    }
}
