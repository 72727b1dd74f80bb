//! `[node]` and `[trust]` of the configuration file.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::admission::{Admission, NotAdmitted};
use super::cert::{CertError, NodeCertificate};
use super::key::{NodeId, PrivateKey, PublicKey};
use super::policy::{MAX_POLICY_BYTES, Policy, PolicyError, PolicyHistory};
use super::tls::{NodeTls, TlsError};

/// Who this node is and whom it speaks with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Private key in PKCS#8 PEM form. Absent: `node.key` in the state directory.
    pub key: Option<PathBuf>,
    /// Certificate chain in PEM form. Absent: `node.pem` in the state directory, or a self-signed one if there is none.
    pub certificate: Option<PathBuf>,
    /// The cluster's authority in PEM form. Absent: `ca.pem` in the state directory, if there is one.
    pub ca: Option<PathBuf>,
    /// Node ids that are admitted. Absent: all that the authority has certified.
    pub allow: Option<BTreeSet<NodeId>>,
}

impl NodeConfig {
    pub fn tls(&self, state: &Path) -> Result<NodeTls, TlsError> {
        let key_path = self.key.clone().unwrap_or_else(|| state.join("node.key"));
        let key = PrivateKey::load(&key_path).map_err(CertError::from)?;
        let certificate = match self.certificate_path(state) {
            Some(path) => NodeCertificate::load(&path)?,
            None => NodeCertificate::self_signed(&key)?,
        };
        NodeTls::new(key, certificate, Admission::new(self.ca_path(state).as_deref(), self.allow.clone())?)
    }

    fn certificate_path(&self, state: &Path) -> Option<PathBuf> {
        self.certificate.clone().or_else(|| existing(state.join("node.pem")))
    }

    fn ca_path(&self, state: &Path) -> Option<PathBuf> {
        self.ca.clone().or_else(|| existing(state.join("ca.pem")))
    }

    /// The files to look at where other nodes have something against the certificate.
    pub fn files(&self, state: &Path, reason: Option<&NotAdmitted>) -> String {
        let shown = |path: Option<PathBuf>| path.map(|path| path.display().to_string());
        let certificate = shown(self.certificate_path(state)).unwrap_or_else(|| "no certificate file".to_owned());
        match shown(self.ca_path(state)).filter(|_| reason == Some(&NotAdmitted::Foreign)) {
            Some(ca) => format!("{certificate}, with the authority in {ca}"),
            None => certificate,
        }
    }
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.exists().then_some(path)
}

/// Whose manifests may be installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrustConfig {
    /// Signed root document (`warmd policy root`). With it the policy comes from metadata servers, and `policy`, if it is
    /// given, is the signed one to begin with.
    pub root: Option<PathBuf>,
    /// The trust policy: TOML, or a signed policy as `warmd policy sign` writes it. Absent: nothing is ever installed.
    pub policy: Option<PathBuf>,
    /// Keys that sign policies. If any is given, an unsigned policy is refused.
    pub roots: Vec<PublicKey>,
    /// Signatures of different roots that a policy needs.
    pub threshold: usize,
}

impl Default for TrustConfig {
    fn default() -> Self {
        Self { root: None, policy: None, roots: Vec::new(), threshold: 1 }
    }
}

impl TrustConfig {
    /// Reads the policy; `None` if none is configured. With a `history`, an older version than the one used before is
    /// refused and a newer one is remembered.
    pub fn load(&self, history: Option<&PolicyHistory>) -> Result<Option<Policy>, PolicyError> {
        let Some(path) = &self.policy else { return Ok(None) };
        let text = read_bounded(path)?;
        let policy = if self.roots.is_empty() && !text.trim_start().starts_with('{') {
            Policy::parse(&text)?
        } else {
            Policy::parse_signed(&text, &self.roots, self.threshold)?
        };
        if let Some(history) = history {
            history.accept(&policy, text.as_bytes())?;
        }
        Ok(Some(policy))
    }
}

fn read_bounded(path: &Path) -> Result<String, PolicyError> {
    let io = |source| PolicyError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(MAX_POLICY_BYTES + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_POLICY_BYTES {
        return Err(PolicyError::Content(format!("larger than {MAX_POLICY_BYTES} bytes")));
    }
    Ok(text)
}
