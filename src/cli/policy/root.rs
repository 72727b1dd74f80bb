//! `warmd policy root`: the document that says who signs what.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::{Args, Subcommand};

use crate::cli::output;
use crate::identity::trust::{
    Documents, FreshnessRole, PolicyRole, ROOT_TYPE, Role, Root as Document, TrustError, Trusted, read_root,
};
use crate::identity::{Envelope, PrivateKey, PublicKey, UnixTime};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Root {
    /// Make the first one
    Init(Init),
    /// Make the next one: what is not said stays as it is
    Rotate(Rotate),
    /// Add a signature
    Sign {
        file: PathBuf,
        /// Private key of a root; may be repeated
        #[arg(long = "key", required = true, value_name = "FILE")]
        keys: Vec<PathBuf>,
    },
    /// Say what a root document says, and whether enough have signed it
    Show {
        file: PathBuf,
        /// The root document before it
        #[arg(long, value_name = "FILE")]
        after: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Init {
    file: PathBuf,
    #[command(flatten)]
    roles: Roles,
    /// When installs stop unless there is a newer one
    #[arg(long, default_value = "2y", value_parser = crate::cli::lifetime)]
    expires_in: Duration,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Rotate {
    /// The root document in force
    file: PathBuf,
    /// Where to write the next one
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    roles: Roles,
    /// Lowest policy version: raised, counting begins anew there, whatever thieves of policy keys have used up
    #[arg(long, value_name = "VERSION")]
    least: Option<u64>,
    /// No statements of freshness any more
    #[arg(long, conflicts_with_all = ["freshness", "max_age", "freshness_threshold"])]
    no_freshness: bool,
    /// When installs stop unless there is a newer one
    #[arg(long, default_value = "2y", value_parser = crate::cli::lifetime)]
    expires_in: Duration,
}

/// Keys are public ones, as `warmd keys show` prints them; each may be repeated.
#[derive(Debug, Args)]
pub(in crate::cli) struct Roles {
    /// Private key that signs this document; may be repeated, others add theirs with `warmd policy root sign`
    #[arg(long = "key", required = true, value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// Key that signs root documents
    #[arg(long = "root", value_name = "KEY")]
    root: Vec<PublicKey>,
    /// Signatures of them that a root document needs [default: 1]
    #[arg(long, value_name = "N")]
    root_threshold: Option<usize>,
    /// Key that signs policies
    #[arg(long, value_name = "KEY")]
    policy: Vec<PublicKey>,
    /// Signatures of them that a policy needs [default: 1]
    #[arg(long, value_name = "N")]
    policy_threshold: Option<usize>,
    /// Key that signs statements of freshness
    #[arg(long, value_name = "KEY")]
    freshness: Vec<PublicKey>,
    /// Signatures of them that a statement needs [default: 1]
    #[arg(long, value_name = "N")]
    freshness_threshold: Option<usize>,
    /// How long after a statement of freshness the policy is in force [default: 1m]
    #[arg(long, value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
}

const MAX_AGE: Duration = Duration::from_secs(60);

impl Root {
    pub(in crate::cli) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Init(init) => init.run(),
            Self::Rotate(rotate) => rotate.run(),
            Self::Sign { file, keys } => {
                let mut envelope = read_root(&file)?;
                for key in load(&keys)? {
                    envelope.add_signature(&key);
                }
                write(&file, &envelope)?;
                show(&envelope, None)
            }
            Self::Show { file, after } => {
                let after = after.as_deref().map(read_root).transpose()?;
                show(&read_root(&file)?, after.as_ref())
            }
        }
    }
}

impl Init {
    fn run(self) -> anyhow::Result<()> {
        let Self { file, roles, expires_in } = self;
        ensure!(!file.exists(), "{} exists already: make the next one with `warmd policy root rotate`", file.display());
        let expires = UnixTime::now().after(expires_in);
        let root = Role { keys: roles.root.clone(), threshold: roles.root_threshold.unwrap_or(1) };
        let policy =
            PolicyRole { keys: roles.policy.clone(), threshold: roles.policy_threshold.unwrap_or(1), least: 1 };
        let root = Document { version: 1, expires, root, policy, freshness: roles.freshness(None) };
        let envelope = sign(&root, &load(&roles.keys)?)?;
        write(&file, &envelope)?;
        show(&envelope, None)
    }
}

impl Rotate {
    fn run(self) -> anyhow::Result<()> {
        let Self { file, out, roles, least, no_freshness, expires_in } = self;
        let before = read_root(&file)?;
        let now = parse(&before)?;
        let or = |new: &[PublicKey], old: Vec<PublicKey>| if new.is_empty() { old } else { new.to_vec() };
        let root = Role {
            keys: or(&roles.root, now.root.keys),
            threshold: roles.root_threshold.unwrap_or(now.root.threshold),
        };
        let policy = PolicyRole {
            keys: or(&roles.policy, now.policy.keys),
            threshold: roles.policy_threshold.unwrap_or(now.policy.threshold),
            least: least.unwrap_or(now.policy.least),
        };
        ensure!(policy.least >= now.policy.least, "--least is {} already, and does not go down", now.policy.least);
        let freshness = if no_freshness { None } else { roles.freshness(now.freshness) };
        let expires = UnixTime::now().after(expires_in);
        let next = Document { version: now.version + 1, expires, root, policy, freshness };
        let envelope = sign(&next, &load(&roles.keys)?)?;
        write(&out, &envelope)?;
        show(&envelope, Some(&before))
    }
}

impl Roles {
    fn freshness(&self, before: Option<FreshnessRole>) -> Option<FreshnessRole> {
        if self.freshness.is_empty() && before.is_none() {
            return None;
        }
        let before = before.unwrap_or(FreshnessRole { keys: Vec::new(), threshold: 1, max_age: MAX_AGE });
        Some(FreshnessRole {
            keys: if self.freshness.is_empty() { before.keys } else { self.freshness.clone() },
            threshold: self.freshness_threshold.unwrap_or(before.threshold),
            max_age: self.max_age.unwrap_or(before.max_age),
        })
    }
}

fn load(keys: &[PathBuf]) -> anyhow::Result<Vec<PrivateKey>> {
    Ok(keys.iter().map(|path| PrivateKey::load(path)).collect::<Result<_, _>>()?)
}

fn sign(root: &Document, keys: &[PrivateKey]) -> anyhow::Result<Envelope> {
    let text = Bytes::from(root.to_toml()?);
    Ok(Envelope::sign(ROOT_TYPE, text, &keys.iter().collect::<Vec<_>>()))
}

fn write(path: &Path, envelope: &Envelope) -> anyhow::Result<()> {
    crate::durable::replace(path, envelope.to_json().as_bytes(), 0o644)
        .with_context(|| format!("write {}", path.display()))
}

fn parse(envelope: &Envelope) -> anyhow::Result<Document> {
    Ok(Document::parse(std::str::from_utf8(envelope.payload()).context("the signed text is not UTF-8")?)?)
}

fn show(envelope: &Envelope, after: Option<&Envelope>) -> anyhow::Result<()> {
    let root = parse(envelope)?;
    output::line(format!("root version {}, expires {}", root.version, root.expires))?;
    let roles = [("root", &root.root.keys, root.root.threshold), ("policy", &root.policy.keys, root.policy.threshold)];
    let freshness = root.freshness.as_ref().map(|role| ("freshness", &role.keys, role.threshold));
    for (name, keys, threshold) in roles.into_iter().chain(freshness) {
        let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
        output::line(format!("{name}: {threshold} of {}", keys.join(" ")))?;
    }
    let signed = match after {
        None => Trusted::new(envelope).map(drop),
        Some(before) => Trusted::new(before).and_then(|mut trusted| {
            let next = Documents { roots: vec![envelope.clone()], ..Documents::default() };
            trusted.take(&next, UnixTime::now())
        }),
    };
    match signed {
        Ok(()) => output::line("signed by enough of its keys"),
        Err(TrustError::Unsigned { root, valid, needed, .. }) => {
            output::line(format!("NOT YET VALID: {valid} of the {needed} signatures that root version {root} asks for"))
        }
        Err(error) => Err(error.into()),
    }
}
