//! How one chunk is encoded: zstd where that saves a tenth, else as it is.

use zstd::bulk::{Compressor, Decompressor};

use super::MAX_CHUNK;

/// Level 1: at higher levels compression, not the network, bounds a publish on two cores (`bench/README.md`).
const LEVEL: i32 = 1;

/// A full chunk is sampled before it is compressed whole: it is of one large file, and most of those are weights or are
/// packed already. Packs of small files are hardly ever full, and a sample of one says nothing about the next file.
const SAMPLE_FROM: usize = MAX_CHUNK;
const SAMPLE: usize = 64 * 1024;

/// How the bytes of a chunk are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    Raw,
    Zstd,
}

/// A chunk could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("zstd: {0}")]
    Zstd(#[from] std::io::Error),
    #[error("chunk decodes to {found} bytes, its manifest says {expected}")]
    Length { expected: usize, found: usize },
}

/// Encodes one chunk after another with one context and one buffer.
pub struct Encoder {
    zstd: Compressor<'static>,
    buffer: Vec<u8>,
}

impl Encoder {
    pub fn new() -> Result<Self, CodecError> {
        Ok(Self { zstd: Compressor::new(LEVEL)?, buffer: Vec::new() })
    }

    /// The encoded bytes are in the encoder's buffer or are `decoded` itself.
    pub fn encode<'a>(&'a mut self, decoded: &'a [u8]) -> Result<(Codec, &'a [u8]), CodecError> {
        if !self.seems_compressible(decoded)? {
            return Ok((Codec::Raw, decoded));
        }
        self.compress(decoded)?;
        if saves_a_tenth(decoded.len(), self.buffer.len()) {
            Ok((Codec::Zstd, &self.buffer))
        } else {
            Ok((Codec::Raw, decoded))
        }
    }

    fn seems_compressible(&mut self, decoded: &[u8]) -> Result<bool, CodecError> {
        if decoded.len() < SAMPLE_FROM {
            return Ok(true);
        }
        let sample = &decoded[decoded.len() / 2..][..SAMPLE];
        self.compress(sample)?;
        Ok(saves_a_tenth(sample.len(), self.buffer.len()))
    }

    fn compress(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        self.buffer.clear();
        self.buffer.reserve(zstd::zstd_safe::compress_bound(bytes.len()));
        self.zstd.compress_to_buffer(bytes, &mut self.buffer)?;
        Ok(())
    }
}

fn saves_a_tenth(decoded: usize, encoded: usize) -> bool {
    encoded + decoded / 10 <= decoded
}

/// Decodes one chunk after another with one context and one buffer.
pub struct Decoder {
    zstd: Decompressor<'static>,
    buffer: Vec<u8>,
}

impl Decoder {
    pub fn new() -> Result<Self, CodecError> {
        Ok(Self { zstd: Decompressor::new()?, buffer: Vec::new() })
    }

    /// Exactly `decoded_len` bytes, or an error; never writes past that length whatever the input says.
    pub fn decode<'a>(
        &'a mut self,
        codec: Codec,
        encoded: &'a [u8],
        decoded_len: usize,
    ) -> Result<&'a [u8], CodecError> {
        let expected = decoded_len.min(MAX_CHUNK);
        let decoded = match codec {
            Codec::Raw => encoded,
            Codec::Zstd => {
                if self.buffer.len() < expected {
                    self.buffer.resize(expected, 0);
                }
                let written = self.zstd.decompress_to_buffer(encoded, &mut self.buffer[..expected])?;
                &self.buffer[..written]
            }
        };
        if decoded.len() != decoded_len {
            return Err(CodecError::Length { expected: decoded_len, found: decoded.len() });
        }
        Ok(decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn text_is_compressed_noise_is_not_and_both_come_back() {
        let mut encoder = Encoder::new().unwrap();
        let mut decoder = Decoder::new().unwrap();
        for (bytes, codec) in [
            (b"attention_kernel ".repeat(1000), Codec::Zstd),
            (b"attention_kernel ".repeat(30_000), Codec::Zstd),
            (noise(10_000), Codec::Raw),
            (noise(MAX_CHUNK), Codec::Raw),
        ] {
            let (used, encoded) = encoder.encode(&bytes).unwrap();
            assert_eq!(used, codec);
            assert_eq!(decoder.decode(used, encoded, bytes.len()).unwrap(), bytes);
        }
    }

    #[test]
    fn a_chunk_that_decodes_to_more_or_less_than_it_says_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 3 * MAX_CHUNK], 1).unwrap();
        let mut decoder = Decoder::new().unwrap();
        assert!(decoder.decode(Codec::Zstd, &bomb, 1000).is_err());
        assert!(decoder.decode(Codec::Zstd, &bomb, usize::MAX).is_err());
        let small = zstd::bulk::compress(&[0; 10], 1).unwrap();
        assert!(matches!(decoder.decode(Codec::Zstd, &small, 11), Err(CodecError::Length { .. })));
        assert!(matches!(decoder.decode(Codec::Raw, b"abc", 4), Err(CodecError::Length { .. })));
        assert!(decoder.decode(Codec::Zstd, b"not zstd at all", 15).is_err());
    }

    #[test]
    fn the_tenth_is_exact() {
        assert!(saves_a_tenth(100, 90));
        assert!(!saves_a_tenth(100, 91));
    }
}
