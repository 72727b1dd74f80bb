//! Whether a table has the form of a role's file: all that has not, and the key that was probably meant.

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// More are not looked for.
const MAX_FOUND: usize = 32;

/// A key that is not one, or a value that it does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    pub key: Vec<String>,
    pub text: String,
}

/// Removes from the table what is not of the form of `T`, and tells of it.
pub(super) fn take<T: DeserializeOwned>(table: &mut Table) -> Vec<Malformed> {
    let mut found = Vec::new();
    while let Err(error) = Value::Table(table.clone()).try_into::<T>() {
        let malformed = Malformed::of(&error);
        let is_removed = remove(table, &malformed.key);
        found.push(malformed);
        if !is_removed || found.len() == MAX_FOUND {
            break;
        }
    }
    found
}

/// The key or, where it is one that lacks, the table around it; false if that is everything.
fn remove(table: &mut Table, key: &[String]) -> bool {
    let [first, rest @ ..] = key else { return false };
    match table.get_mut(first) {
        None => false,
        Some(Value::Table(inner)) if !rest.is_empty() => remove(inner, rest) || table.remove(first).is_some(),
        Some(_) => table.remove(first).is_some(),
    }
}

impl Malformed {
    pub fn new(key: &[&str], text: impl Into<String>) -> Self {
        Self { key: key.iter().map(|key| (*key).to_owned()).collect(), text: text.into() }
    }

    fn of(error: &toml::de::Error) -> Self {
        let message = error.message();
        let mut key = keys(error);
        let mut words = message.split('`').skip(1).step_by(2);
        let text = match message.split_once(" `").map(|(what, _)| what) {
            Some("unknown field") => {
                let name = words.next().unwrap_or_default();
                key.push(name.to_owned());
                unknown(name, &words.collect::<Vec<_>>())
            }
            Some("unknown variant") => {
                let name = words.next().unwrap_or_default();
                let known: Vec<&str> = words.collect();
                let meant = closest(name, &known).map(|meant| format!(": did you mean \"{meant}\"?"));
                let known: Vec<String> = known.iter().map(|known| format!("\"{known}\"")).collect();
                format!("\"{name}\" is none of {}{}", known.join(", "), meant.unwrap_or_default())
            }
            Some("missing field") => {
                key.extend(words.next().map(str::to_owned));
                "it is missing, and has no default".to_owned()
            }
            _ => in_words(message),
        };
        Self { key, text }
    }

    /// In `[section]`.
    pub fn within(mut self, section: &str) -> Self {
        self.key.insert(0, section.to_owned());
        self
    }
}

/// The path to the value that could not be read: the last line of the error.
fn keys(error: &toml::de::Error) -> Vec<String> {
    let text = error.to_string();
    let path = text.trim_end().rsplit_once("\nin `").and_then(|(_, path)| path.strip_suffix('`'));
    path.map(|path| path.split('.').map(str::to_owned).collect()).unwrap_or_default()
}

fn unknown(name: &str, known: &[&str]) -> String {
    match closest(name, known) {
        Some(meant) => format!("unknown key: did you mean `{meant}`?"),
        None if known.is_empty() => "unknown key: there is none here".to_owned(),
        None => format!("unknown key: here are {}", known.join(", ")),
    }
}

/// Types as they are called in TOML.
fn in_words(message: &str) -> String {
    const TYPES: [(&str, &str); 11] = [
        ("a sequence", "a list"),
        ("expected a list", "expected a list in brackets, such as [\"a\", \"b\"] or [1, 2]"),
        ("a map", "a table"),
        ("floating point", "number"),
        ("expected u", "expected a whole number of 0 or more: u"),
        ("a nonzero u8", "a whole number from 1 to 255"),
        ("expected i", "expected a whole number: i"),
        ("expected f64", "expected a number"),
        ("expected a duration", "expected a time with its unit, such as \"10s\""),
        ("invalid type", "wrong type"),
        ("invalid socket address syntax", "expected an address and its port, such as \"127.0.0.1:9786\""),
    ];
    TYPES.iter().fold(message.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The one that differs least, if a typing error explains the difference.
fn closest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let most = (name.chars().count() / 3).max(1);
    let near = known.iter().map(|known| (distance(name, known), *known));
    near.filter(|(distance, _)| *distance <= most).min().map(|(_, known)| known)
}

/// Letters to insert, remove, replace or swap with their neighbour, to make one of the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, _) => j,
                (_, 0) => i,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    if swapped { least.min(rows[i - 2][j - 2] + 1) } else { least }
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::AgentConfig;

    fn of_agent(text: &str) -> Vec<(String, String)> {
        let mut table = text.parse().unwrap();
        take::<AgentConfig>(&mut table).into_iter().map(|one| (one.key.join("."), one.text)).collect()
    }

    #[test]
    fn everything_that_is_wrong_is_found_at_once_with_its_key() {
        let found = of_agent(
            "fetch_deadline = 5\n[transport]\nlisten = \"127.0.0.1:99999\"\nlissen = \"x\"\nmax_streams = -1\ncongestion = \"bbrr\"\n\
             [provide]\nenabled = \"yes\"\nupload_slots = 3\n[nod]\nkey = \"k\"\n[trust]\nroots = \"r\"\n",
        );
        let keys: std::collections::BTreeSet<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
        let expected = [
            "fetch_deadline",
            "nod",
            "provide.enabled",
            "transport.congestion",
            "transport.lissen",
            "transport.listen",
            "transport.max_streams",
            "trust.roots",
        ];
        assert_eq!(keys.into_iter().collect::<Vec<_>>(), expected, "{found:#?}");
        let text = |key: &str| found.iter().find(|(k, _)| k == key).unwrap().1.clone();
        assert_eq!(text("transport.lissen"), "unknown key: did you mean `listen`?");
        assert_eq!(text("nod"), "unknown key: did you mean `node`?");
        assert!(text("transport.congestion").ends_with("did you mean \"bbr\"?"), "{found:#?}");
        assert!(text("transport.listen").contains("an address and its port"), "{found:#?}");
        assert!(text("trust.roots").contains("a list in brackets"), "{found:#?}");
        assert!(text("provide.enabled").contains("a boolean"), "{found:#?}");
    }

    #[test]
    fn a_name_that_resembles_nothing_gets_the_list() {
        assert_eq!(closest("bananas", &["listen", "carrier"]), None);
        assert_eq!(closest("lisetn", &["listen", "carrier"]), Some("listen"));
        let found = of_agent("[local]\nbananas = 1\n");
        assert_eq!(
            found[0].1,
            "unknown key: here are socket, allow_uids, operator_uids, publish_uids, publish_class, push_bytes"
        );
    }

    #[test]
    fn distances_are_counted_in_edits() {
        for (a, b, expected) in [("", "ab", 2), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "axc", 1), ("ab", "b", 1)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
