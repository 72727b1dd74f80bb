//! `warmd audit`: what was installed, refused and taken away on this node.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output;
use crate::telemetry::audit::{Line, verify};

#[derive(Debug, Args)]
pub(super) struct Audit {
    /// State directory of the agent
    #[arg(long, env = "WARMD_STATE_DIR", default_value = "/var/lib/warmd", value_name = "DIR")]
    state_dir: PathBuf,
    /// Say whether lines were changed, left out or put in, and print the digest of the last; no lines
    #[arg(long)]
    verify: bool,
    /// Print JSON, one event a line
    #[arg(long)]
    json: bool,
}

impl Audit {
    /// A log that was tampered with is an error, told with the place.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut lines = Vec::new();
        let verified = verify(&self.state_dir.join("audit"), |line| {
            if !self.verify {
                lines.push(line);
            }
        })?;
        if self.verify && self.json {
            output::json(&verified)?;
        } else if self.verify {
            let head = verified.head;
            output::line(format!("{} lines from number {}, all in order", verified.lines, verified.first))?;
            output::line(format!("last: {} {}", head.number, head.digest))?;
        } else if self.json {
            for line in &lines {
                output::line(serde_json::to_string(line)?)?;
            }
        } else {
            let head = ["TIME", "WHAT", "BY", "ARTIFACT", "FAMILY", "FROM", "RULE", "RESULT"];
            let rows = std::iter::once(head.map(str::to_owned).to_vec()).chain(lines.iter().map(row));
            output::table(&rows.collect::<Vec<_>>())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(Line { at, event, .. }: &Line) -> Vec<String> {
    let action = serde_json::to_value(event.action).ok().and_then(|name| name.as_str().map(str::to_owned));
    let artifact = event.artifact.chars().take(8).collect();
    let texts = [action.unwrap_or_default(), event.by.clone(), artifact, event.family.clone(), event.from.clone()];
    let told = [event.rule.clone(), event.result.clone()];
    let or_dash = |text: &String| if text.is_empty() { "-".to_owned() } else { output::plain(text) };
    std::iter::once(at).chain(&texts).chain(&told).map(or_dash).collect()
}
