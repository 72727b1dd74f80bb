//! `warmd verify | gc | evict | export | import`: keeping a node's artifacts in order, and moving them by hand.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::artifacts::Info;
use super::{Socket, output};
use crate::artifact::SignedManifest;
use crate::digest::{ArtifactId, Digest};
use crate::install::{CacheRoot, verify_installed};
use crate::local::{Client, ClientError};
use crate::protocol::pb::{self, verify_event};

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// One artifact; absent: the whole store
    artifact: Option<ArtifactId>,
    /// Compare what is installed in this cache root with the artifact instead of hashing the store
    #[arg(long, requires = "artifact", value_name = "DIR")]
    installed: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Serialize)]
struct VerifyReport {
    whole: bool,
    checked_chunks: u64,
    checked_bytes: u64,
    corrupt: Vec<Digest>,
    missing: Vec<Digest>,
    incomplete: Vec<ArtifactId>,
}

impl Verify {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.socket.connect().await?;
        if let (Some(id), Some(root)) = (self.artifact, &self.installed) {
            let envelope = client.inspect(id).await?.envelope;
            return installed(envelope, root.clone(), self.json).await;
        }
        let report = stored(&client, self.artifact).await?;
        if self.json {
            output::json(&report)?;
        } else {
            let checked = format!("{} chunks, {}", report.checked_chunks, output::bytes(report.checked_bytes));
            match report.whole {
                true => output::line(format!("whole: {checked}"))?,
                false => output::line(format!(
                    "DAMAGED: {checked}: {} corrupt (deleted), {} missing; incomplete now: {}",
                    report.corrupt.len(),
                    report.missing.len(),
                    report.incomplete.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                ))?,
            }
        }
        Ok(if report.whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

async fn stored(client: &Client, id: Option<ArtifactId>) -> anyhow::Result<VerifyReport> {
    let progress = output::Progress::new("verifying");
    let mut events = client.verify(id).await?;
    while let Some(event) = events.message().await.map_err(ClientError::from)? {
        match event.event {
            Some(verify_event::Event::Progress(now)) => progress.bytes("verifying", now.bytes, now.bytes_total),
            Some(verify_event::Event::Report(report)) => {
                let digests =
                    |all: &[bytes::Bytes]| all.iter().map(|d| Digest::try_from(&d[..])).collect::<Result<_, _>>();
                let incomplete = report.incomplete_artifacts.iter().map(|id| ArtifactId::try_from(&id[..]));
                return Ok(VerifyReport {
                    whole: report.corrupt.is_empty() && report.missing.is_empty(),
                    checked_chunks: report.checked_chunks,
                    checked_bytes: report.checked_bytes,
                    corrupt: digests(&report.corrupt)?,
                    missing: digests(&report.missing)?,
                    incomplete: incomplete.collect::<Result<_, _>>()?,
                });
            }
            None => {}
        }
    }
    anyhow::bail!("the agent ended the call without a result")
}

async fn installed(envelope: bytes::Bytes, root: PathBuf, json: bool) -> anyhow::Result<ExitCode> {
    let report = tokio::task::spawn_blocking(move || {
        let signed = SignedManifest::decode_unverified(envelope)?;
        anyhow::Ok(verify_installed(&CacheRoot::open(&root)?, signed.manifest())?)
    })
    .await??;
    let whole = report.is_whole();
    if json {
        let paths = |paths: &[crate::artifact::RelPath]| paths.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (missing, different) = (paths(&report.missing), paths(&report.different));
        let (files, bytes) = (report.files, report.bytes);
        output::json(
            &serde_json::json!({ "whole": whole, "files": files, "bytes": bytes, "missing": missing, "different": different }),
        )?;
    } else if whole {
        output::line("whole: every file is as it was signed")?;
    } else {
        for path in &report.missing {
            output::line(format!("missing: {path}"))?;
        }
        for path in &report.different {
            output::line(format!("DIFFERENT: {path}"))?;
        }
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug, Args)]
pub(super) struct Gc {
    #[command(flatten)]
    socket: Socket,
}

impl Gc {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let swept = self.socket.connect().await?.gc().await?;
        output::line(format!(
            "freed {}: {} chunks of no artifact, {} abandoned and {} evicted artifacts",
            output::bytes(swept.freed_bytes),
            swept.orphan_chunks,
            swept.abandoned.len(),
            swept.evicted.len()
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Evict {
    artifact: ArtifactId,
    #[command(flatten)]
    socket: Socket,
}

impl Evict {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let freed = self.socket.connect().await?.evict(self.artifact).await?;
        output::line(format!("freed {}", output::bytes(freed)))?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Export {
    artifact: ArtifactId,
    /// File to write; `-` for standard output
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    socket: Socket,
}

impl Export {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.socket.connect().await?;
        let mut pieces = client.export(self.artifact).await?;
        let progress = output::Progress::new("exporting");
        let mut out: Box<dyn tokio::io::AsyncWrite + Unpin> = match self.out.as_os_str() == "-" {
            true => Box::new(tokio::io::stdout()),
            false => Box::new(
                tokio::fs::File::create(&self.out).await.with_context(|| format!("write {}", self.out.display()))?,
            ),
        };
        let mut bytes = 0;
        while let Some(piece) = pieces.message().await.map_err(ClientError::from)? {
            out.write_all(&piece.data).await.context("write archive")?;
            bytes += piece.data.len() as u64;
            progress.bytes("exporting", bytes, 0);
        }
        out.flush().await.context("write archive")?;
        drop(progress);
        output::note(format!("exported {}", output::bytes(bytes)));
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// File to read; `-` for standard input
    file: PathBuf,
    #[command(flatten)]
    socket: Socket,
}

impl Import {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.socket.connect().await?;
        let file: Box<dyn tokio::io::AsyncRead + Send + Unpin> = match self.file.as_os_str() == "-" {
            true => Box::new(tokio::io::stdin()),
            false => Box::new(
                tokio::fs::File::open(&self.file).await.with_context(|| format!("read {}", self.file.display()))?,
            ),
        };
        let (pieces, receiver) = tokio::sync::mpsc::channel(16);
        let sending = send(file, pieces);
        let importing = client.import(tokio_stream::wrappers::ReceiverStream::new(receiver));
        let (sent, imported) = tokio::join!(sending, importing);
        // The agent's answer says more than the broken stream that follows from it.
        let imported = imported?;
        sent?;
        let info = Info::try_from(imported.info.as_ref().context("the agent left out what it imported")?)?;
        output::line(info.artifact.to_string())?;
        output::note(format!("imported {} files, {}", info.files, output::bytes(info.bytes)));
        Ok(ExitCode::SUCCESS)
    }
}

async fn send(
    mut file: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
    pieces: tokio::sync::mpsc::Sender<pb::ArchiveBytes>,
) -> anyhow::Result<()> {
    loop {
        let mut data = bytes::BytesMut::with_capacity(256 * 1024);
        let read = file.read_buf(&mut data).await.context("read archive")?;
        // The agent has had enough and says why.
        if read == 0 || pieces.send(pb::ArchiveBytes { data: data.freeze() }).await.is_err() {
            return Ok(());
        }
    }
}
