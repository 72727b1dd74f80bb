//! `warmd policy`: make, check, show, sign the trust policy, explain what it says of an artifact, and hand it to the fleet.

mod distribution;
mod root;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use super::chosen::Chosen;
use super::{Socket, output};
use crate::artifact::{MAX_ENVELOPE, ManifestError, SignedManifest};
use crate::digest::{ArtifactId, KeyId};
use crate::identity::{
    Envelope, POLICY_TYPE, Policy as TrustPolicy, PrivateKey, PublicKey, TrustClass, TrustConfig, UnixTime,
};

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Write a new policy that trusts the named signers
    Init {
        file: PathBuf,
        /// NAME=PUBLIC_KEY; may be repeated
        #[arg(long = "signer", required = true, value_name = "NAME=KEY", value_parser = parse_signer)]
        signers: Vec<(String, PublicKey)>,
        /// Families that they may sign; patterns with `*`
        #[arg(long = "family", default_value = "*")]
        families: Vec<String>,
        /// Highest trust class: data, device-code or host-code
        #[arg(long, default_value = "host-code")]
        class: TrustClass,
        /// When installs stop unless a newer policy is in place
        #[arg(long, default_value = "1y", value_parser = super::lifetime)]
        expires_in: Duration,
    },
    /// Check a policy, signed or not, and say what it allows; exit with 1 if that is nothing, since it has expired
    Check {
        file: PathBuf,
        /// Public key that must have signed it; may be repeated
        #[arg(long = "root")]
        roots: Vec<PublicKey>,
        #[arg(long, default_value_t = 1)]
        threshold: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a policy as JSON
    Show { file: PathBuf },
    /// Sign a policy, or add a signature to one that is signed already
    Sign {
        file: PathBuf,
        /// Private key of a policy root
        #[arg(long)]
        key: PathBuf,
        /// Where to write the signed policy
        #[arg(long)]
        out: PathBuf,
    },
    /// The root document: who may sign policies for the whole fleet
    #[command(subcommand)]
    Root(root::Root),
    /// Hand signed documents to metadata servers, which hand them to all nodes
    Publish(distribution::Publish),
    /// Say again and again that no policy is newer, for a root document that asks for it
    Vouch(distribution::Vouch),
    /// The newest policy of the metadata servers, verified, as a signed policy file
    Fetch(distribution::Fetch),
    /// What this node's agent has of the documents
    Status(distribution::Status),
    /// Say why a manifest would be accepted or refused
    Explain {
        file: PathBuf,
        /// An artifact that the agent has, by its id or the beginning of it
        #[arg(long, conflicts_with = "manifest", required_unless_present = "manifest")]
        artifact: Option<Chosen>,
        /// A file with the signed manifest (first member of an export)
        #[arg(long)]
        manifest: Option<PathBuf>,
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        socket: Socket,
    },
}

fn parse_signer(text: &str) -> Result<(String, PublicKey), String> {
    let (name, key) = text.split_once('=').ok_or("expected NAME=KEY")?;
    Ok((name.to_owned(), key.parse().map_err(|error| format!("{error}"))?))
}

#[derive(Serialize)]
struct Explanation {
    artifact: Option<ArtifactId>,
    accepted: bool,
    signers: Vec<SignerVerdict>,
    reason: Option<String>,
}

#[derive(Serialize)]
struct SignerVerdict {
    name: String,
    accepted: bool,
    reason: Option<String>,
}

