//! `warmd quickstart`: a metadata server and two agents with keys made on the spot, and a real transfer between them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::{keys, output, policy, publish, sample, warm};
use crate::agent::{Agent, AgentConfig};
use crate::artifact::{Family, SourceIdentity, Tree};
use crate::caches::{ScanRules, scan};
use crate::config::MetadataConfig;
use crate::digest::Digest;
use crate::discovery::Mode;
use crate::identity::{PrivateKey, TrustClass, TrustConfig};
use crate::install::Limits;
use crate::local::{Client, SocketConfig};
use crate::metadata::Server;
use crate::serve::warm::{Job, Verdict};
use crate::telemetry::Registry;
use crate::transport::TransportConfig;

#[derive(Debug, Args)]
pub(super) struct Quickstart {
    /// Directories to transfer; without any, a sample of what vLLM leaves behind
    directories: Vec<PathBuf>,
    /// Install into this new directory and keep it; absent: a temporary one that is removed at the end
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One directory's way.
#[derive(Serialize)]
struct Row {
    directory: PathBuf,
    installed: PathBuf,
    files: u64,
    bytes: u64,
    wire_bytes: u64,
    holders: u32,
    publish_seconds: f64,
    lookup_seconds: f64,
    fetch_seconds: f64,
    install_seconds: f64,
    identical: bool,
}

impl Quickstart {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let work =
            tempfile::Builder::new().prefix("warmd-quickstart-").tempdir().context("make a temporary directory")?;
        let directories = if self.directories.is_empty() {
            let sample = work.path().join("sample");
            let made = sample::make(&sample);
            made.with_context(|| format!("make the sample tree {} (TMPDIR says where)", sample.display()))?;
            vec![sample]
        } else {
            self.directories
                .iter()
                .map(|directory| directory.canonicalize().with_context(|| format!("read {}", directory.display())))
                .collect::<Result<_, _>>()?
        };
        let into = match &self.into {
            Some(into) => {
                std::fs::create_dir(into)
                    .with_context(|| format!("make {}: --into wants a new directory", into.display()))?;
                into.canonicalize()?
            }
            None => work.path().join("installed"),
        };
        std::fs::create_dir_all(&into)?;
        let begun = Instant::now();
        let cluster = Cluster::start(work.path()).await?;
        let started = begun.elapsed().as_secs_f64();
        let mut rows = Vec::new();
        for (index, directory) in directories.iter().enumerate() {
            let name = directory.file_name().map_or_else(|| "root".into(), |name| name.to_string_lossy().into_owned());
            let target = into.join(if index == 0 { name.clone() } else { format!("{name}-{index}") });
            rows.push(cluster.transfer(directory, &target, &format!("{index}-{name}")).await?);
        }
        cluster.shutdown().await;
        let identical = rows.iter().all(|row| row.identical);
        if self.json {
            output::json(&rows)?;
        } else {
            show(&rows, started, self.into.is_some())?;
        }
        Ok(if identical { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn show(rows: &[Row], started: f64, kept: bool) -> anyhow::Result<()> {
    output::line(format!("one metadata server and two agents with fresh keys: up in {}", output::seconds(started)))?;
    for row in rows {
        let pulled = row.lookup_seconds + row.fetch_seconds + row.install_seconds;
        output::line("")?;
        output::table(&[
            vec!["directory".into(), row.directory.display().to_string()],
            vec!["content".into(), format!("{} files, {}", row.files, output::bytes(row.bytes))],
            vec![
                "over the wire".into(),
                format!("{} from {}", output::bytes(row.wire_bytes), output::count(row.holders, "holder")),
            ],
            vec!["publish".into(), format!("{}  hash, pack, compress, sign", output::seconds(row.publish_seconds))],
            vec!["lookup".into(), output::seconds(row.lookup_seconds)],
            vec![
                "fetch".into(),
                format!("{}  verify each chunk, install as it arrives", output::seconds(row.fetch_seconds)),
            ],
            vec!["install".into(), format!("{}  verify, sync, rename", output::seconds(row.install_seconds))],
            vec!["rate".into(), format!("{} of content, from lookup to installed", output::rate(row.bytes, pulled))],
            vec!["compared".into(), if row.identical { "identical".into() } else { "DIFFERENT".to_owned() }],
        ])?;
        if kept {
            output::line(format!("installed in {}", row.installed.display()))?;
        }
    }
    Ok(())
}

struct Cluster {
    server: Server,
    from: Agent,
    to: Agent,
    policy: PathBuf,
}

impl Cluster {
    async fn start(work: &Path) -> anyhow::Result<Self> {
        let year = Duration::from_secs(365 * 86_400);
        let at = |name: &str| work.join(name);
        keys::cluster(&at("cluster"), "quickstart")?;
        keys::node(&at("metadata"), &at("cluster"), &["localhost".to_owned()], year)?;
        keys::node(&at("from"), &at("cluster"), &[], year)?;
        keys::node(&at("to"), &at("cluster"), &[], year)?;
        let signer = PrivateKey::generate()?;
        signer.save_new(&at("from").join("signer.key"))?;
        let trusted = [("quickstart".to_owned(), signer.public())];
        policy::init(&at("policy.toml"), &trusted, &["*".to_owned()], TrustClass::HostCode, year)?;

        let mut metadata = MetadataConfig { state_dir: at("metadata"), ..Default::default() };
        metadata.server.listen = ([127, 0, 0, 1], 0).into();
        let tls = metadata.node.tls(&metadata.state_dir)?;
        let server = Server::bind(metadata.server_config(), &tls, &mut Registry::default()).await?;
        let agent = |name: &str, signer: Option<PathBuf>| {
            let mut config = AgentConfig {
                state_dir: at(name),
                signer,
                trust: TrustConfig { policy: Some(at("policy.toml")), ..Default::default() },
                transport: TransportConfig { listen: ([127, 0, 0, 1], 0).into(), ..Default::default() },
                local: SocketConfig { socket: at(name).join("agent.sock"), ..Default::default() },
                ..Default::default()
            };
            // What is stored here is gone at the end: it needs no room beside it.
            config.store.reserve_bytes = Some(0);
            config.discovery.mode = Mode::Server;
            config.metadata.servers = vec![format!("localhost:{}", server.addr().port()).parse()?];
            anyhow::Ok(config)
        };
        let from = Agent::start(agent("from", Some(at("from").join("signer.key")))?).await?;
        let to = Agent::start(agent("to", None)?).await?;
        Ok(Self { server, from, to, policy: at("policy.toml") })
    }

    async fn transfer(&self, directory: &Path, target: &Path, subject: &str) -> anyhow::Result<Row> {
        let facts = [("example".to_owned(), "quickstart".to_owned())].into();
        let identity = SourceIdentity::new(Family::directory(), facts)?;
        let client = Client::connect(self.from.socket()).await?;
        let request = publish::request(directory, &identity)?;
        let request = crate::protocol::pb::PublishRequest { subject: subject.to_owned(), ..request };
        let published = publish::publish(&client, request).await?;

        let client = Client::connect(self.to.socket()).await?;
        let policy = TrustConfig { policy: Some(self.policy.clone()), ..Default::default() }.load(None)?;
        let report = warm::run(
            &client,
            Job {
                identity,
                subject: Some(subject.to_owned()),
                into: target.to_owned(),
                policy: Arc::new(policy.context("no policy")?),
                budget: Duration::from_secs(600),
                limits: Limits { reserve_bytes: 0, max_bytes: u64::MAX },
                ignore_markers: true,
                quarantine: Arc::default(),
                witness: Arc::new(()),
            },
        )
        .await?;
        if let Verdict::Nothing { detail, .. } = &report.verdict {
            anyhow::bail!("nothing was installed: {detail}");
        }
        let artifact = report.artifacts.first().context("nothing was installed")?;
        Ok(Row {
            directory: directory.to_owned(),
            installed: target.to_owned(),
            files: artifact.files,
            bytes: artifact.bytes,
            wire_bytes: artifact.wire_bytes,
            holders: artifact.holders,
            publish_seconds: published.seconds,
            lookup_seconds: report.lookup_seconds,
            fetch_seconds: report.fetch_seconds,
            install_seconds: report.install_seconds,
            identical: digests(directory)? == digests(target)?,
        })
    }

    async fn shutdown(self) {
        self.to.shutdown().await;
        self.from.shutdown().await;
        self.server.shutdown(Duration::from_secs(5)).await;
    }
}

/// Every file below `directory` with its mode and digest, read anew: the comparison owes nothing to the transfer.
fn digests(directory: &Path) -> anyhow::Result<Vec<(String, bool, Digest)>> {
    let found = scan(&Tree::open(directory)?, &ScanRules::default())?;
    let files = found.files.iter().filter(|file| !file.path.as_str().starts_with(".warmd/"));
    files
        .map(|file| {
            let content = file.read()?;
            Ok((file.path.to_string(), file.executable, Digest::of(&content)))
        })
        .collect()
}
