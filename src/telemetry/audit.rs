//! The audit log of a node: what was installed, refused and taken away, from whom, under which rule, with what result.
//!
//! JSON lines, each with a number and the BLAKE3 of the line before it, so that a line that is changed, left out or put in
//! shows: the chain goes on from file to file. It does not protect against somebody who can write all of it, or cut off its
//! end: keep the last line's digest, which `warmd audit --verify` prints, somewhere else.
//!
//! A file that has grown long gets another name; of those the newest [`KEPT`] stay.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::label;
use crate::digest::Digest;
use crate::durable;

const FILE: &str = "audit.jsonl";

/// Bytes of a file before it gets another name.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// Files beside the one that is written.
pub const KEPT: usize = 4;

/// Bytes of each text.
const MAX_TEXT: usize = 1024;

/// No line of ours is longer.
const MAX_LINE: u64 = 64 * 1024;

label! {
    /// What was done.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum Action {
        /// Brought to this node.
        Fetched,
        /// Made visible in a cache root.
        Installed,
        /// Not let in.
        Refused,
        /// Taken away again.
        Withdrawn,
        /// Another policy is in force.
        Policy,
        /// Events that came faster than they could be written.
        Lost,
    }
}

/// What is remembered of it. Texts are cut after a kilobyte; empty ones are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    pub action: Action,
    /// Who did it: `agent`, or a user id of this node.
    pub by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub family: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// Signers, and holders where they are known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// The policy's version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub result: String,
}

/// An event in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// From 1, without gaps.
    pub number: u64,
    /// RFC 3339, UTC.
    pub at: String,
    /// BLAKE3 of the line before, without its line end; of nothing for the first.
    pub before: Digest,
    #[serde(flatten)]
    pub event: Event,
}

/// The log is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}, line {line}: not a line of this log", path = .path.display())]
    Malformed { path: PathBuf, line: usize },
    #[error("{path}, line {line}: does not follow the line before it: lines were changed, left out or put in", path = .path.display())]
    Broken { path: PathBuf, line: usize },
    #[error("{dir}: there is no audit log; `--state-dir` names the state directory of the agent that keeps it", dir = .0.display())]
    Missing(PathBuf),
}

/// Where a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Head {
    pub number: u64,
    pub digest: Digest,
}

impl Head {
    const NONE: Self = Self { number: 0, digest: Digest::from_array([0; 32]) };

    fn begin() -> Self {
        Self { digest: Digest::of(b""), ..Self::NONE }
    }
}

/// What is in the files of a directory, checked.
#[derive(Debug, Serialize)]
pub struct Verified {
    pub lines: u64,
    /// Number of the oldest line that is still there.
    pub first: u64,
    pub head: Head,
}

/// The log, while this process writes it. One process at a time.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    file: File,
    len: u64,
    head: Head,
    max_file: u64,
}

impl Log {
    /// Goes on after the last whole line; what a crash has left of another one is cut off.
    pub fn open(directory: &Path) -> Result<Self, AuditError> {
        let path = directory.join(FILE);
        let io = |source| AuditError::Io { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(&path).map_err(io)?;
        let bytes = std::fs::read(&path).map_err(io)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(io)?;
        }
        let head = match last_line(&bytes[..whole]) {
            Some(line) => head_of(line).ok_or(AuditError::Malformed { path, line: 0 })?,
            None => match last_of(&directory.join(older(1)))? {
                Some(head) => head,
                None => Head::begin(),
            },
        };
        Ok(Self { directory: directory.to_owned(), file, len: whole as u64, head, max_file: MAX_FILE })
    }

    /// Blocks until it is on disk.
    pub fn append(&mut self, at: SystemTime, event: Event) -> Result<(), AuditError> {
        let path = self.directory.join(FILE);
        let io = |source| AuditError::Io { path: path.clone(), source };
        if self.len >= self.max_file {
            self.turn().map_err(io)?;
        }
        let at = humantime::format_rfc3339_seconds(at).to_string();
        let line = Line { number: self.head.number + 1, at, before: self.head.digest, event: event.bounded() };
        let text = serde_json::to_string(&line).map_err(|error| io(error.into()))?;
        let digest = Digest::of(text.as_bytes());
        let written = self.file.write_all(format!("{text}\n").as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // A torn line would be taken for a changed one.
            let _ = self.file.set_len(self.len);
            return Err(io(error));
        }
        self.len += text.len() as u64 + 1;
        self.head = Head { number: line.number, digest };
        Ok(())
    }

