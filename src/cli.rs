//! The command line: one file a subcommand. Results go to standard output, everything else to standard error.

mod adapter;
mod agent;
mod aliases;
mod artifacts;
mod audit;
mod chosen;
mod completions;
mod config;
mod copy;
mod doctor;
mod exec;
mod facts;
mod fleet;
mod keys;
mod maintain;
mod man;
mod metadata;
mod origin;
mod output;
mod page;
mod pod;
mod policy;
mod publish;
mod quarantine;
mod quickstart;
mod reload;
mod sample;
mod serve;
mod warm;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};

use crate::local;
use crate::telemetry::trace::Exporter;
use crate::telemetry::{LogConfig, LogFormat, TracingConfig};

/// Keeps vLLM nodes warm: signed compiled caches and adapters, from peer to peer.
#[derive(Debug, Parser)]
#[command(name = "warmd", version = env!("BUILD_VERSION"), propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log level or filter: error, warn, info, debug, or `warmd=debug,quinn=warn`
    #[arg(long, global = true, env = "WARMD_LOG_LEVEL", value_name = "FILTER")]
    log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything on this machine: a metadata server, two agents, and a real transfer of the directories you name
    Quickstart(quickstart::Quickstart),
    /// Start an engine warm: bring its caches, run it, tell what it used, publish what it adds
    Exec(exec::Exec),
    /// Keep an engine warm and running behind an OpenAI-compatible proxy that brings adapters on demand
    Serve(serve::Serve),
    /// Before a start: what would hit, and of what nearly fits exactly what differs. After one: what came of it. Or what is
    /// wrong with the whole fleet
    Doctor(doctor::Doctor),
    /// The node daemon; with an engine section in its file, the engine and its proxy too
    Agent(agent::Agent),
    /// The metadata server: who holds what
    Metadata(metadata::Metadata),
    /// Sign a directory and offer it to the fleet
    Publish(publish::Publish),
    /// LoRA adapters, from whoever trained them to the fleet
    #[command(subcommand)]
    Adapter(adapter::Adapter),
    /// Bring the artifacts of an identity into a cache root
    Warm(warm::Warm),
    /// This node: what is wrong, what it fetches, how its starts were; or all nodes
    Status(fleet::Status),
    /// The fleet, live: nodes, transfers, problems
    Top(fleet::Top),
    /// Artifacts of this node
    Ls(artifacts::Ls),
    /// One artifact's manifest
    Inspect(artifacts::Inspect),
    /// Hash what is stored, or what is installed in a cache root
    Verify(maintain::Verify),
    /// Remove what is revoked, what nothing refers to, and what is over the limits
    Gc(maintain::Gc),
    /// Remove an artifact from this node
    Evict(maintain::Evict),
    /// Artifacts that engines crashed with on this node: they are not installed again
    #[command(subcommand)]
    Quarantine(quarantine::Quarantine),
    /// What was installed, refused and taken away on this node, from whom and under which rule
    Audit(audit::Audit),
    /// Write an artifact as a tar archive
    Export(maintain::Export),
    /// Read an artifact from a tar archive, verified like a transfer from a peer
    Import(maintain::Import),
    /// The object store behind all nodes: write artifacts to it, read them from it, list what it has
    #[command(subcommand)]
    Origin(origin::Origin),
    /// What this node is and runs, as far as it decides which caches fit it
    Facts(facts::Facts),
    /// Keys and certificates of the cluster, nodes and signers
    #[command(subcommand)]
    Keys(keys::Keys),
    /// The trust policy: whose artifacts may be installed
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Configuration files
    #[command(subcommand)]
    Config(config::Config),
    /// Copy this program into a directory, for containers of other images
    Copy(copy::Copy),
    /// Print completions for a shell
    Completions(completions::Completions),
    /// Write the manual pages
    Man(man::Man),
}

/// Where the agent listens.
#[derive(Debug, Args)]
struct Socket {
    /// Unix socket of the agent
    #[arg(long, env = "WARMD_SOCKET", default_value = "/run/warmd/agent.sock", value_name = "PATH")]
    socket: PathBuf,
}

impl Socket {
    async fn connect(&self) -> anyhow::Result<local::Client> {
        Ok(local::Client::connect(&self.socket).await?)
    }
}

/// The command line of this process; a wrong one ends it, told with the way out.
pub fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| with_dashes(error).exit())
}

