//! The record of starts on disk, and what is done about it: nothing installed for a clean start, its suspects taken away,
//! and quarantined if it works.
//!
//! One start at a time has the record of a cache root, by a lock that ends with its process. Others that start meanwhile
//! do as it does and leave no trace. Whatever cannot be read or written here costs the quarantine, never the start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::trial::{End, Kind, Suspect, Trial, Verdict};
use crate::artifact::RelPath;
use crate::caches::{CacheFamily, Environment};
use crate::identity::UnixTime;
use crate::install::{BootId, CacheRoot, InstallError};
use crate::local::chain;
use crate::serve::quarantine::{LeftOut, Quarantine, Release};
use crate::serve::records::{Records, RecordsError};
use crate::serve::target::Say;
use crate::serve::warm::{TooLate, Witness};
use crate::serve::warming::Warmed;

const FILE: &str = "starts.json";
const LOCK: &str = "starts.lock";

/// For a file system that hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// For whoever else installs into a root that suspects are taken from.
const WITHDRAWAL: Duration = Duration::from_secs(3);

const REASON: &str = "the engine crashed twice while it started with it, and started without it";

/// What earlier starts mean for this one.
#[derive(Default)]
pub(super) struct History {
    pub(super) start: Kind,
    pub(super) quarantine: Arc<Quarantine>,
    ledger: Arc<Ledger>,
}

/// The record before the engine is started: installs write into it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    page: Mutex<Page>,
    /// The engine is being started: nothing may become visible any more.
    closed: AtomicBool,
}

#[derive(Debug, Default)]
enum Page {
    /// Another start has the record, or there is none.
    #[default]
    None,
    Ours(Record),
    /// What is written there is out of date.
    Lost(RecordsError),
}

impl Witness for Ledger {
    fn before_commit(&self, release: Release, root: &Path, entries: BTreeSet<RelPath>) -> Result<(), TooLate> {
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        if let Page::Ours(record) = &mut *page
            && let Err(error) = record.expect(Suspect { release, root: root.to_owned(), entries, crashes: 0 })
        {
            *page = Page::Lost(error);
        }
        if self.closed.load(Ordering::Acquire) { Err(TooLate) } else { Ok(()) }
    }
}

/// The record, while this process has it.
#[derive(Debug)]
struct Record {
    root: PathBuf,
    records: Records,
    trial: Trial,
    boot: BootId,
    _lock: File,
}

impl History {
    /// Of the caches below `root`. Before a clean start it takes the suspects away.
    pub(super) async fn of(root: &Path, environment: &Environment, budget: Duration, say: &Say) -> Self {
        let patience = PATIENCE.min(budget);
        let (root, environment) = (root.to_owned(), environment.clone());
        let read = spawn_blocking(move || {
            let mut lines = Vec::new();
            let history = Self::read(&root, &environment, &mut lines);
            (history, lines)
        });
        match timeout(patience, read).await {
            Ok(Ok((history, lines))) => {
                lines.iter().for_each(|line| say(line));
                history
            }
            Ok(Err(_)) | Err(_) => {
                say(&format!("nothing will be quarantined: no record of earlier starts within {patience:?}"));
                Self::default()
            }
        }
    }

    fn read(root: &Path, environment: &Environment, lines: &mut Vec<String>) -> Self {
        let quarantine = Quarantine::load(root).unwrap_or_else(|error| {
            lines.push(format!("the quarantine is not known: {error}"));
            Quarantine::default()
        });
        let mut history = Self { quarantine: Arc::new(quarantine), ..Self::default() };
        match Record::take(root, lines) {
            Ok(Taken::Ours(mut record)) => {
                history.start = record.prepare(environment, lines);
                history.ledger = Arc::new(Ledger { page: Mutex::new(Page::Ours(record)), ..Ledger::default() });
            }
            Ok(Taken::Others(start)) => history.start = start,
            Err(error) => lines.push(format!("nothing will be quarantined: {error}")),
        }
        history
    }

    /// Writes down what is installed from now on.
    pub(super) fn witness(&self) -> Arc<dyn Witness> {
        self.ledger.clone()
    }

