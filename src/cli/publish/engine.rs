//! `warmd publish -- COMMAND`: what an engine that somebody else started has added to its caches. Like `warmd warm`, it
//! makes nothing fail: a container whose `postStart` hook fails is killed.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::super::exec::READY_TIMEOUT;
use super::super::pod::{self, Caches, SWITCHED_OFF};
use super::super::{aliases, output};
use crate::identity::TrustConfig;
use crate::lifecycle;
use crate::serve::hook::{self, Wait};
use crate::serve::{Say, Target};

/// As long as others try.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30 * 60);

const DETACH: &str = "--detach";
const DETACHED: &str = "--detached";

/// What a family says of itself.
const OF_A_DIRECTORY: [&str; 10] = [
    "directory",
    "family",
    "facts",
    "subject",
    "class",
    "attributes",
    "entry_depth",
    "keep_mtime",
    "skip_special",
    "expires_in",
];

#[derive(Debug, Args)]
pub(in crate::cli) struct Engine {
    #[command(flatten)]
    caches: Caches,
    /// Trust policy of this pod: what came from others and is not trusted any more is not published anew
    #[arg(long, env = "WARMD_TRUST_POLICY", value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Signed root document of this pod, in place of --policy
    #[arg(long, env = "WARMD_TRUST_ROOT", value_name = "FILE")]
    trust_root: Option<PathBuf>,
    /// Wait until this URL answers 200; without one, the engine's own /health
    #[arg(long, value_name = "URL", num_args = 0..=1, conflicts_with = "directory")]
    wait_ready: Option<Option<String>>,
    /// An engine that is not ready by then publishes nothing [default: 1h]
    #[arg(long, env = "WARMD_READY_TIMEOUT", value_parser = humantime::parse_duration)]
    ready_timeout: Option<Duration>,
    /// For the caches to come to rest and for the agent to take them [default: 30m]
    #[arg(long, env = "WARMD_PUBLISH_TIMEOUT", value_parser = humantime::parse_duration)]
    publish_timeout: Option<Duration>,
    /// Publish once nothing was written to the caches for this long
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    quiet: Duration,
    /// Stay until SIGTERM, and publish what is added
    #[arg(long, conflicts_with = "directory")]
    follow: bool,
    /// Go on in the background, in a session of its own, and return at once
    #[arg(long, conflicts_with = "directory")]
    detach: bool,
    /// Where that writes to; absent: .warmd/publish.log below the cache root
    #[arg(long, value_name = "FILE", requires = "detach")]
    log: Option<PathBuf>,
    #[arg(long, hide = true, conflicts_with_all = ["directory", "detach"])]
    detached: bool,
    /// Exit with 1 if something was not published
    #[arg(long, conflicts_with = "directory")]
    require: bool,
    /// What an engine was started by, such as `-- vllm serve MODEL`, in place of a directory: all that it has added to its
    /// caches, and nothing that came from other nodes
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = OF_A_DIRECTORY)]
    command: Vec<String>,
}

impl Engine {
    pub(super) async fn run(mut self, socket: PathBuf, image: Option<String>, json: bool) -> anyhow::Result<ExitCode> {
        let target = self.caches.target(socket, image, std::mem::take(&mut self.command));
        if self.detach {
            return self.go_on_in_background(&target).map(|()| ExitCode::SUCCESS);
        }
        if self.detached {
            // Without its terminal, and out of the way of signals to whoever began it.
            rustix::process::setsid().context("begin a session")?;
        }
        self.caches.take_aliases();
        if self.caches.is_off() {
            output::note(format!("warmd: nothing is published: {SWITCHED_OFF}"));
            return Ok(ExitCode::SUCCESS);
        }
        let require = self.require;
        let say: Say = Arc::new(|line| output::note(format!("warmd: {line}")));
        let job = self.job(target);
        let published = tokio::select! {
            published = hook::publish(job, &say) => published,
            ended = lifecycle::terminated() => {
                ended.context("wait for signals")?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        match published {
            Ok(artifacts) if json => output::json(&serde_json::json!({ "published": artifacts }))?,
            Ok(artifacts) => output::line(format!("published: {}", output::count(artifacts as u64, "artifact")))?,
            Err(error) if require => return Err(error.into()),
            Err(error) => say(&format!("not everything is published: {}", super::super::sentence(&error.into()))),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn job(self, target: Target) -> hook::Publish {
        let deadline = aliases::READY_TIMEOUT.or(self.ready_timeout).unwrap_or(READY_TIMEOUT);
        let wait = self.wait_ready.map(|url| {
            let ours = || std::env::var("WARMD_READY_URL").ok().filter(|url| !url.is_empty());
            Wait { url: aliases::READY_URL.or(url.or_else(ours)), deadline }
        });
        let config = TrustConfig { root: self.trust_root, policy: self.policy, ..TrustConfig::default() };
        let knows = config.root.is_some() || config.policy.is_some();
        hook::Publish {
            target,
            trust: knows.then(|| pod::trust(&config, self.caches.cache_root())),
            wait,
            quiet: self.quiet,
            publish_timeout: aliases::PUBLISH_TIMEOUT.or(self.publish_timeout).unwrap_or(PUBLISH_TIMEOUT),
            follow: self.follow,
        }
    }

    /// The same command once more. Nothing of ours stays open in it: whoever runs a hook waits for its output to end.
    fn go_on_in_background(&self, target: &Target) -> anyhow::Result<()> {
        let (path, log) = self.open_log(target)?;
        let program = std::env::current_exe().context("find this program")?;
        let mut command = std::process::Command::new(program);
        command.args(detached(std::env::args_os().skip(1)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("start a process in the background")?;
        output::note(format!("warmd: publishing goes on as process {}, see {}", child.id(), path.display()));
        Ok(())
    }

    fn open_log(&self, target: &Target) -> anyhow::Result<(PathBuf, File)> {
        let Some(path) = &self.log else { return Ok(hook::log(target)?) };
        let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        Ok((path.clone(), opened.with_context(|| format!("open {}", path.display()))?))
    }
}

/// Arguments for the one in the background; those of the engine stay as they are.
fn detached(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut own = true;
    arguments
        .map(|argument| {
            own &= argument != "--";
            if own && argument == DETACH { DETACHED.into() } else { argument }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_argument_is_changed_for_the_process_in_the_background() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let given = words("publish --detach --follow -- vllm serve m --detach");
        assert_eq!(detached(given.into_iter()), words("publish --detached --follow -- vllm serve m --detach"));
    }
}
