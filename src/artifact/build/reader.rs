//! Reading one source file without being fooled.

use std::fs::File as OsFile;
use std::io;
use std::os::unix::fs::FileExt;

use super::{BuildError, SourceFile, Stamp};

/// Bytes of the largest private key file.
pub(super) const MAX_KEY: u64 = 64 * 1024;

/// One source file, held open and known to be the one that was found.
pub(super) struct Reader<'f> {
    file: &'f SourceFile,
    os: OsFile,
}

impl<'f> Reader<'f> {
    pub(super) fn open(file: &'f SourceFile) -> Result<Self, BuildError> {
        let opened = file.tree.open_file(file.path.as_str());
        let os = opened.map_err(|error| match error.is_gone() {
            true => BuildError::Changed(file.path.clone()),
            false => error.into(),
        })?;
        Ok(Self { file, os })
    }

    /// After the reading: is it still the file that was found? A change before or during the reading shows in its times.
    pub(super) fn check(&self) -> Result<(), BuildError> {
        let meta = self.os.metadata().map_err(|error| self.failed(error))?;
        if Stamp::of(&meta) == self.file.stamp { Ok(()) } else { Err(BuildError::Changed(self.file.path.clone())) }
    }

    /// A small file is read in one piece.
    pub(super) fn check_key(&self, offset: u64, piece: &[u8]) -> Result<(), BuildError> {
        match self.file.size() < MAX_KEY && offset == 0 && is_private_key(piece) {
            true => Err(BuildError::PrivateKey(self.file.source())),
            false => Ok(()),
        }
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BuildError> {
        if let Some(content) = &self.file.content {
            let piece = content.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
            buffer.copy_from_slice(piece.ok_or_else(|| BuildError::Changed(self.file.path.clone()))?);
            return Ok(());
        }
        self.os.read_exact_at(buffer, offset).map_err(|error| match (error.kind(), self.check()) {
            (io::ErrorKind::UnexpectedEof, _) => BuildError::Changed(self.file.path.clone()),
            // What took the file's place may not be readable at all.
            (_, Err(changed)) => changed,
            (_, Ok(())) => self.failed(error),
        })
    }

    fn failed(&self, source: io::Error) -> BuildError {
        BuildError::Read { path: self.file.path.clone(), source }
    }
}

/// In PEM (RFC 7468), alone or after certificates.
pub(super) fn is_private_key(content: &[u8]) -> bool {
    let label = b"PRIVATE KEY-----";
    content.starts_with(b"-----BEGIN ") && content.windows(label.len()).any(|part| part == label)
}
