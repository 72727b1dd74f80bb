//! Mutual TLS 1.3 for QUIC and gRPC alike. There is no plaintext mode and no way to skip verification.
//!
//! A peer is admitted if its certificate chains to the cluster's authority, or its node id is on the allow list (where both
//! are set, both must hold). Whoever dials a node by id asks for the server name `<node id>.node.warmd`; the verifier then
//! compares the certificate's key with that id, so one client configuration pins every peer. Any other server name (a
//! metadata server's host) is checked against the certificate's names in the usual way.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

use super::admission::{Admission, node_of};
use super::cert::{CertError, NodeCertificate};
use super::config::NodeConfig;
use super::key::{NodeId, PrivateKey};
use super::membership::{Membership, Stranger};
use super::shown::Shown;
use crate::digest::KeyId;

/// ALPN of the peer protocol over QUIC.
pub const PEER_ALPN: &[u8] = b"warmd/1";

/// ALPN of gRPC.
pub const RPC_ALPN: &[u8] = b"h2";

const NODE_SUFFIX: &str = ".node.warmd";

/// DER of an ed25519 SubjectPublicKeyInfo up to the 32 key bytes (RFC 8410 section 4).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Cert(#[from] CertError),
    #[error("set up TLS: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("no node would be admitted: configure a cluster CA or an allow list of node ids")]
    NobodyAdmitted,
    #[error("{0} holds no usable CA certificate")]
    NoRoot(PathBuf),
    #[error("the certificate is not for this node key: it names {certificate}, the key is {key}")]
    WrongKey { certificate: String, key: NodeId },
    #[error("the key in place is node {now}'s, and this is node {key}: another node begins with a restart")]
    AnotherNode { now: NodeId, key: NodeId },
    #[error("build client verifier: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// AES-128-GCM first: with AES instructions it costs the least per byte. ChaCha20 is for machines without them.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256};
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(provider)
}

/// The TLS server name that pins a connection to `node`.
pub fn server_name(node: NodeId) -> String {
    format!("{node}{NODE_SUFFIX}")
}

/// What one node needs to speak TLS as itself with those it admits.
pub struct NodeTls {
    key: PrivateKey,
    shown: Arc<Shown>,
    admission: Admission,
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTls").field("node", &self.node_id()).finish_non_exhaustive()
    }
}

impl NodeTls {
    pub fn new(key: PrivateKey, certificate: NodeCertificate, admission: Admission) -> Result<Self, TlsError> {
        let leaf = certificate.chain().first().and_then(NodeId::from_certificate);
        if leaf != Some(key.node_id()) {
            let certificate = leaf.map_or_else(|| "no ed25519 key".to_owned(), |id| id.to_string());
            return Err(TlsError::WrongKey { certificate, key: key.node_id() });
        }
        let shown = CertifiedKey::from_der(certificate.chain().to_vec(), der_of(&key)?, &crypto_provider())?;
        Ok(Self { key, shown: Arc::new(Shown::new(shown)), admission })
    }

    pub fn node_id(&self) -> NodeId {
        self.key.node_id()
    }

    /// For protocols with an encryption of their own.
    pub fn membership(&self) -> Membership {
        Membership::new(self.shown.get().cert.clone(), self.admission.clone())
    }

    /// Reads the certificate again, which all new connections over TLS show from then on. Key and authority stay: with
    /// another key this would be another node.
    pub fn renew(&self, config: &NodeConfig, state: &Path) -> Result<(), TlsError> {
        let new = config.tls(state)?;
        if new.node_id() != self.node_id() {
            return Err(TlsError::AnotherNode { now: new.node_id(), key: self.node_id() });
        }
        self.shown.set(new.shown.get());
        Ok(())
    }

    /// Whether this node would admit itself: a certificate that has expired, or is of another authority, says why not.
    pub fn check_self(&self) -> Result<(), Stranger> {
        let chain: Vec<Vec<u8>> = self.membership().chain().map(<[u8]>::to_vec).collect();
        self.membership().check(self.node_id(), &chain)
    }

