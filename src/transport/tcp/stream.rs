//! The two halves of one request over HTTP/2.

use std::future::poll_fn;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use hyper::Response;

use super::super::{StreamCode, TransportError};

/// Reset, not finished, if it is dropped before its end.
#[derive(Debug)]
pub(in super::super) struct SendStream {
    half: Half,
    finished: bool,
}

#[derive(Debug)]
enum Half {
    /// The head of the answer goes out with its first bytes.
    Head(SendResponse<Bytes>),
    Body(h2::SendStream<Bytes>),
}

impl SendStream {
    pub(super) fn asking(stream: h2::SendStream<Bytes>) -> Self {
        Self { half: Half::Body(stream), finished: false }
    }

    pub(super) fn answering(answer: SendResponse<Bytes>) -> Self {
        Self { half: Half::Head(answer), finished: false }
    }

    fn body(&mut self) -> Result<&mut h2::SendStream<Bytes>, TransportError> {
        if let Half::Head(answer) = &mut self.half {
            let body = answer.send_response(Response::new(()), false).map_err(|error| failed(&error))?;
            self.half = Half::Body(body);
        }
        match &mut self.half {
            Half::Body(body) => Ok(body),
            Half::Head(_) => Err(TransportError::Ended),
        }
    }

    pub(in super::super) async fn write(&mut self, mut bytes: Bytes) -> Result<(), TransportError> {
        let body = self.body()?;
        while !bytes.is_empty() {
            body.reserve_capacity(bytes.len());
            while body.capacity() == 0 {
                match poll_fn(|cx| body.poll_capacity(cx)).await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(failed(&error)),
                    // The peer has reset it, and says why there.
                    None => return Err(reset(body).await),
                }
            }
            let now = bytes.split_to(body.capacity().min(bytes.len()));
            body.send_data(now, false).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    pub(in super::super) fn finish(&mut self) -> Result<(), TransportError> {
        self.finished = true;
        self.body()?.send_data(Bytes::new(), true).map_err(|error| failed(&error))
    }

    pub(in super::super) fn reset(&mut self, code: StreamCode) {
        self.finished = true;
        match &mut self.half {
            Half::Head(answer) => answer.send_reset(code.http2()),
            Half::Body(body) => body.send_reset(code.http2()),
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if !self.finished {
            self.reset(StreamCode::Failed);
        }
    }
}

async fn reset(body: &mut h2::SendStream<Bytes>) -> TransportError {
    match poll_fn(|cx| body.poll_reset(cx)).await {
        Ok(reason) => TransportError::Reset(StreamCode::from_http2(reason).unwrap_or(StreamCode::Unknown)),
        Err(error) => failed(&error),
    }
}

/// The peer is told to stop if it is dropped before its end.
#[derive(Debug)]
pub(in super::super) struct RecvStream {
    half: Option<Incoming>,
    /// Came with what was read in order, and was not asked for yet.
    rest: Bytes,
    /// Bytes that were given out.
    offset: u64,
}

#[derive(Debug)]
enum Incoming {
    Answer(ResponseFuture),
    Body(h2::RecvStream),
}

impl RecvStream {
    pub(super) fn awaiting(answer: ResponseFuture) -> Self {
        Self { half: Some(Incoming::Answer(answer)), rest: Bytes::new(), offset: 0 }
    }

    pub(super) fn of(body: h2::RecvStream) -> Self {
        Self { half: Some(Incoming::Body(body)), rest: Bytes::new(), offset: 0 }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            match &mut self.half {
                None => return Err(TransportError::Ended),
                Some(Incoming::Answer(answer)) => {
                    let body = answer.await.map_err(|error| failed(&error))?.into_body();
                    self.half = Some(Incoming::Body(body));
                }
                Some(Incoming::Body(body)) => match body.data().await {
                    None => return Ok(None),
                    Some(Err(error)) => return Err(failed(&error)),
                    Some(Ok(piece)) if piece.is_empty() => {}
                    Some(Ok(piece)) => {
                        // It is given out before the next is asked for, so no more than this is held beyond the window.
                        body.flow_control().release_capacity(piece.len()).map_err(|error| failed(&error))?;
                        return Ok(Some(piece));
                    }
                },
            }
        }
    }

    pub(in super::super) async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), TransportError> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.rest.is_empty() {
                self.rest = self.next().await?.ok_or(TransportError::Ended)?;
            }
            let now = self.rest.split_to(self.rest.len().min(buffer.len() - filled));
            buffer[filled..filled + now.len()].copy_from_slice(&now);
            filled += now.len();
        }
        self.offset += filled as u64;
        Ok(())
    }

    pub(in super::super) async fn read_piece(&mut self) -> Result<Option<(u64, Bytes)>, TransportError> {
        let piece = match std::mem::take(&mut self.rest) {
            rest if rest.is_empty() => self.next().await?,
            rest => Some(rest),
        };
        Ok(piece.map(|piece| {
            let offset = self.offset;
            self.offset += piece.len() as u64;
            (offset, piece)
        }))
    }

    /// HTTP/2 resets whole streams only, and says that it is cancelled.
    pub(in super::super) fn stop(&mut self) {
        self.half = None;
    }
}

/// What an error of h2 means to a puller.
pub(super) fn failed(error: &h2::Error) -> TransportError {
    match error.reason() {
        Some(reason) if error.is_reset() || error.is_go_away() => match StreamCode::from_http2(reason) {
            Some(code) => TransportError::Reset(code),
            None if reason == h2::Reason::CANCEL => TransportError::Reset(StreamCode::Cancelled),
            None if error.is_reset() => TransportError::Reset(StreamCode::Unknown),
            None => TransportError::Lost(error.to_string()),
        },
        _ => TransportError::Lost(error.to_string()),
    }
}