/// Says where an engine's command belongs, to those who left out the `--` before it.
fn with_dashes(mut error: clap::Error) -> clap::Error {
    let takes_command = error.get(ContextKind::Usage).is_some_and(|usage| usage.to_string().contains("-- <COMMAND>"));
    let program = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if takes_command && !word.starts_with('-') => word.clone(),
        _ => return error,
    };
    if error.kind() == ErrorKind::UnknownArgument {
        let tip = format!("the engine's command comes after `--`: `-- {program} ...`");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// For threads that remove what a command has left half done. One that hangs on a file system is not waited for.
const CLEANING_UP: Duration = Duration::from_secs(1);

/// For traces that wait when a process ends.
const LAST_EXPORT: Duration = Duration::from_secs(2);

/// Variables with the keys of `[tracing]`, for commands that read no file.
const TRACING: &str = "WARMD_TRACING_";

fn tracing_of_environment() -> anyhow::Result<TracingConfig> {
    let variables = std::env::vars().filter(|(name, _)| name.starts_with(TRACING));
    Ok(crate::config::load::<crate::config::Environmental>(None, variables)?.tracing)
}

/// How long something is to be valid: it counts in seconds, and none would be taken for "without end".
fn lifetime(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let is_some = duration >= Duration::from_secs(1);
    is_some.then_some(duration).ok_or_else(|| "a second is the least; for no end leave the option out".to_owned())
}

/// Runs one subcommand to its end.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let level = cli.log_level;
    match cli.command {
        Command::Agent(command) => command.run(level),
        Command::Metadata(command) => command.run(level),
        Command::Serve(command) => command.run(level),
        other => {
            // Short commands speak through their results; logs are for those who ask.
            let log = LogConfig { level: level.unwrap_or_else(|| "warn".to_owned()), format: LogFormat::Text };
            // A command about configurations judges what the environment says; it does not run by it.
            let is_about_it = matches!(other, Command::Config(_));
            let tracing = if is_about_it { TracingConfig::default() } else { tracing_of_environment()? };
            let exporter = crate::telemetry::init(&log, &tracing, "warmd")?;
            let runtime = runtime()?;
            let ended = runtime.block_on(async {
                let exporting = exporter.map(Exporter::run);
                let ended = short(other).await;
                if let Some(exporting) = exporting {
                    exporting.shutdown(LAST_EXPORT).await;
                }
                ended
            });
            runtime.shutdown_timeout(CLEANING_UP);
            ended
        }
    }
}

async fn short(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Quickstart(command) => command.run().await,
        Command::Exec(command) => command.run().await,
        Command::Doctor(command) => command.run().await,
        Command::Publish(command) => command.run().await,
        Command::Adapter(command) => command.run().await,
        Command::Warm(command) => command.run().await,
        Command::Status(command) => command.run().await,
        Command::Top(command) => command.run().await,
        Command::Ls(command) => command.run().await,
        Command::Inspect(command) => command.run().await,
        Command::Verify(command) => command.run().await,
        Command::Gc(command) => command.run().await,
        Command::Evict(command) => command.run().await,
        Command::Export(command) => command.run().await,
        Command::Import(command) => command.run().await,
        Command::Origin(command) => command.run().await,
        Command::Facts(command) => command.run().await,
        Command::Quarantine(command) => command.run(),
        Command::Audit(command) => command.run(),
        Command::Keys(command) => command.run(),
        Command::Policy(command) => command.run().await,
        Command::Copy(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
        Command::Config(command) => command.run().await,
        Command::Agent(_) | Command::Metadata(_) | Command::Serve(_) => Ok(ExitCode::SUCCESS),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the async runtime")
}

/// An error on standard error.
pub fn report(error: &anyhow::Error) {
    // Nowhere is left to report a failure of this write to.
    let _ = writeln!(std::io::stderr(), "warmd: {}", sentence(error));
}

/// An error and its causes in one line.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Transparent wrappers repeat the text of what they wrap.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_and_what_is_not_for_a_command_are_not_taken_together() {
        let accepts = |words: &str| Cli::try_parse_from(words.split(' ')).is_ok();
        for command in
            ["warmd warm", "warmd publish", "warmd publish --wait-ready", "warmd publish --wait-ready http://h"]
        {
            assert!(accepts(&format!("{command} -- vllm serve m")), "{command}");
            assert!(!accepts(command), "{command}");
        }
        assert!(accepts("warmd warm --into d") && accepts("warmd publish d --fact a=b"));
        for both in ["warm --into d", "warm --fact a=b", "publish d", "publish --fact a=b", "publish --family triton"] {
            assert!(!accepts(&format!("warmd {both} -- vllm serve m")), "{both}");
        }
        assert!(!accepts("warmd publish d --detach") && !accepts("warmd publish --log f -- vllm serve m"));
    }

    #[test]
    fn what_would_expire_at_once_is_refused_and_not_taken_for_without_end() {
        for none in ["0s", "0", "999ms", "soon"] {
            assert!(lifetime(none).is_err(), "{none}");
        }
        assert_eq!(lifetime("1s"), Ok(Duration::from_secs(1)));
        assert!(Cli::try_parse_from(["warmd", "publish", "d", "--expires-in", "0s"]).is_err());
        assert!(Cli::try_parse_from(["warmd", "keys", "node", "d", "--cluster", "c", "--valid-for", "0s"]).is_err());
    }

    #[test]
    fn a_cause_that_its_wrapper_has_told_already_is_told_once() {
        let told = anyhow::anyhow!("no such file").context("read policy.toml: no such file").context("trust policy");
        assert_eq!(sentence(&told), "trust policy: read policy.toml: no such file");
    }
}