impl Policy {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Init { file, signers, families, class, expires_in } => {
                init(&file, &signers, &families, class, expires_in)?;
                output::line(file.display().to_string())?;
            }
            Self::Check { file, roots, threshold, json } => {
                return check(TrustConfig { policy: Some(file), roots, threshold, ..Default::default() }, json);
            }
            Self::Show { file } => output::json(&read_any(&file)?)?,
            Self::Sign { file, key, out } => sign(&file, &key, &out)?,
            Self::Root(command) => command.run()?,
            Self::Publish(command) => command.run().await?,
            Self::Vouch(command) => command.run().await?,
            Self::Fetch(command) => command.run().await?,
            Self::Status(command) => return command.run().await,
            Self::Explain { file, artifact, manifest, json, socket } => {
                let envelope = envelope(artifact, manifest.as_deref(), &socket).await?;
                return explain(&read_any(&file)?, envelope, json);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) fn init(
    file: &Path,
    signers: &[(String, PublicKey)],
    families: &[String],
    class: TrustClass,
    expires_in: Duration,
) -> anyhow::Result<()> {
    anyhow::ensure!(!file.exists(), "{} exists already: edit it and raise its `version`", file.display());
    let expires = UnixTime::now().after(expires_in);
    let quoted: Vec<String> = families.iter().map(|family| format!("{family:?}")).collect();
    let mut text = format!(
        "# Whose artifacts may be installed. Raise `version` with every change.\nversion = 1\nexpires = \"{expires}\"\nthreshold = 1\n"
    );
    for (name, key) in signers {
        text += &format!(
            "\n[[signer]]\nname = {name:?}\nkey = \"{key}\"\nfamilies = [{}]\nclass = \"{class}\"\n",
            quoted.join(", ")
        );
    }
    text += "\n[revoked]\nkeys = []\nartifacts = []\n";
    TrustPolicy::parse(&text)?;
    crate::durable::replace(file, text.as_bytes(), 0o644).with_context(|| format!("write {}", file.display()))
}

fn check(config: TrustConfig, json: bool) -> anyhow::Result<ExitCode> {
    let policy = config.load(None)?.context("no policy file was named")?;
    let expired = policy.is_expired(UnixTime::now());
    match json {
        true => output::json(&json!({ "in_force": !expired, "policy": policy }))?,
        false => tell(&policy, expired)?,
    }
    Ok(if expired { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn tell(policy: &TrustPolicy, expired: bool) -> anyhow::Result<()> {
    let state = if expired { "EXPIRED: nothing is installed" } else { "in force" };
    output::line(format!("version {}, {state}, expires {}", policy.version, policy.expires))?;
    let head = ["SIGNER", "STATE", "CLASS", "FAMILIES", "SUBJECTS", "KEY", "KEY ID"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for signer in &policy.signers {
        let (scope, id) = (&signer.scope, signer.key.id());
        rows.push(vec![
            signer.name.clone(),
            if policy.is_key_revoked(&id) { "REVOKED" } else { "trusted" }.to_owned(),
            scope.class.to_string(),
            scope.families.join(" "),
            scope.subjects.join(" "),
            signer.key.to_string(),
            id.to_string(),
        ]);
    }
    output::table(&rows)?;
    let of_no_signer = |id: &&KeyId| policy.signers.iter().all(|signer| signer.key.id() != **id);
    for id in policy.revoked_keys().iter().filter(of_no_signer) {
        output::line(format!("revoked: key {id}, of no signer of this policy"))?;
    }
    for id in policy.revoked_artifacts() {
        output::line(format!("revoked: artifact {id}"))?;
    }
    Ok(())
}

/// Signed or not: for looking, not for trusting.
fn read_any(file: &Path) -> anyhow::Result<TrustPolicy> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    if !text.trim_start().starts_with('{') {
        return Ok(TrustPolicy::parse(&text)?);
    }
    let envelope = Envelope::from_json(POLICY_TYPE, &text)?;
    Ok(TrustPolicy::parse(std::str::from_utf8(envelope.payload()).context("the signed text is not UTF-8")?)?)
}

fn sign(file: &Path, key: &Path, out: &Path) -> anyhow::Result<()> {
    let key = PrivateKey::load(key)?;
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let policy = read_any(file)?;
    let envelope = if text.trim_start().starts_with('{') {
        let mut envelope = Envelope::from_json(POLICY_TYPE, &text)?;
        envelope.add_signature(&key);
        envelope
    } else {
        Envelope::sign(POLICY_TYPE, Bytes::from(text), &[&key])
    };
    crate::durable::replace(out, envelope.to_json().as_bytes(), 0o644)
        .with_context(|| format!("write {}", out.display()))?;
    output::line(format!(
        "version {} signed by {} ({})",
        policy.version,
        key.public(),
        output::count(envelope.key_ids().count() as u64, "signature")
    ))
}

async fn envelope(artifact: Option<Chosen>, manifest: Option<&Path>, socket: &Socket) -> anyhow::Result<Bytes> {
    match (artifact, manifest) {
        (Some(artifact), _) => {
            let client = socket.connect().await?;
            Ok(client.inspect(artifact.of(&client).await?).await?.envelope)
        }
        (None, Some(path)) => {
            let len = path.metadata().with_context(|| format!("read {}", path.display()))?.len();
            anyhow::ensure!(len <= MAX_ENVELOPE as u64, "{} is larger than a manifest can be", path.display());
            Ok(std::fs::read(path)?.into())
        }
        (None, None) => anyhow::bail!("name an artifact or a manifest"),
    }
}

fn explain(policy: &TrustPolicy, envelope: Bytes, json: bool) -> anyhow::Result<ExitCode> {
    let now = UnixTime::now();
    let artifact = SignedManifest::decode_unverified(envelope.clone()).map(|signed| signed.id()).ok();
    let decision = SignedManifest::admit(envelope.clone(), policy, now);
    let verdicts = match SignedManifest::explain(envelope, policy, now) {
        Ok(verdicts) => verdicts,
        // The decision says the same.
        Err(ManifestError::Refused(_)) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let signers = verdicts.into_iter().map(|(name, verdict)| SignerVerdict {
        name,
        accepted: verdict.is_ok(),
        reason: verdict.err().map(|reason| reason.to_string()),
    });
    let explanation = Explanation {
        artifact,
        accepted: decision.is_ok(),
        signers: signers.collect(),
        reason: decision.as_ref().err().map(ToString::to_string),
    };
    if json {
        output::json(&explanation)?;
    } else {
        for signer in &explanation.signers {
            let reason = signer.reason.as_deref().unwrap_or("in scope");
            output::line(format!("{}: {reason}", signer.name))?;
        }
        match &explanation.reason {
            None => output::line("accepted")?,
            // The signers' own reasons stand above already.
            Some(_) if explanation.signers.iter().any(|signer| !signer.accepted) => output::line("refused")?,
            Some(reason) => output::line(format!("refused: {reason}"))?,
        }
    }
    Ok(if explanation.accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
