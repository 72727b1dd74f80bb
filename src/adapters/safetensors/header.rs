//! The header, from bytes that anybody may have written.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{Dtype, Fault, Limits};
use crate::adapters::json::shown;

/// Where people keep notes beside tensors.
const METADATA: &str = "__metadata__";

/// Bytes of the longest name, and most dimensions.
const MAX_NAME: usize = 512;
const MAX_DIMENSIONS: usize = 8;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// Bytes, from the beginning of the data.
    pub range: Range<u64>,
}

impl Tensor {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

/// What a file holds. Its tensors tile the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    tensors: Vec<Tensor>,
    metadata: BTreeMap<String, String>,
    data: u64,
}

/// The bytes of the header by the first eight of a file that has `file` bytes in all.
pub(super) fn length(claimed: [u8; 8], file: u64, limits: &Limits) -> Result<usize, Fault> {
    let claimed = u64::from_le_bytes(claimed);
    if file > limits.file {
        return Err(Fault::FileTooLarge { found: file, limit: limits.file });
    }
    let left = file.saturating_sub(8);
    if claimed > left {
        return Err(Fault::HeaderBeyondFile { claimed, left });
    }
    let too_large = Fault::HeaderTooLarge { claimed, limit: limits.header };
    usize::try_from(claimed).ok().filter(|_| claimed <= limits.header).ok_or(too_large)
}

impl Header {
    /// `data`: bytes of the file that follow the header.
    pub fn parse(json: &[u8], data: u64, limits: &Limits) -> Result<Self, Fault> {
        if json.first() != Some(&b'{') {
            return Err(Fault::HeaderStart);
        }
        let document: Document = serde_json::from_slice(json).map_err(|error| Fault::Header(error.to_string()))?;
        if document.tensors.len() > limits.tensors {
            return Err(Fault::TooMany(limits.tensors));
        }
        let mut tensors = document.tensors.into_iter().map(checked).collect::<Result<Vec<_>, _>>()?;
        tensors.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
        check_tiling(&tensors, data)?;
        Ok(Self { tensors, metadata: document.metadata, data: 8 + json.len() as u64 })
    }

    /// In the order of their bytes.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Where in the file the data begins.
    pub fn data(&self) -> u64 {
        self.data
    }
}

fn checked((name, info): (String, Info)) -> Result<Tensor, Fault> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Fault::Name(shown(&name)));
    }
    let Info { dtype: TextDtype(dtype), shape: Shape(shape), data_offsets: [start, end] } = info;
    if start > end {
        return Err(Fault::Backwards(name));
    }
    let bits = shape.iter().try_fold(dtype.bits(), |bits, dimension| bits.checked_mul(*dimension));
    let Some(bits) = bits else { return Err(Fault::ShapeOverflow(name)) };
    let (needed, given) = (bits.div_ceil(8), end - start);
    if !bits.is_multiple_of(8) || needed != given {
        return Err(Fault::Size { name, dtype, shape, needed, given });
    }
    Ok(Tensor { name, dtype, shape, range: start..end })
}

/// `tensors` are sorted by where they begin and end.
fn check_tiling(tensors: &[Tensor], data: u64) -> Result<(), Fault> {
    let mut end = 0;
    for tensor in tensors {
        let start = tensor.range.start;
        if start < end {
            return Err(Fault::Overlap(tensor.name.clone()));
        }
        if start > end {
            return Err(Fault::Hole { before: tensor.name.clone(), bytes: start - end });
        }
        end = tensor.range.end;
    }
    if end == data { Ok(()) } else { Err(Fault::End { tensors: end, data }) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: TextDtype,
    shape: Shape,
    data_offsets: [u64; 2],
}

struct TextDtype(Dtype);

impl<'de> Deserialize<'de> for TextDtype {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let unknown = || D::Error::custom(format!("`{}` is no type of elements", shown(&name)));
        Dtype::named(&name).map(Self).ok_or_else(unknown)
    }
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_DIMENSIONS} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = items.next_element()? {
                    if shape.len() == MAX_DIMENSIONS {
                        return Err(A::Error::invalid_length(shape.len() + 1, &self));
                    }
                    shape.push(dimension);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

/// The header's object. Memory is bounded by its text, whose length was checked.
struct Document {
    tensors: Vec<(String, Info)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Document;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Document, A::Error> {
                let mut document = Document { tensors: Vec::new(), metadata: BTreeMap::new() };
                let mut names = HashSet::new();
                while let Some(name) = entries.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{}` occurs twice", shown(&name))));
                    }
                    if name == METADATA {
                        document.metadata = entries.next_value::<Notes>()?.0;
                    } else {
                        document.tensors.push((name, entries.next_value()?));
                    }
                }
                Ok(document)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

struct Notes(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Notes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Notes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Notes, A::Error> {
                let mut notes = BTreeMap::new();
                while let Some((key, value)) = entries.next_entry::<String, String>()? {
                    if notes.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key of the metadata occurs twice"));
                    }
                }
                Ok(Notes(notes))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}
