//! `warmd policy publish`, `vouch`, `fetch` and `status`: documents on their way to the fleet.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;
use tonic::Code;

use crate::cli::{Socket, output};
use crate::identity::trust::{Document, Documents, Freshness, Known, MAX_ROOTS, Trusted, read_document, read_root};
use crate::identity::{NodeConfig, PrivateKey, UnixTime};
use crate::local::{Client as LocalClient, ClientError};
use crate::metadata::{Client, ClientConfig, ClientMetrics, ServerAddr};

/// Which servers, and who asks them.
#[derive(Debug, Args)]
pub(in crate::cli) struct Servers {
    /// Metadata servers, each `HOST:PORT` or `NODE_ID@HOST:PORT`, with commas or repeated
    #[arg(long, env = "WARMD_METADATA_SERVERS", value_name = "SERVERS", value_delimiter = ',', required = true)]
    metadata: Vec<ServerAddr>,
    /// Directory with a key and a certificate of the cluster: node.key, node.pem, ca.pem
    #[arg(long, env = "WARMD_STATE_DIR", default_value = "/var/lib/warmd", value_name = "DIR")]
    state_dir: PathBuf,
}

impl Servers {
    /// One client each: every server has to hear it.
    fn clients(&self) -> anyhow::Result<Vec<(ServerAddr, Client)>> {
        let tls = NodeConfig::default().tls(&self.state_dir)?;
        let client = |addr: &ServerAddr| {
            let config = ClientConfig::new(vec![addr.clone()]);
            Ok((addr.clone(), Client::new(config, &tls, ClientMetrics::default())?))
        };
        self.metadata.iter().map(client).collect()
    }

