//! The program as somebody runs it, and what it says.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

use super::cluster::DEADLINE;

/// Killed when dropped; what it has started ends with it.
pub struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    /// What it has said so far.
    said: Vec<String>,
}

impl Program {
    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warmd"));
        command.args(arguments).envs(environment.iter().copied());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines, said: Vec::new() }
    }

    /// What follows `text` on the next line that has it.
    pub async fn says(&mut self, text: &str) -> String {
        loop {
            let line = timeout(DEADLINE, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("nothing of `{text}`: {:#?}", self.said)).unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended without `{text}`: {:#?}", self.said));
            self.said.push(line.clone());
            if let Some((_, rest)) = line.split_once(text) {
                return rest.to_owned();
            }
        }
    }

    /// The same, where it may have been said before something else that was waited for.
    pub async fn says_or_has_said(&mut self, text: &str) -> String {
        match self.said.iter().find_map(|line| line.split_once(text)) {
            Some((_, rest)) => rest.to_owned(),
            None => self.says(text).await,
        }
    }

    /// All that it has said so far.
    pub fn said(&self) -> String {
        self.said.join("\n")
    }

    pub fn lines(&self) -> &[String] {
        &self.said
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().unwrap() as i32).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Reads its configuration again; whether it takes it, and the line that says so.
    pub async fn hang_up(&mut self) -> Result<String, String> {
        self.signal(Signal::HUP);
        let told = self.says("SIGHUP: the configuration ").await;
        if told.starts_with("was read again") { Ok(told) } else { Err(told) }
    }

    /// The exit code, once it has said its last word.
    pub async fn end(&mut self) -> Option<i32> {
        let ending = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                self.said.push(line);
            }
            self.child.wait().await.unwrap().code()
        };
        timeout(DEADLINE * 2, ending).await.expect("it does not end")
    }

    /// The number of the first line that has all of these.
    pub fn line(&self, words: &[&str]) -> usize {
        let found = self.said.iter().position(|line| words.iter().all(|word| line.contains(word)));
        found.unwrap_or_else(|| panic!("nothing of {words:?}: {:#?}", self.said))
    }
}
