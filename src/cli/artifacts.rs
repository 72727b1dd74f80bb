//! `warmd ls | inspect`, and the node's part of `warmd status`: what a node has.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use data_encoding::HEXLOWER;
use serde::Serialize;

use super::chosen::Chosen;
use super::{Socket, output};
use crate::artifact::SignedManifest;
use crate::digest::{ArtifactId, Digest};
use crate::identity::UnixTime;
use crate::local::Client;
use crate::protocol::pb::{self, ListArtifactsRequest};

/// What `warmd status` tells beside what the node tells others of itself.
#[derive(Serialize)]
pub(super) struct StatusReport {
    node: String,
    version: String,
    state: String,
    endpoints: Vec<String>,
    metadata_server: String,
    metadata_connected: bool,
    discovery: String,
    connected_agents: u32,
    artifacts: u32,
    store_bytes: u64,
    disk_free_bytes: u64,
    policy: String,
    policy_version: u64,
    signers: Vec<String>,
    transfers: Vec<Transfer>,
}

#[derive(Serialize)]
struct Transfer {
    artifact: ArtifactId,
    bytes: u64,
    bytes_total: u64,
    holders: u32,
}

impl TryFrom<pb::StatusReply> for StatusReport {
    type Error = anyhow::Error;
    fn try_from(status: pb::StatusReply) -> anyhow::Result<Self> {
        let transfer = |transfer: &pb::TransferStatus| {
            let artifact = ArtifactId::try_from(&transfer.artifact_id[..])?;
            let pb::TransferStatus { bytes, bytes_total, holders, .. } = *transfer;
            anyhow::Ok(Transfer { artifact, bytes, bytes_total, holders })
        };
        Ok(Self {
            transfers: status.transfers.iter().map(transfer).collect::<Result<_, _>>()?,
            node: status.node,
            version: status.version,
            state: status.state,
            endpoints: status.endpoints,
            metadata_server: status.metadata_server,
            metadata_connected: status.metadata_connected,
            discovery: status.discovery,
            connected_agents: status.connected_agents,
            artifacts: status.artifacts,
            store_bytes: status.store_bytes,
            disk_free_bytes: status.disk_free_bytes,
            policy: status.policy_state,
            policy_version: status.policy_version,
            signers: status.signers,
        })
    }
}

impl StatusReport {
    /// `unreached` is why nobody takes what this node says.
    pub(super) fn show(&self, unreached: Option<&str>) -> anyhow::Result<()> {
        let why = unreached.map(|why| format!(": {}", output::plain(why))).unwrap_or_default();
        let metadata = match (self.metadata_server.as_str(), self.metadata_connected) {
            ("", _) => "none configured".to_owned(),
            (server, true) => format!("{server}, connected"),
            (server, false) => format!("{server}, NOT connected{why}"),
        };
        let discovery = match self.discovery.as_str() {
            "server" => "by the metadata server alone".to_owned(),
            mode => format!("{mode}, {} connected", output::count(self.connected_agents, "agent")),
        };
        let policy = match self.policy.as_str() {
            "ok" => format!("version {}, signers: {}", self.policy_version, self.signers.join(", ")),
            "expired" => format!("version {} has EXPIRED: nothing is fetched", self.policy_version),
            _ => "none: nothing is fetched".to_owned(),
        };
        let store = format!(
            "{}, {}; {} free on the disk",
            output::count(self.artifacts, "artifact"),
            output::bytes(self.store_bytes),
            output::bytes(self.disk_free_bytes)
        );
        let rows = [
            ("node", format!("{} ({}, warmd {})", self.node, self.state, self.version)),
            ("address", self.endpoints.join(", ")),
            ("metadata", metadata),
            ("discovery", discovery),
            ("policy", policy),
            ("store", store),
        ];
        output::table(&rows.map(|(name, value)| vec![name.to_owned(), value]))
    }
}

/// An artifact in a listing.
#[derive(Serialize)]
pub(super) struct Info {
    pub(super) artifact: ArtifactId,
    pub(super) family: String,
    subject: String,
    generation: u64,
    created: UnixTime,
    pub(super) files: u32,
    pub(super) bytes: u64,
    wire_bytes: u64,
    pub(super) chunks_held: u32,
    pub(super) chunks: u32,
    identity: String,
    content: String,
    signer: String,
    pinned: bool,
    revoked: bool,
}

