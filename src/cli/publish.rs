//! `warmd publish`.

mod engine;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use self::engine::Engine;
use super::{Socket, output};
use crate::artifact::{Family, SourceIdentity};
use crate::digest::{ArtifactId, ContentId, IdentityId};
use crate::identity::TrustClass;
use crate::local::{Client, ClientError};
use crate::protocol::pb::{self, PublishRequest, publish_event};
use crate::serve;

/// The source identity, as `publish` and `warm` take it.
#[derive(Debug, Clone, Args)]
pub(super) struct Identity {
    /// Kind of cache
    #[arg(long, default_value = "directory")]
    pub(super) family: Family,
    /// NAME=VALUE that decides whether it can be reused, such as torch=2.13.0; may be repeated
    #[arg(long = "fact", value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub(super) facts: Vec<(String, String)>,
}

pub(super) fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Identity {
    pub(super) fn check(&self) -> anyhow::Result<SourceIdentity> {
        let mut facts = BTreeMap::new();
        for (name, value) in &self.facts {
            let before = facts.insert(name.clone(), value.clone());
            anyhow::ensure!(before.is_none(), "fact `{name}` is given twice");
        }
        Ok(SourceIdentity::new(self.family.clone(), facts)?)
    }
}

#[derive(Debug, Args)]
pub(super) struct Publish {
    /// Directory whose files are offered
    #[arg(required_unless_present = "command")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    identity: Identity,
    /// Name within the identity, such as an adapter's or a variant's; a later publish of the same subject is its next generation
    #[arg(long, default_value = "")]
    subject: String,
    /// What the files can do: data, device-code or host-code
    #[arg(long, default_value = "host-code")]
    class: TrustClass,
    /// Signed NAME=VALUE for readers; may be repeated
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = parse_pair)]
    attributes: Vec<(String, String)>,
    /// Depth of the names that are installed as one: 1 is each top-level name
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    entry_depth: u32,
    /// Record modification times
    #[arg(long)]
    keep_mtime: bool,
    /// Leave out links, devices, sockets and names that are not UTF-8 instead of refusing the directory
    #[arg(long)]
    skip_special: bool,
    /// Refuse to install it after this time, with 5 minutes for clocks that differ; absent: it never expires
    #[arg(long, value_parser = super::lifetime)]
    expires_in: Option<Duration>,
    /// Digest of the image that it was built in
    #[arg(long, default_value = "", env = "WARMD_IMAGE_DIGEST")]
    image_digest: String,
    /// Version of the engine that wrote it
    #[arg(long, default_value = "")]
    engine_version: String,
    /// Read the files here and send them, even if the agent sees the directory
    #[arg(long)]
    push: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    engine: Engine,
}

/// What was published.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) artifact: ArtifactId,
    pub(super) content: ContentId,
    pub(super) identity: IdentityId,
    pub(super) generation: u64,
    pub(super) unchanged: bool,
    pub(super) files: u32,
    pub(super) bytes: u64,
    pub(super) wire_bytes: u64,
    pub(super) new_wire_bytes: u64,
    pub(super) skipped: Vec<String>,
    pub(super) warning: Option<String>,
    pub(super) seconds: f64,
}

impl Publish {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let identity = self.identity.check()?;
        let Some(directory) = &self.directory else {
            let image = Some(self.image_digest).filter(|digest| !digest.is_empty());
            return self.engine.run(self.socket.socket, image, self.json).await;
        };
        let directory = std::path::absolute(directory)?;
        let request = PublishRequest {
            trust_class: self.class.to_string(),
            subject: self.subject,
            attributes: self.attributes.into_iter().collect(),
            image_digest: self.image_digest,
            engine_version: self.engine_version,
            entry_depth: self.entry_depth,
            keep_mtime: self.keep_mtime,
            skip_special: self.skip_special,
            expires_in_s: self.expires_in.map_or(0, |expires| expires.as_secs()),
            ..request(&directory, &identity)?
        };
        let client = self.socket.connect().await?;
        let report = match self.push {
            true => push(&client, request).await?,
            false => publish(&client, request).await?,
        };
        if self.json {
            output::json(&report)?;
        } else {
            show(&report)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A request with the defaults of the command line.
pub(super) fn request(directory: &Path, identity: &SourceIdentity) -> anyhow::Result<PublishRequest> {
    let seen = directory.metadata().with_context(|| format!("read {}", directory.display()))?;
    let directory = directory.to_str().context("the directory's name is not UTF-8")?.to_owned();
    let facts: HashMap<String, String> = identity.facts().clone().into_iter().collect();
    Ok(PublishRequest {
        directory,
        family: identity.family().to_string(),
        trust_class: TrustClass::HostCode.to_string(),
        facts,
        entry_depth: 1,
        device: seen.dev(),
        inode: seen.ino(),
        ..Default::default()
    })
}

/// By the agent, or by this process if the agent does not see the directory or does not read all of it for this user.
pub(super) async fn publish(client: &Client, request: PublishRequest) -> anyhow::Result<Report> {
    match by_agent(client, request.clone()).await {
        Err(ClientError::Refused(status)) if status.code() == tonic::Code::NotFound => {
            output::note(format!("{}: its files are sent", status.message()));
            push(client, request).await
        }
        published => published?,
    }
}

async fn by_agent(client: &Client, request: PublishRequest) -> Result<anyhow::Result<Report>, ClientError> {
    let begun = std::time::Instant::now();
    let mut events = client.publish(request).await?;
    let progress = output::Progress::new("reading");
    while let Some(event) = events.message().await? {
        match event.event {
            Some(publish_event::Event::Progress(now)) => progress.bytes("reading", now.bytes, now.bytes_total),
            Some(publish_event::Event::Published(published)) => {
                return Ok(report(published, begun.elapsed().as_secs_f64()));
            }
            None => {}
        }
    }
    Ok(Err(anyhow::anyhow!("the agent ended the call without a result")))
}

async fn push(client: &Client, request: PublishRequest) -> anyhow::Result<Report> {
    let begun = std::time::Instant::now();
    let progress = output::Progress::new("reading");
    let reading = move |bytes| progress.bytes("reading", bytes, 0);
    let published = serve::push::push(client, request.try_into()?, reading).await?;
    report(published, begun.elapsed().as_secs_f64())
}

pub(super) fn report(published: pb::Published, seconds: f64) -> anyhow::Result<Report> {
    Ok(Report {
        artifact: ArtifactId::try_from(&published.artifact_id[..])?,
        content: ContentId::try_from(&published.content_id[..])?,
        identity: IdentityId::try_from(&published.identity[..])?,
        generation: published.generation,
        unchanged: published.unchanged,
        files: published.files,
        bytes: published.size,
        wire_bytes: published.wire_size,
        new_wire_bytes: published.new_wire_size,
        skipped: published.skipped,
        warning: Some(published.warning).filter(|warning| !warning.is_empty()),
        seconds,
    })
}

pub(super) fn show(report: &Report) -> anyhow::Result<()> {
    output::line(report.artifact.to_string())?;
    let what = if report.unchanged { "unchanged since" } else { "published as" };
    output::note(format!(
        "{what} generation {}: {} files, {} ({} on the wire, {} of it new) in {}",
        report.generation,
        report.files,
        output::bytes(report.bytes),
        output::bytes(report.wire_bytes),
        output::bytes(report.new_wire_bytes),
        output::seconds(report.seconds),
    ));
    for skipped in &report.skipped {
        output::note(format!("left out: {skipped}"));
    }
    if let Some(warning) = &report.warning {
        output::note(format!("warning: {warning}"));
    }
    Ok(())
}
