//! Where an engine listens, and the key that it asks for.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use hyper::header::{HeaderValue, InvalidHeaderValue};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Uds(PathBuf),
    Tcp(SocketAddr),
}

impl Address {
    pub(crate) async fn connect(&self) -> io::Result<Either<UnixStream, TcpStream>> {
        match self {
            Self::Uds(path) => Ok(Either::Left(UnixStream::connect(path).await?)),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Either::Right(stream))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uds(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// The engine's key, as the proxy presents it. `Debug` does not show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret(HeaderValue);

/// How a key is presented (RFC 6750 section 2.1).
const SCHEME: &str = "Bearer ";

impl Secret {
    pub fn new(key: &str) -> Result<Self, InvalidHeaderValue> {
        let mut header = HeaderValue::try_from(format!("{SCHEME}{key}"))?;
        header.set_sensitive(true);
        Ok(Self(header))
    }

    /// 256 random bits, as hex digits.
    pub fn random() -> io::Result<Self> {
        let mut bits = [0; 32];
        getrandom::fill(&mut bits).map_err(io::Error::other)?;
        Self::new(&data_encoding::HEXLOWER.encode(&bits)).map_err(io::Error::other)
    }

    /// As in `Authorization`.
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// The key alone, for whoever hands it to the engine.
    pub fn reveal(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0.as_bytes()[SCHEME.len()..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_shown() {
        let key = Secret::new("s3cret").unwrap();
        assert!(!format!("{key:?}").contains("s3cret"));
        assert_eq!(key.header(), "Bearer s3cret");
        assert!(Secret::new("a\nb").is_err());
    }

    #[test]
    fn each_random_key_is_another_and_is_handed_over_as_it_is_presented() {
        let (one, two) = (Secret::random().unwrap(), Secret::random().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.header(), format!("Bearer {}", one.reveal()).as_str());
        assert_eq!(one.reveal().len(), 64);
    }
}