impl TryFrom<&pb::ArtifactInfo> for Info {
    type Error = anyhow::Error;
    fn try_from(info: &pb::ArtifactInfo) -> anyhow::Result<Self> {
        Ok(Self {
            artifact: ArtifactId::try_from(&info.artifact_id[..])?,
            family: info.family.clone(),
            subject: info.subject.clone(),
            generation: info.generation,
            created: UnixTime::from_seconds(info.created_s),
            files: info.files,
            bytes: info.size,
            wire_bytes: info.wire_size,
            chunks_held: info.chunks_held,
            chunks: info.chunks,
            identity: HEXLOWER.encode(&info.identity),
            content: HEXLOWER.encode(&info.content_id),
            signer: HEXLOWER.encode(&info.signer),
            pinned: info.pinned,
            revoked: info.revoked,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Ls {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let all = list(&self.socket.connect().await?).await?;
        if self.json {
            output::json(&all)?;
            return Ok(ExitCode::SUCCESS);
        }
        show(&all)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// One line for each.
pub(super) fn show(all: &[Info]) -> anyhow::Result<()> {
    let head = ["ARTIFACT", "FAMILY", "SUBJECT", "GEN", "CREATED", "FILES", "SIZE", "WIRE", "HAVE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for info in all {
        let have = match info.chunks_held == info.chunks {
            true => "all".to_owned(),
            false => format!("{}/{}", info.chunks_held, info.chunks),
        };
        let revoked = if info.revoked { ", REVOKED" } else { "" };
        rows.push(vec![
            info.artifact.to_string(),
            info.family.clone(),
            if info.subject.is_empty() { "-".to_owned() } else { info.subject.clone() },
            info.generation.to_string(),
            info.created.to_string(),
            info.files.to_string(),
            output::bytes(info.bytes),
            output::bytes(info.wire_bytes),
            have + revoked,
        ]);
    }
    output::table(&rows)
}

pub(super) async fn list(client: &Client) -> anyhow::Result<Vec<Info>> {
    let mut all = Vec::new();
    let mut page_token = bytes::Bytes::new();
    loop {
        let page = client.list(ListArtifactsRequest { page_token, page_size: 1000 }).await?;
        for info in &page.artifacts {
            all.push(Info::try_from(info)?);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Its id, or the beginning of it
    artifact: Chosen,
    /// List every file
    #[arg(long)]
    files: bool,
    /// Print JSON, files included
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Serialize)]
struct Inspection {
    #[serde(flatten)]
    info: Info,
    class: String,
    facts: std::collections::BTreeMap<String, String>,
    attributes: std::collections::BTreeMap<String, String>,
    expires: Option<UnixTime>,
    image_digest: String,
    engine_version: String,
    builder: String,
    entries: Vec<String>,
    file_list: Vec<FileInfo>,
}

#[derive(Serialize)]
struct FileInfo {
    path: String,
    bytes: u64,
    executable: bool,
    digest: Digest,
}

impl Inspect {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.socket.connect().await?;
        let reply = client.inspect(self.artifact.of(&client).await?).await?;
        let signed = SignedManifest::decode_unverified(reply.envelope)?;
        let info = reply.info.as_ref().context("the agent left out what it knows of the artifact")?;
        let inspection = inspection(&signed, Info::try_from(info)?);
        if self.json {
            output::json(&inspection)?
        } else {
            inspection.show(self.files)?
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn inspection(signed: &SignedManifest, info: Info) -> Inspection {
    let manifest = signed.manifest();
    let file = |file: &crate::artifact::File| FileInfo {
        path: file.path.to_string(),
        bytes: file.size,
        executable: file.executable,
        digest: file.digest,
    };
    Inspection {
        info,
        class: manifest.class.to_string(),
        facts: manifest.identity.facts().clone(),
        attributes: manifest.attributes.clone(),
        expires: manifest.expires,
        image_digest: manifest.provenance.image_digest.clone(),
        engine_version: manifest.provenance.engine_version.clone(),
        builder: manifest.provenance.builder.clone(),
        entries: manifest.entries.iter().map(ToString::to_string).collect(),
        file_list: manifest.files.iter().map(file).collect(),
    }
}

impl Inspection {
    fn show(&self, files: bool) -> anyhow::Result<()> {
        let info = &self.info;
        let chunks = format!("{} of {} chunks here", info.chunks_held, info.chunks);
        let size = format!(
            "{} files, {}; {} on the wire",
            info.files,
            output::bytes(info.bytes),
            output::bytes(info.wire_bytes)
        );
        let expires = self.expires.map_or_else(|| "never".to_owned(), |expires| expires.to_string());
        let mut rows = vec![
            ("artifact", info.artifact.to_string()),
            ("content", info.content.clone()),
            ("identity", info.identity.clone()),
            ("family", format!("{} ({})", info.family, self.class)),
            ("subject", info.subject.clone()),
            ("generation", info.generation.to_string()),
            ("created", info.created.to_string()),
            ("expires", expires),
            ("signer", info.signer.clone()),
            ("builder", self.builder.clone()),
            ("image", self.image_digest.clone()),
            ("engine", self.engine_version.clone()),
            ("size", size),
            ("chunks", chunks),
            ("entries", self.entries.len().to_string()),
        ];
        rows.retain(|(_, value)| !value.is_empty());
        let facts = self.facts.iter().map(|(name, value)| ("fact", format!("{name} = {value}")));
        let attributes = self.attributes.iter().map(|(name, value)| ("attribute", format!("{name} = {value}")));
        let rows = rows.into_iter().chain(facts).chain(attributes);
        output::table(&rows.map(|(name, value)| vec![name.to_owned(), value]).collect::<Vec<_>>())?;
        if files {
            let row = |file: &FileInfo| {
                let mode = if file.executable { "0755" } else { "0644" };
                vec![file.digest.short(), mode.to_owned(), file.bytes.to_string(), file.path.clone()]
            };
            output::table(&self.file_list.iter().map(row).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}
