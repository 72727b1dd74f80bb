//! Manifest bodies as bytes. What decodes but would not encode to the same bytes is refused: so unknown fields, repeated
//! fields, and other spellings of the same manifest cannot hide in a signed body.

mod records;

use std::collections::BTreeMap;

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use self::records::Fields;
use super::manifest::{Chunk, Draft, File, ManifestError, Provenance};
use super::{Codec, MAX_ATTRIBUTES, MAX_CHUNKS, MAX_FACTS, MAX_FILES, RelPath, SourceIdentity, pb};
use crate::identity::{TrustClass, UnixTime};

const SCHEMA: u32 = 1;

/// Repeated fields of the message and how many of each we accept.
const COUNTS: [(u32, usize); 5] =
    [(4, MAX_FACTS), (FILES, MAX_FILES), (CHUNKS, MAX_CHUNKS), (ENTRIES, MAX_FILES), (13, MAX_ATTRIBUTES)];

/// Fields that a body has many of: not read through generated types.
const FILES: u32 = 10;
const CHUNKS: u32 = 11;
const ENTRIES: u32 = 12;

pub(super) fn encode(draft: &Draft) -> Vec<u8> {
    to_pb(draft).encode_to_vec()
}

pub(super) fn decode(bytes: &[u8]) -> Result<Draft, ManifestError> {
    let parts = Parts::of(bytes)?;
    let message = pb::Manifest::decode(parts.head.as_slice()).map_err(|_| ManifestError::Malformed)?;
    if message.schema != SCHEMA {
        return Err(ManifestError::Schema(message.schema));
    }
    if !parts.ordered || message.encode_to_vec() != parts.head {
        return Err(ManifestError::NotCanonical);
    }
    let [_, files, chunks, entries, _] = parts.counts;
    let mut fields = Fields::new(parts.long);
    let long = Long {
        files: fields.records(FILES, files, records::file)?,
        chunks: fields.records(CHUNKS, chunks, records::chunk)?,
        entries: fields.records(ENTRIES, entries, records::path)?,
    };
    fields.end()?;
    from_pb(message, long)
}

struct Long {
    files: Vec<File>,
    chunks: Vec<Chunk>,
    entries: Vec<RelPath>,
}

/// A body taken apart before anything is allocated by it: a few bytes on the wire can stand for a hundred in memory.
struct Parts<'a> {
    /// The fields before files and after entries, as one message of its own.
    head: Vec<u8>,
    /// From the first file to the last entry, if the body is in order.
    long: &'a [u8],
    /// No field is followed by one with a lower number.
    ordered: bool,
    counts: [usize; COUNTS.len()],
}

impl<'a> Parts<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, ManifestError> {
        let mut parts = Self { head: Vec::new(), long: &[], ordered: true, counts: [0; COUNTS.len()] };
        let (mut rest, mut before, mut long) = (bytes, 0, None);
        while rest.has_remaining() {
            let begin = bytes.len() - rest.len();
            let tag = skip(&mut rest)?;
            let end = bytes.len() - rest.len();
            parts.ordered &= before <= tag;
            before = tag;
            match tag {
                FILES | CHUNKS | ENTRIES => long = Some((long.map_or(begin, |(first, _)| first), end)),
                _ => parts.head.extend_from_slice(&bytes[begin..end]),
            }
            if let Some(index) = COUNTS.iter().position(|(field, _)| *field == tag) {
                parts.counts[index] += 1;
                if parts.counts[index] > COUNTS[index].1 {
                    return Err(ManifestError::TooMany { what: FIELD_NAMES[index], limit: COUNTS[index].1 });
                }
            }
        }
        parts.long = long.map_or(&[], |(begin, end)| &bytes[begin..end]);
        Ok(parts)
    }
}

/// Passes over one field and returns its number.
fn skip(bytes: &mut &[u8]) -> Result<u32, ManifestError> {
    let (tag, wire_type) = decode_key(bytes).map_err(|_| ManifestError::Malformed)?;
    if wire_type == WireType::LengthDelimited {
        let len = decode_varint(bytes).map_err(|_| ManifestError::Malformed)?;
        let len = usize::try_from(len).ok().filter(|len| *len <= bytes.len()).ok_or(ManifestError::Malformed)?;
        bytes.advance(len);
    } else {
        skip_field(wire_type, tag, bytes, DecodeContext::default()).map_err(|_| ManifestError::Malformed)?;
    }
    Ok(tag)
}

