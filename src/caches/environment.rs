//! The environment variables that an engine is started with.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What the engine will see. Names and values that are not UTF-8 are not in it; the engine inherits them all the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    pub fn of_this_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// As Python's `os.environ.get(NAME) or None`: a variable that is set to nothing counts as not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A variable that names a directory. A leading `~` is the home directory, as most of the libraries take it.
    pub fn directory(&self, name: &str) -> Option<PathBuf> {
        let value = self.get(name)?;
        match value.strip_prefix("~/") {
            Some(below) => Some(self.home()?.join(below)),
            None => Some(value.into()),
        }
    }

    pub fn home(&self) -> Option<PathBuf> {
        self.get("HOME").map(PathBuf::from)
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// In the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}