    /// Fails if any server did not take them; the others have.
    async fn put(&self, documents: &Documents) -> anyhow::Result<()> {
        let mut failed = 0;
        for (addr, client) in self.clients()? {
            match client.put_trust(documents).await {
                Ok(Known { root, policy, .. }) => output::line(format!("{addr}: root {root}, policy {policy}"))?,
                Err(error) => {
                    failed += 1;
                    output::note(format!("{addr}: {error}"));
                }
            }
        }
        ensure!(failed == 0, "{} did not take it", output::count(failed as u64, "server"));
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Publish {
    /// Signed documents: roots in order of their versions, a policy, a freshness statement
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    servers: Servers,
}

impl Publish {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<()> {
        self.servers.put(&read_all(&self.files)?).await
    }
}

fn read_all(files: &[PathBuf]) -> anyhow::Result<Documents> {
    let mut documents = Documents::default();
    for file in files {
        let (kind, envelope) = read_document(file)?;
        let place = match kind {
            Document::Root => {
                documents.roots.push(envelope);
                continue;
            }
            Document::Policy => &mut documents.policy,
            Document::Freshness => &mut documents.freshness,
        };
        ensure!(place.replace(envelope).is_none(), "{}: a second {kind}", file.display());
    }
    ensure!(documents.roots.len() <= MAX_ROOTS, "more than {MAX_ROOTS} root documents");
    Ok(documents)
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Vouch {
    /// The newest policy, signed; read again each time
    policy: PathBuf,
    /// The newest root document; read again each time
    #[arg(long, env = "WARMD_TRUST_ROOT", value_name = "FILE")]
    trust_root: PathBuf,
    /// Private key of the root's freshness keys; may be repeated
    #[arg(long = "key", required = true, value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// How often; a third of the root's `max_age` is a good choice
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    every: Duration,
    /// Once
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    servers: Servers,
}

impl Vouch {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<()> {
        loop {
            let said = match self.documents() {
                Ok(documents) => self.servers.put(&documents).await,
                Err(error) => Err(error),
            };
            match said {
                Err(error) if !self.once => output::note(format!("warmd: {}", crate::cli::sentence(&error))),
                said if self.once => return said,
                _ => {}
            }
            tokio::time::sleep(self.every).await;
        }
    }

    /// With the policy: a server that has lost it gets it back.
    fn documents(&self) -> anyhow::Result<Documents> {
        let keys = self.keys.iter().map(|path| PrivateKey::load(path)).collect::<Result<Vec<_>, _>>()?;
        let mut trusted = Trusted::new(&read_root(&self.trust_root)?)?;
        let now = UnixTime::now();
        trusted.take(&read_all(std::slice::from_ref(&self.policy))?, now)?;
        let Known { root, policy, .. } = trusted.known();
        ensure!(policy > 0, "{} holds no policy", self.policy.display());
        ensure!(trusted.root().freshness.is_some(), "the root document asks for no freshness");
        let statement = Freshness { issued: now, root, policy }.sign(&keys.iter().collect::<Vec<_>>());
        let fresh = Documents { freshness: Some(statement), ..Documents::default() };
        trusted.take(&fresh, now)?;
        Ok(Documents { roots: Vec::new(), ..trusted.documents() })
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Fetch {
    /// Root document to begin with
    #[arg(long, env = "WARMD_TRUST_ROOT", value_name = "FILE")]
    trust_root: PathBuf,
    /// Where to write the signed policy
    #[arg(long)]
    out: PathBuf,
    /// Where to write the newest root document
    #[arg(long, value_name = "FILE")]
    root_out: Option<PathBuf>,
    #[command(flatten)]
    servers: Servers,
}

impl Fetch {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<()> {
        let mut trusted = Trusted::new(&read_root(&self.trust_root)?)?;
        for (addr, client) in self.servers.clients()? {
            let taken = match client.trust(trusted.known()).await {
                Ok(documents) => trusted.take(&documents, UnixTime::now()).map_err(anyhow::Error::from),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = taken {
                output::note(format!("{addr}: {}", crate::cli::sentence(&error)));
            }
        }
        let documents = trusted.documents();
        let policy = documents.policy.context("no server has a policy that this root lets through")?;
        write(&self.out, &policy.to_json())?;
        if let (Some(path), Some(root)) = (&self.root_out, documents.roots.last()) {
            write(path, &root.to_json())?;
        }
        let Known { root, policy, .. } = trusted.known();
        output::line(format!("root {root}, policy {policy}"))
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    crate::durable::replace(path, text.as_bytes(), 0o644).with_context(|| format!("write {}", path.display()))
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Status {
    /// Root document to verify with; absent: what the agent says is shown unverified
    #[arg(long, env = "WARMD_TRUST_ROOT", value_name = "FILE")]
    trust_root: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Serialize)]
struct Standing {
    root: u64,
    policy: Option<u64>,
    confirmed: Option<UnixTime>,
    in_force: bool,
    reason: Option<String>,
}

impl Status {
    /// 1 if nothing can be installed.
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.socket.connect().await?;
        let documents = match client.trust(Known::default()).await {
            Err(ClientError::Refused(status)) if status.code() == Code::FailedPrecondition => {
                return of_file(&client, self.json).await;
            }
            documents => documents?,
        };
        let root = match (&self.trust_root, documents.roots.first()) {
            (Some(path), _) => read_root(path)?,
            (None, Some(root)) => root.clone(),
            (None, None) => bail!("the agent has no root document"),
        };
        let mut trusted = Trusted::new(&root)?;
        let now = UnixTime::now();
        let later = trusted.root().version;
        let documents = match self.trust_root {
            None => documents,
            Some(_) => client.trust(Known { root: later, ..Known::default() }).await?,
        };
        trusted.take(&documents, now)?;
        let policy = trusted.policy();
        let reason = match &policy {
            None => Some("no policy has come yet".to_owned()),
            Some(policy) => policy.lapse(now).map(|reason| reason.to_string()),
        };
        let standing = Standing {
            root: trusted.root().version,
            policy: policy.map(|policy| policy.version),
            confirmed: trusted.freshness().map(|freshness| freshness.issued),
            in_force: reason.is_none(),
            reason,
        };
        standing.show(self.json)?;
        Ok(if standing.in_force { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// An agent without a root document reads a file of its own.
async fn of_file(client: &LocalClient, json: bool) -> anyhow::Result<ExitCode> {
    let status = client.status().await?;
    let in_force = status.policy_state == "ok";
    let version = (status.policy_version > 0).then_some(status.policy_version);
    if json {
        output::json(&serde_json::json!({ "root": null, "policy": version, "in_force": in_force }))?;
    } else {
        let version = version.map_or_else(|| "none".to_owned(), |version| format!("version {version}"));
        let standing = if in_force { "in force".to_owned() } else { format!("NOT IN FORCE: {}", status.policy_state) };
        output::line(format!(
            "no root document (`trust.root`); policy of the agent's own file: {version}, {standing}"
        ))?;
    }
    Ok(if in_force { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Standing {
    fn show(&self, json: bool) -> anyhow::Result<()> {
        if json {
            return output::json(self);
        }
        let policy = self.policy.map_or_else(|| "none".to_owned(), |version| format!("version {version}"));
        output::line(format!("root version {}, policy {policy}", self.root))?;
        if let Some(confirmed) = self.confirmed {
            output::line(format!("confirmed at {confirmed}"))?;
        }
        match &self.reason {
            None => output::line("in force"),
            Some(reason) => output::line(format!("NOT IN FORCE: {reason}")),
        }
    }
}