    /// The file gets another name, and those before it the next ones.
    fn turn(&mut self) -> io::Result<()> {
        let name = |number| self.directory.join(older(number));
        for number in (1..KEPT).rev() {
            match std::fs::rename(name(number), name(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        durable::rename(&self.directory.join(FILE), &name(1))?;
        let mut options = OpenOptions::new();
        self.file = options.read(true).append(true).create_new(true).mode(0o600).open(self.directory.join(FILE))?;
        self.len = 0;
        durable::sync_directory(&self.directory)
    }
}

impl Event {
    fn bounded(self) -> Self {
        let cut = |text: String| match text.char_indices().find(|(at, c)| at + c.len_utf8() > MAX_TEXT) {
            Some((at, _)) => text[..at].to_owned(),
            None => text,
        };
        Self {
            action: self.action,
            by: cut(self.by),
            artifact: cut(self.artifact),
            family: cut(self.family),
            subject: cut(self.subject),
            from: cut(self.from),
            rule: cut(self.rule),
            result: cut(self.result),
        }
    }
}

fn older(number: usize) -> String {
    format!("audit.{number}.jsonl")
}

fn last_line(bytes: &[u8]) -> Option<&[u8]> {
    bytes.strip_suffix(b"\n")?.rsplit(|byte| *byte == b'\n').next()
}

fn head_of(line: &[u8]) -> Option<Head> {
    let Line { number, .. } = serde_json::from_slice(line).ok()?;
    Some(Head { number, digest: Digest::of(line) })
}

fn last_of(path: &Path) -> Result<Option<Head>, AuditError> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AuditError::Io { path: path.to_owned(), source }),
        Ok(bytes) => last_line(&bytes).map_or(Ok(None), |line| {
            head_of(line).map(Some).ok_or_else(|| AuditError::Malformed { path: path.to_owned(), line: 0 })
        }),
    }
}

/// Reads the log of a directory, oldest line first, and checks that each line follows the one before it; the first that does
/// not is the error. `each` gets them as they are read, also those after it.
pub fn verify(directory: &Path, mut each: impl FnMut(Line)) -> Result<Verified, AuditError> {
    let mut broken = None;
    let verified = read(directory, |found| match found {
        Ok(line) => each(line),
        Err(error) => broken = broken.take().or(Some(error)),
    })?;
    broken.map_or(Ok(verified), Err)
}

/// As [`verify`], and goes on where the chain is broken: `each` gets the break before the line that does not follow, or in
/// place of one that is none of this log. A line that is being written at the moment is left out.
pub fn read(directory: &Path, mut each: impl FnMut(Result<Line, AuditError>)) -> Result<Verified, AuditError> {
    let mut chain = Chain { verified: Verified { lines: 0, first: 0, head: Head::begin() }, torn: false };
    if !directory.is_dir() {
        return Err(AuditError::Missing(directory.to_owned()));
    }
    let names = (1..=KEPT).rev().map(older).chain([FILE.to_owned()]);
    for path in names.map(|name| directory.join(name)) {
        let io = |source| AuditError::Io { path: path.clone(), source };
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(io)?,
        };
        let mut reader = BufReader::new(file);
        for line in 1.. {
            let mut text = Vec::new();
            io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut text).map_err(io)?;
            let whole = text.strip_suffix(b"\n");
            if whole.is_none() && (text.len() as u64) < MAX_LINE {
                break;
            }
            if whole.is_none() {
                reader.skip_until(b'\n').map_err(io)?;
            }
            match whole.and_then(|bytes| Some((bytes, serde_json::from_slice(bytes).ok()?))) {
                Some((bytes, told)) => {
                    if !chain.add(&told, bytes) {
                        each(Err(AuditError::Broken { path: path.clone(), line }));
                    }
                    each(Ok(told));
                }
                None => {
                    chain.torn = true;
                    each(Err(AuditError::Malformed { path: path.clone(), line }));
                }
            }
        }
    }
    Ok(chain.verified)
}

/// What was read so far.
struct Chain {
    verified: Verified,
    /// The last line was none: what comes after it is not told as a break of its own.
    torn: bool,
}

impl Chain {
    /// Whether it follows the one before; the next has to follow this one in any case.
    fn add(&mut self, line: &Line, bytes: &[u8]) -> bool {
        let Self { verified, torn } = self;
        let is_oldest = verified.lines == 0 && line.number > 1;
        let follows = line.number == verified.head.number + 1 && line.before == verified.head.digest;
        verified.first = if verified.lines == 0 { line.number } else { verified.first };
        verified.lines += 1;
        verified.head = Head { number: line.number, digest: Digest::of(bytes) };
        std::mem::take(torn) || is_oldest || follows
    }
}

#[cfg(test)]
mod tests;
