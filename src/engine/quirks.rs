//! What vLLM's versions do differently where warmd meets them.
//!
//! The rows are what the Python sources of 0.16.0, 0.22.1, 0.23.0, 0.26.0, 0.32.0 and 0.33.0 say. Between two of them
//! the older one counts: it promises less.

use std::fmt;

/// A version as `/version` tells it: `0.32.0`, `0.33.0rc1.dev12+g0a1b2c3`, `0.32.0+cpu`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    text: String,
    /// `None` if the text says nothing about a place among the releases.
    release: Option<Release>,
}

/// Major, minor, patch.
type Release = (u32, u32, u32);

/// Longer texts are cut: they only come from something that is no vLLM.
const MAX_TEXT: usize = 64;

/// What setuptools-scm calls a build of a tree without tags (`0.1.dev1+g0a1b2c3`): it can be of any day.
const UNTAGGED: Release = (0, 1, 0);

/// How a load fails for the adapter's own reasons: a rank that is too large, weights of another shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadFailure {
    /// 400 with the reason.
    BadRequest,
    /// By the type of Python's exception 4xx or 5xx; the reason may be missing.
    Raised,
    /// 500 `InternalServerError` with the reason.
    Internal,
}

/// What `load_inplace` does after the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InPlaceLoad {
    /// The adapter is read from disk again in every step.
    Sticky,
    Once,
}

/// Which prompts of adapters share blocks of the prefix cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixKey {
    /// Those of one name, whatever weights it had.
    Name,
    NameAndPath,
}

/// What becomes of a request that comes while generation is paused by `abort` or `wait`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paused {
    /// It waits, and nobody tells the client.
    Waits,
    /// 503.
    Rejected,
}

/// What becomes of an adapter that is called like the base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseName {
    /// It is loaded, and never reached.
    Shadowed,
    Refused,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quirks {
    pub load_failure: LoadFailure,
    pub in_place_load: InPlaceLoad,
    pub prefix_key: PrefixKey,
    /// Whether `rank_pattern` and `alpha_pattern` are followed; where they are not, the adapter is scaled wrongly.
    pub follows_patterns: bool,
    /// Whether there is `--shutdown-timeout`; without it SIGTERM always cuts requests off.
    pub shutdown_timeout: bool,
    pub paused: Paused,
    pub base_name: BaseName,
}

/// Part of what a load of a name that is in use is answered, in all known versions.
pub(super) const DUPLICATE: &str = "has already been loaded";

/// Part of what a load without files is answered, in all known versions.
pub(super) const MISSING_FILES: &str = "No adapter found for";

/// Part of what [`BaseName::Refused`] is answered.
pub(super) const BASE_NAME: &str = "conflicts with a served base model";

const V0_16: Quirks = Quirks {
    load_failure: LoadFailure::BadRequest,
    in_place_load: InPlaceLoad::Sticky,
    prefix_key: PrefixKey::Name,
    follows_patterns: false,
    shutdown_timeout: false,
    paused: Paused::Waits,
    base_name: BaseName::Shadowed,
};
const V0_22_1: Quirks = Quirks { load_failure: LoadFailure::Raised, shutdown_timeout: true, ..V0_16 };
const V0_23: Quirks = Quirks { load_failure: LoadFailure::Internal, ..V0_22_1 };
const V0_32: Quirks =
    Quirks { prefix_key: PrefixKey::NameAndPath, follows_patterns: true, base_name: BaseName::Refused, ..V0_23 };
const V0_33: Quirks = Quirks { in_place_load: InPlaceLoad::Once, paused: Paused::Rejected, ..V0_32 };

/// From which release on each row counts, the oldest first.
const TABLE: [(Release, Quirks); 5] =
    [((0, 16, 0), V0_16), ((0, 22, 1), V0_22_1), ((0, 23, 0), V0_23), ((0, 32, 0), V0_32), ((0, 33, 0), V0_33)];

/// The newest release line that was looked at; later patches of it count as known.
const NEWEST: (u32, u32) = (0, 33);

