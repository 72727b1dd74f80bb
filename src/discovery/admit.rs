//! The way in: noise proves who holds which key, and then both sides show the certificates that TLS would have asked for.
//! It is one step of the connection's upgrade, so nobody gets as far as a stream before the cluster has admitted him.

use std::io;

use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::futures::future::BoxFuture;
use libp2p::futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, FutureExt};
use libp2p::{PeerId, noise};

use super::peer::node_of;
use crate::identity::{Membership, Stranger};

const PROTOCOL: &str = "/warmd/noise-certificate/1";

/// Bytes of all certificates that somebody shows.
const MAX_SHOWN: usize = 16 * 1024;

/// The other side is not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Denied {
    #[error(transparent)]
    Noise(#[from] noise::Error),
    #[error("exchange certificates: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Stranger(#[from] Stranger),
    #[error("its key is no node key")]
    Key,
}

#[derive(Clone)]
pub(super) struct Admit {
    pub(super) noise: noise::Config,
    pub(super) membership: Membership,
}

impl UpgradeInfo for Admit {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<T> for Admit {
    type Output = (PeerId, noise::Output<T>);
    type Error = Denied;
    type Future = BoxFuture<'static, Result<Self::Output, Denied>>;

    fn upgrade_inbound(self, socket: T, protocol: Self::Info) -> Self::Future {
        async move {
            let (peer, channel) = self.noise.upgrade_inbound(socket, protocol).await?;
            admit(self.membership, peer, channel).await
        }
        .boxed()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<T> for Admit {
    type Output = (PeerId, noise::Output<T>);
    type Error = Denied;
    type Future = BoxFuture<'static, Result<Self::Output, Denied>>;

    fn upgrade_outbound(self, socket: T, protocol: Self::Info) -> Self::Future {
        async move {
            let (peer, channel) = self.noise.upgrade_outbound(socket, protocol).await?;
            admit(self.membership, peer, channel).await
        }
        .boxed()
    }
}

async fn admit<C: AsyncRead + AsyncWrite + Unpin>(
    membership: Membership,
    peer: PeerId,
    mut channel: C,
) -> Result<(PeerId, C), Denied> {
    let node = node_of(&peer).ok_or(Denied::Key)?;
    let shown = encode(&membership.chain());
    channel.write_all(&(shown.len() as u32).to_be_bytes()).await?;
    channel.write_all(&shown).await?;
    channel.flush().await?;
    let mut len = [0; 4];
    channel.read_exact(&mut len).await?;
    let len = u32::from_be_bytes(len) as usize;
    if len > MAX_SHOWN {
        return Err(io::Error::from(io::ErrorKind::InvalidData).into());
    }
    let mut theirs = vec![0; len];
    channel.read_exact(&mut theirs).await?;
    let theirs = decode(&theirs).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    membership.check(node, &theirs)?;
    Ok((peer, channel))
}

/// Each certificate after its length: four bytes, big endian.
fn encode(chain: &[Vec<u8>]) -> Vec<u8> {
    chain.iter().flat_map(|der| (der.len() as u32).to_be_bytes().into_iter().chain(der.iter().copied())).collect()
}

fn decode(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut chain = Vec::new();
    while !bytes.is_empty() {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (der, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        chain.push(der.to_vec());
        bytes = rest;
    }
    Some(chain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_chain_is_read_as_it_was_written() {
        let chain = ["leaf", "", "intermediate"].map(|der| der.as_bytes().to_vec());
        assert_eq!(decode(&encode(&chain)).unwrap(), chain);
        assert_eq!(decode(&[]).unwrap(), Vec::<Vec<u8>>::new());
    }

    proptest! {
        #[test]
        fn no_bytes_are_read_beyond_what_came(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let read: usize = decode(&bytes).unwrap_or_default().iter().map(|der| der.len() + 4).sum();
            prop_assert!(read == 0 || read == bytes.len());
        }
    }
}
