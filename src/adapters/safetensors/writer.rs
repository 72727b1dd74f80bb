//! Writing, such that equal tensors give equal files.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::json;

use super::{Dtype, SafetensorsError, Tensor, Weights};

/// The data begin at a multiple of that, as the reference library has it.
const ALIGNMENT: usize = 8;

/// A tensor to write.
#[derive(Debug)]
pub struct Outgoing<'a> {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub content: Content<'a>,
}

/// Where its bytes come from. They are as many as type and shape say.
#[derive(Debug)]
pub enum Content<'a> {
    Bytes(Vec<u8>),
    Copy(&'a Weights, &'a Tensor),
}

impl Content<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Copy(_, tensor) => tensor.len(),
        }
    }
}

/// Tensors in the reference library's order: large elements first, so that all are aligned, then by name.
pub fn write(
    out: &mut dyn Write,
    mut tensors: Vec<Outgoing<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), SafetensorsError> {
    tensors.sort_by(|a, b| b.dtype.bits().cmp(&a.dtype.bits()).then_with(|| a.name.cmp(&b.name)));
    let failed = |source| SafetensorsError::Io { path: "adapter_model.safetensors".into(), source };
    let header = header(&tensors, metadata);
    out.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| out.write_all(&header)).map_err(failed)?;
    for tensor in &tensors {
        match &tensor.content {
            Content::Bytes(bytes) => out.write_all(bytes).map_err(failed)?,
            Content::Copy(weights, source) => weights.pieces(source, |piece| out.write_all(piece))?,
        }
    }
    out.flush().map_err(failed)
}

fn header(tensors: &[Outgoing<'_>], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut document = BTreeMap::new();
    if !metadata.is_empty() {
        document.insert("__metadata__", json!(metadata));
    }
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.content.len();
        let info = json!({ "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [at, end] });
        document.insert(&tensor.name, info);
        at = end;
    }
    let mut text = json!(document).to_string().into_bytes();
    text.resize((8 + text.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
    text
}

/// Passes on what is written, and remembers its digest and length.
pub(in crate::adapters) struct Hashed<W> {
    inner: W,
    hasher: blake3::Hasher,
    len: u64,
}

impl<W> Hashed<W> {
    pub(in crate::adapters) fn new(inner: W) -> Self {
        Self { inner, hasher: blake3::Hasher::new(), len: 0 }
    }

    pub(in crate::adapters) fn finish(self) -> (W, crate::digest::Digest, u64) {
        (self.inner, self.hasher.finalize().into(), self.len)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
