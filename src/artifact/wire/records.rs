//! Reads the records that a manifest has thousands of without an intermediate form. Each has one valid spelling: fields
//! in order, none twice, none with its default, no overlong number. So what is read would be written the same again.

use super::super::manifest::{Chunk, File, ManifestError};
use super::super::{Codec, RelPath};
use crate::digest::Digest;

/// What the two wire types of our fields add to a key.
const NUMBER: u32 = 0;
const BYTES: u32 = 2;

/// The fields of one message, from the front. Field numbers are below 16, so that a key is one byte.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// The fields `field` that come next; there are `count` of them.
    pub(super) fn records<T>(
        &mut self,
        field: u32,
        count: usize,
        read: impl Fn(&[u8]) -> Result<T, ManifestError>,
    ) -> Result<Vec<T>, ManifestError> {
        let mut all = Vec::with_capacity(count);
        while let Some(record) = self.record(field)? {
            all.push(read(record)?);
        }
        Ok(all)
    }

    fn record(&mut self, field: u32) -> Result<Option<&'a [u8]>, ManifestError> {
        if !self.begins(field, BYTES) {
            return Ok(None);
        }
        let len = self.varint()?;
        match usize::try_from(len).ok().and_then(|len| self.0.split_at_checked(len)) {
            Some((record, rest)) => {
                self.0 = rest;
                Ok(Some(record))
            }
            None => Err(ManifestError::Malformed),
        }
    }

    fn bytes(&mut self, field: u32) -> Result<&'a [u8], ManifestError> {
        match self.record(field)? {
            Some([]) => Err(ManifestError::NotCanonical),
            found => Ok(found.unwrap_or_default()),
        }
    }

    fn number(&mut self, field: u32) -> Result<u64, ManifestError> {
        if !self.begins(field, NUMBER) {
            return Ok(0);
        }
        match self.varint()? {
            0 => Err(ManifestError::NotCanonical),
            number => Ok(number),
        }
    }

    fn number_u32(&mut self, field: u32) -> Result<u32, ManifestError> {
        u32::try_from(self.number(field)?).map_err(|_| ManifestError::NotCanonical)
    }

    fn flag(&mut self, field: u32) -> Result<bool, ManifestError> {
        match self.number(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ManifestError::NotCanonical),
        }
    }

    pub(super) fn end(self) -> Result<(), ManifestError> {
        if self.0.is_empty() { Ok(()) } else { Err(ManifestError::NotCanonical) }
    }

    fn begins(&mut self, field: u32, wire_type: u32) -> bool {
        match self.0.split_first() {
            Some((key, rest)) if u32::from(*key) == field << 3 | wire_type => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    fn varint(&mut self) -> Result<u64, ManifestError> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let Some((byte, rest)) = self.0.split_first() else { return Err(ManifestError::Malformed) };
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            number |= bits << shift;
            if byte & 0x80 == 0 {
                let overlong = bits == 0 && shift > 0;
                let lost = bits << shift >> shift != bits;
                return if overlong || lost { Err(ManifestError::NotCanonical) } else { Ok(number) };
            }
        }
        Err(ManifestError::Malformed)
    }
}

pub(super) fn file(record: &[u8]) -> Result<File, ManifestError> {
    let mut fields = Fields::new(record);
    let file = File {
        path: path(fields.bytes(1)?)?,
        executable: fields.flag(2)?,
        mtime_ns: fields.number(3)?,
        size: fields.number(4)?,
        digest: Digest::try_from(fields.bytes(5)?)?,
        offset: fields.number(6)?,
    };
    fields.end()?;
    Ok(file)
}

pub(super) fn chunk(record: &[u8]) -> Result<Chunk, ManifestError> {
    let mut fields = Fields::new(record);
    let chunk = Chunk {
        digest: Digest::try_from(fields.bytes(1)?)?,
        encoded_len: fields.number_u32(2)?,
        decoded_len: fields.number_u32(3)?,
        codec: match fields.number(4)? {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            _ => return Err(ManifestError::Malformed),
        },
    };
    fields.end()?;
    Ok(chunk)
}

pub(super) fn path(text: &[u8]) -> Result<RelPath, ManifestError> {
    let text = std::str::from_utf8(text).map_err(|_| ManifestError::Malformed)?;
    RelPath::new(text).map_err(|source| ManifestError::Path { path: text.escape_default().take(200).collect(), source })
}
