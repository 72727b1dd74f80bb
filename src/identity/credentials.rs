//! What this node shows and whom it admits. Both are read again, together, while connections come and go.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, UnixTime as PkiTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::admission::{Admission, NotAdmitted};
use super::certificate::Validity;
use super::time::UnixTime;
use super::verifier::Refusals;

/// A certificate with its key, and the rule by which others are admitted.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) shown: Arc<CertifiedKey>,
    pub(super) admission: Admission,
}

impl Credentials {
    /// Leaf first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.shown.cert
    }

    /// Whether nodes with the same authority would admit this one. Their lists are not known here.
    pub(super) fn check(&self, now: UnixTime) -> Result<(), NotAdmitted> {
        let now = PkiTime::since_unix_epoch(Duration::from_secs(now.seconds()));
        Ok(self.admission.certified(self.chain(), now)?)
    }

    /// `None` where no authority is asked, or the certificate is no good anyway.
    pub(super) fn validity(&self) -> Option<Validity> {
        self.admission.validity(self.chain())
    }
}

/// Credentials of connections that begin now. One that is open keeps what it began with.
pub(super) struct Current {
    credentials: watch::Sender<Arc<Credentials>>,
    refusals: Refusals,
}

impl Current {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials: watch::Sender::new(Arc::new(credentials)), refusals: Refusals::default() }
    }

    pub(super) fn set(&self, credentials: Arc<Credentials>) {
        self.credentials.send_replace(credentials);
    }

    pub(super) fn get(&self) -> Arc<Credentials> {
        self.credentials.borrow().clone()
    }

    pub(super) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    pub(super) fn changes(&self) -> watch::Receiver<Arc<Credentials>> {
        self.credentials.subscribe()
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get().shown.clone())
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get().shown.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use crate::identity::{
        CertificateState, ClusterCa, NodeConfig, NodeTls, NotAdmitted, PrivateKey, TlsError, UnixTime,
    };

    const HOUR: Duration = Duration::from_secs(3600);

    fn ca(seed: u8) -> ClusterCa {
        ClusterCa::create("test", &PrivateKey::from_seed(seed)).unwrap()
    }

    fn issue(dir: &Path, ca: &ClusterCa, seed: u8, valid_for: Duration) {
        std::fs::write(dir.join("node.pem"), ca.issue(&PrivateKey::from_seed(seed), &[], valid_for).unwrap()).unwrap();
    }

    fn trust(dir: &Path, cas: &[&ClusterCa]) {
        std::fs::write(dir.join("ca.pem"), cas.iter().map(|ca| ca.certificate_pem()).collect::<String>()).unwrap();
    }

    /// A state directory with the key of that seed, certified for an hour by authority 1.
    fn state(seed: u8) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        PrivateKey::from_seed(seed).save_new(&dir.path().join("node.key")).unwrap();
        issue(dir.path(), &ca(1), seed, HOUR);
        trust(dir.path(), &[&ca(1)]);
        dir
    }

    fn reload(tls: &NodeTls, dir: &Path) -> Result<(), TlsError> {
        tls.take(tls.read_again(&NodeConfig::default(), dir)?);
        Ok(())
    }

    #[test]
    fn a_certificate_is_renewed_in_place_and_another_nodes_is_refused() {
        let (dir, other) = (state(2), state(3));
        let tls = NodeConfig::default().tls(dir.path()).unwrap();
        let before = tls.membership().chain();
        assert_ne!(tls.certificate(UnixTime::now()), CertificateState::Good, "its last hour has begun");
        issue(dir.path(), &ca(1), 2, 2 * HOUR);
        let shown = tls.membership();
        reload(&tls, dir.path()).unwrap();
        let renewed = shown.chain();
        assert_ne!(renewed, before);
        assert!(matches!(reload(&tls, other.path()), Err(TlsError::AnotherNode { .. })));
        assert_eq!(shown.chain(), renewed);
    }

    #[test]
    fn a_new_authority_is_taken_with_the_certificate_that_it_has_issued_and_not_without() {
        let (dir, other) = (state(2), state(3));
        let tls = NodeConfig::default().tls(dir.path()).unwrap();
        let membership = tls.membership();
        issue(other.path(), &ca(9), 3, HOUR);
        let theirs = NodeConfig::default().tls(other.path()).unwrap().membership().chain();
        let node = PrivateKey::from_seed(3).node_id();
        assert!(membership.check(node, &theirs).is_err());
        // Both, for as long as certificates of both are in use.
        trust(dir.path(), &[&ca(1), &ca(9)]);
        reload(&tls, dir.path()).unwrap();
        membership.check(node, &theirs).unwrap();
        trust(dir.path(), &[&ca(9)]);
        let refused = reload(&tls, dir.path()).unwrap_err();
        assert!(matches!(&refused, TlsError::Unfit { reason: NotAdmitted::Foreign, .. }), "{refused}");
        assert!(refused.to_string().contains("node.pem") && refused.to_string().contains("ca.pem"), "{refused}");
        membership.check(PrivateKey::from_seed(2).node_id(), &membership.chain()).unwrap();
        issue(dir.path(), &ca(9), 2, HOUR);
        reload(&tls, dir.path()).unwrap();
        membership.check(node, &theirs).unwrap();
    }

    #[test]
    fn a_certificate_that_is_no_good_is_not_taken_and_one_that_has_got_so_stops_no_reload() {
        let dir = state(2);
        issue(dir.path(), &ca(1), 2, Duration::ZERO);
        // Its last second is now.
        let tls = NodeConfig::default().tls(dir.path()).unwrap();
        reload(&tls, dir.path()).unwrap();
        issue(dir.path(), &ca(9), 2, HOUR);
        assert!(matches!(reload(&tls, dir.path()), Err(TlsError::Unfit { reason: NotAdmitted::Foreign, .. })));
    }

    #[test]
    fn the_end_of_a_certificate_is_known_and_one_without_an_authority_has_none() {
        let dir = state(2);
        let tls = NodeConfig::default().tls(dir.path()).unwrap();
        let validity = tls.membership().validity().unwrap();
        // Begun a day ago, for clocks that are behind.
        assert_eq!(validity.until.seconds() - validity.from.seconds(), 25 * HOUR.as_secs());
        assert_eq!(tls.certificate(validity.from.after(HOUR)), CertificateState::Good);
        assert_eq!(tls.certificate(UnixTime::now()), CertificateState::EndsSoon(validity.until));
        std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
        let listed = NodeConfig { allow: Some([tls.node_id()].into()), ..NodeConfig::default() };
        let listed = listed.tls(dir.path()).unwrap();
        assert_eq!(listed.membership().validity(), None);
        assert_eq!(listed.certificate(validity.until.after(HOUR)), CertificateState::Good);
    }
}
