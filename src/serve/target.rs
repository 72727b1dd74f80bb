//! What every hook begins with: which engine on which caches, and what can be known of them before it starts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::outlook::{Inquiry, Outlook};
use crate::caches::{Directories, Environment, Launch};
use crate::engine::{self, Serving};
use crate::local::chain;

/// One line for the user.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// Which engine, where its caches are, and where the agent is.
#[derive(Debug, Clone)]
pub struct Target {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Replaces the interpreter that the command names.
    pub python: Option<PathBuf>,
    /// Directory below which the caches are, unless the environment says where.
    pub root: Option<PathBuf>,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Answers of the interpreter are kept here.
    pub facts_cache: Option<PathBuf>,
    pub image: Option<String>,
    /// Changes of the environment that the engine is started with; `None` takes a variable away.
    pub changes: Vec<(String, Option<String>)>,
}

/// A target looked at.
#[derive(Debug, Default)]
pub(super) struct Site {
    /// The engine's, with the directory variables.
    pub(super) environment: Environment,
    /// Variables that have to be set for the engine.
    pub(super) changes: BTreeMap<String, String>,
    /// Below which the caches are.
    pub(super) root: Option<PathBuf>,
    /// Absent where the command line is not understood.
    pub(super) launch: Option<Launch>,
    /// Empty until [`Site::identify`].
    pub(super) outlook: Outlook,
}

impl Site {
    /// What the command and the environment tell. Asks nobody.
    pub(super) fn of(target: &Target, say: &Say) -> Self {
        let mut environment = Environment::of_this_process();
        for (name, value) in &target.changes {
            match value {
                Some(value) => environment.set(name, value),
                None => environment.unset(name),
            }
        }
        let (mut changes, mut root) = (BTreeMap::new(), None);
        match Directories::choose(target.root.as_deref(), &environment) {
            Ok(directories) => {
                if let Some(notice) = directories.notice() {
                    say(&notice);
                }
                directories.apply(&mut environment);
                root = Some(directories.root().to_owned());
                let set = directories.changes().iter();
                changes = set.map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            }
            Err(error) => say(&format!("cache directories are left as they are: {error}")),
        }
        let launch = Launch::parse(&target.command);
        match &launch {
            Ok(launch) => launch.notes().iter().for_each(|note| say(note)),
            Err(error) => say(&format!("the engine's command line is not understood: {error}")),
        }
        Self { environment, changes, root, launch: launch.ok(), outlook: Outlook::default() }
    }

    /// Asks the interpreter for facts, within `deadline`. Fails with the reason why nothing is known.
    pub(super) async fn identify(&mut self, target: &Target, deadline: Duration, say: &Say) -> Result<(), String> {
        let inquiry = Inquiry {
            command: &target.command,
            python: target.python.as_deref(),
            image: target.image.as_deref(),
            environment: &self.environment,
            launch: self.launch.as_ref(),
            cache: target.facts_cache.clone(),
            deadline,
        };
        let interpreter = inquiry.interpreter().map_err(|error| error.to_string())?;
        let found = timeout(deadline, inquiry.findings(interpreter)).await;
        let found = found.map_err(|_| format!("no facts within {deadline:?}"))?.map_err(|error| chain(&error))?;
        found.outlook.left_out().iter().chain(&found.lacks).for_each(|line| say(line));
        self.outlook = found.outlook;
        Ok(())
    }

    /// The command in the form that is compared and published.
    pub(super) fn canonical(&self) -> BTreeMap<String, String> {
        self.launch.as_ref().map(|launch| launch.canonical(&self.environment)).unwrap_or_default()
    }

    /// Where the engine tells that it is ready: at `url`, or as its command line says.
    pub(super) fn readiness(&self, url: Option<&str>) -> Result<engine::Probe, engine::ProbeError> {
        match (url, &self.launch) {
            (Some(url), _) => engine::Probe::of_url(url),
            (None, Some(launch)) => engine::Probe::of_engine(&serving(launch), &self.environment),
            (None, None) => engine::Probe::of_engine(&Serving::default(), &self.environment),
        }
    }
}

fn serving(launch: &Launch) -> Serving {
    let text = |name: &str| launch.option(name).map(str::to_owned);
    let defaults = Serving::default();
    Serving {
        host: launch.host().map(str::to_owned),
        port: launch.port().unwrap_or(defaults.port),
        socket: launch.uds().map(Into::into),
        certificate: text("ssl-certfile").map(Into::into),
        headless: launch.is_headless(),
        node_rank: launch.option("node-rank").and_then(|rank| rank.parse().ok()).unwrap_or(0),
        server_on_every_node: launch.has("data-parallel-external-lb") || launch.has("data-parallel-hybrid-lb"),
        data_parallel_address: text("data-parallel-address"),
        master_address: text("master-addr"),
    }
}
