//! `warmd audit`: what was installed, refused and taken away on this node.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::output;
use crate::telemetry::audit::{Line, read, verify};

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
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let directory = self.state_dir.join("audit");
        if !self.verify {
            return self.lines(&directory);
        }
        let verified = verify(&directory, |_| ())?;
        if self.json {
            output::json(&verified)?;
        } else {
            let head = verified.head;
            output::line(format!("{} lines from number {}, all in order", verified.lines, verified.first))?;
            output::line(format!("last: {} {}", head.number, head.digest))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// All that can be read, also after a place where the chain is broken: that is marked, and told by the exit code.
    fn lines(&self, directory: &Path) -> anyhow::Result<ExitCode> {
        let (mut found, mut breaks) = (Vec::new(), 0);
        read(directory, |one| {
            breaks += u64::from(one.is_err());
            found.push(one);
        })?;
        if self.json {
            for one in &found {
                output::line(match one {
                    Ok(line) => serde_json::to_string(line)?,
                    Err(error) => serde_json::json!({ "broken": error.to_string() }).to_string(),
                })?;
            }
        } else {
            let head = ["TIME", "WHAT", "BY", "ARTIFACT", "FAMILY", "FROM", "RULE", "RESULT"];
            let rows = found.iter().map(|one| match one {
                Ok(line) => row(line),
                Err(error) => ["BROKEN", "-", "-", "-", "-", "-", "-", &error.to_string()].map(str::to_owned).to_vec(),
            });
            output::table(&std::iter::once(head.map(str::to_owned).to_vec()).chain(rows).collect::<Vec<_>>())?;
        }
        if breaks == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        output::note(format!("warmd: the log is broken in {}", output::count(breaks, "place")));
        Ok(ExitCode::FAILURE)
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
