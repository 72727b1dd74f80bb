//! Whether an installed artifact makes the engine crash: a record of starts, and what follows from it.
//!
//! ```text
//! install -> crash -> crash -> clean start -> ready: quarantine    crash: it was something else, begin again
//!               any start that becomes ready ends the suspicion
//! ```
//!
//! A clean start has nothing of what was installed since the last start that became ready. Only its success is evidence,
//! and there are never two clean starts in a row: whatever becomes of one, the next is warm. Nothing here reads or writes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::artifact::RelPath;
use crate::install::BootId;
use crate::serve::quarantine::Release;

/// Crashes within the start, in a row, with an artifact installed, until it is taken away.
const CRASHES: u32 = 2;

/// An artifact that was installed since the engine was last ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Suspect {
    pub(super) release: Release,
    /// Where it was installed.
    pub(super) root: PathBuf,
    /// Entries that came with it; not those that were there before.
    pub(super) entries: BTreeSet<RelPath>,
    /// Since it was installed.
    pub(super) crashes: u32,
}

impl Suspect {
    /// The same artifact in the same place.
    fn is_of(&self, other: &Self) -> bool {
        self.release.artifact == other.release.artifact && self.root == other.root
    }
}

/// How an engine is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    #[default]
    Warm,
    /// Without the suspects, and with nothing installed.
    Clean,
}

/// How a start ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Ready,
    /// It ended before it was ready, and nobody had asked it to.
    Crashed,
    /// Nobody will know: it was told to end, or cannot be asked whether it is ready.
    Unknown,
}

/// What follows from the end of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Nothing,
    Quarantine(Vec<Release>),
    /// The engine crashed without them as well.
    Exonerated(Vec<Release>),
}

/// The starts in one cache root, as far as they still matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trial {
    suspects: Vec<Suspect>,
    /// What was about to be installed when nothing more was heard of its start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    expected: Vec<Suspect>,
    /// The boot in which a start was begun whose end is not known.
    under_way: Option<BootId>,
}

impl Trial {
    /// Nothing to remember.
    pub(super) fn is_empty(&self) -> bool {
        self.suspects.is_empty() && self.expected.is_empty()
    }

    pub(super) fn suspects(&self) -> &[Suspect] {
        &self.suspects
    }

    /// The start that is under way, or the next one.
    pub(super) fn start(&self) -> Kind {
        if self.suspects.iter().any(|suspect| suspect.crashes >= CRASHES) { Kind::Clean } else { Kind::Warm }
    }

    /// A start whose process is gone without a word counts as a crash: the kernel or an operator killed it with its engine.
    /// On another boot it does not: a power cut or a reboot ends every process, and says nothing about this one.
    pub(super) fn resume(&mut self, boot: &BootId) -> Verdict {
        match &self.under_way {
            None => Verdict::Nothing,
            Some(begun) => self.end(if begun == boot { End::Crashed } else { End::Unknown }),
        }
    }

    /// Something is about to be installed: from now on it is known, whatever becomes of this process.
    pub(super) fn expect(&mut self, coming: Suspect) {
        self.expected.push(coming);
    }

    /// What was expected and `came` is suspect; the rest never was there.
    pub(super) fn settle(&mut self, came: impl Fn(&Path, &RelPath) -> bool) {
        let mut installed = std::mem::take(&mut self.expected);
        for Suspect { root, entries, .. } in &mut installed {
            entries.retain(|entry| came(root, entry));
        }
        installed.retain(|suspect| !suspect.entries.is_empty());
        self.suspect(installed);
    }

    /// An engine is about to be started, after `installed` came. Of what else was expected, `came` tells.
    pub(super) fn begin(&mut self, boot: BootId, installed: Vec<Suspect>, came: impl Fn(&Path, &RelPath) -> bool) {
        self.expected.retain(|expected| !installed.iter().any(|known| known.is_of(expected)));
        self.settle(came);
        self.suspect(installed);
        self.under_way = Some(boot);
    }

    fn suspect(&mut self, installed: Vec<Suspect>) {
        if self.start() == Kind::Clean && !installed.is_empty() {
            // That is no clean start any more, whatever comes of it.
            self.suspects.clear();
        }
        for new in installed {
            match self.suspects.iter_mut().find(|known| known.is_of(&new)) {
                Some(known) => known.entries.extend(new.entries),
                None => self.suspects.push(new),
            }
        }
    }

    /// The end of the start that is under way; without one, nothing.
    pub(super) fn end(&mut self, end: End) -> Verdict {
        if self.under_way.take().is_none() {
            return Verdict::Nothing;
        }
        match (self.start(), end) {
            (Kind::Warm, End::Ready) => {
                self.suspects.clear();
                Verdict::Nothing
            }
            (Kind::Warm, End::Crashed) => {
                self.suspects.iter_mut().for_each(|suspect| suspect.crashes = suspect.crashes.saturating_add(1));
                Verdict::Nothing
            }
            (Kind::Warm, End::Unknown) => Verdict::Nothing,
            (Kind::Clean, End::Ready) => {
                let guilty = std::mem::take(&mut self.suspects).into_iter().filter(|one| one.crashes >= CRASHES);
                Verdict::Quarantine(releases(guilty))
            }
            (Kind::Clean, End::Crashed) => Verdict::Exonerated(releases(std::mem::take(&mut self.suspects))),
            (Kind::Clean, End::Unknown) => {
                self.suspects.clear();
                Verdict::Nothing
            }
        }
    }

    /// The suspects cannot be taken away: nothing can be found out about them.
    pub(super) fn give_up(&mut self) {
        *self = Self::default();
    }
}

/// Each once: an artifact may have been installed into two roots.
fn releases(suspects: impl IntoIterator<Item = Suspect>) -> Vec<Release> {
    let mut releases: Vec<Release> = Vec::new();
    for Suspect { release, .. } in suspects {
        if !releases.contains(&release) {
            releases.push(release);
        }
    }
    releases
}

#[cfg(test)]
mod tests;
