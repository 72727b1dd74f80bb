//! Chunks beside gRPC, on a socket of their own: the bytes of the stream are the chunks, so that they are copied once into
//! the socket and once out of it.
//!
//! ```text
//! caller: length, ReadChunksRequest        agent: (index, length, encoded bytes)*, then the end of the stream
//! ```
//!
//! Numbers are 32 bits, little endian. An index of `REFUSED` comes with the reason in place of bytes, as the last.

use std::io;
use std::path::{Path, PathBuf};

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Streaming;

use super::{ClientError, MAX_MESSAGE};
use crate::artifact::MAX_CHUNKS;
use crate::protocol::pb::{ChunkData, ReadChunksRequest};

const REFUSED: u32 = u32::MAX;

/// The id, and an index of five bytes at most for each chunk.
const MAX_REQUEST: usize = 64 + 5 * MAX_CHUNKS;

const CHUNKS: &str = ".chunks";

/// Bytes of the path of an agent's socket: an address holds 107 (unix(7)), and that of the chunks is longer.
pub const MAX_SOCKET_PATH: usize = 107 - CHUNKS.len();

/// Where chunks are read, beside the agent's socket.
pub fn chunk_socket(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(CHUNKS);
    path.into()
}

/// What a caller wants.
pub async fn receive_request(from: &mut (impl AsyncRead + Unpin)) -> io::Result<ReadChunksRequest> {
    let len = from.read_u32_le().await? as usize;
    if len > MAX_REQUEST {
        return Err(malformed());
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).await?;
    Ok(ReadChunksRequest::decode(&bytes[..])?)
}

pub async fn send_chunk(to: &mut (impl AsyncWrite + Unpin), index: u32, encoded: &[u8]) -> io::Result<()> {
    // Fits: no chunk is longer than a message.
    to.write_all(&header(index, encoded.len() as u32)).await?;
    to.write_all(encoded).await
}

/// Ends a stream that brings no more.
pub async fn refuse(to: &mut (impl AsyncWrite + Unpin), reason: &str) -> io::Result<()> {
    send_chunk(to, REFUSED, reason.as_bytes()).await
}

fn header(index: u32, len: u32) -> [u8; 8] {
    ((u64::from(len) << 32) | u64::from(index)).to_le_bytes()
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed message on the socket of chunks")
}

/// The encoded bytes of a chunk, in a buffer that is used again.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Buffer {
    fn room(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < len {
            self.bytes.resize(len, 0);
        }
        self.len = len;
        &mut self.bytes[..len]
    }
}

/// Chunks that were asked for, as they come.
#[derive(Debug)]
pub struct Chunks(Source);

#[derive(Debug)]
enum Source {
    Bytes(UnixStream),
    /// The agent is older than its caller, or only its own socket is to be seen.
    Messages(Box<Streaming<ChunkData>>),
}

impl Chunks {
    /// `None` if nobody answers there.
    pub(super) async fn ask(socket: &Path, request: &ReadChunksRequest) -> Result<Option<Self>, ClientError> {
        let Ok(mut stream) = UnixStream::connect(chunk_socket(socket)).await else { return Ok(None) };
        // Fits: an index for each chunk of a manifest.
        let mut bytes = (request.encoded_len() as u32).to_le_bytes().to_vec();
        bytes.extend(request.encode_to_vec());
        stream.write_all(&bytes).await.map_err(ClientError::Chunks)?;
        Ok(Some(Self(Source::Bytes(stream))))
    }

    pub(super) fn messages(stream: Streaming<ChunkData>) -> Self {
        Self(Source::Messages(Box::new(stream)))
    }

    /// The index of the next chunk, whose bytes are in `buffer` then; `None` at the end.
    pub async fn next(&mut self, buffer: &mut Buffer) -> Result<Option<usize>, ClientError> {
        match &mut self.0 {
            Source::Bytes(stream) => next(stream, buffer).await,
            Source::Messages(stream) => Ok(stream.message().await?.map(|chunk| {
                buffer.room(chunk.data.len()).copy_from_slice(&chunk.data);
                chunk.index as usize
            })),
        }
    }
}

async fn next(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Buffer) -> Result<Option<usize>, ClientError> {
    let mut header = [0; 8];
    match stream.read_exact(&mut header).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read.map_err(ClientError::Chunks)?,
    };
    let header = u64::from_le_bytes(header);
    let (index, len) = (header as u32, (header >> 32) as usize);
    if len > MAX_MESSAGE {
        return Err(ClientError::Chunks(malformed()));
    }
    stream.read_exact(buffer.room(len)).await.map_err(ClientError::Chunks)?;
    match index {
        REFUSED => Err(tonic::Status::aborted(String::from_utf8_lossy(buffer)).into()),
        index => Ok(Some(index as usize)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(sent: &[u8], buffer: &mut Buffer) -> Result<Option<usize>, ClientError> {
        next(&mut &sent[..], buffer).await
    }

    #[tokio::test]
    async fn chunks_come_as_they_were_sent_and_a_refusal_says_why() {
        let mut sent = Vec::new();
        send_chunk(&mut sent, 7, b"longer").await.unwrap();
        send_chunk(&mut sent, 9, b"short").await.unwrap();
        refuse(&mut sent, "no such artifact").await.unwrap();
        let (mut rest, mut buffer) = (&sent[..], Buffer::default());
        assert_eq!(next(&mut rest, &mut buffer).await.unwrap(), Some(7));
        assert_eq!(&buffer[..], b"longer");
        assert_eq!(next(&mut rest, &mut buffer).await.unwrap(), Some(9));
        assert_eq!(&buffer[..], b"short");
        assert_eq!(next(&mut rest, &mut buffer).await.unwrap_err().to_string(), "no such artifact");
        assert_eq!(next(&mut rest, &mut buffer).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_chunk_that_is_cut_off_or_too_long_is_an_error() {
        let mut buffer = Buffer::default();
        let mut sent = Vec::new();
        send_chunk(&mut sent, 7, b"bytes").await.unwrap();
        sent.pop();
        assert!(matches!(read(&sent, &mut buffer).await, Err(ClientError::Chunks(_))));
        let huge = header(7, MAX_MESSAGE as u32 + 1);
        assert!(matches!(read(&huge, &mut buffer).await, Err(ClientError::Chunks(_))));
        assert!(buffer.bytes.len() < 100, "nothing was allocated for it");
    }

    #[tokio::test]
    async fn a_request_that_claims_to_be_endless_is_refused_before_it_is_read() {
        let sent = u32::MAX.to_le_bytes();
        let error = receive_request(&mut &sent[..]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
