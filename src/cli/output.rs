//! What people and machines read: tables, bytes and times in words, progress bars, JSON.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;

/// Writes a line of a result. A closed pipe (`warmd ls | head`) ends quietly.
pub(super) fn line(text: impl AsRef<str>) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{}", text.as_ref()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.context("write to standard output"),
    }
}

pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// A remark that is not part of the result.
pub(super) fn note(text: impl AsRef<str>) {
    // Nowhere is left to report a failure of this write to.
    let _ = writeln!(std::io::stderr(), "{}", text.as_ref());
}

pub(super) fn bytes(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// Without control characters: what others have written cannot reach the terminal's controls.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `1 holder`, `2 holders`.
pub(super) fn count(number: impl Into<u64>, noun: &str) -> String {
    match number.into() {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    }
}

/// Who has it: without holders, only the origin.
pub(super) fn holders(number: u32) -> String {
    if number == 0 { "the origin".to_owned() } else { count(number, "holder") }
}

/// Bytes a second, in words; `-` for no time at all.
pub(super) fn rate(bytes: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return "-".to_owned();
    }
    // Bytes and seconds of one transfer are far below 2^53.
    format!("{}/s", HumanBytes((bytes as f64 / seconds) as u64))
}

pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 100.0 => format!("{s:.2} s"),
        s => format!("{s:.0} s"),
    }
}

/// Columns as wide as their widest cell; the first row is the head.
pub(super) fn table(rows: &[Vec<String>]) -> anyhow::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        line(cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// A bar on a terminal, nothing elsewhere.
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn new(what: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message(what.to_owned());
        let progress = Self(bar);
        progress.style("{spinner} {msg}");
        progress
    }

    fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
    }

    /// What is being done, without a measure.
    pub(super) fn step(&self, what: &str) {
        self.style("{spinner} {msg}");
        self.0.set_message(what.to_owned());
    }

    /// Bytes done of `total`; 0 for an unknown total.
    pub(super) fn bytes(&self, what: &str, done: u64, total: u64) {
        if total == 0 {
            self.style("{spinner} {msg} {bytes} {bytes_per_sec}");
        } else {
            self.style("{spinner} {msg} {bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            self.0.set_length(total);
        }
        self.0.set_message(what.to_owned());
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_in_words() {
        assert_eq!(bytes(3 * 1024 * 1024), "3.00 MiB");
        assert_eq!(rate(1024, 2.0), "512 B/s");
        assert_eq!(rate(1024, 0.0), "-");
        assert_eq!(count(1u32, "holder"), "1 holder");
        assert_eq!(count(0u32, "holder"), "0 holders");
        assert_eq!(seconds(0.0123), "12 ms");
        assert_eq!(seconds(12.3), "12.30 s");
    }
}
