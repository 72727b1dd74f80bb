//! What all servers of a cluster must have in common, and what is said where they have not.

use std::collections::BTreeMap;
use std::fmt;

use crate::metadata::registry::Config;

/// A setting that is not as the servers of the cluster have agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub name: String,
    pub here: String,
    pub cluster: String,
}

/// What differs, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Drifted(pub Vec<Difference>);

impl fmt::Display for Drifted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("settings differ from those in the shared store:")?;
        for Difference { name, here, cluster } in &self.0 {
            write!(f, " {name} is {here} here and {cluster} there;")?;
        }
        f.write_str(" to serve with the cluster's, run ")?;
        for Difference { name, cluster, .. } in &self.0 {
            match variable(name) {
                Some(variable) => write!(f, "{variable}={} ", cluster.replace(' ', ""))?,
                None => write!(f, "[with the same {name}] ")?,
            }
        }
        f.write_str("warmd metadata; to make this server's the cluster's, run warmd metadata --drift adopt")
    }
}

/// The environment variable that sets a setting, if an operator can.
fn variable(name: &str) -> Option<&'static str> {
    match name {
        "heartbeat" => Some("WARMD_SERVER_HEARTBEAT"),
        "lease" => Some("WARMD_SERVER_LEASE"),
        "forget" => Some("WARMD_SERVER_FORGET"),
        "max_nodes" => Some("WARMD_SERVER_MAX_NODES"),
        _ => None,
    }
}

/// Name and value of each setting. `cluster` names the authority whose nodes are admitted.
pub(super) fn settings(config: &Config, cluster: Option<&str>) -> BTreeMap<&'static str, String> {
    let Config { heartbeat, lease, forget, max_nodes, max_artifacts_per_node, max_holdings, max_identities } = config;
    let span = |duration: &std::time::Duration| humantime::format_duration(*duration).to_string();
    BTreeMap::from([
        ("cluster", cluster.unwrap_or("none").to_owned()),
        ("heartbeat", span(heartbeat)),
        ("lease", span(lease)),
        ("forget", span(forget)),
        ("max_nodes", max_nodes.to_string()),
        ("max_artifacts_per_node", max_artifacts_per_node.to_string()),
        ("max_holdings", max_holdings.to_string()),
        ("max_identities", max_identities.to_string()),
    ])
}

pub(super) fn compare(
    here: &BTreeMap<&'static str, String>,
    cluster: &BTreeMap<String, String>,
) -> Result<(), Drifted> {
    // A setting that only one side knows belongs to another version of warmd, not to another configuration.
    let differ = here.iter().filter_map(|(name, here)| {
        let cluster = cluster.get(*name).filter(|cluster| *cluster != here)?;
        Some(Difference { name: (*name).to_owned(), here: here.clone(), cluster: cluster.clone() })
    });
    let differences: Vec<_> = differ.collect();
    if differences.is_empty() { Ok(()) } else { Err(Drifted(differences)) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_differs_is_named_with_the_command_that_mends_it() {
        let ours = Config { lease: Duration::from_secs(90), max_nodes: 7, ..Config::default() };
        let agreed = settings(&Config::default(), Some("a"));
        let agreed = agreed.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let text = compare(&settings(&ours, Some("a")), &agreed).unwrap_err().to_string();
        assert!(text.contains("lease is 1m 30s here and 30s there"), "{text}");
        assert!(text.contains("run WARMD_SERVER_LEASE=30s WARMD_SERVER_MAX_NODES=20000 warmd metadata;"), "{text}");
        assert!(text.contains("warmd metadata --drift adopt"), "{text}");
        assert_eq!(compare(&settings(&Config::default(), Some("a")), &agreed), Ok(()));
        let other = compare(&settings(&Config::default(), None), &agreed).unwrap_err();
        assert_eq!(other.0[0].name, "cluster");
    }
}
