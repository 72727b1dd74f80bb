//! `warmd facts`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::output;
use crate::caches::{self, Environment, Fact, Interpreter, Known, Launch, Probe, name_of_gpu};

/// Characters of a line of a value.
const WIDTH: usize = 90;

#[derive(Debug, Args)]
pub(super) struct Facts {
    /// Python interpreter that runs the engine; absent: the one that the command names
    #[arg(long, env = "WARMD_PYTHON", value_name = "PATH")]
    python: Option<PathBuf>,
    /// Digest of the image that this runs in
    #[arg(long, env = "WARMD_IMAGE_DIGEST", value_name = "DIGEST")]
    image_digest: Option<String>,
    /// Time for the interpreter
    #[arg(long, env = "WARMD_FACTS_TIMEOUT", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Directory of kept answers; absent: warmd/facts in the user's cache directory
    #[arg(long, env = "WARMD_FACTS_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Ask the interpreter even if nothing has changed, and keep nothing
    #[arg(long)]
    no_cache: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The engine's command, such as `-- vllm serve MODEL`; absent: `vllm`
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    interpreter: PathBuf,
    /// Whether the answer is an earlier one that still holds.
    kept: bool,
    seconds: f64,
    facts: &'a caches::Facts,
}

impl Facts {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let mut environment = Environment::of_this_process();
        if let Some(digest) = &self.image_digest {
            environment.set("WARMD_IMAGE_DIGEST", digest);
        }
        let named = if self.command.is_empty() { &["vllm".to_owned()][..] } else { &self.command };
        let interpreter = Interpreter::find(named, self.python.as_deref(), &environment)?;
        let cache = self.cache.clone().or_else(|| Probe::default_cache(&environment)).filter(|_| !self.no_cache);
        let probe = Probe { interpreter, environment, deadline: self.timeout, cache };
        let mut probed = probe.run().await?;
        self.add_launch(&probe.environment, &mut probed.facts);
        let seconds = probed.took.as_secs_f64();
        let report = Report { interpreter: probe.interpreter.python, kept: probed.kept, seconds, facts: &probed.facts };
        if self.json {
            output::json(&report)?;
        } else {
            show(&report)?;
        }
        let failed = probed.facts.failed().next().is_some();
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// What the command line alone tells.
    fn add_launch(&self, environment: &Environment, facts: &mut caches::Facts) {
        let of = |value: Option<&str>, what: &str| match value {
            Some(value) => Known::Value(value.to_owned()).checked(),
            None => Known::Absent(format!("the command names no {what}")),
        };
        let absent = || Known::Absent("no command was given".to_owned());
        let (model, revision, launch) = match Launch::parse(&self.command) {
            _ if self.command.is_empty() => (absent(), absent(), absent()),
            Err(error) => (absent(), absent(), Known::Failed(error.to_string())),
            Ok(launch) => {
                launch.notes().iter().for_each(output::note);
                let digest = launch.digest(self.image_digest.as_deref(), name_of_gpu().as_deref(), environment);
                (of(launch.model(), "model"), of(launch.revision(), "revision"), Known::Value(digest.to_string()))
            }
        };
        facts.set(Fact::Model, model);
        facts.set(Fact::Revision, revision);
        facts.set(Fact::Launch, launch);
    }
}

fn show(report: &Report<'_>) -> anyhow::Result<()> {
    // What failed comes last, where it is seen.
    let order = |known: &Known| match known {
        Known::Value(_) => 0,
        Known::Absent(_) => 1,
        Known::Failed(_) => 2,
    };
    let told = |known: &Known| match known {
        Known::Value(value) => value.clone(),
        Known::Absent(reason) => format!("- ({reason})"),
        Known::Failed(reason) => format!("FAILED: {reason}"),
    };
    let mut facts: Vec<(Fact, &Known)> = report.facts.iter().collect();
    facts.sort_by_key(|(_, known)| order(known));
    let mut rows = Vec::new();
    for (fact, known) in facts {
        for (at, part) in wrapped(&told(known)).into_iter().enumerate() {
            rows.push(vec![if at == 0 { fact.name().to_owned() } else { String::new() }, part]);
        }
    }
    output::table(&rows)?;
    let how = if report.kept { "kept from before and still true, looked up in" } else { "read in" };
    let interpreter = report.interpreter.display();
    output::note(format!("facts of {interpreter}, {how} {}", output::seconds(report.seconds)));
    let failed = report.facts.failed().count();
    if failed > 0 {
        output::note(format!(
            "{} failed: families that need one of them are left out",
            output::count(failed as u64, "fact")
        ));
    }
    Ok(())
}

/// Lines of about the width of a terminal, beside the names.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + word.chars().count() < WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_wrapped_between_words_and_nothing_is_lost() {
        let text = ["avx512"; 40].join(" ");
        let lines = wrapped(&text);
        assert!(lines.len() > 1 && lines.iter().all(|line| line.len() <= WIDTH));
        assert_eq!(lines.join(" "), text);
        assert_eq!(wrapped(&"x".repeat(200)).len(), 1);
        assert_eq!(wrapped(""), [""]);
    }
}
