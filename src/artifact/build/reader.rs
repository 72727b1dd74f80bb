//! Reading one source file without being fooled.

use std::fs::File as OsFile;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::{BuildError, SourceFile, Stamp};

/// One source file, held open and known to be the one that was found.
pub(super) struct Reader<'f> {
    file: &'f SourceFile,
    os: OsFile,
}

impl<'f> Reader<'f> {
    pub(super) fn open(file: &'f SourceFile) -> Result<Self, BuildError> {
        // Neither a link that took the file's place nor a FIFO that would block.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let opened = OsFile::options().read(true).custom_flags(flags.bits() as i32).open(&file.source);
        let os = opened.map_err(|error| match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => BuildError::Changed(file.path.clone()),
            _ => BuildError::Read { path: file.path.clone(), source: error },
        })?;
        Ok(Self { file, os })
    }

    /// After the reading: is it still the file that was found? A change before or during the reading shows in its times.
    pub(super) fn check(&self) -> Result<(), BuildError> {
        let meta = self.os.metadata().map_err(|error| self.failed(error))?;
        if Stamp::of(&meta) == self.file.stamp { Ok(()) } else { Err(BuildError::Changed(self.file.path.clone())) }
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
