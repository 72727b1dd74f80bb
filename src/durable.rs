//! Small files that survive a crash: written beside their place, synced, renamed, and the directory synced.
//!
//! A record is one line of text: CRC32C of the rest in eight hex digits, a space, the rest. The checksum tells a torn or
//! damaged record at once; it is no proof of origin.
//!
//! And the lock of the directory that they are in.

mod lock;

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

pub use lock::{Lock, LockError};

/// No record of ours comes near this many bytes.
const MAX_RECORD: u64 = 64 * 1024 * 1024;

/// Replaces `path` with `bytes` in one step; after it returns, the new content survives a power cut.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // The parent of a bare file name is empty, which no call opens.
    let directory = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = directory.join(temporary);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| sync_directory(directory));
    if written.is_err() {
        // The first error is the one to report; a leftover is removed by the next write.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// The mode of a secret file that too many can read. A file of ours must be closed to group and others; one of another
/// owner (a mounted secret) must be closed to others and read-only for the group.
pub fn exposed(meta: &Metadata) -> Option<u32> {
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    let forbidden = if ours { 0o077 } else { 0o027 };
    (meta.mode() & forbidden != 0).then(|| meta.mode() & 0o7777)
}

/// Gives the file `from` the name `to`, which may be in another directory; after it returns, its content and that name
/// survive a power cut.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let directory = to.parent().ok_or(io::ErrorKind::InvalidInput)?;
    File::open(from)?.sync_all()?;
    std::fs::rename(from, to)?;
    sync_directory(directory)
}

/// Makes renames and new names in `directory` survive a power cut.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// [`replace`] with a checksum in front of `text`.
pub fn replace_record(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    replace(path, frame_record(text).as_bytes(), mode)
}

/// `None` if there is no such file; `InvalidData` if it is torn or damaged.
pub fn read_record(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut framed = String::new();
    file.take(MAX_RECORD).read_to_string(&mut framed)?;
    parse_record(&framed)
        .map(Some)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{} is torn or damaged", path.display())))
}

/// The bytes of a record that holds `text`, for those who write through a directory handle.
pub fn frame_record(text: &str) -> String {
    format!("{:08x} {text}\n", crc32c::crc32c(text.as_bytes()))
}

/// The text of a record; `None` if it is torn or damaged.
pub fn parse_record(framed: &str) -> Option<String> {
    let (crc, rest) = framed.split_once(' ')?;
    let text = rest.strip_suffix('\n')?;
    (crc.len() == 8 && u32::from_str_radix(crc, 16).ok()? == crc32c::crc32c(text.as_bytes())).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_a_record() {
        assert_eq!(frame_record("123456789"), "e3069283 123456789\n");
    }

    #[test]
    fn a_file_is_given_another_name_and_one_that_is_not_there_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        assert_eq!(rename(&from, &to).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&from, b"content").unwrap();
        std::fs::write(&to, b"older").unwrap();
        rename(&from, &to).unwrap();
        assert_eq!((std::fs::read(&to).unwrap(), from.exists()), (b"content".to_vec(), false));
    }

    #[test]
    fn a_torn_or_damaged_record_is_told() {
        let framed = frame_record(r#"{"version":3}"#);
        assert_eq!(parse_record(&framed).as_deref(), Some(r#"{"version":3}"#));
        for end in 0..framed.len() {
            assert_eq!(parse_record(&framed[..end]), None, "cut at {end}");
        }
        assert_eq!(parse_record(&framed.replace('3', "4")), None);
    }

    #[test]
    fn replacing_leaves_one_file_with_the_new_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        replace_record(&path, "one", 0o600).unwrap();
        replace_record(&path, "two", 0o600).unwrap();
        assert_eq!(read_record(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(read_record(&dir.path().join("none")).unwrap(), None);
    }
}
