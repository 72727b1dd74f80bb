//! Which nodes may speak with us: the same rule for QUIC, gRPC and discovery.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, RootCertStore};

use super::cert::read_certificates;
use super::key::NodeId;
use super::tls::{TlsError, crypto_provider};

/// Which nodes may speak with us.
#[derive(Debug, Clone)]
pub struct Admission {
    roots: Option<Arc<RootCertStore>>,
    allow: Option<BTreeSet<NodeId>>,
}

impl Admission {
    /// From a PEM file of the cluster's authority, an allow list, or both. With neither, nobody could be admitted.
    pub fn new(ca: Option<&Path>, allow: Option<BTreeSet<NodeId>>) -> Result<Self, TlsError> {
        let roots = ca.map(load_roots).transpose()?;
        if roots.is_none() && allow.is_none() {
            return Err(TlsError::NobodyAdmitted);
        }
        Ok(Self { roots, allow })
    }

    /// The node of these certificates, if it may speak with us. Whether the other side has the key is not looked at.
    pub(super) fn admit(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<NodeId, rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        if let Some(roots) = &self.roots {
            let algorithms = crypto_provider().signature_verification_algorithms.all;
            let leaf = ParsedCertificate::try_from(leaf)?;
            verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms)?;
        }
        let node = node_of(leaf)?;
        self.check_listed(node)?;
        Ok(node)
    }

    pub(super) fn roots(&self) -> Option<&Arc<RootCertStore>> {
        self.roots.as_ref()
    }

    pub(super) fn check_listed(&self, node: NodeId) -> Result<(), rustls::Error> {
        match &self.allow {
            Some(allow) if !allow.contains(&node) => Err(CertificateError::ApplicationVerificationFailure.into()),
            _ => Ok(()),
        }
    }
}

fn load_roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate)?;
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoot(path.to_owned()));
    }
    Ok(Arc::new(roots))
}

pub(super) fn node_of(certificate: &CertificateDer<'_>) -> Result<NodeId, rustls::Error> {
    NodeId::from_certificate(certificate).ok_or_else(|| CertificateError::BadEncoding.into())
}
