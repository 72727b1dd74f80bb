//! Counts repeated fields before decoding: two bytes on the wire can stand for two hundred in memory.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

use super::{MAX_ENDPOINTS, MAX_EXCLUDE, MAX_HELD, MAX_HOLDERS, MAX_HOLDINGS, MAX_IDENTITIES, MAX_OFFERS, pb};
use crate::identity::trust::MAX_ROOTS;
use crate::protocol::ProtocolError;
use crate::protocol::fleet::MAX_DOCUMENTS;
use crate::protocol::report::{
    MAX_GPUS, MAX_PROBLEMS, MAX_START_FAMILIES, MAX_STARTS, MAX_TRANSFER_HOLDERS, MAX_TRANSFERS, MissReason,
};

/// A repeated field, how often it may occur, and the repeated fields in each occurrence.
pub(crate) struct Repeated {
    tag: u32,
    name: &'static str,
    limit: usize,
    inside: &'static [Repeated],
}

/// Repeated fields of one message.
const MAX_FIELDS: usize = 5;

impl Repeated {
    pub(crate) const fn new(tag: u32, name: &'static str, limit: usize, inside: &'static [Repeated]) -> Self {
        assert!(inside.len() <= MAX_FIELDS, "raise MAX_FIELDS");
        Self { tag, name, limit, inside }
    }
}

/// A message whose repeated fields are known.
pub(crate) trait Shaped: Message + Default + Send + 'static {
    const SHAPE: &'static [Repeated] = &[];
}

const HOLDER: &[Repeated] = &[Repeated::new(2, "endpoints", MAX_ENDPOINTS, &[])];
const OFFER: &[Repeated] = &[Repeated::new(2, "holders", MAX_HOLDERS, HOLDER)];

impl Shaped for pb::AnnounceRequest {
    const SHAPE: &'static [Repeated] =
        &[Repeated::new(5, "endpoints", MAX_ENDPOINTS, &[]), Repeated::new(8, "artifacts", MAX_HELD, &[])];
}
impl Shaped for pb::LookupRequest {
    const SHAPE: &'static [Repeated] =
        &[Repeated::new(1, "identities", MAX_IDENTITIES, &[]), Repeated::new(4, "exclude", MAX_EXCLUDE, &[])];
}
impl Shaped for pb::LookupReply {
    const SHAPE: &'static [Repeated] = &[Repeated::new(2, "offers", MAX_OFFERS, OFFER)];
}
impl Shaped for pb::WatchRequest {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "identities", MAX_IDENTITIES, &[])];
}
impl Shaped for pb::ListReply {
    const SHAPE: &'static [Repeated] = &[Repeated::new(2, "offers", MAX_OFFERS, OFFER)];
}
impl Shaped for pb::HoldingsRequest {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "identities", MAX_IDENTITIES, &[])];
}
impl Shaped for pb::HoldingsReply {
    const SHAPE: &'static [Repeated] =
        &[Repeated::new(1, "endpoints", MAX_ENDPOINTS, &[]), Repeated::new(4, "artifacts", MAX_HOLDINGS, &[])];
}
impl Shaped for pb::TrustDocuments {
    const SHAPE: &'static [Repeated] = &[Repeated::new(1, "roots", MAX_ROOTS, &[])];
}
impl Shaped for pb::NodeReport {
    const SHAPE: &'static [Repeated] = &[
        Repeated::new(6, "starts", MAX_STARTS, &[Repeated::new(5, "families", MAX_START_FAMILIES, &[])]),
        Repeated::new(7, "transfers", MAX_TRANSFERS, &[Repeated::new(6, "holders", MAX_TRANSFER_HOLDERS, &[])]),
        Repeated::new(8, "problems", MAX_PROBLEMS, &[]),
        Repeated::new(9, "totals", 1, &[Repeated::new(4, "misses", MissReason::ALL.len(), &[])]),
        Repeated::new(14, "gpus", MAX_GPUS, &[]),
    ];
}
impl Shaped for pb::FleetReply {
    const SHAPE: &'static [Repeated] = &[Repeated::new(2, "documents", MAX_DOCUMENTS, &[])];
}
impl Shaped for pb::FleetRequest {}
impl Shaped for pb::ReportReply {}
impl Shaped for pb::TrustKnown {}
impl Shaped for pb::AnnounceReply {}
impl Shaped for pb::WithdrawRequest {}
impl Shaped for pb::WithdrawReply {}
impl Shaped for pb::WatchEvent {}
impl Shaped for pb::ListRequest {}
impl Shaped for pb::Held {}

/// Refuses bytes that hold more of a repeated field than `shape` allows, or that are no message.
pub(in crate::protocol) fn check(mut bytes: &[u8], shape: &[Repeated]) -> Result<(), ProtocolError> {
    let mut counts = [0usize; MAX_FIELDS];
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(|_| ProtocolError::Frame)?;
        let mut value: &[u8] = &[];
        if wire_type == WireType::LengthDelimited {
            let len = decode_varint(&mut bytes).map_err(|_| ProtocolError::Frame)?;
            let len = usize::try_from(len).ok().filter(|len| *len <= bytes.len()).ok_or(ProtocolError::Frame)?;
            value = &bytes[..len];
            bytes.advance(len);
        } else {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).map_err(|_| ProtocolError::Frame)?;
        }
        if let Some(index) = shape.iter().position(|field| field.tag == tag) {
            let field = &shape[index];
            counts[index] += 1;
            if counts[index] > field.limit {
                return Err(ProtocolError::TooMany { field: field.name, limit: field.limit });
            }
            if !field.inside.is_empty() {
                check(value, field.inside)?;
            }
        }
    }
    Ok(())
}

/// Decodes after [`check`]; encodes as prost does.
#[derive(Debug, Clone)]
pub(crate) struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Shaped> Codec for BoundedCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(tonic::codec::BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

#[derive(Debug)]
pub(crate) struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Shaped> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        const { assert!(U::SHAPE.len() <= MAX_FIELDS, "raise MAX_FIELDS") };
        let bytes = buf.copy_to_bytes(buf.remaining());
        // A client sees its own refusal of a reply as DATA_LOSS, which no server of ours sends.
        check(&bytes, U::SHAPE).map_err(|error| Status::data_loss(error.to_string()))?;
        U::decode(bytes).map(Some).map_err(|_| Status::data_loss(ProtocolError::Frame.to_string()))
    }
}

#[cfg(test)]
mod tests;
