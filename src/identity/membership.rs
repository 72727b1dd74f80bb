//! Admission where there is no TLS: nodes show each other the same certificates, over a channel that has already proven
//! who holds which key.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime as PkiTime};
use tokio::sync::watch;

use super::admission::NotAdmitted;
use super::certificate::{CertificateState, Validity};
use super::credentials::{Credentials, Current};
use super::key::NodeId;
use super::time::UnixTime;

/// Certificates in a chain.
const MAX_CERTIFICATES: usize = 4;

/// Somebody who is no node of this cluster.
#[derive(Debug, thiserror::Error)]
pub enum Stranger {
    #[error("not admitted to this cluster: its certificate {0}")]
    Refused(#[source] NotAdmitted),
    #[error("shows the certificate of {certificate}, and has the key of {key}")]
    Borrowed { certificate: NodeId, key: NodeId },
    #[error("shows more than {MAX_CERTIFICATES} certificates")]
    TooMany,
}

/// What a node shows, and whom it admits: as in TLS, see [`super::NodeTls`]. Both are those of the moment.
#[derive(Clone)]
pub struct Membership(Arc<Current>);

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").finish_non_exhaustive()
    }
}

impl Membership {
    pub(super) fn new(current: Arc<Current>) -> Self {
        Self(current)
    }

    /// This node's certificates in DER, leaf first.
    pub fn chain(&self) -> Vec<Vec<u8>> {
        self.0.get().chain().iter().map(|der| der.to_vec()).collect()
    }

    /// What nodes with this authority make of this node's certificate. Their lists are not known here.
    pub fn certificate(&self, now: UnixTime) -> CertificateState {
        let credentials = self.0.get();
        CertificateState::of(credentials.check(now), credentials.validity(), now)
    }

    pub(super) fn validity(&self) -> Option<Validity> {
        self.0.get().validity()
    }

    pub(super) fn changes(&self) -> watch::Receiver<Arc<Credentials>> {
        self.0.changes()
    }

    /// Whether `node`, which has proven that it holds its key, may speak with us. `chain` is in DER, leaf first.
    pub fn check(&self, node: NodeId, chain: &[Vec<u8>]) -> Result<(), Stranger> {
        if chain.len() > MAX_CERTIFICATES {
            return Err(Stranger::TooMany);
        }
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let admitted = self.0.get().admission.admit(&chain, PkiTime::now());
        match admitted.map_err(|error| Stranger::Refused(error.into()))? {
            certificate if certificate == node => Ok(()),
            certificate => Err(Stranger::Borrowed { certificate, key: node }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::identity::{Admission, ClusterCa, NodeCertificate, NodeTls, PrivateKey};

    fn member(ca: &ClusterCa, seed: u8, allow: Option<&[u8]>) -> (NodeId, Membership) {
        let dir = tempfile::tempdir().unwrap();
        let key = PrivateKey::from_seed(seed);
        let (root, leaf) = (dir.path().join("ca.pem"), dir.path().join("node.pem"));
        std::fs::write(&root, ca.certificate_pem()).unwrap();
        std::fs::write(&leaf, ca.issue(&key, &[], Duration::from_secs(3600)).unwrap()).unwrap();
        let allow = allow.map(|seeds| seeds.iter().map(|seed| PrivateKey::from_seed(*seed).node_id()).collect());
        let admission = Admission::new(Some(&root), allow).unwrap();
        let node = key.node_id();
        (node, NodeTls::new(key, NodeCertificate::load(&leaf).unwrap(), admission).unwrap().membership())
    }

    #[test]
    fn nodes_of_one_cluster_are_members_and_others_are_strangers() {
        let ca = |seed| ClusterCa::create("test", &PrivateKey::from_seed(seed)).unwrap();
        let (here, there) = (ca(1), ca(9));
        let ((_, a), (b_id, b), (c_id, c)) = (member(&here, 2, None), member(&here, 3, None), member(&there, 4, None));
        a.check(b_id, &b.chain()).unwrap();
        assert!(matches!(a.check(c_id, &c.chain()), Err(Stranger::Refused(_))));
        assert!(matches!(a.check(b_id, &[]), Err(Stranger::Refused(_))));
        assert!(matches!(a.check(b_id, &[b"no certificate".to_vec()]), Err(Stranger::Refused(_))));
        assert!(matches!(a.check(b_id, &vec![b.chain()[0].clone(); 5]), Err(Stranger::TooMany)));
    }

    #[test]
    fn the_certificate_of_another_node_admits_nobody() {
        let ca = ClusterCa::create("test", &PrivateKey::from_seed(1)).unwrap();
        let ((_, a), (_, b), (c_id, _)) = (member(&ca, 2, None), member(&ca, 3, None), member(&ca, 4, None));
        assert!(matches!(a.check(c_id, &b.chain()), Err(Stranger::Borrowed { .. })));
    }

    #[test]
    fn an_allow_list_holds_here_too() {
        let ca = ClusterCa::create("test", &PrivateKey::from_seed(1)).unwrap();
        let ((_, a), (b_id, b), (c_id, c)) = (member(&ca, 2, Some(&[3])), member(&ca, 3, None), member(&ca, 4, None));
        a.check(b_id, &b.chain()).unwrap();
        assert!(matches!(a.check(c_id, &c.chain()), Err(Stranger::Refused(_))));
        let listed = Admission::new(None, Some(BTreeSet::from([c_id]))).unwrap();
        let key = PrivateKey::from_seed(2);
        let certificate = NodeCertificate::self_signed(&key).unwrap();
        NodeTls::new(key, certificate, listed).unwrap().membership().check(c_id, &c.chain()).unwrap();
    }
}
