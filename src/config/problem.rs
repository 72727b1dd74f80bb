//! What is wrong with a configuration, where it is said, and the way out.

use std::fmt;

use serde::{Serialize, Serializer};

use super::origin::{Origin, Origins};

/// Whether a role starts in spite of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing, and not wrong.
    Note,
    Warning,
    Error,
}

/// One thing that is wrong. The text says what, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub severity: Severity,
    /// `section.key` of all that it is about; the first is the one to change.
    pub keys: Vec<String>,
    #[serde(serialize_with = "shown")]
    pub origin: Origin,
    pub text: String,
    /// Somebody listens where the role is to listen: perhaps that role itself.
    #[serde(skip)]
    pub is_taken: bool,
}

fn shown<S: Serializer>(origin: &Origin, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(origin)
}

impl Problem {
    pub(super) fn error(keys: &[&str], text: impl Into<String>) -> Self {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        Self { severity: Severity::Error, keys, origin: Origin::Default, text: text.into(), is_taken: false }
    }

    pub(super) fn warning(keys: &[&str], text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(keys, text) }
    }

    /// What was found is as it should be, and `text` says why.
    pub fn excused(&mut self, text: impl Into<String>) {
        (self.severity, self.text) = (Severity::Note, text.into());
    }

    /// In `[section]`, for a part that has its keys there.
    pub(super) fn within(mut self, section: &str) -> Self {
        self.keys.iter_mut().for_each(|key| *key = format!("{section}.{key}"));
        self
    }

    /// With the place where the first of its keys is said that is said at all.
    pub fn placed(mut self, origins: &Origins) -> Self {
        let said = self.keys.iter().map(|key| origins.place(key)).find(|origin| *origin != Origin::Default);
        self.origin = said.unwrap_or(Origin::Default);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.origin, self.keys.first()) {
            (Origin::Default, None) => f.write_str(&self.text),
            (Origin::Default, Some(key)) => write!(f, "{key}: {}", self.text),
            (origin, None) => write!(f, "{origin}: {}", self.text),
            (origin, Some(key)) => write!(f, "{origin}: {key}: {}", self.text),
        }
    }
}

/// All that was found, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [problem] = &self.0[..] {
            return problem.fmt(f);
        }
        write!(f, "{} problems in the configuration", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}
