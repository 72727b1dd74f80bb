//! `warmd doctor`, of one start; [`fleet::doctor`] is that of all nodes.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::pod::Pod;
use super::{fleet, output};
use crate::identity::UnixTime;
use crate::local::Client;
use crate::serve::difference::in_words;
use crate::serve::doctor::{self, Diagnosis, Examination, Finding, Near};
use crate::serve::last_start::LastStart;

/// Near misses, and variants, that are shown of one family; JSON has all.
const SHOWN: usize = 3;

#[derive(Debug, Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    pod: Pod,
    /// Time for the interpreter, for the agent, and for the file system, each
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Look at all nodes instead of one start: clocks, policies, network, disks, caches that nearly fit
    #[arg(long, conflicts_with = "command")]
    fleet: bool,
    /// The engine's command, such as `-- vllm serve MODEL`
    #[arg(last = true, required_unless_present = "fleet", value_name = "COMMAND")]
    command: Vec<String>,
}

impl Doctor {
    pub(super) async fn run(mut self) -> anyhow::Result<ExitCode> {
        if self.fleet {
            return fleet::doctor::run(&Client::connect(self.pod.socket()).await?, self.json).await;
        }
        self.pod.caches.take_aliases();
        let json = self.json;
        let found = self.job().examine().await;
        if json {
            output::json(&found)?;
        } else {
            for line in page(&found, UnixTime::now()) {
                output::line(line)?;
            }
        }
        Ok(if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn job(self) -> doctor::Doctor {
        doctor::Doctor { trust: self.pod.trust(), target: self.pod.target(self.command), timeout: self.timeout }
    }
}

fn page(found: &Examination, now: UnixTime) -> Vec<String> {
    let mut lines: Vec<String> = found.problems.iter().map(|problem| format!("problem: {problem}")).collect();
    lines.extend(found.notes.iter().map(|note| format!("note: {note}")));
    lines.extend(found.interpreter.iter().map(|python| format!("interpreter: {}", python.display())));
    let (absent, concerned): (Vec<_>, Vec<_>) =
        found.families.iter().partition(|one| matches!(one.finding, Finding::NotHere { .. }));
    let width = concerned.iter().map(|one| one.family.len()).max().unwrap_or(0);
    for diagnosis in concerned {
        let (first, more) = told(diagnosis, now);
        let identity = diagnosis.identity.map(|identity| identity.short()).unwrap_or_default();
        let there = match diagnosis.entries {
            0 => String::new(),
            1 => "; 1 entry is in its directory".to_owned(),
            entries => format!("; {entries} entries are in its directory"),
        };
        lines.push(format!("{:width$}  {identity}  {first}{there}", diagnosis.family));
        lines.extend(more.into_iter().map(|line| format!("{:width$}  {line}", "")));
    }
    if !absent.is_empty() {
        let names: Vec<&str> = absent.iter().map(|one| one.family).collect();
        lines.push(format!("not here: {}", names.join(", ")));
    }
    lines.extend(found.last_start.iter().flat_map(|last| last_start(last, found.same_command, now)));
    lines.iter().map(|line| output::plain(line)).collect()
}

/// One line, and those below it.
fn told(diagnosis: &Diagnosis, now: UnixTime) -> (String, Vec<String>) {
    match &diagnosis.finding {
        Finding::Hit { artifacts, holders, bytes, newest, variants } => {
            let first = format!(
                "hit: {}, {} ({}, newest {})",
                output::count(*artifacts as u64, "artifact"),
                output::bytes(*bytes),
                output::holders(*holders),
                age(*newest, now)
            );
            let exact = variants.iter().any(|one| one.differences.as_ref().is_some_and(Vec::is_empty));
            let shown = if exact { 1 } else { SHOWN };
            (first, variants.iter().take(shown).map(|one| variant(one, now)).collect())
        }
        Finding::Untrusted { artifacts, signers } => {
            let signers: Vec<String> = signers.iter().map(|signer| signer.short()).collect();
            let artifacts = output::count(*artifacts as u64, "artifact");
            (format!("not trusted: {artifacts} signed by {}, unknown to the policy", signers.join(", ")), Vec::new())
        }
        Finding::Revoked { artifacts } => {
            (format!("revoked: {}: not installed", output::count(*artifacts as u64, "artifact")), Vec::new())
        }
        Finding::Quarantined { artifacts, reason } => {
            let artifacts = output::count(*artifacts as u64, "artifact");
            (format!("in quarantine: {artifacts}: not installed"), vec![reason.clone()])
        }
        Finding::NearMiss { near } => {
            let mut lines = near.iter().take(SHOWN).map(|one| near_miss(one, now));
            let first = format!("near miss: {}", lines.next().unwrap_or_default());
            let mut more: Vec<String> = lines.map(|line| format!("or: {line}")).collect();
            if near.len() > SHOWN {
                more.push(format!("and {} more", near.len() - SHOWN));
            }
            (first, more)
        }
        Finding::NobodyHasAny => ("nobody has any".to_owned(), Vec::new()),
        Finding::NotAsked => ("not looked up".to_owned(), Vec::new()),
        Finding::NotHere { reason } => (format!("not here: {reason}"), Vec::new()),
        Finding::Failed { reason } => (format!("left out: {reason}"), Vec::new()),
    }
}

fn near_miss(near: &Near, now: UnixTime) -> String {
    let what = match &near.differences {
        Some(differences) => in_words(differences),
        None => format!("other facts, not known: {}", near.unknown.as_deref().unwrap_or("no manifest")),
    };
    format!("{what} ({}, newest {})", output::count(near.holders, "holder"), age(near.newest, now))
}

fn variant(near: &Near, now: UnixTime) -> String {
    let key: String = near.subject.chars().take(12).collect();
    match &near.differences {
        Some(differences) if differences.is_empty() => {
            format!("{key}: made by the same arguments, {}", age(near.newest, now))
        }
        Some(differences) => format!("{key}: {}", in_words(differences)),
        None => format!("{key}: {}", near.unknown.as_deref().unwrap_or("its arguments are not known")),
    }
}

fn last_start(last: &LastStart, same: bool, now: UnixTime) -> Vec<String> {
    let command = if same { "of this command" } else { "of another command" };
    let mut proof = last.proof.lines().into_iter();
    let first = proof.next().unwrap_or_default();
    let mut lines = vec![format!("last start {command}, {}: {first}", age(last.at, now))];
    lines.extend(proof.map(|line| format!("  {line}")));
    lines
}

/// `3 h ago`: in one unit.
fn age(then: UnixTime, now: UnixTime) -> String {
    let seconds = now.seconds().saturating_sub(then.seconds());
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::difference::Difference;

    const NOW: u64 = 1_000_000;

    fn near(differences: &[(&str, &str, &str)]) -> Near {
        let differing = |(name, here, there): &(&str, &str, &str)| Difference {
            name: (*name).to_owned(),
            here: Some((*here).to_owned()),
            there: Some((*there).to_owned()),
        };
        Near {
            differences: Some(differences.iter().map(differing).collect()),
            unknown: None,
            subject: "f985d4c2590825d558b0".to_owned(),
            holders: 2,
            artifacts: 1,
            newest: UnixTime::from_seconds(NOW - 3 * 3600),
            signers: Vec::new(),
        }
    }

    fn diagnosis(family: &'static str, finding: Finding) -> Diagnosis {
        Diagnosis { family, root: None, identity: None, facts: Default::default(), entries: 0, finding }
    }

    #[test]
    fn the_page_has_problems_first_and_one_line_a_family() {
        let near_miss =
            vec![near(&[("model", "./m", "./m/"), ("torch", "2.14.0", "2.13.1")]), near(&[("torch", "2", "1")])];
        let hit = Finding::Hit {
            artifacts: 1,
            holders: 1,
            bytes: 1024,
            newest: UnixTime::from_seconds(NOW - 5),
            variants: vec![near(&[("--max-num-batched-tokens", "2048", "4096")])],
        };
        let found = Examination {
            problems: vec!["no agent\u{1b}[2J".to_owned()],
            families: vec![
                diagnosis("vllm-aot", hit),
                diagnosis("triton", Finding::NearMiss { near: near_miss }),
                diagnosis("quack", Finding::NotHere { reason: "x".to_owned() }),
            ],
            ..Examination::default()
        };
        let expected = [
            "problem: no agent?[2J",
            "vllm-aot    hit: 1 artifact, 1.00 KiB (1 holder, newest 5 s ago)",
            "          f985d4c25908: --max-num-batched-tokens 2048 here, 4096 there",
            "triton      near miss: model ./m here, ./m/ there; torch 2.14.0 here, 2.13.1 there (2 holders, newest 3 h ago)",
            "          or: torch 2 here, 1 there (2 holders, newest 3 h ago)",
            "not here: quack",
        ];
        assert_eq!(page(&found, UnixTime::from_seconds(NOW)), expected);
    }

    #[test]
    fn ages_are_in_words() {
        let told = |seconds| age(UnixTime::from_seconds(NOW - seconds), UnixTime::from_seconds(NOW));
        assert_eq!([5, 300, 7200, 200_000].map(told), ["5 s ago", "5 min ago", "2 h ago", "2 days ago"]);
        assert_eq!(age(UnixTime::from_seconds(NOW + 9), UnixTime::from_seconds(NOW)), "0 s ago");
    }
}
