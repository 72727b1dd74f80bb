//! What a process of this test prints, for code that cannot await.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc;

use super::cluster::DEADLINE;

/// Its lines. A thread reads them, so that the process never waits for a reader, and this test not for ever.
pub struct Lines(mpsc::Receiver<String>);

impl Lines {
    pub fn of(output: impl Read + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Read on though nobody wants it any more.
                let _ = sender.send(line);
            }
        });
        Self(lines)
    }

    /// What `found` makes of the first line that it takes, `what` in words.
    pub fn find<T>(&self, what: &str, found: impl Fn(&str) -> Option<T>) -> T {
        loop {
            let line = self.0.recv_timeout(DEADLINE).unwrap_or_else(|error| panic!("no `{what}` is printed: {error}"));
            if let Some(found) = found(&line) {
                return found;
            }
        }
    }

    /// What follows `text` on the next line that has it.
    pub fn after(&self, text: &str) -> String {
        self.find(text, |line| line.split_once(text).map(|(_, rest)| rest.to_owned()))
    }
}
