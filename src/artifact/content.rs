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

struct Layout<'m> {
    /// Of each chunk.
    parts: Vec<Vec<Part<'m>>>,
    cuts: Vec<Cut<'m>>,
}

impl<'m> Layout<'m> {
    /// `files` are those of one place.
    fn place(&mut self, manifest: &Manifest, files: &'m [&'m File]) {
        let file = files[0];
        let spans: Vec<Span> = manifest.spans(file).collect();
        let cut = (spans.len() > 1).then_some(self.cuts.len());
        if cut.is_some() {
            self.cuts.push(Cut { file, hasher: Mutex::new(FileHasher::new(file.size)) });
        }
        for span in spans {
            self.parts[span.chunk].push(Part { files, span, cut });
        }
    }
}

/// Sees a file and its content.
type Look<'l, E> = dyn Fn(&File, &[u8]) -> Result<(), E> + Sync + 'l;

/// Decodes every chunk and hashes every file, on all cores; call it from a blocking thread. `read` gives a chunk's encoded
/// bytes, which have its digest and length. `look` sees each file that lies in one chunk, once its content is known to be
/// right.
pub fn check_content<E: From<ContentError> + Send>(
    manifest: &Manifest,
    read: &(dyn Fn(&Chunk) -> Result<Bytes, E> + Sync),
    look: &Look<'_, E>,
) -> Result<(), E> {
    let mut files: Vec<&File> = manifest.files.iter().collect();
    files.sort_unstable_by_key(|file| (file.offset, file.size));
    let mut layout = Layout { parts: manifest.chunks.iter().map(|_| Vec::new()).collect(), cuts: Vec::new() };
    // Files of one place have one digest: that is a rule of the format.
    for files in files.chunk_by(|a, b| (a.offset, a.size) == (b.offset, b.size)) {
        match files[0].size {
            0 => check_whole(files, b"", look)?,
            _ => layout.place(manifest, files),
        }
    }
    let Layout { parts, cuts } = layout;
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
    look: &Look<'_, E>,
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

fn check_whole<E: From<ContentError>>(files: &[&File], bytes: &[u8], look: &Look<'_, E>) -> Result<(), E> {
    let digest = Digest::of(bytes);
    files.iter().try_for_each(|file| match file.digest == digest {
        true => look(file, bytes),
        false => Err(ContentError::File(file.path.clone()).into()),
    })
}

fn hasher<'c>(cut: &'c Cut<'_>) -> std::sync::MutexGuard<'c, FileHasher> {
    cut.hasher.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use proptest::prelude::*;

    use super::*;
    use crate::artifact::{Codec, Draft, Encoder, Family, MAX_CHUNK, Provenance, SourceIdentity};
    use crate::identity::{TrustClass, UnixTime};

    /// Files that share content share a place.
    struct Packed {
        draft: Draft,
        encoded: HashMap<Digest, Bytes>,
    }

    impl Packed {
        /// Each content in chunks of its own.
        fn new(files: &[(&str, &[u8])]) -> Self {
            let mut packed = Self { draft: draft(), encoded: HashMap::new() };
            let mut places: HashMap<&[u8], u64> = HashMap::new();
            let mut end = 0;
            for (name, content) in files {
                let offset = if content.is_empty() { 0 } else { *places.entry(content).or_insert(end) };
                if offset == end {
                    content.chunks(MAX_CHUNK).for_each(|piece| packed.chunk(piece));
                    end += content.len() as u64;
                }
                packed.file(name, content, offset);
            }
            packed
        }

        fn chunk(&mut self, decoded: &[u8]) {
            let mut encoder = Encoder::new().unwrap();
            let (codec, encoded) = encoder.encode(decoded).unwrap();
            self.push(codec, encoded, decoded.len());
        }

        fn push(&mut self, codec: Codec, encoded: &[u8], decoded_len: usize) {
            let digest = Digest::of(encoded);
            let (encoded_len, decoded_len) = (encoded.len() as u32, decoded_len as u32);
            self.draft.chunks.push(Chunk { digest, encoded_len, decoded_len, codec });
            self.encoded.insert(digest, Bytes::copy_from_slice(encoded));
        }

        fn file(&mut self, name: &str, content: &[u8], offset: u64) {
            let path = RelPath::new(name).unwrap();
            let (digest, size) = (Digest::of(content), content.len() as u64);
            self.draft.entries.push(path.clone());
            self.draft.files.push(File { path, executable: false, mtime_ns: 0, size, digest, offset });
        }

        /// How many files were looked at.
        fn check(&self) -> Result<usize, ContentError> {
            let looked = Mutex::new(0);
            let manifest = Manifest::new(self.draft.clone()).unwrap();
            let read = |chunk: &Chunk| Ok(self.encoded[&chunk.digest].clone());
            check_content::<ContentError>(&manifest, &read, &|file, content| {
                assert_eq!(Digest::of(content), file.digest);
                *looked.lock().unwrap() += 1;
                Ok(())
            })?;
            Ok(looked.into_inner().unwrap())
        }
    }

    fn draft() -> Draft {
        Draft {
            identity: SourceIdentity::new(Family::directory(), BTreeMap::new()).unwrap(),
            class: TrustClass::HostCode,
            subject: String::new(),
            generation: 1,
            created: UnixTime::from_seconds(1),
            expires: None,
            provenance: Provenance::default(),
            files: Vec::new(),
            chunks: Vec::new(),
            entries: Vec::new(),
            attributes: BTreeMap::new(),
        }
    }

    #[test]
    fn every_file_is_hashed_and_those_of_one_chunk_are_looked_at() {
        let large: Vec<u8> = (0..2 * MAX_CHUNK + 17).map(|i| (i / 9 % 251) as u8).collect();
        let packed =
            Packed::new(&[("a", b"one"), ("b", &large), ("c", b"one"), ("d", b""), ("e", b"e"), ("f", &large)]);
        assert_eq!(packed.check().unwrap(), 4);
    }

    #[test]
    fn a_file_of_several_chunks_that_lacks_the_right_one_is_found() {
        let large: Vec<u8> = (0..MAX_CHUNK + 17).map(|i| (i / 9 % 251) as u8).collect();
        let mut packed = Packed::new(&[("a", &large)]);
        packed.draft.files[0].digest = Digest::of(b"other");
        assert!(matches!(packed.check(), Err(ContentError::File(path)) if path.as_str() == "a"));
    }

    #[test]
    fn a_chunk_that_decodes_to_another_length_is_found() {
        let bomb = zstd::bulk::compress(&vec![0; 3 * MAX_CHUNK], 1).unwrap();
        for decoded_len in [MAX_CHUNK, bomb.len() + 1] {
            let mut packed = Packed { draft: draft(), encoded: HashMap::new() };
            packed.push(Codec::Zstd, &bomb, decoded_len);
            packed.file("a", &vec![0; decoded_len], 0);
            assert!(matches!(packed.check(), Err(ContentError::Chunk { index: 0, .. })));
        }
    }

    proptest! {
        #[test]
        fn whatever_one_file_claims_instead_is_found(
            contents in prop::collection::vec(prop::collection::vec(0u8..3, 0..5), 1..12),
            liar in any::<prop::sample::Index>(),
        ) {
            let names: Vec<String> = (0..contents.len()).map(|index| format!("{index:03}")).collect();
            let files: Vec<(&str, &[u8])> =
                names.iter().zip(&contents).map(|(name, content)| (name.as_str(), content.as_slice())).collect();
            let mut packed = Packed::new(&files);
            prop_assert_eq!(packed.check().unwrap(), files.len());
            // Files of one place must agree, or there is no manifest.
            let lie = packed.draft.files[liar.index(files.len())].clone();
            for file in packed.draft.files.iter_mut().filter(|file| (file.offset, file.size) == (lie.offset, lie.size)) {
                file.digest = Digest::of(b"other");
            }
            prop_assert!(matches!(packed.check(), Err(ContentError::File(_))));
        }
    }
}
