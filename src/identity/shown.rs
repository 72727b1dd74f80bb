//! The certificate that this node shows in TLS. It can be replaced while connections come and go.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The certificate that is shown from now on; one that was shown stays good until it expires.
pub(super) struct Shown(RwLock<Arc<CertifiedKey>>);

impl Shown {
    pub(super) fn new(certificate: CertifiedKey) -> Self {
        Self(RwLock::new(Arc::new(certificate)))
    }

    pub(super) fn set(&self, certificate: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certificate;
    }

    pub(super) fn get(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use crate::identity::{ClusterCa, NodeConfig, PrivateKey, TlsError};

    fn issue(dir: &Path, ca: &ClusterCa, key: &PrivateKey, hours: u64) {
        let pem = ca.issue(key, &[], Duration::from_secs(3600 * hours)).unwrap();
        std::fs::write(dir.join("node.pem"), pem).unwrap();
    }

    #[test]
    fn a_certificate_is_renewed_in_place_and_another_nodes_is_refused() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ca = ClusterCa::create("test", &PrivateKey::from_seed(1)).unwrap();
        for (dir, seed) in [(&dir, 2), (&other, 3)] {
            let key = PrivateKey::from_seed(seed);
            key.save_new(&dir.path().join("node.key")).unwrap();
            issue(dir.path(), &ca, &key, 1);
            std::fs::write(dir.path().join("ca.pem"), ca.certificate_pem()).unwrap();
        }
        let (config, chain) = (NodeConfig::default(), |tls: &crate::identity::NodeTls| {
            tls.membership().chain().map(<[u8]>::to_vec).collect::<Vec<_>>()
        });
        let tls = config.tls(dir.path()).unwrap();
        let before = chain(&tls);
        tls.check_self().unwrap();
        issue(dir.path(), &ca, &PrivateKey::from_seed(2), 2);
        tls.renew(&config, dir.path()).unwrap();
        let renewed = chain(&tls);
        assert_ne!(renewed, before);
        assert!(matches!(tls.renew(&config, other.path()), Err(TlsError::AnotherNode { .. })));
        assert_eq!(chain(&tls), renewed);
    }
}