impl Quirks {
    /// Of a version that is not known, with a sentence for the user.
    pub fn of(version: &Version) -> (Self, Option<String>) {
        let (_, oldest) = TABLE[0];
        let (_, newest) = TABLE[TABLE.len() - 1];
        let Some(release) = version.release.filter(|release| *release != UNTAGGED) else {
            return (newest, Some(format!("vLLM {version} is no release: it is taken for {}.{}", NEWEST.0, NEWEST.1)));
        };
        if release < TABLE[0].0 {
            return (oldest, Some(format!("vLLM {version} is older than 0.16, which it is taken for: update it")));
        }
        let row = TABLE.iter().rfind(|(from, _)| *from <= release).map_or(oldest, |(_, quirks)| *quirks);
        let newer = (release.0, release.1) > NEWEST;
        (row, newer.then(|| format!("vLLM {version} is not known yet: it is taken for {}.{}", NEWEST.0, NEWEST.1)))
    }
}

impl Version {
    /// Any text is a version; not every one can be compared.
    pub fn new(text: &str) -> Self {
        let text: String = text.trim().chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
        let release = release(&text);
        Self { text, release }
    }
}

/// The release segment (PEP 440): numbers with points between them, at least two.
fn release(text: &str) -> Option<Release> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut numbers = text[..end].trim_end_matches('.').split('.').map(|number| number.parse().ok());
    let (major, minor) = (numbers.next()??, numbers.next()??);
    let patch = numbers.next().map_or(Some(0), |patch| patch)?;
    Some((major, minor, patch))
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (Quirks, Option<String>) {
        Quirks::of(&Version::new(text))
    }

    #[test]
    fn each_release_has_the_row_of_the_last_one_that_was_looked_at() {
        let rows = [
            ("0.16.0", V0_16),
            ("0.22.0", V0_16),
            ("0.22.1", V0_22_1),
            ("0.22.1rc0", V0_22_1),
            ("0.23.0", V0_23),
            ("0.26.0+cu129", V0_23),
            ("0.31.9", V0_23),
            ("v0.32.0", V0_32),
            ("0.32.0+cpu", V0_32),
            ("0.33", V0_33),
            ("0.33.7", V0_33),
        ];
        for (text, row) in rows {
            assert_eq!(of(text), (row, None), "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_taken_for_the_newest_and_told() {
        for text in ["0.34.0", "0.100.0", "1.0.0", "0.1.dev1+g0a1b2c3", "dev", "", "0", "0.x", "99999999999.1", "0..1"]
        {
            let (row, note) = of(text);
            assert_eq!(row, V0_33, "{text}");
            assert!(note.is_some_and(|note| note.contains("taken for 0.33")), "{text}");
        }
        let (row, note) = of("0.8.5");
        assert!(row == V0_16 && note.is_some_and(|note| note.contains("0.8.5")));
    }

    #[test]
    fn a_version_is_shown_without_what_no_version_holds() {
        let version = Version::new(&format!("0.32.0\n\x1b[2J{}", "x".repeat(100)));
        assert_eq!(version.to_string().len(), MAX_TEXT);
        assert!(version.to_string().starts_with("0.32.0[2Jx"));
    }

    /// What the facts of each row are, so that a row does not change with the one it is made from.
    #[test]
    fn the_rows_say_what_the_sources_say() {
        let facts = |q: Quirks| (q.in_place_load, q.prefix_key, q.follows_patterns, q.shutdown_timeout, q.base_name);
        let (sticky, once) = (InPlaceLoad::Sticky, InPlaceLoad::Once);
        let (name, path) = (PrefixKey::Name, PrefixKey::NameAndPath);
        assert_eq!(facts(V0_16), (sticky, name, false, false, BaseName::Shadowed));
        assert_eq!(facts(V0_22_1), (sticky, name, false, true, BaseName::Shadowed));
        assert_eq!(facts(V0_23), (sticky, name, false, true, BaseName::Shadowed));
        assert_eq!(facts(V0_32), (sticky, path, true, true, BaseName::Refused));
        assert_eq!(facts(V0_33), (once, path, true, true, BaseName::Refused));
        assert_eq!((V0_32.paused, V0_33.paused), (Paused::Waits, Paused::Rejected));
        assert_eq!((V0_22_1.load_failure, V0_23.load_failure), (LoadFailure::Raised, LoadFailure::Internal));
    }
}
