//! Who somebody is and whom we trust.
//!
//! Two kinds of ed25519 keys exist. A *node key* is the node's id, its TLS key and its libp2p peer id: it admits to
//! the conversation and nothing more. A *signer key* makes manifests installable, within the scopes that the trust policy
//! gives it. Serving is not signing: a holder passes on the signer's bytes.
//!
//! Order of checks before anything becomes visible (I9): [`Envelope::decode`], [`Policy::verify`] (signature, revocation),
//! then the body is parsed, then [`Policy::admit`] (family, class, facts, namespace, time).

mod admission;
mod cert;
mod certificate;
mod config;
mod credentials;
mod envelope;
mod key;
mod membership;
mod policy;
mod time;
mod tls;
pub mod trust;
mod verifier;

pub use admission::{Admission, NotAdmitted};
pub use cert::{CertError, ClusterCa, NodeCertificate};
pub use certificate::{CertificateMetrics, CertificateState, watch as watch_certificate};
pub use config::{NodeConfig, TrustConfig};
pub use envelope::{Envelope, EnvelopeError, MAX_AROUND, MAX_SIGNATURES, Signature};
pub use key::{KeyError, NodeId, PrivateKey, PublicKey};
pub use membership::{Membership, Stranger};
pub use policy::{
    Claim, Horizon, MAX_POLICY_BYTES, POLICY_TYPE, Policy, PolicyError, PolicyHistory, Refusal, Scope, Signer,
    TrustClass, Verdict, Verified,
};
pub use time::UnixTime;
pub use tls::{NodeTls, PEER_ALPN, RENEW, RPC_ALPN, Renewal, TlsError, crypto_provider, server_name};

/// Generated from `proto/trust.proto`.
#[expect(unreachable_pub, reason = "generated code")]
mod pb {
    tonic::include_proto!("warmd.trust.v1");
}