    /// The engine is about to be started.
    pub(super) async fn begin(self, warmed: &[Warmed], say: &Say) -> Current {
        self.ledger.closed.store(true, Ordering::Release);
        let installed = warmed.iter().flat_map(suspects).collect();
        let begun = spawn_blocking(move || self.ledger.begin(installed));
        let record = match timeout(PATIENCE, begun).await {
            Ok(Ok(Ok(record))) => record,
            Ok(Ok(Err(error))) => {
                say(&format!("nothing will be quarantined: {error}"));
                None
            }
            Ok(Err(_)) | Err(_) => {
                say(&format!("nothing will be quarantined: this start was not recorded within {PATIENCE:?}"));
                None
            }
        };
        Current(Mutex::new(record))
    }
}

impl Ledger {
    fn begin(&self, installed: Vec<Suspect>) -> Result<Option<Record>, RecordsError> {
        match std::mem::take(&mut *self.page.lock().unwrap_or_else(PoisonError::into_inner)) {
            Page::None => Ok(None),
            Page::Ours(mut record) => record.begin(installed).map(|()| Some(record)),
            Page::Lost(error) => Err(error),
        }
    }
}

/// What came into a family's root.
fn suspects(warmed: &Warmed) -> impl Iterator<Item = Suspect> + '_ {
    let artifacts = warmed.report.iter().flat_map(|report| &report.artifacts);
    artifacts.filter(|artifact| !artifact.added.is_empty()).map(|artifact| Suspect {
        release: Release {
            artifact: artifact.artifact,
            family: warmed.prospect.family.name.to_owned(),
            identity: warmed.prospect.identity.id(),
            subject: artifact.subject.clone(),
            generation: artifact.generation,
            signers: artifact.signers.clone(),
        },
        root: warmed.prospect.root.clone(),
        entries: artifact.added.iter().cloned().collect(),
        crashes: 0,
    })
}

/// The start that is under way, until its end is known.
#[derive(Default)]
pub(super) struct Current(Mutex<Option<Record>>);

impl Current {
    /// The first end counts; what comes later does nothing. What follows from it is in quarantine.
    pub(super) async fn end(&self, end: End, say: &Say) -> Vec<LeftOut> {
        let record = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(record) = record else { return Vec::new() };
        let ended = spawn_blocking(move || record.end(end, UnixTime::now()));
        match timeout(PATIENCE, ended).await {
            Ok(Ok(Ok(Ended { lines, quarantined }))) => {
                lines.iter().for_each(|line| say(line));
                return quarantined;
            }
            Ok(Ok(Err(error))) => say(&format!("how this start ended is not recorded: {error}")),
            Ok(Err(_)) | Err(_) => say(&format!("how this start ended was not recorded within {PATIENCE:?}")),
        }
        Vec::new()
    }
}

/// What follows from the end of a start.
#[derive(Default)]
struct Ended {
    /// For the user.
    lines: Vec<String>,
    quarantined: Vec<LeftOut>,
}

enum Taken {
    Ours(Record),
    /// Another start has the record, and is of this kind.
    Others(Kind),
}

impl Record {
    fn take(root: &Path, lines: &mut Vec<String>) -> Result<Taken, TakeError> {
        let records = Records::make(root)?;
        let Some(lock) = records.try_lock(LOCK)? else {
            let start = records.read::<Trial>(FILE)?.unwrap_or_default().start();
            lines.push("another engine is starting on these caches: crashes of this one do not count".to_owned());
            if start == Kind::Clean {
                lines.push("it starts clean, so nothing is installed here either".to_owned());
            }
            return Ok(Taken::Others(start));
        };
        let boot = BootId::current()?;
        let mut trial: Trial = records.read(FILE)?.unwrap_or_default();
        if let Verdict::Exonerated(releases) = trial.resume(&boot) {
            lines.push(exonerated(&releases));
        }
        trial.settle(is_there);
        Ok(Taken::Ours(Self { root: root.to_owned(), records, trial, boot, _lock: lock }))
    }

    /// Makes a clean start clean. If that fails nothing is installed all the same, but its success proves nothing.
    fn prepare(&mut self, environment: &Environment, lines: &mut Vec<String>) -> Kind {
        let start = self.trial.start();
        if start == Kind::Clean {
            let releases = self.trial.suspects().iter().map(|suspect| &suspect.release);
            lines.push(format!(
                "the engine crashed twice after these were installed: starting clean: {}",
                list(releases)
            ));
            match withdraw(self.trial.suspects(), environment) {
                Ok(entries) => lines.push(format!("taken away: {entries} entries")),
                Err(error) => {
                    self.trial.give_up();
                    lines.push(format!("installed entries could not be taken away, nothing is quarantined: {error}"));
                }
            }
        }
        start
    }

