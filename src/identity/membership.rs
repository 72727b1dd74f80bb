//! Admission where there is no TLS: nodes show each other the same certificates, over a channel that has already proven
//! who holds which key.

use std::fmt;

use rustls::pki_types::{CertificateDer, UnixTime};

use super::admission::Admission;
use super::key::NodeId;

/// Certificates in a chain.
const MAX_CERTIFICATES: usize = 4;

/// Somebody who is no node of this cluster.
#[derive(Debug, thiserror::Error)]
pub enum Stranger {
    #[error("not admitted to this cluster: {0}")]
    Refused(#[from] rustls::Error),
    #[error("shows the certificate of {certificate}, and has the key of {key}")]
    Borrowed { certificate: NodeId, key: NodeId },
    #[error("shows more than {MAX_CERTIFICATES} certificates")]
    TooMany,
}

/// What a node shows, and whom it admits: as in TLS, see [`super::NodeTls`].
#[derive(Clone)]
pub struct Membership {
    chain: Vec<CertificateDer<'static>>,
    admission: Admission,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").finish_non_exhaustive()
    }
}

impl Membership {
    pub(super) fn new(chain: Vec<CertificateDer<'static>>, admission: Admission) -> Self {
        Self { chain, admission }
    }

    /// This node's certificates in DER, leaf first.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.chain.iter().map(AsRef::as_ref)
    }

    /// Whether `node`, which has proven that it holds its key, may speak with us. `chain` is in DER, leaf first.
    pub fn check(&self, node: NodeId, chain: &[Vec<u8>]) -> Result<(), Stranger> {
        if chain.len() > MAX_CERTIFICATES {
            return Err(Stranger::TooMany);
        }
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        match self.admission.admit(&chain, UnixTime::now())? {
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
    use crate::identity::{ClusterCa, NodeCertificate, NodeTls, PrivateKey};

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

    fn shown(membership: &Membership) -> Vec<Vec<u8>> {
        membership.chain().map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn nodes_of_one_cluster_are_members_and_others_are_strangers() {
        let ca = |seed| ClusterCa::create("test", &PrivateKey::from_seed(seed)).unwrap();
        let (here, there) = (ca(1), ca(9));
        let ((_, a), (b_id, b), (c_id, c)) = (member(&here, 2, None), member(&here, 3, None), member(&there, 4, None));
        a.check(b_id, &shown(&b)).unwrap();
        assert!(matches!(a.check(c_id, &shown(&c)), Err(Stranger::Refused(_))));
        assert!(matches!(a.check(b_id, &[]), Err(Stranger::Refused(_))));
        assert!(matches!(a.check(b_id, &[b"no certificate".to_vec()]), Err(Stranger::Refused(_))));
        assert!(matches!(a.check(b_id, &vec![shown(&b)[0].clone(); 5]), Err(Stranger::TooMany)));
    }

    #[test]
    fn the_certificate_of_another_node_admits_nobody() {
        let ca = ClusterCa::create("test", &PrivateKey::from_seed(1)).unwrap();
        let ((_, a), (_, b), (c_id, _)) = (member(&ca, 2, None), member(&ca, 3, None), member(&ca, 4, None));
        assert!(matches!(a.check(c_id, &shown(&b)), Err(Stranger::Borrowed { .. })));
    }

    #[test]
    fn an_allow_list_holds_here_too() {
        let ca = ClusterCa::create("test", &PrivateKey::from_seed(1)).unwrap();
        let ((_, a), (b_id, b), (c_id, c)) = (member(&ca, 2, Some(&[3])), member(&ca, 3, None), member(&ca, 4, None));
        a.check(b_id, &shown(&b)).unwrap();
        assert!(matches!(a.check(c_id, &shown(&c)), Err(Stranger::Refused(_))));
        let listed = Admission::new(None, Some(BTreeSet::from([c_id]))).unwrap();
        let key = PrivateKey::from_seed(2);
        let certificate = NodeCertificate::self_signed(&key).unwrap();
        NodeTls::new(key, certificate, listed).unwrap().membership().check(c_id, &shown(&c)).unwrap();
    }
}
