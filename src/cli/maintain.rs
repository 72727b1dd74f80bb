//! `warmd verify | gc | evict | export | import`: keeping a node's artifacts in order, and moving them by hand.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::artifacts::Info;
use super::chosen::Chosen;
use super::{Socket, output};
use crate::artifact::SignedManifest;
use crate::digest::{ArtifactId, Digest};
use crate::install::{CacheRoot, verify_installed};
use crate::local::{Client, ClientError};
use crate::protocol::pb::{self, verify_event};

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// One artifact, by its id or the beginning of it; absent: the whole store
    artifact: Option<Chosen>,
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
        let id = match &self.artifact {
            Some(artifact) => Some(artifact.of(&client).await?),
            None => None,
        };
        if let (Some(id), Some(root)) = (id, &self.installed) {
            let envelope = client.inspect(id).await?.envelope;
            return installed(envelope, root.clone(), self.json).await;
        }
        let report = stored(&client, id).await?;
        if self.json {
            output::json(&report)?;
        } else {
            let chunks = output::count(report.checked_chunks, "chunk");
            let checked = format!("{chunks}, {}", output::bytes(report.checked_bytes));
            match report.whole {
                true => output::line(format!("whole: {checked}{}", partial(&report.incomplete)))?,
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

/// What is here in part was not damaged: it is on its way, or was left.
fn partial(incomplete: &[ArtifactId]) -> String {
    let ids: Vec<String> = incomplete.iter().map(ArtifactId::short).collect();
    if ids.is_empty() { String::new() } else { format!("; here in part: {}", ids.join(", ")) }
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
            &json!({ "whole": whole, "files": files, "bytes": bytes, "missing": missing, "different": different }),
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
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

/// What was removed.
#[derive(Serialize)]
struct Swept {
    freed_bytes: u64,
    orphan_chunks: u64,
    revoked: Vec<ArtifactId>,
    abandoned: Vec<ArtifactId>,
    evicted: Vec<ArtifactId>,
}

impl Swept {
    fn in_words(&self) -> String {
        let artifacts = self.revoked.len() + self.abandoned.len() + self.evicted.len();
        format!(
            "freed {}: {} of no artifact, and {} ({} revoked, {} abandoned, {} evicted)",
            output::bytes(self.freed_bytes),
            output::count(self.orphan_chunks, "chunk"),
            output::count(artifacts as u64, "artifact"),
            self.revoked.len(),
            self.abandoned.len(),
            self.evicted.len()
        )
    }
}

impl Gc {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let swept = self.socket.connect().await?.gc().await?;
        let ids = |ids: &[bytes::Bytes]| ids.iter().map(|id| ArtifactId::try_from(&id[..])).collect::<Result<_, _>>();
        let report = Swept {
            freed_bytes: swept.freed_bytes,
            orphan_chunks: swept.orphan_chunks,
            revoked: ids(&swept.revoked)?,
            abandoned: ids(&swept.abandoned)?,
            evicted: ids(&swept.evicted)?,
        };
        match self.json {
            true => output::json(&report)?,
            false => output::line(report.in_words())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Evict {
    /// Its id, or the beginning of it
    artifact: Chosen,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Evict {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.socket.connect().await?;
        let artifact = self.artifact.of(&client).await?;
        let freed = client.evict(artifact).await?;
        match self.json {
            true => output::json(&json!({ "artifact": artifact, "freed_bytes": freed }))?,
            false => output::line(format!("freed {}", output::bytes(freed)))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// Its id, or the beginning of it
    artifact: Chosen,
    /// File to write; `-` for standard output
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Print JSON of what was written; to standard error where the archive goes to standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Export {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.socket.connect().await?;
        let artifact = self.artifact.of(&client).await?;
        let mut pieces = client.export(artifact).await?;
        let progress = output::Progress::new("exporting");
        let is_piped = self.out.as_os_str() == "-";
        let bytes = match is_piped {
            true => copy(&mut pieces, &mut tokio::io::stdout(), &progress).await.context("write archive")?,
            false => {
                let written = written(&self.out, async |file| copy(&mut pieces, file, &progress).await);
                written.await.with_context(|| format!("write {}", self.out.display()))?
            }
        };
        drop(progress);
        let report = json!({ "artifact": artifact, "bytes": bytes });
        match (self.json, is_piped) {
            (true, false) => output::json(&report)?,
            (true, true) => output::note(report.to_string()),
            (false, _) => output::note(format!("exported {}", output::bytes(bytes))),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What has the name of a regular file is whole: it is written beside it, and gone after a failure.
async fn written(
    path: &Path,
    write: impl AsyncFnOnce(&mut tokio::fs::File) -> anyhow::Result<u64>,
) -> anyhow::Result<u64> {
    if path.metadata().is_ok_and(|meta| !meta.is_file()) {
        return write(&mut tokio::fs::OpenOptions::new().write(true).open(path).await?).await;
    }
    // A link goes on leading to the file.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut beside = tempfile::Builder::new();
    let beside = beside.permissions(Permissions::from_mode(0o666)).tempfile_in(parent)?;
    let mut file = tokio::fs::File::from_std(beside.reopen()?);
    let bytes = write(&mut file).await?;
    file.sync_all().await?;
    beside.persist(&path)?;
    Ok(bytes)
}

async fn copy(
    pieces: &mut tonic::Streaming<pb::ArchiveBytes>,
    out: &mut (impl AsyncWrite + Unpin),
    progress: &output::Progress,
) -> anyhow::Result<u64> {
    let mut bytes = 0;
    while let Some(piece) = pieces.message().await.map_err(ClientError::from)? {
        out.write_all(&piece.data).await?;
        bytes += piece.data.len() as u64;
        progress.bytes("exporting", bytes, 0);
    }
    out.flush().await?;
    Ok(bytes)
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// File to read; `-` for standard input
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
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
        if self.json {
            output::json(&info)?;
        } else {
            output::line(info.artifact.to_string())?;
            output::note(format!("imported {}, {}", output::count(info.files, "file"), output::bytes(info.bytes)));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_the_name_is_whole_or_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive.tar");
        let full = written(&path, async |file| {
            file.write_all(b"half").await?;
            file.flush().await?;
            anyhow::bail!("no space left on device")
        });
        assert!(full.await.is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        for text in ["one", "two"] {
            let whole = written(&path, async |file| {
                file.write_all(text.as_bytes()).await?;
                file.flush().await?;
                Ok(text.len() as u64)
            });
            assert_eq!(whole.await.unwrap(), 3);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
