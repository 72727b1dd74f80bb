//! Why the next start will be warm or cold, told before it; and what came of the last one.
//!
//! Changes nothing but the kept answers of the interpreter: no artifact is fetched, no cache directory made. Manifests of
//! what nearly fits are read by the agent, which tells only of those that its policy accepts.

mod diagnosis;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};
use serde::Serialize;
use tokio::time::timeout;

pub use self::diagnosis::{Answers, Described, Diagnosis, Finding, Near, Neighbour, Offered, Rules, diagnose};
use super::last_start::LastStart;
use super::outlook::{Inquiry, Outlook};
use super::quarantine::Quarantine;
use super::target::Target;
use super::trust::Trust;
use crate::caches::{CacheFamily, Directories, Environment, Launch, survey};
use crate::digest::{ArtifactId, IdentityId, KeyId};
use crate::engine;
use crate::identity::UnixTime;
use crate::local::{Client, FleetPart, chain};
use crate::protocol::pb::{FamilyIdentity, FoundArtifact, NearbyArtifact, NearbyRequest};
use crate::protocol::report::ProblemKind;

/// What to look at, and how long.
#[derive(Debug, Clone)]
pub struct Doctor {
    pub target: Target,
    pub trust: Trust,
    /// For the interpreter, for the agent, and for the file system, each.
    pub timeout: Duration,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Examination {
    pub interpreter: Option<PathBuf>,
    /// What would make the start cold, or stop the installation, each with the way out.
    pub problems: Vec<String>,
    /// What is worth knowing and not wrong.
    pub notes: Vec<String>,
    pub families: Vec<Diagnosis>,
    pub last_start: Option<LastStart>,
    /// Whether the last start was of this command with these variables.
    pub same_command: bool,
}

impl Doctor {
    pub async fn examine(self) -> Examination {
        let mut found = Examination::default();
        let mut environment = Environment::of_this_process();
        let root = match Directories::choose(self.target.root.as_deref(), &environment) {
            Ok(directories) => {
                directories.apply(&mut environment);
                Some(directories.root().to_owned())
            }
            Err(error) => {
                found.problems.push(error.to_string());
                None
            }
        };
        let launch = match Launch::parse(&self.target.command) {
            Ok(launch) => {
                found.notes.extend_from_slice(launch.notes());
                Some(launch)
            }
            Err(error) => {
                found.problems.push(format!("the engine's command line is not understood: {error}"));
                None
            }
        };
        if let Err(error) = engine::check() {
            found.problems.push(error.to_string());
        }
        let canonical = launch.as_ref().map(|launch| launch.canonical(&environment)).unwrap_or_default();
        let outlook = self.outlook(&environment, launch.as_ref(), &mut found).await;
        let answers = self.ask(&outlook, &mut found.problems).await;
        let policy = self.trust.policy();
        let policy = match &policy {
            Ok(policy) => Some(&**policy),
            Err(reason) => {
                found.problems.push(format!("nothing would be installed: {reason}"));
                None
            }
        };
        let quarantine = found.quarantine(root.clone(), self.timeout).await;
        let rules = Rules { policy, quarantine: Some(&quarantine) };
        found.families = diagnose(&outlook, &canonical, answers.as_ref(), rules);
        found.look(&outlook, root, &canonical, self.timeout).await;
        found
    }

    async fn outlook(&self, environment: &Environment, launch: Option<&Launch>, found: &mut Examination) -> Outlook {
        let inquiry = Inquiry {
            command: &self.target.command,
            python: self.target.python.as_deref(),
            image: self.target.image.as_deref(),
            environment,
            launch,
            cache: self.target.facts_cache.clone(),
            deadline: self.timeout,
        };
        let interpreter = match inquiry.interpreter() {
            Ok(interpreter) => interpreter,
            Err(error) => {
                found.problems.push(error.to_string());
                return Outlook::default();
            }
        };
        found.interpreter = Some(interpreter.python.clone());
        match inquiry.findings(interpreter).await {
            Ok(findings) => {
                found.problems.extend(findings.unread.into_iter().chain(findings.lacks));
                findings.outlook
            }
            Err(error) => {
                found.problems.push(chain(&error));
                Outlook::default()
            }
        }
    }

