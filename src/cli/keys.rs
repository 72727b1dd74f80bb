//! `warmd keys`: the cluster's authority, node keys with certificates, signer keys.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;

use super::output;
use crate::identity::{ClusterCa, KeyError, NodeCertificate, PrivateKey, PublicKey, UnixTime};
use crate::proxy::auth::{ApiKeys, NewKey, Scope, Tenant};

#[derive(Debug, Subcommand)]
pub(super) enum Keys {
    /// Make a cluster's authority: ca.key (keep it where nodes are admitted) and ca.pem
    Cluster {
        /// Directory to make it in; created if it is not there
        dir: PathBuf,
        /// Name of the cluster, for people
        #[arg(long, default_value = "default")]
        name: String,
    },
    /// Make a node's key and certificate: node.key, node.pem and a copy of ca.pem, as a state directory needs them
    Node {
        /// The node's state directory; created if it is not there
        dir: PathBuf,
        /// Directory of `warmd keys cluster`
        #[arg(long)]
        cluster: PathBuf,
        /// Host name or address under which clients reach it (metadata servers need one); may be repeated. Absent: those of
        /// the certificate that is there already
        #[arg(long = "name", value_name = "HOST")]
        names: Vec<String>,
        /// How long the certificate is valid
        #[arg(long, default_value = "10y", value_parser = super::lifetime)]
        valid_for: Duration,
    },
    /// Make a key that signs artifacts or policies
    Signer {
        /// File to write
        file: PathBuf,
    },
    /// Make a key for a client of `warmd serve`: the file gets its hash, standard output the key, once
    Api {
        /// File of `auth.keys.file`; created if it is not there
        file: PathBuf,
        /// Name of the key, for logs and for its end
        #[arg(long, value_name = "NAME")]
        id: String,
        /// Who shares adapters and limits with its holder
        #[arg(long)]
        tenant: Tenant,
        /// infer, admin or adapter:PATTERN; may be repeated
        #[arg(long = "scope", value_name = "SCOPE", default_value = "infer")]
        scopes: Vec<Scope>,
        /// How long it is valid; absent: until it is taken out of the file
        #[arg(long, value_parser = super::lifetime)]
        valid_for: Option<Duration>,
    },
    /// Print the public key of private key files or certificates: node ids, signer keys and policy roots; and on standard
    /// error its id
    Show {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

impl Keys {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Cluster { dir, name } => {
                cluster(&dir, &name)?;
                output::line(dir.join("ca.pem").display().to_string())?;
                output::note(format!(
                    "Next: a node's key with `warmd keys node STATE_DIR --cluster {}`.",
                    dir.display()
                ));
            }
            Self::Node { dir, cluster, names, valid_for } => {
                let names = if names.is_empty() { names_before(&dir)? } else { names };
                output::line(node(&dir, &cluster, &names, valid_for)?)?;
            }
            Self::Api { file, id, tenant, scopes, valid_for } => {
                let secret = api(&file, &id, &tenant, &scopes, valid_for)?;
                output::line(secret)?;
                output::note(format!("Next: `auth.keys.file = {:?}` in the configuration of `warmd serve`.", file));
            }
            Self::Signer { file } => {
                let key = PrivateKey::generate()?;
                key.save_new(&file)?;
                output::line(key.public().to_string())?;
                output::note(format!(
                    "Next: let nodes trust it, for example with `warmd policy init policy.toml --signer NAME={}`.",
                    key.public()
                ));
            }
            Self::Show { files } => {
                for file in files {
                    let key = public_key(&file)?;
                    output::line(key.to_string())?;
                    // Beside the result, which scripts read.
                    output::note(format!("key id {}", key.id()));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn public_key(file: &Path) -> anyhow::Result<PublicKey> {
    match NodeCertificate::load(file).ok().map(|certificate| certificate.node()) {
        Some(Some(node)) => Ok(*node.key()),
        Some(None) => anyhow::bail!("{} is a certificate of another kind of key than ed25519", file.display()),
        None => match PrivateKey::load(file) {
            Err(KeyError::Private { .. }) => {
                anyhow::bail!("{} holds neither an ed25519 private key nor a certificate in PEM form", file.display())
            }
            key => Ok(key?.public()),
        },
    }
}

/// Makes `ca.key` and `ca.pem`.
pub(super) fn cluster(dir: &Path, name: &str) -> anyhow::Result<()> {
    make_dir(dir)?;
    let key = PrivateKey::generate()?;
    key.save_new(&dir.join("ca.key"))?;
    let ca = ClusterCa::create(name, &key)?;
    write_new(&dir.join("ca.pem"), ca.certificate_pem())
}

/// Makes a node's files; its id.
pub(super) fn node(dir: &Path, cluster: &Path, names: &[String], valid_for: Duration) -> anyhow::Result<String> {
    let ca = ClusterCa::load(&cluster.join("ca.pem"), &cluster.join("ca.key"))?;
    make_dir(dir)?;
    let key_path = dir.join("node.key");
    // With an existing key only the certificate is made anew: that is how it is renewed.
    let key = if key_path.exists() {
        PrivateKey::load(&key_path)?
    } else {
        let key = PrivateKey::generate()?;
        key.save_new(&key_path)?;
        key
    };
    let certificate = ca.issue(&key, names, valid_for)?;
    crate::durable::replace(&dir.join("node.pem"), certificate.as_bytes(), 0o644).context("write node.pem")?;
    crate::durable::replace(&dir.join("ca.pem"), ca.certificate_pem().as_bytes(), 0o644).context("write ca.pem")?;
    Ok(key.node_id().to_string())
}

/// Of the certificate that is made anew.
fn names_before(dir: &Path) -> anyhow::Result<Vec<String>> {
    let path = dir.join("node.pem");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let names = NodeCertificate::load(&path)?.names().with_context(|| {
        format!("the names in {} cannot be kept: say each with --name, or remove the file", path.display())
    })?;
    if !names.is_empty() {
        output::note(format!("kept from the certificate before: --name {}", names.join(" --name ")));
    }
    Ok(names)
}

fn make_dir(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("make directory {}", dir.display()))
}

fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    anyhow::ensure!(!path.exists(), "{} exists already: remove it to make a new one", path.display());
    crate::durable::replace(path, text.as_bytes(), 0o644).with_context(|| format!("write {}", path.display()))
}

/// Adds a key to the file, which is replaced in one step, and returns the secret.
fn api(
    file: &Path,
    id: &str,
    tenant: &Tenant,
    scopes: &[Scope],
    valid_for: Option<Duration>,
) -> anyhow::Result<String> {
    let NewKey { secret, hash } = NewKey::generate()?;
    let mut text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("read {}", file.display()))?,
    };
    let mut key = toml::Table::new();
    key.insert("id".to_owned(), id.into());
    key.insert("hash".to_owned(), hash.into());
    key.insert("tenant".to_owned(), tenant.as_str().into());
    key.insert("scopes".to_owned(), scopes.iter().map(Scope::to_string).collect::<Vec<_>>().into());
    if let Some(valid_for) = valid_for {
        key.insert("expires".to_owned(), UnixTime::now().after(valid_for).to_string().into());
    }
    text += &format!("\n[[key]]\n{}", toml::to_string(&key)?);
    ApiKeys::parse(&text).with_context(|| format!("{} with the new key", file.display()))?;
    crate::durable::replace(file, text.as_bytes(), 0o600).with_context(|| format!("write {}", file.display()))?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_made_anew_keeps_the_names_that_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let (cluster_dir, state) = (dir.path().join("cluster"), dir.path().join("state"));
        cluster(&cluster_dir, "test").unwrap();
        let names = ["meta.example".to_owned(), "10.0.0.7".to_owned(), "fd00::7".to_owned()];
        assert_eq!(names_before(&state).unwrap(), [""; 0]);
        let year = Duration::from_secs(365 * 86_400);
        node(&state, &cluster_dir, &names, year).unwrap();
        assert_eq!(names_before(&state).unwrap(), names);
        node(&state, &cluster_dir, &names_before(&state).unwrap(), year).unwrap();
        assert_eq!(names_before(&state).unwrap(), names);
        node(&state, &cluster_dir, &names[1..2], year).unwrap();
        assert_eq!(names_before(&state).unwrap(), names[1..2]);
    }

    #[test]
    fn a_certificate_shows_the_same_key_as_the_private_key_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let (cluster_dir, state) = (dir.path().join("cluster"), dir.path().join("state"));
        cluster(&cluster_dir, "test").unwrap();
        let id = node(&state, &cluster_dir, &[], Duration::from_secs(86_400)).unwrap();
        for file in ["node.key", "node.pem"] {
            assert_eq!(public_key(&state.join(file)).unwrap().to_string(), id, "{file}");
        }
        let other = public_key(&cluster_dir).unwrap_err().to_string();
        assert!(other.contains("read private key"), "{other}");
        std::fs::write(state.join("other"), "neither").unwrap();
        assert!(public_key(&state.join("other")).unwrap_err().to_string().contains("neither"));
        assert!(public_key(&state.join("none")).unwrap_err().to_string().contains("there is no private key"));
    }
}
