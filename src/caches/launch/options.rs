//! Command lines as Python's argparse and vLLM's additions to it read them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

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

/// One or more words that belong together.
struct Item {
    /// Absent for a positional argument.
    name: Option<String>,
    values: Vec<String>,
    words: Range<usize>,
}

impl Syntax {
    pub(super) fn parse(&self, words: &[String]) -> Options {
        let mut options = Options::default();
        for Item { name, values, .. } in self.items(words) {
            match name {
                Some(name) => options.put(name, values),
                None => options.positional.extend(values),
            }
        }
        options
    }

    /// The words without the options of these full names, and with others behind the last option.
    pub(super) fn rewrite(&self, words: &[String], without: &[&str], with: &[String]) -> Vec<String> {
        let items = self.items(words);
        let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for item in items.into_iter().filter(|item| !item.name.as_deref().is_some_and(|name| without.contains(&name))) {
            let side = if item.words.start < end { &mut before } else { &mut after };
            side.extend_from_slice(&words[item.words]);
        }
        before.extend_from_slice(with);
        before.extend(words[end..].iter().take(1).cloned());
        before.extend(after);
        before
    }

    fn items(&self, words: &[String]) -> Vec<Item> {
        let mut items = Vec::new();
        let mut at = 0;
        while let Some(word) = words.get(at) {
            let start = at;
            at += 1;
            if word == "--" {
                items.extend((at..words.len()).map(|at| Item::positional(words, at)));
                break;
            }
            let Some((name, attached)) = self.option(word) else {
                items.push(Item::positional(words, start));
                continue;
            };
            let most = if attached.is_some() { 0 } else { self.arity(&name) };
            let values = words[at..].iter().take(most).take_while(|word| !is_option(word)).count();
            at += values;
            let values = attached.into_iter().chain(words[at - values..at].iter().cloned()).collect();
            items.push(Item { name: Some(name), values, words: start..at });
        }
        items
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

impl Item {
    fn positional(words: &[String], at: usize) -> Self {
        Self { name: None, values: vec![words[at].clone()], words: at..at + 1 }
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

    pub(super) fn values(&self, name: &str) -> &[String] {
        self.named.get(name).map_or(&[], Vec::as_slice)
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