    fn begin(&mut self, installed: Vec<Suspect>) -> Result<(), RecordsError> {
        self.trial.begin(self.boot.clone(), installed, is_there);
        self.save_or_remove()
    }

    fn expect(&mut self, coming: Suspect) -> Result<(), RecordsError> {
        self.trial.expect(coming);
        self.save_or_remove()
    }

    fn save_or_remove(&self) -> Result<(), RecordsError> {
        self.save().inspect_err(|_| {
            // What it says is out of date: another start must not follow from it. A full disk still lets files go.
            let _ = self.records.remove(FILE);
        })
    }

    fn end(mut self, end: End, now: UnixTime) -> Result<Ended, RecordsError> {
        let mut ended = Ended::default();
        match self.trial.end(end) {
            Verdict::Nothing => {}
            Verdict::Exonerated(releases) => ended.lines.push(exonerated(&releases)),
            Verdict::Quarantine(releases) => match Quarantine::add(&self.root, releases.clone(), REASON, now) {
                Ok(()) => {
                    ended.lines = releases.iter().map(quarantined).collect();
                    let left_out = |release| LeftOut { release, reason: REASON.to_owned() };
                    ended.quarantined = releases.into_iter().map(left_out).collect();
                }
                Err(error) => ended.lines.push(format!("not quarantined: {error}")),
            },
        }
        self.save().map(|()| ended)
    }

    fn save(&self) -> Result<(), RecordsError> {
        if self.trial.is_empty() { self.records.remove(FILE) } else { self.records.write(FILE, &self.trial) }
    }
}

/// A link is not followed: whatever it points to was not installed.
fn is_there(root: &Path, entry: &RelPath) -> bool {
    root.join(entry.as_str()).symlink_metadata().is_ok()
}

/// The record is not to be had.
#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error(transparent)]
    Boot(#[from] InstallError),
}

/// Removes what came with the suspects, and nothing else; how many entries. A root that the engine will not look into stays
/// as it is: the record decides about no path that the environment does not name.
fn withdraw(suspects: &[Suspect], environment: &Environment) -> Result<usize, String> {
    let mut roots: BTreeMap<&Path, BTreeSet<&RelPath>> = BTreeMap::new();
    for suspect in suspects {
        let family = CacheFamily::by_name(&suspect.release.family);
        let root = family.and_then(|family| (family.root)(environment));
        if root.as_ref() == Some(&suspect.root) {
            roots.entry(&suspect.root).or_default().extend(&suspect.entries);
        }
    }
    let ends = Instant::now() + WITHDRAWAL;
    let mut removed = 0;
    for (path, entries) in roots {
        if !path.exists() {
            continue;
        }
        let root = CacheRoot::open(path).map_err(|error| chain(&error))?;
        let lock = root.lock(ends).map_err(|error| format!("{}: {}", path.display(), chain(&error)))?;
        for entry in entries {
            removed += usize::from(root.discard(&lock, entry).map_err(|error| chain(&error))?);
        }
    }
    Ok(removed)
}

fn quarantined(release: &Release) -> String {
    let Release { artifact, generation, signers, .. } = release;
    format!(
        "quarantined: {}, generation {generation} by {}: {REASON}; not installed again until its signer publishes a new generation, or `warmd quarantine clear {artifact}`",
        name(release),
        signers.join(", "),
    )
}

fn exonerated(releases: &[Release]) -> String {
    format!("the engine crashed without these as well, so they may be installed again: {}", list(releases))
}

fn list<'r>(releases: impl IntoIterator<Item = &'r Release>) -> String {
    releases.into_iter().map(name).collect::<Vec<_>>().join(", ")
}

fn name(release: &Release) -> String {
    let Release { artifact, family, subject, .. } = release;
    let about =
        if subject.is_empty() { String::new() } else { format!(" {}", crate::serve::publishing::short(subject)) };
    format!("{} ({family}{about})", artifact.short())
}

#[cfg(test)]
mod tests;
