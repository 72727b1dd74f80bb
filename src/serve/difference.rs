//! What is not the same here and there, in words: of facts, and of command lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

/// A manifest's attribute: the command line that made an artifact, as [`encode`] writes it.
pub const LAUNCH: &str = "launch";

/// Bytes of an attribute's value that a manifest takes.
const MAX_ATTRIBUTE: usize = 4096;

/// One name with another value, or with none on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub name: String,
    pub here: Option<String>,
    pub there: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".to_owned());
        write!(f, "{} {} here, {} there", self.name, side(&self.here), side(&self.there))
    }
}

/// In the order of names.
pub fn differences(here: &BTreeMap<String, String>, there: &BTreeMap<String, String>) -> Vec<Difference> {
    let names: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
    names
        .into_iter()
        .filter(|name| here.get(*name) != there.get(*name))
        .map(|name| Difference { name: name.clone(), here: here.get(name).cloned(), there: there.get(name).cloned() })
        .collect()
}

/// `a 1 here, 2 there; b absent here, x there`.
pub fn in_words(differences: &[Difference]) -> String {
    differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
}

/// A canonical command line as the text of an attribute. `None` if there is nothing to say, or too much.
pub fn encode(launch: &BTreeMap<String, String>) -> Option<String> {
    let text = serde_json::to_string(launch).ok().filter(|_| !launch.is_empty())?;
    (text.len() <= MAX_ATTRIBUTE).then_some(text)
}

/// The command line that an artifact's attributes name. What could not be printed is left out.
pub fn launch_of(attributes: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    let mut launch: BTreeMap<String, String> = serde_json::from_str(attributes.get(LAUNCH)?).ok()?;
    launch.retain(|name, value| !name.chars().chain(value.chars()).any(char::is_control));
    Some(launch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn values_that_differ_and_values_on_one_side_only_are_told() {
        let here = map(&[("torch", "2.14.0"), ("model", "./m"), ("vllm", "0.32")]);
        let there = map(&[("torch", "2.13.1"), ("vllm", "0.32"), ("revision", "main")]);
        let told = in_words(&differences(&here, &there));
        assert_eq!(
            told,
            "model ./m here, absent there; revision absent here, main there; torch 2.14.0 here, 2.13.1 there"
        );
        assert_eq!(differences(&here, &here), []);
    }

    #[test]
    fn a_command_line_survives_its_attribute_unless_it_is_too_long() {
        let launch = map(&[("--max-num-batched-tokens", "2048"), ("VLLM_USE_DEEP_GEMM", "1")]);
        let attributes = map(&[(LAUNCH, &encode(&launch).unwrap())]);
        assert_eq!(launch_of(&attributes), Some(launch));
        assert_eq!(encode(&map(&[("--x", &"y".repeat(5000))])), None);
        assert_eq!(encode(&BTreeMap::new()), None);
        assert_eq!(launch_of(&map(&[(LAUNCH, "no json")])), None);
    }

    #[test]
    fn a_command_line_from_elsewhere_cannot_reach_the_terminals_controls() {
        let attributes = map(&[(LAUNCH, r#"{"--a": "\u001b[2J", "--b": "1"}"#)]);
        assert_eq!(launch_of(&attributes), Some(map(&[("--b", "1")])));
    }
}
