//! ed25519 keys: nodes and signers. Private keys live in PKCS#8 PEM files of mode 0600 and are never printed.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, spki::der::pem::LineEnding};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::KeyId;
use crate::durable;

/// A key could not be made, read or understood.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("`{0}` is not a public key: expected 52 letters and digits (an ed25519 key in base32hex)")]
    Text(String),
    #[error("not an ed25519 public key")]
    Public,
    #[error(
        "there is no private key {path}: `warmd keys node` makes a node's with its certificate, `warmd keys signer` a signer's"
    )]
    Missing { path: PathBuf },
    #[error("read private key {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write private key {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("private key {path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path} holds no ed25519 private key in PKCS#8 PEM form")]
    Private { path: PathBuf },
    #[error("the operating system gave no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Lower-case base32hex without padding (RFC 4648 section 7): 52 characters, which fits one DNS label.
const TEXT: data_encoding::Encoding = data_encoding::BASE32_DNSSEC;

/// An ed25519 public key, known to be a valid curve point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| KeyError::Public)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::Public)?;
        if key.is_weak() {
            return Err(KeyError::Public);
        }
        Ok(Self(bytes))
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn id(&self) -> KeyId {
        KeyId::of(&self.0)
    }

    /// Refuses weak keys and non-canonical signatures, which plain verification accepts.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&TEXT.encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = TEXT.decode(text.as_bytes()).map_err(|_| KeyError::Text(text.to_owned()))?;
        Self::from_bytes(&bytes).map_err(|_| KeyError::Text(text.to_owned()))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A node: its public key. Text form as [`PublicKey`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(PublicKey);

impl NodeId {
    pub fn new(key: PublicKey) -> Self {
        Self(key)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        PublicKey::from_bytes(bytes).map(Self)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    pub fn key(&self) -> &PublicKey {
        &self.0
    }

    /// Characters of [`Self::short`].
    pub const SHORT: usize = 10;

    /// The first characters, for logs and tables.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(Self::SHORT);
        text
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.parse().map(Self)
    }
}

/// An ed25519 private key. Wiped from memory when dropped; `Debug` shows the public half only.
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0u8; 32];
        getrandom::fill(&mut seed).map_err(KeyError::Random)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// A key from a fixed seed, for tests and golden bytes.
    #[cfg(test)]
    pub(crate) fn from_seed(seed: u8) -> Self {
        Self(SigningKey::from_bytes(&[seed; 32]))
    }

    /// Reads a PKCS#8 PEM file. A file of ours must be closed to group and others; a file of another owner (a mounted
    /// secret) must be closed to others and read-only for the group.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let read = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => KeyError::Missing { path: path.to_owned() },
            _ => KeyError::Read { path: path.to_owned(), source },
        };
        let file = File::open(path).map_err(read)?;
        let exposed = durable::exposed(&file.metadata().map_err(read)?);
        let mut pem = Vec::new();
        file.take(64 * 1024).read_to_end(&mut pem).map_err(read)?;
        let pem = std::str::from_utf8(&pem).ok();
        let key = pem.and_then(|pem| SigningKey::from_pkcs8_pem(pem).ok());
        let key = key.ok_or_else(|| KeyError::Private { path: path.to_owned() })?;
        match exposed {
            Some(mode) => Err(KeyError::Exposed { path: path.to_owned(), mode }),
            None => Ok(Self(key)),
        }
    }

    /// Writes a new file of mode 0600; an existing file is an error, never replaced.
    pub fn save_new(&self, path: &Path) -> Result<(), KeyError> {
        let write = |source| KeyError::Write { path: path.to_owned(), source };
        let pem = self.0.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Private { path: path.to_owned() })?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(write)?;
        file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(write)
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    pub fn node_id(&self) -> NodeId {
        NodeId(self.public())
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    pub(super) fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// PKCS#8 DER, for TLS.
    pub(super) fn to_der(&self) -> Option<ed25519_dalek::pkcs8::SecretDocument> {
        self.0.to_pkcs8_der().ok()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_saved_key_is_0600_loads_again_and_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let key = PrivateKey::generate().unwrap();
        key.save_new(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(PrivateKey::load(&path).unwrap().public(), key.public());
        assert!(matches!(key.save_new(&path), Err(KeyError::Write { .. })));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_mend() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        PrivateKey::generate().unwrap().save_new(&path).unwrap();
        let other = dir.path().join("other");
        std::fs::write(&other, [0xff; 40]).unwrap();
        assert!(matches!(PrivateKey::load(&other), Err(KeyError::Private { .. })), "whatever its mode");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = PrivateKey::load(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn debug_never_shows_the_private_half() {
        let key = PrivateKey::from_seed(7);
        assert_eq!(format!("{key:?}"), format!("PrivateKey(of {})", key.public()));
    }

    #[test]
    fn node_ids_are_52_characters_and_fit_a_dns_label() {
        let id = PrivateKey::from_seed(7).node_id();
        assert_eq!(id.to_string().len(), 52);
        assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        assert!("x".parse::<NodeId>().is_err());
    }

    #[test]
    fn weak_keys_are_no_keys() {
        assert!(PublicKey::from_bytes(&[0; 32]).is_err());
        let mut identity_point = [0u8; 32];
        identity_point[0] = 1;
        assert!(PublicKey::from_bytes(&identity_point).is_err());
    }
}