const FIELD_NAMES: [&str; COUNTS.len()] = ["facts", "files", "chunks", "entries", "attributes"];

fn to_pb(draft: &Draft) -> pb::Manifest {
    pb::Manifest {
        schema: SCHEMA,
        family: draft.identity.family().to_string(),
        trust_class: match draft.class {
            TrustClass::Data => pb::TrustClass::Data,
            TrustClass::DeviceCode => pb::TrustClass::DeviceCode,
            TrustClass::HostCode => pb::TrustClass::HostCode,
        }
        .into(),
        facts: to_pairs(draft.identity.facts()),
        subject: draft.subject.clone(),
        generation: draft.generation,
        created_s: draft.created.seconds(),
        expires_s: draft.expires.map_or(0, UnixTime::seconds),
        provenance: Some(pb::Provenance {
            image_digest: draft.provenance.image_digest.clone(),
            engine_version: draft.provenance.engine_version.clone(),
            builder: draft.provenance.builder.clone(),
        }),
        files: draft.files.iter().map(file_to_pb).collect(),
        chunks: draft.chunks.iter().map(chunk_to_pb).collect(),
        entries: draft.entries.iter().map(ToString::to_string).collect(),
        attributes: to_pairs(&draft.attributes),
    }
}

fn file_to_pb(file: &File) -> pb::File {
    pb::File {
        path: file.path.to_string(),
        executable: file.executable,
        mtime_ns: file.mtime_ns,
        size: file.size,
        digest: file.digest.as_bytes().to_vec(),
        offset: file.offset,
    }
}

fn chunk_to_pb(chunk: &Chunk) -> pb::Chunk {
    pb::Chunk {
        digest: chunk.digest.as_bytes().to_vec(),
        encoded_len: chunk.encoded_len,
        decoded_len: chunk.decoded_len,
        codec: match chunk.codec {
            Codec::Raw => pb::Codec::Raw,
            Codec::Zstd => pb::Codec::Zstd,
        }
        .into(),
    }
}

fn from_pb(message: pb::Manifest, long: Long) -> Result<Draft, ManifestError> {
    let class = match pb::TrustClass::try_from(message.trust_class) {
        Ok(pb::TrustClass::Data) => TrustClass::Data,
        Ok(pb::TrustClass::DeviceCode) => TrustClass::DeviceCode,
        Ok(pb::TrustClass::HostCode) => TrustClass::HostCode,
        Ok(pb::TrustClass::Unspecified) | Err(_) => return Err(ManifestError::TrustClass),
    };
    let identity = SourceIdentity::new(message.family.parse()?, from_pairs(message.facts)?)?;
    let provenance = message.provenance.ok_or(ManifestError::Malformed)?;
    Ok(Draft {
        identity,
        class,
        subject: message.subject,
        generation: message.generation,
        created: UnixTime::from_seconds(message.created_s),
        expires: (message.expires_s != 0).then(|| UnixTime::from_seconds(message.expires_s)),
        provenance: Provenance {
            image_digest: provenance.image_digest,
            engine_version: provenance.engine_version,
            builder: provenance.builder,
        },
        files: long.files,
        chunks: long.chunks,
        entries: long.entries,
        attributes: from_pairs(message.attributes)?,
    })
}

fn to_pairs(map: &BTreeMap<String, String>) -> Vec<pb::Pair> {
    map.iter().map(|(key, value)| pb::Pair { key: key.clone(), value: value.clone() }).collect()
}

fn from_pairs(pairs: Vec<pb::Pair>) -> Result<BTreeMap<String, String>, ManifestError> {
    if !pairs.windows(2).all(|two| two[0].key < two[1].key) {
        return Err(ManifestError::NotCanonical);
    }
    Ok(pairs.into_iter().map(|pair| (pair.key, pair.value)).collect())
}
