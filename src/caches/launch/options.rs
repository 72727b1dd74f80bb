//! Command lines as Python's argparse and vLLM's additions to it read them.

use std::collections::BTreeMap;
use std::fmt;

/// What has to be known about an engine's options to tell their values from positional arguments. An option that is in no
/// list takes one value, if one follows.
#[derive(Debug)]
pub(super) struct Syntax {
    /// Options without a value; a name that ends with `*` stands for all that begin so.
    pub(super) flags: &'static [&'static str],
    /// One value although `flags` says otherwise.
    pub(super) single: &'static [&'static str],
    /// One value or more.
    pub(super) many: &'static [&'static str],
    /// Short and second names, without dashes.
    pub(super) aliases: &'static [(&'static str, &'static str)],
    /// Change no key of any cache; a name that ends with `*` stands for all that begin so.
    pub(super) ignored: &'static [&'static str],
}

/// Options by name, each with the values that count: those given last.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) named: BTreeMap<String, Vec<String>>,
    pub(super) positional: Vec<String>,
}

/// Names only: values may be secrets.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.named.keys()).finish()
    }
}

impl Syntax {
    pub(super) fn parse(&self, words: &[String]) -> Options {
        let mut options = Options::default();
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            if word == "--" {
                options.positional.extend(words.cloned());
                break;
            }
            let Some((name, attached)) = self.option(word) else {
                options.positional.push(word.clone());
                continue;
            };
            let most = if attached.is_some() { 0 } else { self.arity(&name) };
            let mut values: Vec<String> = attached.into_iter().collect();
            while values.len() < most {
                let Some(value) = words.next_if(|word| !is_option(word)) else { break };
                values.push(value.clone());
            }
            options.put(name, values);
        }
        options
    }

    pub(super) fn is_ignored(&self, name: &str) -> bool {
        listed(self.ignored, name.strip_prefix("no-").unwrap_or(name))
    }

    pub(super) fn full_name(&self, name: String) -> String {
        self.aliases.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, full)| (*full).to_owned())
    }

    /// The full name of an option, and the value that is part of the word.
    fn option(&self, word: &str) -> Option<(String, Option<String>)> {
        if !is_option(word) {
            return None;
        }
        if let Some(level) = word.strip_prefix("-O").filter(|_| !word.starts_with("--")) {
            let level = level.strip_prefix('=').unwrap_or(level);
            return Some(("optimization-level".to_owned(), Some(level.to_owned()).filter(|level| !level.is_empty())));
        }
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, None),
        };
        // `--compilation-config.mode`: what follows the point is a key of a JSON object, dashes or not.
        let (stem, key) = name.split_at(name.find('.').unwrap_or(name.len()));
        let stem = match stem.strip_prefix("--") {
            Some(long) => long.replace('_', "-"),
            None => stem.strip_prefix('-')?.to_owned(),
        };
        let full = self.aliases.iter().find(|(alias, _)| *alias == stem).map(|(_, full)| (*full).to_owned());
        let known = full.is_some() || word.starts_with("--");
        // `-qfp8`: a letter and its value.
        if let Some((letter, rest)) = stem.split_at_checked(1).filter(|(_, rest)| !known && !rest.is_empty())
            && let Some((_, full)) = self.aliases.iter().find(|(alias, _)| *alias == letter)
        {
            return Some(((*full).to_owned(), Some(rest.to_owned())));
        }
        Some((format!("{}{key}", full.unwrap_or(stem)), value))
    }

    /// Values at most.
    fn arity(&self, name: &str) -> usize {
        if self.many.contains(&name) {
            usize::MAX
        } else {
            usize::from(!listed(self.flags, name) || self.single.contains(&name))
        }
    }
}

impl Options {
    fn put(&mut self, name: String, values: Vec<String>) {
        // `--a.b+ value` adds to a list.
        if name.ends_with('+') {
            self.named.entry(name).or_default().extend(values);
        } else {
            self.named.insert(name, values);
        }
    }

    /// Options given later count.
    pub(super) fn then(mut self, later: Self) -> Self {
        for (name, values) in later.named {
            self.put(name, values);
        }
        self.positional.extend(later.positional);
        self
    }

    /// The first value.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.named.get(name)?.first().map(String::as_str)
    }
}

/// As argparse tells options from values: a negative number is a value, and so is what has a space in it.
pub(super) fn is_option(word: &str) -> bool {
    word.len() > 1 && word.starts_with('-') && word.parse::<f64>().is_err() && !word.contains(' ')
}

/// An entry that ends with `*` stands for all names that begin so.
pub(super) fn listed(list: &[&str], name: &str) -> bool {
    list.iter().any(|entry| match entry.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *entry,
    })
}