    /// The private half of the node key, for protocols that want to sign with it themselves.
    pub(crate) fn seed(&self) -> [u8; 32] {
        self.key.seed()
    }

    /// Names the cluster's authorities: a digest of their public keys; `None` where only listed nodes are admitted.
    pub fn cluster(&self) -> Option<KeyId> {
        let roots = self.admission.roots()?;
        let mut keys: Vec<_> = roots.roots.iter().map(|root| root.subject_public_key_info.as_ref()).collect();
        keys.sort_unstable();
        Some(KeyId::of(&keys.concat()))
    }

    /// For accepting: every client must present an admitted certificate.
    pub fn server_config(&self, alpn: &[u8]) -> Result<ServerConfig, TlsError> {
        let provider = crypto_provider();
        let chained = match self.admission.roots() {
            Some(roots) => Some(WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?),
            None => None,
        };
        let verifier = ClientVerifier { admission: self.admission.clone(), chained, provider: provider.clone() };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(self.shown.clone());
        config.alpn_protocols = vec![alpn.to_vec()];
        // A resumed session would skip the check of the certificate.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// For dialling nodes (pinned by [`server_name`]) and metadata servers (by host name).
    pub fn client_config(&self, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
        let provider = crypto_provider();
        let verifier = ServerVerifier { admission: self.admission.clone(), provider: provider.clone() };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(self.shown.clone());
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

fn der_of(key: &PrivateKey) -> Result<PrivateKeyDer<'static>, TlsError> {
    let der = key.to_der().ok_or_else(|| rustls::Error::General("encode node key".to_owned()))?;
    Ok(PrivatePkcs8KeyDer::from(der.as_bytes().to_vec()).into())
}

impl NodeId {
    /// The node whose key the certificate carries; `None` unless it is an ed25519 key.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let spki = ParsedCertificate::try_from(certificate).ok()?.subject_public_key_info();
        let key = spki.as_ref().strip_prefix(&ED25519_SPKI)?;
        Self::from_bytes(key).ok()
    }
}

#[derive(Debug)]
struct ClientVerifier {
    admission: Admission,
    chained: Option<Arc<dyn ClientCertVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chained.as_ref().map_or(&[], |chained| chained.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if let Some(chained) = &self.chained {
            chained.verify_client_cert(end_entity, intermediates, now)?;
        }
        self.admission.check_listed(node_of(end_entity)?)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[derive(Debug)]
struct ServerVerifier {
    admission: Admission,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        let node = self.admission.admit(&chain, now)?;
        match pinned(server_name) {
            Some(expected) if expected == node => {}
            Some(_) => return Err(CertificateError::NotValidForName.into()),
            None => verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn pinned(name: &ServerName<'_>) -> Option<NodeId> {
    let ServerName::DnsName(name) = name else { return None };
    name.as_ref().strip_suffix(NODE_SUFFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{Read, Write};

    use super::*;
    use crate::identity::ClusterCa;

    struct Cluster {
        dir: tempfile::TempDir,
        ca: ClusterCa,
    }

    impl Cluster {
        fn new(seed: u8) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let ca = ClusterCa::create("test", &PrivateKey::from_seed(seed)).unwrap();
            std::fs::write(dir.path().join("ca.pem"), ca.certificate_pem()).unwrap();
            Self { dir, ca }
        }

        fn node(&self, seed: u8, allow: Option<&[NodeId]>) -> NodeTls {
            let key = PrivateKey::from_seed(seed);
            let pem = self.ca.issue(&key, &["localhost".to_owned()], std::time::Duration::from_secs(3600)).unwrap();
            let path = self.dir.path().join(format!("{seed}.pem"));
            std::fs::write(&path, pem).unwrap();
            let allow = allow.map(|ids| ids.iter().copied().collect());
            let admission = Admission::new(Some(&self.dir.path().join("ca.pem")), allow).unwrap();
            NodeTls::new(key, NodeCertificate::load(&path).unwrap(), admission).unwrap()
        }
    }

    fn listed(seed: u8, allow: &[NodeId]) -> NodeTls {
        let key = PrivateKey::from_seed(seed);
        let certificate = NodeCertificate::self_signed(&key).unwrap();
        NodeTls::new(key, certificate, Admission::new(None, Some(allow.iter().copied().collect())).unwrap()).unwrap()
    }

    /// Runs a handshake in memory and one byte over it; the peer that the server saw.
    fn handshake(client: &NodeTls, server: &NodeTls, name: &str) -> Result<NodeId, rustls::Error> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut c = rustls::ClientConnection::new(Arc::new(client.client_config(PEER_ALPN).unwrap()), name)?;
        let mut s = rustls::ServerConnection::new(Arc::new(server.server_config(PEER_ALPN).unwrap()))?;
        c.writer().write_all(b"x").unwrap();
        for _ in 0..10 {
            let mut wire = Vec::new();
            while c.wants_write() {
                c.write_tls(&mut wire).unwrap();
            }
            s.read_tls(&mut wire.as_slice()).unwrap();
            s.process_new_packets()?;
            let mut wire = Vec::new();
            while s.wants_write() {
                s.write_tls(&mut wire).unwrap();
            }
            c.read_tls(&mut wire.as_slice()).unwrap();
            c.process_new_packets()?;
        }
        let mut byte = [0];
        s.reader().read_exact(&mut byte).unwrap();
        Ok(NodeId::from_certificate(&s.peer_certificates().unwrap()[0]).unwrap())
    }

    #[test]
    fn nodes_of_one_cluster_admit_each_other_by_pinned_id_and_by_host_name() {
        let cluster = Cluster::new(1);
        let (a, b) = (cluster.node(2, None), cluster.node(3, None));
        assert_eq!(handshake(&a, &b, &server_name(b.node_id())).unwrap(), a.node_id());
        assert_eq!(handshake(&a, &b, "localhost").unwrap(), a.node_id());
    }

    #[test]
    fn another_node_than_the_pinned_one_is_refused() {
        let cluster = Cluster::new(1);
        let (a, b) = (cluster.node(2, None), cluster.node(3, None));
        assert!(handshake(&a, &b, &server_name(a.node_id())).is_err());
        assert!(handshake(&a, &b, "metadata.example").is_err());
    }

    #[test]
    fn a_certificate_of_another_cluster_is_refused_in_both_directions() {
        let (here, there) = (Cluster::new(1), Cluster::new(9));
        let (a, b) = (here.node(2, None), there.node(3, None));
        assert!(handshake(&a, &b, &server_name(b.node_id())).is_err());
        assert!(handshake(&b, &a, &server_name(a.node_id())).is_err());
    }

    #[test]
    fn an_allow_list_narrows_a_cluster_and_stands_alone_with_self_signed_certificates() {
        let cluster = Cluster::new(1);
        let (a, b) = (cluster.node(2, None), cluster.node(3, Some(&[])));
        assert!(handshake(&a, &b, &server_name(b.node_id())).is_err());
        let ids = [PrivateKey::from_seed(2).node_id(), PrivateKey::from_seed(3).node_id()];
        let (a, b, stranger) = (listed(2, &ids), listed(3, &ids), listed(4, &ids));
        assert_eq!(handshake(&a, &b, &server_name(b.node_id())).unwrap(), a.node_id());
        assert!(handshake(&stranger, &b, &server_name(b.node_id())).is_err());
    }

    #[test]
    fn nobody_admitted_and_foreign_certificates_are_errors_at_start() {
        assert!(matches!(Admission::new(None, None), Err(TlsError::NobodyAdmitted)));
        let certificate = NodeCertificate::self_signed(&PrivateKey::from_seed(5)).unwrap();
        let admission = Admission::new(None, Some(BTreeSet::new())).unwrap();
        let error = NodeTls::new(PrivateKey::from_seed(6), certificate, admission).unwrap_err();
        assert!(matches!(error, TlsError::WrongKey { .. }));
    }
}
