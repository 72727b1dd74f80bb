//! What a running role takes from its file again, and what it refuses to. Refused is the whole: a role that runs by half of
//! a file is one that nobody has described.

use toml::Table;

use super::difference::{self, Difference};

/// Which keys can change while a role runs. The contents of the files that these name are read again in any case; those of
/// `node.key`, `signer`, `web.token_file` and `tracing.headers_file` are read at the start alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloadable(pub &'static [&'static str]);

impl Reloadable {
    pub const AGENT: Self = Self(&[
        "local.allow_uids",
        "local.operator_uids",
        "local.publish_class",
        "local.publish_uids",
        "local.push_bytes",
        "log.level",
        "node.allow",
        "node.ca",
        "node.certificate",
        "provide.link_share",
        "provide.max_rate",
        "provide.upload_slots",
        "serve.limits",
        "store.max_bytes",
        "store.reserve_bytes",
        "tracing.remote_per_second",
        "tracing.sample",
    ]);
    pub const METADATA: Self = Self(&[
        "log.level",
        "node.allow",
        "node.ca",
        "node.certificate",
        "tracing.remote_per_second",
        "tracing.sample",
    ]);
    pub const SERVE: Self = Self(&["limits", "log.level", "tracing.remote_per_second", "tracing.sample"]);

    /// A table's name stands for all in it.
    fn has(self, key: &str) -> bool {
        self.0.iter().any(|own| key.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    }
}

/// What is different, all of which can be taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes(pub Vec<Difference>);

/// Nothing is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "{} need{} a restart{}, so nothing of the file is taken: restart, or set back",
        .0.join(", "),
        if .0.len() == 1 { "s" } else { "" },
        reasons(.0)
    )]
    NeedsRestart(Vec<String>),
}

/// Why keys cannot change that one might want to change, where it is not plain that something was built by them.
const WHY: [(Reloadable, &str); 5] = [
    (Reloadable(&["node.key", "state_dir"]), "another key is another node"),
    (Reloadable(&["trust"]), "what the file of the policy says is read again, and not which one it is"),
    (Reloadable(&["adapters", "preparation", "serve.adapters", "serve.preparation"]), "the engine has adapters by it"),
    (Reloadable(&["auth", "serve.auth"]), "files of keys are read again, and sessions hang on the rest"),
    (Reloadable(&["engine", "supervision", "serve.engine", "serve.supervision"]), "the engine runs by it"),
];

fn reasons(keys: &[String]) -> String {
    let told = WHY.iter().filter(|(of, _)| keys.iter().any(|key| of.has(key))).map(|(_, why)| *why);
    let told: Vec<&str> = told.collect();
    if told.is_empty() { String::new() } else { format!(" ({})", told.join("; ")) }
}

/// What becomes of a file that is in order: all of it is taken, or nothing.
pub fn plan(old: &Table, new: &Table, reloadable: Reloadable) -> Result<Changes, Refusal> {
    let differences = difference::between(old, new);
    let fixed = differences.iter().filter(|one| !reloadable.has(&one.key)).map(|one| one.key.clone());
    let fixed: Vec<String> = fixed.collect();
    if fixed.is_empty() { Ok(Changes(differences)) } else { Err(Refusal::NeedsRestart(fixed)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn limits_are_taken_and_what_needs_a_restart_keeps_everything_as_it_is() {
        let old = table("[provide]\nmax_rate = 1\n[transport]\nlisten = \"a\"\n");
        let capped = table("[provide]\nmax_rate = 2\n[transport]\nlisten = \"a\"\n");
        let changes = plan(&old, &capped, Reloadable::AGENT).unwrap();
        assert_eq!(changes.0.iter().map(|change| change.key.as_str()).collect::<Vec<_>>(), ["provide.max_rate"]);
        let moved = table("[provide]\nmax_rate = 2\n[transport]\nlisten = \"b\"\n");
        let refusal = plan(&old, &moved, Reloadable::AGENT).unwrap_err();
        assert_eq!(refusal, Refusal::NeedsRestart(vec!["transport.listen".to_owned()]));
        assert!(refusal.to_string().starts_with("transport.listen needs a restart"));
        assert_eq!(plan(&old, &old, Reloadable::AGENT), Ok(Changes::default()));
        let renamed = plan(&table("[node]\nkey = \"a\"\n"), &table(""), Reloadable::AGENT).unwrap_err().to_string();
        assert!(renamed.starts_with("node.key needs a restart (another key is another node), so"), "{renamed}");
    }

    #[test]
    fn a_tables_name_stands_for_all_in_it_and_for_nothing_that_begins_like_it() {
        let serve = Reloadable::SERVE;
        assert!(serve.has("limits.default.max_requests") && serve.has("limits") && !serve.has("limits_of"));
    }

    #[test]
    fn every_key_that_can_change_is_one_that_there_is() {
        let [agent, metadata, serve] = [
            include_str!("../cli/config/agent.toml"),
            include_str!("../cli/config/metadata.toml"),
            include_str!("../cli/config/serve.toml"),
        ];
        let is_there = |example: &str, key: &str| match key.split_once('.') {
            Some((section, name)) => {
                example.contains(&format!("[{section}]")) && example.contains(&format!("{name} = "))
            }
            None => example.contains(&format!("[{key}]")),
        };
        for (example, role) in
            [(agent, Reloadable::AGENT), (metadata, Reloadable::METADATA), (serve, Reloadable::SERVE)]
        {
            for key in role.0 {
                // What a pod that is everything in one serves by has the keys of `warmd serve`.
                let found =
                    key.strip_prefix("serve.").map_or_else(|| is_there(example, key), |key| is_there(serve, key));
                assert!(found, "{key}");
            }
        }
    }
}
