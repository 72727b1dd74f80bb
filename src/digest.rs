//! 32-byte BLAKE3 digests and the ids made of them. Text form: 64 lower-case hex digits.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes in every digest and id.
pub const DIGEST_LEN: usize = 32;

/// The text or bytes are not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: expected 64 hex digits or 32 bytes")]
pub struct InvalidDigest;

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; DIGEST_LEN]);

        impl $name {
            pub const fn from_array(bytes: [u8; DIGEST_LEN]) -> Self {
                Self(bytes)
            }

            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }

            pub fn as_bytes(&self) -> &[u8; DIGEST_LEN] {
                &self.0
            }

            /// The first eight hex digits, for people. Never compare or look up by it.
            pub fn short(&self) -> String {
                HEXLOWER.encode(&self.0[..4])
            }
        }

        impl From<blake3::Hash> for $name {
            fn from(hash: blake3::Hash) -> Self {
                Self(*hash.as_bytes())
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidDigest;
            fn try_from(bytes: &[u8]) -> Result<Self, InvalidDigest> {
                bytes.try_into().map(Self).map_err(|_| InvalidDigest)
            }
        }

        impl FromStr for $name {
            type Err = InvalidDigest;
            fn from_str(text: &str) -> Result<Self, InvalidDigest> {
                let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| InvalidDigest)?;
                Self::try_from(bytes.as_slice())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

digest_type!(
    /// Of a file's or a chunk's bytes.
    Digest
);
digest_type!(
    /// Of the signed body of a manifest.
    ArtifactId
);
digest_type!(
    /// Over (path, mode, file digest) of all files: the same content has the same id whoever signed it.
    ContentId
);
digest_type!(
    /// Of a source identity: the key under which artifacts are looked up.
    IdentityId
);
digest_type!(
    /// Of an ed25519 public key: names a signer.
    KeyId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_is_lower_case_hex() {
        let digest = Digest::of(b"warmd");
        let text = digest.to_string();
        assert_eq!(text.len(), 64);
        assert_eq!(text.parse::<Digest>(), Ok(digest));
        assert_eq!(text.to_uppercase().parse::<Digest>(), Err(InvalidDigest));
        assert_eq!("abc".parse::<Digest>(), Err(InvalidDigest));
    }

    #[test]
    fn digest_is_plain_blake3() {
        assert_eq!(Digest::of(b"").to_string(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
    }
}