    /// `None` if there is no agent.
    async fn ask(&self, outlook: &Outlook, problems: &mut Vec<String>) -> Option<Answers> {
        let asked = timeout(self.timeout, async {
            let client = Client::connect(&self.target.socket).await.map_err(|error| error.to_string())?;
            problems.extend(self.trust.ask(&client, self.timeout).await.err());
            problems.extend(of_certificate(&client).await);
            ask(&client, outlook, problems).await
        });
        match asked.await.unwrap_or_else(|_| Err(format!("the agent did not answer within {:?}", self.timeout))) {
            Ok(answers) => Some(answers),
            Err(reason) => {
                problems.push(reason);
                None
            }
        }
    }
}

/// What the agent says of its certificate: with a bad one no other node speaks with it.
async fn of_certificate(client: &Client) -> Vec<String> {
    let nodes = client.fleet(FleetPart::Here).await.map(|here| here.nodes).unwrap_or_default();
    let own = nodes.into_iter().filter_map(|node| node.report).flat_map(|report| report.problems);
    let own = own.filter(|problem| problem.kind == ProblemKind::Certificate);
    own.map(|problem| format!("the agent: {}. {}", problem.text.as_str(), problem.way_out.as_str())).collect()
}

/// What the agent, and through it the directory and other holders, have of these families and what nearly fits.
pub async fn ask(client: &Client, outlook: &Outlook, problems: &mut Vec<String>) -> Result<Answers, String> {
    if outlook.prospects.is_empty() {
        return Ok(Answers::default());
    }
    let identities: Vec<IdentityId> = outlook.prospects.iter().map(|prospect| prospect.identity.id()).collect();
    let families = outlook.prospects.iter().map(|prospect| FamilyIdentity {
        family: prospect.family.name.to_owned(),
        identity: bytes::Bytes::copy_from_slice(prospect.identity.id().as_bytes()),
        subject: String::new(),
    });
    let request = NearbyRequest { families: families.collect(), budget_ms: 0 };
    let (found, near) = tokio::join!(client.find(&identities), client.nearby(request));
    let (found, near) = (found.map_err(|error| chain(&error))?, near.map_err(|error| chain(&error))?);
    if !found.metadata_failure.is_empty() {
        let failure = found.metadata_failure;
        problems
            .push(format!("only what this node has is known: {failure}; see [metadata] and [discovery] of the agent"));
    } else if !near.metadata_failure.is_empty() {
        problems.push(format!("near misses on other nodes are not known: {}", near.metadata_failure));
    }
    Ok(Answers {
        offered: found.found.into_iter().filter_map(offered).collect(),
        neighbours: near.artifacts.into_iter().filter_map(neighbour).collect(),
    })
}

fn offered(told: FoundArtifact) -> Option<Offered> {
    Some(Offered {
        artifact: ArtifactId::try_from(&told.artifact_id[..]).ok()?,
        identity: IdentityId::try_from(&told.identity[..]).ok()?,
        subject: told.subject,
        generation: told.generation,
        created: UnixTime::from_seconds(told.created_s),
        bytes: told.size,
        signer: KeyId::try_from(&told.signer[..]).ok()?,
        holders: told.holders,
    })
}

fn neighbour(told: NearbyArtifact) -> Option<Neighbour> {
    let described = match told.failure.is_empty() {
        true => Ok(Described {
            facts: told.facts.into_iter().collect(),
            attributes: told.attributes.into_iter().collect(),
            signers: told.signers,
        }),
        false => Err(told.failure),
    };
    Some(Neighbour {
        family: told.family,
        identity: IdentityId::try_from(&told.identity[..]).ok()?,
        subject: told.subject,
        created: UnixTime::from_seconds(told.created_s),
        holders: told.holders,
        artifacts: told.artifacts,
        described,
    })
}

/// What the file system tells.
struct Looked {
    /// Of each family the entries in its root, and why nothing could be put there.
    roots: Vec<(&'static str, Result<usize, String>, Option<String>)>,
    last_start: std::io::Result<Option<LastStart>>,
}

/// Blocking.
fn look(roots: Vec<(&'static CacheFamily, PathBuf)>, root: Option<&Path>) -> Looked {
    let look = |(family, root): (&'static CacheFamily, PathBuf)| {
        let entries = survey(&root, family).map(|survey| survey.subjects.iter().map(|one| one.entries.len()).sum());
        (family.name, entries.map_err(|error| chain(&error)), unwritable(&root))
    };
    Looked { roots: roots.into_iter().map(look).collect(), last_start: root.map_or(Ok(None), LastStart::read) }
}

impl Examination {
    /// What these caches do not take again.
    async fn quarantine(&mut self, root: Option<PathBuf>, limit: Duration) -> Quarantine {
        let Some(root) = root else { return Quarantine::default() };
        let loaded = timeout(limit, tokio::task::spawn_blocking(move || Quarantine::load(&root))).await;
        let trouble = match loaded {
            Ok(Ok(Ok(quarantine))) => return quarantine,
            Ok(Ok(Err(error))) => chain(&error),
            Ok(Err(_)) | Err(_) => format!("not read within {limit:?}"),
        };
        self.problems.push(format!("the quarantine is not known: {trouble}"));
        Quarantine::default()
    }

    /// What is installed already, whether more could be, and what came of the last start.
    async fn look(
        &mut self,
        outlook: &Outlook,
        root: Option<PathBuf>,
        canonical: &BTreeMap<String, String>,
        limit: Duration,
    ) {
        let roots = outlook.prospects.iter().map(|prospect| (prospect.family, prospect.root.clone())).collect();
        let looking = tokio::task::spawn_blocking(move || look(roots, root.as_deref()));
        let Ok(Ok(looked)) = timeout(limit, looking).await else {
            return self.problems.push(format!("the cache directories could not be looked at within {limit:?}"));
        };
        for (family, entries, unwritable) in looked.roots {
            match entries {
                Ok(entries) => {
                    let diagnosis = self.families.iter_mut().find(|diagnosis| diagnosis.family == family);
                    diagnosis.into_iter().for_each(|diagnosis| diagnosis.entries = entries);
                }
                Err(error) => self.problems.push(format!("{family}: {error}")),
            }
            // The same directory stops several families.
            if let Some(problem) = unwritable.filter(|problem| !self.problems.contains(problem)) {
                self.problems.push(problem);
            }
        }
        match looked.last_start {
            Ok(last) => {
                self.same_command = last.as_ref().is_some_and(|last| last.launch == *canonical);
                self.last_start = last;
            }
            Err(error) => self.notes.push(format!("what came of the last start cannot be read: {error}")),
        }
    }
}

/// Why nothing can be put below a directory that need not exist yet.
fn unwritable(root: &Path) -> Option<String> {
    let there = root.ancestors().find(|directory| directory.symlink_metadata().is_ok())?;
    if !there.is_dir() {
        return Some(format!("{} is no directory: move it away", there.display()));
    }
    let denied = access(there, Access::WRITE_OK | Access::EXEC_OK).err()?;
    let denied = std::io::Error::from(denied);
    Some(format!("{} cannot be written to: {denied}; mount it writable, or set WARMD_CACHE_ROOT", there.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_does_not_exist_yet_is_judged_by_what_is_above_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(unwritable(&dir.path().join("a/b/c")), None);
        std::fs::write(dir.path().join("file"), "").unwrap();
        let problem = unwritable(&dir.path().join("file/b")).unwrap();
        assert!(problem.contains("file is no directory"), "{problem}");
    }
}
