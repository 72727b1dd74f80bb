//! Manifest bodies as bytes. What decodes but would not encode to the same bytes is refused: so unknown fields, repeated
//! fields, and other spellings of the same manifest cannot hide in a signed body.

use std::collections::BTreeMap;

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::manifest::{Chunk, Draft, File, ManifestError, Provenance};
use super::{Codec, MAX_CHUNKS, MAX_FILES, RelPath, SourceIdentity, pb};
use crate::digest::Digest;
use crate::identity::{TrustClass, UnixTime};

const SCHEMA: u32 = 1;

const MAX_ATTRIBUTES: usize = 1024;

/// Repeated fields of the message and how many of each we accept.
const COUNTS: [(u32, usize); 5] = [(4, 256), (10, MAX_FILES), (11, MAX_CHUNKS), (12, MAX_FILES), (13, MAX_ATTRIBUTES)];

pub(super) fn encode(draft: &Draft) -> Vec<u8> {
    to_pb(draft).encode_to_vec()
}

pub(super) fn decode(bytes: &[u8]) -> Result<Draft, ManifestError> {
    check_counts(bytes)?;
    let message = pb::Manifest::decode(bytes).map_err(|_| ManifestError::Malformed)?;
    if message.schema != SCHEMA {
        return Err(ManifestError::Schema(message.schema));
    }
    if message.encode_to_vec() != bytes {
        return Err(ManifestError::NotCanonical);
    }
    from_pb(message)
}

/// Before anything is allocated: a few bytes on the wire can stand for a hundred in memory.
fn check_counts(mut bytes: &[u8]) -> Result<(), ManifestError> {
    let mut counts = [0usize; COUNTS.len()];
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(|_| ManifestError::Malformed)?;
        if wire_type == WireType::LengthDelimited {
            let len = decode_varint(&mut bytes).map_err(|_| ManifestError::Malformed)?;
            let len = usize::try_from(len).ok().filter(|len| *len <= bytes.len()).ok_or(ManifestError::Malformed)?;
            bytes.advance(len);
        } else {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).map_err(|_| ManifestError::Malformed)?;
        }
        if let Some(index) = COUNTS.iter().position(|(field, _)| *field == tag) {
            counts[index] += 1;
            if counts[index] > COUNTS[index].1 {
                return Err(ManifestError::TooMany { what: FIELD_NAMES[index], limit: COUNTS[index].1 });
            }
        }
    }
    Ok(())
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

fn from_pb(message: pb::Manifest) -> Result<Draft, ManifestError> {
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
        files: message.files.into_iter().map(file_from_pb).collect::<Result<_, _>>()?,
        chunks: message.chunks.iter().map(chunk_from_pb).collect::<Result<_, _>>()?,
        entries: message.entries.iter().map(|path| parse_path(path)).collect::<Result<_, _>>()?,
        attributes: from_pairs(message.attributes)?,
    })
}

fn file_from_pb(file: pb::File) -> Result<File, ManifestError> {
    Ok(File {
        path: parse_path(&file.path)?,
        executable: file.executable,
        mtime_ns: file.mtime_ns,
        size: file.size,
        digest: Digest::try_from(file.digest.as_slice())?,
        offset: file.offset,
    })
}

fn chunk_from_pb(chunk: &pb::Chunk) -> Result<Chunk, ManifestError> {
    let codec = match pb::Codec::try_from(chunk.codec) {
        Ok(pb::Codec::Raw) => Codec::Raw,
        Ok(pb::Codec::Zstd) => Codec::Zstd,
        Err(_) => return Err(ManifestError::Malformed),
    };
    Ok(Chunk {
        digest: Digest::try_from(chunk.digest.as_slice())?,
        encoded_len: chunk.encoded_len,
        decoded_len: chunk.decoded_len,
        codec,
    })
}

fn parse_path(text: &str) -> Result<RelPath, ManifestError> {
    RelPath::new(text).map_err(|source| ManifestError::Path { path: text.escape_default().take(200).collect(), source })
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
