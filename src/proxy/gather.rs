//! One buffer for what is written in pieces: for a small message, the kernel takes longer to go through a list of them than
//! it takes here to copy them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longer messages are written as a list, in bytes.
const SMALL: usize = 4096;

pub(super) struct Gather<S>(pub(super) S);

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if slices.iter().map(|slice| slice.len()).sum::<usize>() > SMALL {
            return Pin::new(&mut self.0).poll_write_vectored(cx, slices);
        }
        let (mut whole, mut len) = ([0; SMALL], 0);
        for slice in slices {
            whole[len..len + slice.len()].copy_from_slice(slice);
            len += slice.len();
        }
        Pin::new(&mut self.0).poll_write(cx, &whole[..len])
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    async fn written(pieces: &[&[u8]]) -> Vec<u8> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut ours = Gather(ours);
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let len = ours.write_vectored(&slices).await.unwrap();
        drop(ours);
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.unwrap();
        assert_eq!(read.len(), len);
        read
    }

    #[tokio::test]
    async fn pieces_arrive_in_their_order_whatever_their_size() {
        assert_eq!(written(&[b"POST", b"", b" / HTTP/1.1"]).await, b"POST / HTTP/1.1");
        let (full, over) = (vec![1; SMALL - 1], vec![2; SMALL]);
        assert_eq!(written(&[b"0", &full]).await, [b"0", &full[..]].concat());
        assert_eq!(written(&[b"0", &over]).await, [b"0", &over[..]].concat());
    }
}
