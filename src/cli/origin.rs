//! `warmd origin push | pull | ls`: the object store behind all nodes, as this node's agent reaches it.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::artifacts::{Info, list, show};
use super::chosen::Chosen;
use super::{Socket, output};
use crate::digest::{ArtifactId, Digest};
use crate::local::{Client, ClientError};
use crate::protocol::pb::{OriginPushed, origin_push_event, warm_event};

#[derive(Debug, Subcommand)]
pub(super) enum Origin {
    /// Write artifacts of this node to the origin; what it has already is not written again
    Push(Push),
    /// Bring artifacts from the origin to this node, verified like a transfer from a peer
    Pull(Pull),
    /// Artifacts of the origin
    Ls(Ls),
}

impl Origin {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Push(command) => command.run().await,
            Self::Pull(command) => command.run().await,
            Self::Ls(command) => command.run().await,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Push {
    /// Artifacts by their ids, or the beginning of them
    #[arg(required_unless_present_any = ["family", "all"])]
    artifacts: Vec<Chosen>,
    /// Every whole artifact of this family
    #[arg(long, conflicts_with_all = ["artifacts", "all"])]
    family: Option<String>,
    /// Every whole artifact of this node
    #[arg(long, conflicts_with = "artifacts")]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

/// An artifact that was pushed.
#[derive(Serialize)]
struct Written {
    artifact: ArtifactId,
    written_bytes: u64,
    skipped_bytes: u64,
}

impl Push {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.socket.connect().await?;
        let ids = self.chosen(&client).await?;
        let (mut all, mut left_out) = (Vec::new(), Vec::new());
        for artifact in ids {
            let OriginPushed { written_bytes, skipped_bytes } = match push(&client, artifact).await {
                Ok(pushed) => pushed,
                // The next one may fare better.
                Err(ClientError::Refused(status)) if is_of_one(status.code()) => {
                    left_out.push(format!("{}: {}", artifact.short(), status.message()));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if !self.json {
                output::line(format!(
                    "{artifact}  {} written, {} there before",
                    output::bytes(written_bytes),
                    output::bytes(skipped_bytes)
                ))?;
            }
            all.push(Written { artifact, written_bytes, skipped_bytes });
        }
        if self.json {
            output::json(&all)?;
        }
        let number = output::count(left_out.len() as u64, "artifact");
        anyhow::ensure!(left_out.is_empty(), "{number} left out: {}", output::plain(&left_out.join("; ")));
        Ok(ExitCode::SUCCESS)
    }
}

impl Push {
    async fn chosen(&self, client: &Client) -> anyhow::Result<Vec<ArtifactId>> {
        let all = list(client).await?;
        if !self.artifacts.is_empty() {
            let here = || all.iter().map(|info| info.artifact);
            return self.artifacts.iter().map(|artifact| artifact.among(here(), "`warmd ls`")).collect();
        }
        let whole = all.into_iter().filter(|info| info.chunks_held == info.chunks);
        let wanted = whole.filter(|info| self.family.as_ref().is_none_or(|family| *family == info.family));
        let ids: Vec<ArtifactId> = wanted.map(|info| info.artifact).collect();
        if ids.is_empty() {
            output::note("this node has no whole artifact of that kind: nothing was pushed");
        }
        Ok(ids)
    }
}

/// Whether a refusal concerns this artifact alone: it is revoked, or gone, or not whole.
fn is_of_one(code: tonic::Code) -> bool {
    matches!(code, tonic::Code::PermissionDenied | tonic::Code::NotFound)
}

async fn push(client: &Client, id: ArtifactId) -> Result<OriginPushed, ClientError> {
    let what = format!("pushing {}", id.short());
    let progress = output::Progress::new(&what);
    let mut events = client.origin_push(id).await?;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(origin_push_event::Event::Progress(now)) => progress.bytes(&what, now.bytes, now.bytes_total),
            Some(origin_push_event::Event::Pushed(pushed)) => return Ok(pushed),
            None => {}
        }
    }
    Err(tonic::Status::internal("the agent ended the call without a result").into())
}

#[derive(Debug, Args)]
pub(super) struct Pull {
    /// Id of an artifact, or of an identity: then the newest artifact of each subject
    #[arg(value_name = "ARTIFACT|IDENTITY")]
    id: Digest,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

/// An artifact that is on this node now.
#[derive(Serialize)]
struct Pulled {
    artifact: ArtifactId,
    /// Encoded bytes that were read, and those that were here.
    read_bytes: u64,
    reused_bytes: u64,
}

impl Pull {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let (all, failures) = self.pull().await?;
        if self.json {
            output::json(&all)?;
        } else {
            for Pulled { artifact, read_bytes, reused_bytes } in &all {
                let (read, reused) = (output::bytes(*read_bytes), output::bytes(*reused_bytes));
                output::line(format!("{artifact}  {read} read, {reused} there before"))?;
            }
        }
        anyhow::ensure!(failures.is_empty(), "{}", output::plain(&failures.join("; ")));
        Ok(ExitCode::SUCCESS)
    }

    /// What came, and why other things did not.
    async fn pull(&self) -> anyhow::Result<(Vec<Pulled>, Vec<String>)> {
        let progress = output::Progress::new("pulling");
        let mut events = self.socket.connect().await?.origin_pull(self.id.as_bytes()).await?;
        let (mut all, mut failures) = (Vec::new(), Vec::new());
        while let Some(event) = events.message().await.map_err(ClientError::from)? {
            match event.event {
                Some(warm_event::Event::Progress(now)) => progress.bytes("pulling", now.bytes, now.bytes_total),
                Some(warm_event::Event::Done(done)) if done.failure.is_empty() => all.push(Pulled {
                    artifact: ArtifactId::try_from(&done.artifact_id[..])?,
                    read_bytes: done.wire_bytes,
                    reused_bytes: done.reused_bytes,
                }),
                Some(warm_event::Event::Done(done)) => {
                    failures.push(format!("{}: {}", done.failure_class, done.failure));
                }
                Some(warm_event::Event::Offer(_) | warm_event::Event::Manifest(_)) | None => {}
            }
        }
        Ok((all, failures))
    }
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Only this family
    #[arg(long, default_value = "", hide_default_value = true)]
    family: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Ls {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let reply = self.socket.connect().await?.origin_list(&self.family).await?;
        let all = reply.artifacts.iter().map(Info::try_from).collect::<anyhow::Result<Vec<_>>>()?;
        if self.json {
            output::json(&all)?
        } else {
            show(&all)?
        }
        Ok(ExitCode::SUCCESS)
    }
}
