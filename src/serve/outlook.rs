//! Which families concern this node and this engine, where each one's directory is, and which entries fit.

use std::path::PathBuf;

use crate::artifact::SourceIdentity;
use crate::caches::{CacheFamily, Environment, Fact, Facts, IdentityError, Known, Launch};

/// A family that can be warmed here.
#[derive(Debug, Clone)]
pub struct Prospect {
    pub family: &'static CacheFamily,
    /// Its directory, whether it exists or not.
    pub root: PathBuf,
    pub identity: SourceIdentity,
}

/// What can be warmed here, most valuable first, and what cannot and why.
#[derive(Debug, Default)]
pub struct Outlook {
    pub prospects: Vec<Prospect>,
    /// Something is wrong: a fact could not be read.
    pub failed: Vec<IdentityError>,
    /// Nothing is wrong: there is nothing of this kind here.
    pub absent: Vec<IdentityError>,
}

/// `environment` is the engine's. `launch` is absent where its command line could not be understood.
pub fn outlook(environment: &Environment, facts: &Facts, launch: Option<&Launch>) -> Outlook {
    let mut outlook = Outlook::default();
    let mut facts = facts.clone();
    facts.set(Fact::Model, told(launch.and_then(Launch::model), "model"));
    facts.set(Fact::Revision, told(launch.and_then(Launch::revision), "revision"));
    for &family in CacheFamily::all() {
        let Some(root) = (family.root)(environment) else { continue };
        facts.set(Fact::CacheRoot, Known::Value(root.to_string_lossy().into_owned()).checked());
        match family.identity(&facts) {
            Ok(identity) => outlook.prospects.push(Prospect { family, root, identity }),
            Err(error @ IdentityError::NotHere { .. }) => outlook.absent.push(error),
            Err(error) => outlook.failed.push(error),
        }
    }
    outlook.prospects.sort_by(|a, b| b.family.worth.total_cmp(&a.family.worth));
    outlook
}

fn told(value: Option<&str>, what: &str) -> Known {
    match value {
        Some(value) => Known::Value(value.to_owned()).checked(),
        None => Known::Absent(format!("the command names no {what}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let mut facts = Facts::default();
        Fact::ALL.iter().for_each(|fact| facts.set(*fact, Known::Value("x".to_owned())));
        facts
    }

    fn environment() -> Environment {
        [("HOME".to_owned(), "/home/someone".to_owned())].into_iter().collect()
    }

    #[test]
    fn families_whose_library_is_absent_are_not_looked_up_and_a_failed_fact_is_told() {
        let mut known = facts();
        known.set(Fact::Vllm, Known::Absent("vllm is not installed".to_owned()));
        known.set(Fact::Tilelang, Known::Failed("dist-info is damaged".to_owned()));
        let outlook = outlook(&environment(), &known, None);
        assert!(outlook.failed.iter().any(|error| error.to_string().contains("dist-info is damaged")));
        assert!(outlook.absent.iter().any(|error| error.to_string().starts_with("vllm-aot does not exist here")));
        assert!(outlook.prospects.iter().all(|prospect| prospect.family.name != "vllm-aot"));
    }

    #[test]
    fn the_model_is_taken_from_the_command_as_it_is_typed() {
        let launch = Launch::parse(&["vllm", "serve", "./m/"].map(str::to_owned)).unwrap();
        let known = facts();
        let outlook = outlook(&environment(), &known, Some(&launch));
        let aot = outlook.prospects.iter().find(|prospect| prospect.family.name == "vllm-aot").unwrap();
        assert_eq!(aot.identity.facts().get("model").map(String::as_str), Some("./m/"));
        assert!(aot.root.starts_with("/home/someone/.cache/vllm"));
    }

    #[test]
    fn what_saves_most_for_its_size_comes_first() {
        let known = facts();
        let worth: Vec<f64> =
            outlook(&environment(), &known, None).prospects.iter().map(|prospect| prospect.family.worth).collect();
        assert!(worth.len() > 5);
        assert!(worth.is_sorted_by(|a, b| a >= b));
    }
}
