//! Artifacts: signed, immutable sets of files of one family and one source identity.
//!
//! ```text
//! files --build--> content stream --cut--> chunks (raw or zstd) --sign--> manifest
//! ```
//!
//! The content stream holds each distinct file once. A file of [`LARGE_FILE`] or more is cut alone every [`MAX_CHUNK`];
//! smaller ones are packed in path order. A later generation keeps the chunks of the one before it that are still mostly in
//! use and packs only what is new, so that its cost is its difference; such a kept chunk may contain bytes that no file
//! refers to any more.
//!
//! Two digests name an artifact: [`ArtifactId`](crate::digest::ArtifactId) covers the signed body, and
//! [`ContentId`](crate::digest::ContentId) only paths, modes and file digests, so it does not depend on how or by whom the
//! content was packed.
//!
//! No I/O here beyond reading the files handed to [`build()`], each from its [`Tree`].

mod bitmap;
mod build;
mod codec;
mod content;
mod manifest;
mod path;
mod source;
mod stream;
mod tree;
mod wire;

use crate::identity::MAX_AROUND;
pub use bitmap::Bitmap;
pub use build::{Base, BuildError, Built, Outputs, SourceFile, Stamp, build};
pub use codec::{Codec, CodecError, Decoder, Encoder};
pub use content::{ContentError, check_content};
pub use manifest::{
    Admitted, COMPILE_SECONDS, Chunk, Draft, File, MANIFEST_TYPE, Manifest, ManifestError, Provenance, SignedManifest,
    content_id,
};
pub use path::{PathError, RelPath};
pub use source::{Family, SourceIdentity, SourceIdentityError};
pub use stream::{FileHasher, Span, piece_value};
pub use tree::{Bounds, Inode, Listing, Tree, TreeError};

/// Largest chunk, decoded and encoded, in bytes. A herd hands chunks on whole: larger ones reach the last node later, smaller
/// ones cost more requests (bench/README.md).
pub const MAX_CHUNK: usize = 1024 * 1024;

/// Files of at least this many bytes are cut alone.
pub const LARGE_FILE: u64 = 1024 * 1024;

/// Largest signed body in bytes, and largest envelope around it.
pub const MAX_BODY: usize = 16 * 1024 * 1024;
pub const MAX_ENVELOPE: usize = MAX_BODY + MAX_AROUND;

/// Most files in one artifact.
pub const MAX_FILES: usize = 200_000;

/// Most chunks in one artifact: 128 GiB of full chunks.
pub const MAX_CHUNKS: usize = 131_072;

/// Most facts in one source identity, and attributes of one artifact.
pub const MAX_FACTS: usize = 256;
pub const MAX_ATTRIBUTES: usize = 1024;

/// Generated from `proto/artifact.proto`.
#[expect(unreachable_pub, reason = "generated code")]
mod pb {
    tonic::include_proto!("warmd.artifact.v1");
}
