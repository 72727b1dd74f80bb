//! A program that prints for as long as it runs, read line by line.

use std::io;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStdout;
use tokio::time::timeout;

use super::{Group, Program, ProgramError, REAPING};

/// Bytes of a line that are kept.
const MAX_KEPT: usize = 1024;

/// A running program. It and all that it started are killed when this is dropped.
#[derive(Debug)]
pub struct Lines {
    group: Group,
    output: BufReader<ChildStdout>,
    /// Of the line that has not ended yet.
    begun: Vec<u8>,
}

impl Program {
    /// Starts it for the lines that it prints. It may run and print for ever, so deadline and bound of its output do not
    /// hold; what it writes to standard error is lost.
    pub fn lines(&self) -> Result<Lines, ProgramError> {
        let mut group = Group::start(self, Stdio::null())?;
        let broken = || ProgramError::Io { program: self.path.clone(), source: io::ErrorKind::BrokenPipe.into() };
        let output = BufReader::new(group.child.stdout.take().ok_or_else(broken)?);
        Ok(Lines { group, output, begun: Vec::new() })
    }
}

impl Lines {
    /// The first 1024 bytes of the next line, without its end. `None` once nobody prints any more. May be cancelled and called
    /// again.
    pub async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            let block = self.output.fill_buf().await?;
            if block.is_empty() {
                return Ok(None);
            }
            let end = block.iter().position(|byte| *byte == b'\n');
            let piece = &block[..end.unwrap_or(block.len())];
            let room = MAX_KEPT - self.begun.len();
            self.begun.extend_from_slice(&piece[..piece.len().min(room)]);
            let taken = piece.len() + usize::from(end.is_some());
            self.output.consume(taken);
            if end.is_some() {
                let line = std::mem::take(&mut self.begun);
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
        }
    }

    /// Kills the program and all that it started. False if it is not gone within a second, because it waits for a broken
    /// device: it is gone when the device lets it go.
    pub async fn kill(&mut self) -> bool {
        self.group.kill();
        matches!(timeout(REAPING, self.group.child.wait()).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Witness, gone, shell};
    use super::*;

    #[tokio::test]
    async fn lines_come_as_they_are_printed_and_end_with_the_program() {
        let mut lines = shell("echo one; echo; printf 'two\\nno end'").lines().unwrap();
        for expected in [Some("one"), Some(""), Some("two"), None, None] {
            assert_eq!(lines.next().await.unwrap().as_deref(), expected);
        }
        assert!(lines.kill().await && lines.kill().await);
    }

    #[tokio::test]
    async fn a_line_without_end_takes_no_memory() {
        let script = "head -c 300000 /dev/zero | tr '\\0' x; echo; echo next";
        let mut lines = shell(script).lines().unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap(), "x".repeat(MAX_KEPT));
        assert_eq!(lines.next().await.unwrap().as_deref(), Some("next"));
    }

    #[tokio::test]
    async fn a_program_that_is_killed_or_dropped_leaves_nothing_behind() {
        for drops in [false, true] {
            let witness = Witness::new();
            let mut lines = shell(&witness.script("echo begun; wait")).lines().unwrap();
            let file = witness.appears().await;
            assert_eq!(lines.next().await.unwrap().as_deref(), Some("begun"));
            match drops {
                true => drop(lines),
                false => assert!(lines.kill().await),
            }
            assert!(gone(file));
        }
    }
}
