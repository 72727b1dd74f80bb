//! Names of ModelExpress that its users have set already, each with the option that it is taken for. An option, or a
//! `WARMD_` variable, comes before them; a value that makes no sense is told and ignored.

use std::str::FromStr;
use std::time::Duration;

use clap::builder::{BoolishValueParser, TypedValueParser};

use super::output;

/// A variable of theirs that means what an option here means.
pub(super) struct Alias<T> {
    /// Theirs.
    name: &'static str,
    /// Ours.
    option: &'static str,
    expected: &'static str,
    read: fn(&str) -> Option<T>,
}

/// The engine is ready when this answers 200.
pub(super) const READY_URL: Alias<String> = Alias {
    name: "MX_ARTIFACT_READY_URL",
    option: "--ready-url",
    expected: "an http or https URL",
    read: |text| (text.starts_with("http://") || text.starts_with("https://")).then(|| text.to_owned()),
};

/// For the engine to become ready.
pub(super) const READY_TIMEOUT: Alias<Duration> = Alias {
    name: "MX_ARTIFACT_READY_TIMEOUT_SECS",
    option: "--ready-timeout",
    expected: "a number of seconds",
    read: seconds,
};

/// For a publication that is tried again and again.
pub(super) const PUBLISH_TIMEOUT: Alias<Duration> = Alias {
    name: "MX_PUBLISH_TIMEOUT_SECS",
    option: "--publish-timeout",
    expected: "a number of seconds",
    read: seconds,
};

/// Whether caches travel at all; unlike there, they do unless told otherwise.
pub(super) const TRANSFER: Alias<bool> = Alias {
    name: "MX_ARTIFACT_TRANSFER",
    option: "--transfer",
    expected: "1 or 0",
    read: |text| {
        let command = clap::Command::new("");
        BoolishValueParser::new().parse_ref(&command, None, text.as_ref()).ok()
    },
};

fn seconds(text: &str) -> Option<Duration> {
    u32::from_str(text).ok().filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()))
}

impl<T> Alias<T> {
    /// What the user has set here, or else there. What comes of the environment is told.
    pub(super) fn or(&self, set: Option<T>) -> Option<T> {
        self.or_read(set, |name| std::env::var(name).ok(), &output::note)
    }

    fn or_read(&self, set: Option<T>, variable: impl Fn(&str) -> Option<String>, note: &dyn Fn(String)) -> Option<T> {
        let Self { name, option, expected, read } = self;
        if set.is_some() {
            return set;
        }
        let text = variable(name).filter(|text| !text.is_empty())?;
        let taken = read(&text);
        note(match taken {
            Some(_) => format!("warmd: {name} is taken as {option}"),
            None => format!("warmd: {name}={text} is ignored: it is not {expected}"),
        });
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// With nothing set, with ours set, and with a value of theirs that makes no sense.
    fn check<T: Clone + PartialEq + std::fmt::Debug>(alias: &Alias<T>, theirs: &[(&str, T)], ours: T, bad: &[&str]) {
        let notes = RefCell::new(Vec::new());
        let note = |line| notes.borrow_mut().push(line);
        let set_to = |text: &'static str| move |name: &str| (name == alias.name).then(|| text.to_owned());
        assert_eq!(alias.or_read(None, |_| None, &note), None);
        assert_eq!(alias.or_read(None, set_to(""), &note), None);
        assert!(notes.take().is_empty(), "nothing is told of what is not set");
        for bad in bad {
            let bad: &'static str = String::from(*bad).leak();
            assert_eq!(alias.or_read(None, set_to(bad), &note), None);
            assert!(notes.take().concat().contains(&format!("{}={bad} is ignored", alias.name)));
        }
        for (text, value) in theirs {
            let text: &'static str = String::from(*text).leak();
            assert_eq!(alias.or_read(Some(ours.clone()), set_to(text), &note), Some(ours.clone()));
            assert!(notes.take().is_empty(), "nothing is told of what does not count");
            assert_eq!(alias.or_read(None, set_to(text), &note), Some(value.clone()));
            assert_eq!(notes.take(), [format!("warmd: {} is taken as {}", alias.name, alias.option)]);
        }
    }

    #[test]
    fn each_name_of_theirs_stands_for_one_option_which_comes_first_and_a_bad_value_is_told() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let url = "http://head:8000/health";
        check(&READY_URL, &[(url, url.to_owned())], "http://here".to_owned(), &["ftp://x", "localhost:8000"]);
        for timeout in [&READY_TIMEOUT, &PUBLISH_TIMEOUT] {
            check(timeout, &[("1", second)], minute, &["soon", "-1", "1.5", "0", "99999999999"]);
        }
        let switch = [("1", true), ("true", true), ("YES", true), ("0", false), ("off", false), ("False", false)];
        check(&TRANSFER, &switch, true, &["maybe", "2"]);
    }
}
