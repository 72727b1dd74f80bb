//! X.509 certificates around ed25519 keys: the cluster's authority, and one certificate a node.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::CertificateError;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::ParsedCertificate;

use super::key::{KeyError, NodeId, PrivateKey};
use super::tls::server_name;

/// A certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("make certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("read certificate {path}: {reason}")]
    Read { path: PathBuf, reason: String },
    #[error("write certificate {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{0} holds no certificate in PEM form")]
    Empty(PathBuf),
}

/// A node's certificate chain, leaf first.
#[derive(Debug, Clone)]
pub struct NodeCertificate(Vec<CertificateDer<'static>>);

impl NodeCertificate {
    /// Of no authority: for clusters that admit nodes by an allow list.
    pub fn self_signed(key: &PrivateKey) -> Result<Self, CertError> {
        let certificate =
            node_params(key.node_id(), &[], Duration::from_secs(20 * 365 * 86_400))?.self_signed(&rcgen_key(key)?)?;
        Ok(Self(vec![certificate.der().clone()]))
    }

    pub fn load(path: &Path) -> Result<Self, CertError> {
        let chain = read_certificates(path)?;
        if chain.is_empty() {
            return Err(CertError::Empty(path.to_owned()));
        }
        Ok(Self(chain))
    }

    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    /// Whose it is; `None` unless it is for an ed25519 key, as every node's is.
    pub fn node(&self) -> Option<NodeId> {
        self.0.first().and_then(NodeId::from_certificate)
    }

    /// Host names and addresses of it, without the name of the node itself; `None` if it has others, or cannot be read.
    pub fn names(&self) -> Option<Vec<String>> {
        let leaf = self.0.first()?;
        let own = server_name(self.node()?);
        // Who asks for a name that it has not is told all that it has.
        let parsed = ParsedCertificate::try_from(leaf).ok()?;
        let unlike = verify_server_name(&parsed, &ServerName::try_from("of-nobody.invalid").ok()?).err()?;
        let rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) = unlike
        else {
            return None;
        };
        let name = |text: &String| {
            let dns = text.strip_prefix("DnsName(\"").and_then(|text| text.strip_suffix("\")"));
            let address = text.strip_prefix("IpAddress(").and_then(|text| text.strip_suffix(')'));
            let address = || address.and_then(|text| text.parse::<IpAddr>().ok());
            dns.map(str::to_owned).or_else(|| Some(address()?.to_string()))
        };
        let names = presented.iter().map(name).collect::<Option<Vec<_>>>()?;
        Some(names.into_iter().filter(|name| *name != own).collect())
    }
}

/// The private half of a cluster's authority: signs node certificates. Kept offline or with whoever admits nodes.
pub struct ClusterCa {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl ClusterCa {
    pub fn create(name: &str, key: &PrivateKey) -> Result<Self, CertError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("warmd cluster {name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, Duration::from_secs(20 * 365 * 86_400));
        let key = rcgen_key(key)?;
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate_pem })
    }

    pub fn load(certificate: &Path, key: &Path) -> Result<Self, CertError> {
        let read = |error: std::io::Error| CertError::Read { path: certificate.to_owned(), reason: error.to_string() };
        let certificate_pem = std::fs::read_to_string(certificate).map_err(read)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, rcgen_key(&PrivateKey::load(key)?)?)?;
        Ok(Self { issuer, certificate_pem })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate for `key`, in PEM form. `names` are host names or addresses under which clients reach a metadata server.
    pub fn issue(&self, key: &PrivateKey, names: &[String], valid_for: Duration) -> Result<String, CertError> {
        let params = node_params(key.node_id(), names, valid_for)?;
        Ok(params.signed_by(&rcgen_key(key)?, &self.issuer)?.pem())
    }
}

pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let error =
        |error: rustls::pki_types::pem::Error| CertError::Read { path: path.to_owned(), reason: error.to_string() };
    CertificateDer::pem_file_iter(path).map_err(error)?.collect::<Result<_, _>>().map_err(error)
}

fn node_params(node: NodeId, names: &[String], valid_for: Duration) -> Result<CertificateParams, CertError> {
    let mut all = vec![server_name(node)];
    all.extend_from_slice(names);
    let mut params = CertificateParams::new(all)?;
    params.distinguished_name.push(DnType::CommonName, format!("warmd node {node}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    set_validity(&mut params, valid_for);
    Ok(params)
}

/// A day back, so that a node whose clock is behind accepts a fresh certificate.
fn set_validity(params: &mut CertificateParams, valid_for: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(86_400)).into();
    params.not_after = (now + valid_for).into();
}

fn rcgen_key(key: &PrivateKey) -> Result<KeyPair, CertError> {
    let der = key.to_der().ok_or(rcgen::Error::CouldNotParseKeyPair)?;
    let der = PrivatePkcs8KeyDer::from(der.as_bytes());
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)?)
}
