//! Every path of the store. All of it is on one file system: files move between these directories by rename.
//!
//! ```text
//! lock                      held by the process that has the store open; its text is that process's id
//! boot                      record: the boot on which the chunks were written or last verified
//! chunks/ab/<digest>        encoded bytes, mode 0400; a file here was complete when it got its name
//! manifests/<artifact id>   envelopes of complete artifacts
//! partial/<artifact id>     envelopes of artifacts that lack chunks
//! pins/<artifact id>        empty; there means pinned
//! published/<artifact id>   empty; there means made on this node
//! tmp/<pid>-<n>             being written
//! trash/<pid>-<n>           being deleted
//! ```

use std::path::{Path, PathBuf};

use crate::digest::{ArtifactId, Digest};

#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn boot(&self) -> PathBuf {
        self.root.join("boot")
    }

    /// The 256 directories of chunks, by the first byte of the digest.
    pub(super) fn chunk_directories(&self) -> impl Iterator<Item = PathBuf> + '_ {
        (0..=u8::MAX).map(|byte| self.root.join(format!("chunks/{byte:02x}")))
    }

    pub(super) fn chunk(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join("chunks").join(&name[..2]).join(name)
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    pub(super) fn manifest(&self, id: &ArtifactId) -> PathBuf {
        self.manifests().join(id.to_string())
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(super) fn partial(&self, id: &ArtifactId) -> PathBuf {
        self.partials().join(id.to_string())
    }

    pub(super) fn pins(&self) -> PathBuf {
        self.root.join("pins")
    }

    pub(super) fn pin(&self, id: &ArtifactId) -> PathBuf {
        self.pins().join(id.to_string())
    }

    pub(super) fn published(&self) -> PathBuf {
        self.root.join("published")
    }

    pub(super) fn publication(&self, id: &ArtifactId) -> PathBuf {
        self.published().join(id.to_string())
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(super) fn tmp_file(&self, n: u64) -> PathBuf {
        self.tmp().join(format!("{}-{n}", std::process::id()))
    }

    pub(super) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(super) fn trash_file(&self, n: u64) -> PathBuf {
        self.trash().join(format!("{}-{n}", std::process::id()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_paths() {
        let layout = Layout::new(Path::new("/s"));
        let hex = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        let id = ArtifactId::of(b"");
        assert_eq!(layout.chunk(&Digest::of(b"")), PathBuf::from(format!("/s/chunks/af/{hex}")));
        assert_eq!(layout.manifest(&id), PathBuf::from(format!("/s/manifests/{hex}")));
        assert_eq!(layout.partial(&id), PathBuf::from(format!("/s/partial/{hex}")));
        assert_eq!(layout.pin(&id), PathBuf::from(format!("/s/pins/{hex}")));
        assert_eq!(layout.publication(&id), PathBuf::from(format!("/s/published/{hex}")));
        assert_eq!(layout.chunk_directories().count(), 256);
        assert_eq!(layout.chunk_directories().nth(175), layout.chunk(&Digest::of(b"")).parent().map(Path::to_owned));
    }
}
