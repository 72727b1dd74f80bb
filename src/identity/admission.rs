//! Which nodes may speak with us: the same rule for QUIC, gRPC and discovery.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime as PkiTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, RootCertStore};

use super::cert::read_certificates;
use super::certificate::Validity;
use super::key::NodeId;
use super::time::UnixTime;
use super::tls::{RENEW, TlsError, crypto_provider};

/// Which nodes may speak with us.
#[derive(Debug, Clone)]
pub struct Admission {
    authority: Option<Authority>,
    allow: Option<BTreeSet<NodeId>>,
}

/// Who certifies nodes.
#[derive(Debug, Clone)]
struct Authority {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// Why a node may not speak with us. `Display` goes on after "its certificate".
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NotAdmitted {
    #[error("expired at {0}")]
    Expired(UnixTime),
    #[error("is not valid before {0}, by this machine's clock")]
    NotYet(UnixTime),
    #[error("is of another authority than this cluster's")]
    Foreign,
    #[error("names no node that `node.allow` lists")]
    Unlisted,
    #[error("cannot be used: {0}")]
    Unusable(rustls::Error),
}

impl NotAdmitted {
    /// What to do about it, and where.
    pub fn way_out(&self) -> String {
        match self {
            Self::NotYet(_) => format!("{RENEW} there, unless a clock is wrong: compare those of both machines"),
            Self::Unlisted => "If it belongs to this cluster, add it to `node.allow` here".to_owned(),
            Self::Foreign => {
                format!("{RENEW} there; or replace `node.ca` here, if that authority is a newer one of this cluster")
            }
            Self::Expired(_) | Self::Unusable(_) => format!("{RENEW} there"),
        }
    }
}

fn seconds(time: PkiTime) -> UnixTime {
    UnixTime::from_seconds(time.as_secs())
}

impl From<rustls::Error> for NotAdmitted {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
                Self::Expired(seconds(not_after))
            }
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
                Self::NotYet(seconds(not_before))
            }
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                Self::Foreign
            }
            rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => Self::Unlisted,
            other => Self::Unusable(other),
        }
    }
}

impl Admission {
    /// From a PEM file of the cluster's authority, an allow list, or both. With neither, nobody could be admitted.
    pub fn new(ca: Option<&Path>, allow: Option<BTreeSet<NodeId>>) -> Result<Self, TlsError> {
        let authority = ca.map(Authority::load).transpose()?;
        if authority.is_none() && allow.is_none() {
            return Err(TlsError::NobodyAdmitted);
        }
        Ok(Self { authority, allow })
    }

    /// The node of these certificates, leaf first, if it may speak with us. Whether the other side has the key is not looked
    /// at.
    pub(super) fn admit(&self, chain: &[CertificateDer<'_>], now: PkiTime) -> Result<NodeId, rustls::Error> {
        self.certified(chain, now)?;
        self.listed(chain)
    }

    /// As [`Admission::admit`], for one that has dialled us.
    pub(super) fn admit_client(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: PkiTime,
    ) -> Result<NodeId, rustls::Error> {
        if let Some(authority) = &self.authority {
            authority.clients.verify_client_cert(leaf, intermediates, now)?;
        }
        self.listed(std::slice::from_ref(leaf))
    }

    /// While the authority's word for this chain holds: all of its certificates are in force. `None` where no authority is
    /// asked, or the chain is not good for another reason than time.
    pub(super) fn validity(&self, chain: &[CertificateDer<'_>]) -> Option<Validity> {
        self.authority.as_ref()?;
        let at = |time| match self.certified(chain, time) {
            Err(rustls::Error::InvalidCertificate(error)) => Some(error),
            _ => None,
        };
        let from = match at(PkiTime::since_unix_epoch(Duration::ZERO)) {
            Some(CertificateError::NotValidYetContext { not_before, .. }) => seconds(not_before),
            _ => UnixTime::from_seconds(0),
        };
        // The check itself says which certificate ends first: what is good then is good until then.
        let mut until = PkiTime::since_unix_epoch(Duration::MAX);
        while let Some(error) = at(until) {
            match error {
                CertificateError::ExpiredContext { not_after, .. } if not_after < until => until = not_after,
                _ => return None,
            }
        }
        Some(Validity { from, until: seconds(until) })
    }

    /// Whether the cluster's authority has certified the chain, if there is one.
    pub(super) fn certified(&self, chain: &[CertificateDer<'_>], now: PkiTime) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let Some(Authority { roots, .. }) = &self.authority else { return Ok(()) };
        let algorithms = crypto_provider().signature_verification_algorithms.all;
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms)
    }

    fn listed(&self, chain: &[CertificateDer<'_>]) -> Result<NodeId, rustls::Error> {
        let leaf = chain.first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let node = NodeId::from_certificate(leaf).ok_or(CertificateError::BadEncoding)?;
        match &self.allow {
            Some(allow) if !allow.contains(&node) => Err(CertificateError::ApplicationVerificationFailure.into()),
            _ => Ok(node),
        }
    }

    pub(super) fn roots(&self) -> Option<&[TrustAnchor<'static>]> {
        self.authority.as_ref().map(|authority| &authority.roots.roots[..])
    }
}

impl Authority {
    fn load(path: &Path) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(path)? {
            roots.add(certificate)?;
        }
        if roots.is_empty() {
            return Err(TlsError::NoRoot(path.to_owned()));
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), crypto_provider()).build()?;
        Ok(Self { roots, clients })
    }
}
