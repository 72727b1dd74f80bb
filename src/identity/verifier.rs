//! Looks at certificates for rustls, in both directions.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};

use super::admission::NotAdmitted;
use super::credentials::Current;
use super::key::NodeId;
use super::tls::NODE_SUFFIX;

/// Between two words about the same node and reason, and how many of them are remembered.
const TELL_EVERY: Duration = Duration::from_secs(10 * 60);
const MAX_TOLD: usize = 1024;

/// Admits by the credentials of the moment.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) current: Arc<Current>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Tells who was refused and why, in words; the other side gets TLS's alert.
    fn refused(&self, leaf: &CertificateDer<'_>, error: rustls::Error) -> rustls::Error {
        let (node, reason) = (NodeId::from_certificate(leaf), NotAdmitted::from(error.clone()));
        if self.current.refusals().is_news(node, &reason, Instant::now()) {
            let (node, way_out) = (node.map(|node| node.to_string()), reason.way_out());
            tracing::warn!(node, "a node is refused: its certificate {reason}. {way_out}");
        }
        error
    }
}

/// Refusals that were told lately: a node that is refused comes again and again.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<Refused, Instant>>);

/// Who, where that is told apart, and for which reason.
type Refused = (Option<NodeId>, Discriminant<NotAdmitted>);

impl Refusals {
    /// Many strangers share one word for each reason.
    fn is_news(&self, node: Option<NodeId>, reason: &NotAdmitted, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = |at: &Instant| now.saturating_duration_since(*at) >= TELL_EVERY;
        let reason = discriminant(reason);
        if told.len() >= MAX_TOLD {
            told.retain(|_, at| !is_late(at));
        }
        let is_known = told.len() < MAX_TOLD || told.contains_key(&(node, reason));
        let whose = (node.filter(|_| is_known), reason);
        let is_news = told.get(&whose).is_none_or(is_late);
        if is_news {
            told.insert(whose, now);
        }
        is_news
    }
}

impl ClientCertVerifier for Verifier {
    /// None: a client has one certificate, and authorities change while we listen.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let admitted = self.current.get().admission.admit_client(end_entity, intermediates, now);
        admitted.map_err(|error| self.refused(end_entity, error))?;
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

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        let admitted = self.current.get().admission.admit(&chain, now);
        let node = admitted.map_err(|error| self.refused(end_entity, error))?;
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
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn a_node_that_is_refused_is_told_once_for_each_reason_and_then_seldom() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let node = |seed| Some(PrivateKey::from_seed(seed).node_id());
        let is_news = |node, reason, at| refusals.is_news(node, &reason, at);
        assert!(is_news(node(1), NotAdmitted::Unlisted, now));
        assert!(!is_news(node(1), NotAdmitted::Unlisted, now));
        assert!(is_news(node(2), NotAdmitted::Unlisted, now));
        assert!(is_news(node(1), NotAdmitted::Foreign, now));
        assert!(is_news(node(1), NotAdmitted::Unlisted, now + TELL_EVERY));
    }

    #[test]
    fn however_many_strangers_come_what_is_told_is_bounded() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let stranger = |number: u64| {
            let node = NodeId::from_bytes(blake3::hash(&number.to_le_bytes()).as_bytes());
            // Half of all numbers are no key.
            node.is_ok_and(|node| refusals.is_news(Some(node), &NotAdmitted::Unlisted, now))
        };
        let told = (0..4 * MAX_TOLD as u64).filter(|number| stranger(*number)).count();
        assert_eq!(told, MAX_TOLD + 1);
    }

    #[test]
    fn every_reason_has_its_own_way_out() {
        assert!(NotAdmitted::Unlisted.way_out().contains("node.allow"));
        assert!(NotAdmitted::Foreign.way_out().contains("node.ca"));
        let time = crate::identity::UnixTime::from_seconds(1);
        assert!(NotAdmitted::NotYet(time).way_out().contains("clock"));
        assert!(NotAdmitted::Expired(time).way_out().contains("another one"));
    }
}
