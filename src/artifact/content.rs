//! Whether chunks hold what a manifest says of its files, asked before it is signed for somebody else.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rayon::prelude::*;

use super::manifest::{Chunk, File, Manifest};
use super::{CodecError, Decoder, FileHasher, RelPath, Span, piece_value};
use crate::digest::Digest;

/// The content is not what the manifest says.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("chunk {index} cannot be decoded: {source}")]
    Chunk { index: usize, source: CodecError },
    #[error("`{0}` has another content than its digest says")]
    File(RelPath),
}

/// Part of a chunk, and the files that have it.
struct Part<'m> {
    files: &'m [&'m File],
    span: Span,
    /// Index into the files that lie in several chunks.
    cut: Option<usize>,
}

/// A file that lies in several chunks.
struct Cut<'m> {
    file: &'m File,
    hasher: Mutex<FileHasher>,
}

/// Decodes every chunk and hashes every file, on all cores; call it from a blocking thread. `read` gives a chunk's encoded
/// bytes, which have its digest and length. `look` sees each file that lies in one chunk, once its content is known to be
/// right.
pub fn check_content<E: From<ContentError> + Send>(
    manifest: &Manifest,
    read: &(dyn Fn(&Chunk) -> Result<Bytes, E> + Sync),
    look: &(dyn Fn(&File, &[u8]) -> Result<(), E> + Sync),
) -> Result<(), E> {
    let mut files: Vec<&File> = manifest.files.iter().collect();
    files.sort_unstable_by_key(|file| (file.offset, file.size));
    let mut parts: Vec<Vec<Part<'_>>> = manifest.chunks.iter().map(|_| Vec::new()).collect();
    let mut cuts = Vec::new();
    // Files of one place have one digest: that is a rule of the format.
    for files in files.chunk_by(|a, b| (a.offset, a.size) == (b.offset, b.size)) {
        let file = files[0];
        let spans: Vec<Span> = manifest.spans(file).collect();
        if spans.is_empty() {
            check_whole(files, b"", look)?;
        }
        let cut = (spans.len() > 1).then_some(cuts.len());
        if cut.is_some() {
            cuts.push(Cut { file, hasher: Mutex::new(FileHasher::new(file.size)) });
        }
        for span in spans {
            parts[span.chunk].push(Part { files, span, cut });
        }
    }
    parts.par_iter().enumerate().try_for_each_init(
        || None,
        |decoder: &mut Option<Decoder>, (index, parts)| {
            let chunk = &manifest.chunks[index];
            let encoded = read(chunk)?;
            let failed = |source| ContentError::Chunk { index, source };
            let decoder = match decoder {
                Some(decoder) => decoder,
                None => decoder.insert(Decoder::new().map_err(failed)?),
            };
            let decoded = decoder.decode(chunk.codec, &encoded, chunk.decoded_len as usize).map_err(failed)?;
            parts.iter().try_for_each(|part| check_part(part, &cuts, decoded, look))
        },
    )?;
    let whole = |cut: &Cut<'_>| hasher(cut).finish() == Some(cut.file.digest);
    match cuts.iter().find(|cut| !whole(cut)) {
        Some(cut) => Err(ContentError::File(cut.file.path.clone()).into()),
        None => Ok(()),
    }
}

fn check_part<E: From<ContentError>>(
    part: &Part<'_>,
    cuts: &[Cut<'_>],
    decoded: &[u8],
    look: &(dyn Fn(&File, &[u8]) -> Result<(), E> + Sync),
) -> Result<(), E> {
    let bytes = &decoded[part.span.in_chunk.clone()];
    match part.cut {
        None => check_whole(part.files, bytes, look),
        Some(cut) => {
            let value = piece_value(part.span.in_file, bytes);
            hasher(&cuts[cut]).set(part.span.in_file, value);
            Ok(())
        }
    }
}

fn check_whole<E: From<ContentError>>(
    files: &[&File],
    bytes: &[u8],
    look: &(dyn Fn(&File, &[u8]) -> Result<(), E> + Sync),
) -> Result<(), E> {
    let digest = Digest::of(bytes);
    files.iter().try_for_each(|file| match file.digest == digest {
        true => look(file, bytes),
        false => Err(ContentError::File(file.path.clone()).into()),
    })
}

fn hasher<'c>(cut: &'c Cut<'_>) -> std::sync::MutexGuard<'c, FileHasher> {
    cut.hasher.lock().unwrap_or_else(PoisonError::into_inner)
}
