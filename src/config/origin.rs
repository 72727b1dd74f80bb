//! Where a value comes from. A flag counts more than a variable, a variable more than the file, the file more than the
//! default.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Table;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, MAX_FILE};

/// What says a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File {
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// `WARMD_SECTION_KEY`.
    Variable(String),
    /// With its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Of every key that something says, tables included, by `section.key`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Of exactly this key.
    pub fn of(&self, key: &str) -> Origin {
        self.0.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Of this key, or else of the table around it.
    pub(super) fn place(&self, key: &str) -> Origin {
        let mut key = key;
        loop {
            match (self.0.get(key), key.rsplit_once('.')) {
                (Some(origin), _) => return origin.clone(),
                (None, Some((around, _))) => key = around,
                (None, None) => return Origin::Default,
            }
        }
    }

    pub(super) fn set(&mut self, key: String, origin: Origin) {
        self.0.insert(key, origin);
    }
}

/// A file's table, and the line of each of its keys.
pub(super) fn read(path: &Path) -> Result<(Table, Origins), ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    if path.metadata().map_err(failed)?.len() > MAX_FILE {
        return Err(ConfigError::TooLarge(path.to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let syntax = |error: &toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| line_of(&text, span.start)),
        message: error.message().to_owned(),
    };
    let parsed = DeTable::parse(&text).map_err(|error| syntax(&error))?;
    let table: Table = text.parse().map_err(|error| syntax(&error))?;
    let mut origins = Origins::default();
    locate(parsed.get_ref(), "", &mut |key, at| {
        origins.set(key, Origin::File { path: path.to_owned(), line: line_of(&text, at) });
    });
    Ok((table, origins))
}

fn locate(table: &DeTable<'_>, prefix: &str, tell: &mut impl FnMut(String, usize)) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            locate(inner, &format!("{key}."), tell);
        }
        tell(key, name.span().start);
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_file_has_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a = 1\n\n[b]\nc = [\n  1,\n]\nd = { e = 2 }\n[b.f]\ng = 3\n").unwrap();
        let (_, origins) = read(file.path()).unwrap();
        let line = |key: &str| match origins.of(key) {
            Origin::File { line, .. } => line,
            other => panic!("{key}: {other:?}"),
        };
        let lines = ["a", "b.c", "b.d", "b.d.e", "b.f", "b.f.g"].map(line);
        assert_eq!(lines, [1, 4, 7, 7, 8, 9]);
        assert_eq!(origins.of("b.x"), Origin::Default);
        assert_eq!(origins.place("b.f.x"), origins.of("b.f"));
    }

    #[test]
    fn a_file_that_is_no_toml_is_refused_at_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a = 1\n[b\n").unwrap();
        assert!(matches!(read(file.path()), Err(ConfigError::Syntax { line: 2, .. })));
    }
}
