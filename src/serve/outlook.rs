//! Which families concern this node and this engine, where each one's directory is, and which entries fit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::artifact::SourceIdentity;
use crate::caches::{
    CacheFamily, Environment, Fact, Facts, IdentityError, Interpreter, InterpreterError, Known, Launch, Probe,
    ProbeError,
};

const PYTHON: &str = "mend the package, or name the engine's interpreter with --python (`warmd facts` tells more)";

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

impl Outlook {
    /// What is left out because something is wrong, and the way out; a line for each cause.
    pub fn left_out(&self) -> Vec<String> {
        let mut facts: BTreeMap<(Fact, &str), Vec<&str>> = BTreeMap::new();
        let mut others = Vec::new();
        for error in &self.failed {
            match error {
                IdentityError::Failed { family, fact, why } => facts.entry((*fact, why)).or_default().push(family),
                other => others.push(format!("left out: {other}")),
            }
        }
        let lines = facts
            .into_iter()
            .map(|((fact, why), families)| format!("left out: {}: {}", families.join(", "), unreadable(fact, why)));
        lines.chain(others).collect()
    }
}

/// Which fact could not be read, and the way out.
fn unreadable(fact: Fact, why: &str) -> String {
    let way_out = match fact {
        Fact::Model | Fact::Revision => "mend the engine's command",
        Fact::CacheRoot => "use another cache root",
        Fact::Image => "mend WARMD_IMAGE_DIGEST, or --image-digest",
        _ => PYTHON,
    };
    format!("{fact} could not be read: {why}; {way_out}")
}

/// Which engine to look at, and how long to ask its interpreter.
pub(super) struct Inquiry<'a> {
    pub(super) command: &'a [String],
    /// Replaces the interpreter that the command names.
    pub(super) python: Option<&'a Path>,
    pub(super) image: Option<&'a str>,
    /// The engine's.
    pub(super) environment: &'a Environment,
    pub(super) launch: Option<&'a Launch>,
    /// Answers are kept here.
    pub(super) cache: Option<PathBuf>,
    pub(super) deadline: Duration,
}

/// What the interpreter said, and what follows from it.
pub(super) struct Findings {
    pub(super) outlook: Outlook,
    /// Facts that could not be read, each with the way out.
    pub(super) unread: Vec<String>,
    /// What every engine has and this interpreter has not.
    pub(super) lacks: Option<String>,
}

impl Inquiry<'_> {
    pub(super) fn interpreter(&self) -> Result<Interpreter, InterpreterError> {
        Interpreter::find(self.command, self.python, &self.probed())
    }

    pub(super) async fn findings(&self, interpreter: Interpreter) -> Result<Findings, ProbeError> {
        let python = interpreter.python.clone();
        let (environment, cache) = (self.probed(), self.cache.clone());
        let facts = Probe { interpreter, environment, deadline: self.deadline, cache }.run().await?.facts;
        let unread = facts.iter().filter_map(|(fact, known)| match known {
            Known::Failed(why) => Some(unreadable(fact, why)),
            _ => None,
        });
        let lacks = match facts.get(Fact::Torch) {
            Some(Known::Absent(why)) => Some(format!(
                "{} has no torch ({why}): if that is not the engine's interpreter, name it with --python",
                python.display()
            )),
            _ => None,
        };
        let outlook = outlook(self.environment, &facts, self.launch);
        Ok(Findings { outlook, unread: unread.collect(), lacks })
    }

    fn probed(&self) -> Environment {
        let mut environment = self.environment.clone();
        if let Some(image) = self.image {
            environment.set("WARMD_IMAGE_DIGEST", image);
        }
        environment
    }
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
