//! `warmd status` and `warmd top`: what this node does, and what the fleet does.

pub(super) mod doctor;
mod page;
mod screen;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::stdio::stdout;
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use self::page::{View, page};
use self::screen::{Key, Screen};
use super::{Socket, artifacts, output};
use crate::lifecycle;
use crate::local::{Client, FleetPart};
use crate::protocol::fleet::{Fleet, NodeDocument};
use crate::protocol::report::{ProblemKind, UnixMillis};

/// A terminal that is narrower, or that tells no size, wraps lines.
const NARROW: usize = 80;

/// How often, and in which form.
#[derive(Debug, Args)]
struct Show {
    /// Again and again, every so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    watch: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let sensible =
        seconds.filter(|seconds| (Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(seconds));
    sensible.ok_or_else(|| "expected seconds, from 0.1 to a day".to_owned())
}

impl Show {
    /// Calls `show` once, or until it fails.
    async fn each(&self, show: impl AsyncFn(&Client) -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
        let client = self.socket.connect().await?;
        loop {
            show(&client).await?;
            let Some(pause) = self.watch else { return Ok(ExitCode::SUCCESS) };
            tokio::time::sleep(pause).await;
            if !self.json {
                output::line("")?;
            }
        }
    }
}

/// Columns of the terminal; without one nothing is cut.
fn columns() -> usize {
    let size = tcgetwinsize(stdout()).ok().filter(|_| std::io::stdout().is_terminal());
    size.map_or(usize::MAX, |size| usize::from(size.ws_col).max(NARROW))
}

/// Identities are only in JSON.
fn part(json: bool) -> FleetPart {
    if json { FleetPart::All } else { FleetPart::Nodes }
}

/// In one line where there is to be more than one.
fn json(value: &impl Serialize, watch: bool) -> anyhow::Result<()> {
    if watch { output::line(serde_json::to_string(value)?) } else { output::json(value) }
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// All nodes that the metadata server knows
    #[arg(long)]
    fleet: bool,
    #[command(flatten)]
    show: Show,
}

#[derive(Serialize)]
struct NodeStatus {
    #[serde(flatten)]
    status: artifacts::StatusReport,
    /// What the node tells others of itself.
    here: NodeDocument,
}

impl Status {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let Show { watch, json: as_json, .. } = self.show;
        if self.fleet {
            let show = async |client: &Client| once(client.fleet(part(as_json)).await?, as_json, watch.is_some());
            return self.show.each(show).await;
        }
        let show = async |client: &Client| {
            let status = artifacts::StatusReport::try_from(client.status().await?)?;
            let here = own(client).await?;
            if as_json {
                return json(&NodeStatus { status, here }, watch.is_some());
            }
            let now = UnixMillis::now();
            let columns = columns();
            page::problems(&here, columns).into_iter().try_for_each(output::line)?;
            status.show(unreached(&here))?;
            page::activity(&here, now, columns).into_iter().try_for_each(output::line)
        };
        self.show.each(show).await
    }
}

/// The problem tells it after a colon.
fn unreached(here: &NodeDocument) -> Option<&str> {
    let problems = here.report.as_ref()?.problems.iter();
    let problem = problems.into_iter().find(|problem| problem.kind == ProblemKind::NoDirectory)?;
    problem.text.as_str().split_once(": ").map(|(_, why)| why)
}

async fn own(client: &Client) -> anyhow::Result<NodeDocument> {
    let here = client.fleet(FleetPart::Here).await?.nodes.pop();
    here.ok_or_else(|| anyhow::anyhow!("the agent told nothing of itself"))
}

fn once(fleet: Fleet, as_json: bool, watch: bool) -> anyhow::Result<()> {
    if as_json {
        return json(&fleet, watch);
    }
    let fleet = fleet.told_apart();
    page(&fleet, View::Fleet, 0, (columns(), None), UnixMillis::now()).into_iter().try_for_each(output::line)
}

#[derive(Debug, Args)]
pub(super) struct Top {
    #[command(flatten)]
    show: Show,
}

impl Top {
    /// Without a terminal, once.
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let Show { watch, json, .. } = self.show;
        if json || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            let show = async |client: &Client| once(client.fleet(part(json)).await?, json, watch.is_some());
            return self.show.each(show).await;
        }
        let client = self.show.socket.connect().await?;
        live(&client, watch.unwrap_or(Duration::from_secs(1))).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Until a key or a signal ends it. Keys do not wait for an agent that is slow to answer.
async fn live(client: &Client, pause: Duration) -> anyhow::Result<()> {
    let mut fleet = client.fleet(FleetPart::Nodes).await?.told_apart();
    let mut screen = Screen::open()?;
    let mut ended = std::pin::pin!(lifecycle::termination()?);
    let again = || async {
        tokio::time::sleep(pause).await;
        client.fleet(FleetPart::Nodes).await
    };
    let mut asking = Box::pin(again());
    let (mut view, mut at) = (View::Fleet, 0usize);
    loop {
        screen.draw(&page(&fleet, view, at, screen.size(), UnixMillis::now()))?;
        tokio::select! {
            () = &mut ended => return Ok(()),
            key = screen.key() => match key {
                None | Some(Key::Quit) => return Ok(()),
                Some(Key::Up) => at = at.saturating_sub(1),
                Some(Key::Down) => at = (at + 1).min(fleet.nodes.len().saturating_sub(1)),
                Some(Key::Node) => view = View::Node,
                Some(Key::Fleet) => view = View::Fleet,
                Some(Key::Resized) => {}
            },
            answer = &mut asking => {
                match answer {
                    Ok(now) => fleet = now.told_apart(),
                    // What was seen last stays, with the reason why it does not move.
                    Err(error) => fleet.limited = error.to_string(),
                }
                asking = Box::pin(again());
            }
        }
    }
}
