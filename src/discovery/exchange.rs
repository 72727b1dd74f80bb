//! How one agent asks another: `proto/discovery.proto`.

use std::io;

use libp2p::StreamProtocol;
use libp2p::futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::request_response as rr;

use crate::protocol::metadata::{Holdings, Question};

pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/warmd/holdings/1");

/// Bytes of a question and of an answer.
const MAX_QUESTION: usize = 4 * 1024;
pub(super) const MAX_ANSWER: usize = 512 * 1024;

#[derive(Debug, Clone, Default)]
pub(super) struct Codec;

impl rr::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Question;
    type Response = Holdings;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Question> {
        Question::decode(&read(io, MAX_QUESTION).await?).map_err(invalid)
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Holdings> {
        Holdings::decode(&read(io, MAX_ANSWER).await?).map_err(invalid)
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        question: Question,
    ) -> io::Result<()> {
        write(io, &question.encode()).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        holdings: Holdings,
    ) -> io::Result<()> {
        write(io, &holdings.encode()).await
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

async fn read<T: AsyncRead + Unpin + Send>(io: &mut T, limit: usize) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    io.read_exact(&mut len).await?;
    let len = u32::from_be_bytes(len) as usize;
    if len > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{len} bytes, more than {limit}")));
    }
    // Room is made as bytes come, not as they are promised.
    let mut bytes = Vec::new();
    io.take(len as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}

async fn write<T: AsyncWrite + Unpin + Send>(io: &mut T, bytes: &[u8]) -> io::Result<()> {
    io.write_all(&(bytes.len() as u32).to_be_bytes()).await?;
    io.write_all(bytes).await
}

#[cfg(test)]
mod tests {
    use libp2p::futures::io::Cursor;
    use rr::Codec as _;

    use super::*;
    use crate::digest::IdentityId;

    #[tokio::test]
    async fn a_question_arrives_as_it_was_asked() {
        let question = Question { identities: vec![IdentityId::from_array([1; 32]), IdentityId::from_array([2; 32])] };
        let mut wire = Cursor::new(Vec::new());
        Codec.write_request(&PROTOCOL, &mut wire, question.clone()).await.unwrap();
        wire.set_position(0);
        assert_eq!(Codec.read_request(&PROTOCOL, &mut wire).await.unwrap(), question);
    }

    #[tokio::test]
    async fn what_is_too_long_or_cut_off_or_nonsense_is_refused() {
        for wire in [vec![0xff; 8], vec![0, 0, 0, 9, 1], vec![0, 0, 0, 1, 0xff], vec![0]] {
            assert!(Codec.read_request(&PROTOCOL, &mut Cursor::new(wire.clone())).await.is_err(), "{wire:?}");
            assert!(Codec.read_response(&PROTOCOL, &mut Cursor::new(wire.clone())).await.is_err(), "{wire:?}");
        }
    }
}
