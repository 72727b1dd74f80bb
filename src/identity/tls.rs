//! Mutual TLS 1.3 for QUIC and gRPC alike. There is no plaintext mode and no way to skip verification.
//!
//! A peer is admitted if its certificate chains to the cluster's authority, or its node id is on the allow list (where both
//! are set, both must hold). Whoever dials a node by id asks for the server name `<node id>.node.warmd`; the verifier then
//! compares the certificate's key with that id, so one client configuration pins every peer. Any other server name (a
//! metadata server's host) is checked against the certificate's names in the usual way.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};

use super::admission::{Admission, NotAdmitted};
use super::cert::{CertError, NodeCertificate};
use super::certificate::CertificateState;
use super::config::NodeConfig;
use super::credentials::{Credentials, Current};
use super::key::{NodeId, PrivateKey};
use super::membership::Membership;
use super::time::UnixTime;
use super::verifier::Verifier;
use crate::digest::KeyId;

/// ALPN of the peer protocol over QUIC.
pub const PEER_ALPN: &[u8] = b"warmd/1";

/// ALPN of gRPC.
pub const RPC_ALPN: &[u8] = b"h2";

pub(super) const NODE_SUFFIX: &str = ".node.warmd";

/// DER of an ed25519 SubjectPublicKeyInfo up to the 32 key bytes (RFC 8410 section 4).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What to do about a certificate that nobody accepts.
pub const RENEW: &str = "Have the cluster's authority make another one (`warmd keys node`), and send SIGHUP to take it";

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
    #[error("{files}: the certificate {reason}. {way_out}", way_out = RENEW)]
    Unfit { files: String, reason: NotAdmitted },
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
    current: Arc<Current>,
}

/// Certificate and authority as they are on disk now: see [`NodeTls::read_again`].
pub struct Renewal(Arc<Credentials>);

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTls").field("node", &self.node_id()).finish_non_exhaustive()
    }
}

impl NodeTls {
    pub fn new(key: PrivateKey, certificate: NodeCertificate, admission: Admission) -> Result<Self, TlsError> {
        let leaf = certificate.node();
        if leaf != Some(key.node_id()) {
            let certificate = leaf.map_or_else(|| "no ed25519 key".to_owned(), |id| id.to_string());
            return Err(TlsError::WrongKey { certificate, key: key.node_id() });
        }
        let shown = CertifiedKey::from_der(certificate.chain().to_vec(), der_of(&key)?, &crypto_provider())?;
        Ok(Self { key, current: Arc::new(Current::new(Credentials { shown: Arc::new(shown), admission })) })
    }

    pub fn node_id(&self) -> NodeId {
        self.key.node_id()
    }

    /// For protocols with an encryption of their own.
    pub fn membership(&self) -> Membership {
        Membership::new(self.current.clone())
    }

    /// Reads certificate, authority and the list of nodes again. Refused if the key is another one, which would be another
    /// node, or if the certificate is new and no good.
    pub fn read_again(&self, config: &NodeConfig, state: &Path) -> Result<Renewal, TlsError> {
        let new = config.tls(state)?;
        if new.node_id() != self.node_id() {
            return Err(TlsError::AnotherNode { now: new.node_id(), key: self.node_id() });
        }
        let (old, new) = (self.current.get(), new.current.get());
        // What has expired since the start stops no other change.
        let is_new = new.chain() != old.chain() || new.admission.roots() != old.admission.roots();
        match new.check(UnixTime::now()) {
            Err(reason) if is_new => Err(TlsError::Unfit { files: config.files(state, Some(&reason)), reason }),
            _ => Ok(Renewal(new)),
        }
    }

    /// For connections that begin from now on, over TLS and in discovery; those that are open go on.
    pub fn take(&self, renewal: Renewal) {
        self.current.set(renewal.0);
    }

    /// What nodes with this authority make of this node's certificate.
    pub fn certificate(&self, now: UnixTime) -> CertificateState {
        self.membership().certificate(now)
    }

    /// The private half of the node key, for protocols that want to sign with it themselves.
    pub(crate) fn seed(&self) -> [u8; 32] {
        self.key.seed()
    }

    /// Names the cluster's authorities: a digest of their public keys; `None` where only listed nodes are admitted.
    pub fn cluster(&self) -> Option<KeyId> {
        let credentials = self.current.get();
        let roots = credentials.admission.roots()?;
        let mut keys: Vec<_> = roots.iter().map(|root| root.subject_public_key_info.as_ref()).collect();
        keys.sort_unstable();
        Some(KeyId::of(&keys.concat()))
    }

    /// For accepting: every client must present an admitted certificate.
    pub fn server_config(&self, alpn: &[u8]) -> Result<ServerConfig, TlsError> {
        let provider = crypto_provider();
        let verifier = Verifier { current: self.current.clone(), provider: provider.clone() };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![alpn.to_vec()];
        // A resumed session would skip the check of the certificate.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// For dialling nodes (pinned by [`server_name`]) and metadata servers (by host name).
    pub fn client_config(&self, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
        let provider = crypto_provider();
        let verifier = Verifier { current: self.current.clone(), provider: provider.clone() };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(self.current.clone());
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{Read, Write};

    use rustls::pki_types::ServerName;

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
