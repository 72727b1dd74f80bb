//! What the environment and the command line say instead of the file.

use serde::Serialize;
use toml::{Table, Value};

use super::origin::{Origin, Origins};

const PREFIX: &str = "WARMD_";

/// Environment names that belong to something else than the file.
const NOT_CONFIG: [&str; 10] = [
    "WARMD_BUDGET",
    "WARMD_CACHE_ROOT",
    "WARMD_CONFIG",
    "WARMD_FACTS_CACHE",
    "WARMD_FACTS_TIMEOUT",
    "WARMD_IMAGE_DIGEST",
    "WARMD_PYTHON",
    "WARMD_READY_TIMEOUT",
    "WARMD_READY_URL",
    "WARMD_SOCKET",
];

/// A value for the key that `WARMD_SECTION_KEY` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    name: String,
    value: String,
    /// The flag that says it, if none of the environment does.
    flag: Option<&'static str>,
}

impl Setting {
    /// `value` as TOML, or as plain text.
    pub fn flag(flag: &'static str, name: &str, value: String) -> Self {
        Self { name: name.to_owned(), value, flag: Some(flag) }
    }

    /// As a TOML string, whatever it looks like.
    pub fn text(flag: &'static str, name: &str, value: &str) -> Self {
        Self::flag(flag, name, Value::String(value.to_owned()).to_string())
    }

    fn is_config(&self) -> bool {
        self.flag.is_some()
            || self.name.strip_prefix(PREFIX).is_some_and(|rest| !is_service_link(rest))
                && !NOT_CONFIG.contains(&self.name.as_str())
    }

    fn origin(&self) -> Origin {
        match self.flag {
            Some(flag) => Origin::Flag(flag.to_owned()),
            None => Origin::Variable(self.name.clone()),
        }
    }
}

impl From<(String, String)> for Setting {
    fn from((name, value): (String, String)) -> Self {
        Self { name, value, flag: None }
    }
}

/// Kubernetes tells every pod of the services in its namespace: of one called `warmd-metadata` by names such as
/// `WARMD_METADATA_PORT_4781_TCP_ADDR` (kubernetes.io, "Service", environment variables).
pub(super) fn is_service_link(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = |rest: &str| {
        let mut parts = rest.splitn(3, '_');
        let (number, protocol) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        is_number(number) && matches!(protocol, "TCP" | "UDP" | "SCTP")
    };
    name.ends_with("_PORT")
        || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| port(rest))
}

/// Puts what is said into the table, flags last.
pub(super) fn apply<T: Serialize + Default>(
    table: &mut Table,
    origins: &mut Origins,
    settings: impl IntoIterator<Item = Setting>,
) {
    let known = known_to::<T>(table);
    let mut settings: Vec<Setting> = settings.into_iter().filter(Setting::is_config).collect();
    settings.sort_by(|a, b| (a.flag.is_some(), &a.name).cmp(&(b.flag.is_some(), &b.name)));
    for setting in &settings {
        let key = put(table, &known, setting);
        origins.set(key, setting.origin());
    }
}

/// The default configuration, and the tables that only the file has.
fn known_to<T: Serialize + Default>(file: &Table) -> Table {
    let mut known = Table::try_from(T::default()).unwrap_or_default();
    for (name, value) in file.iter().filter(|(_, value)| value.is_table()) {
        known.entry(name.clone()).or_insert_with(|| value.clone());
    }
    known
}

/// The key that was set. A section that is no table is left as it is, and told of when the whole is read.
fn put(table: &mut Table, known: &Table, setting: &Setting) -> String {
    let key = setting.name.strip_prefix(PREFIX).unwrap_or(&setting.name).to_lowercase();
    // A key of its own may begin like a section: the longest section name wins.
    let sections = known.iter().filter(|(_, value)| value.is_table()).map(|(section, _)| section);
    let section =
        sections.filter(|section| key.starts_with(&format!("{section}_"))).max_by_key(|section| section.len());
    let Some(section) = section else {
        let expects_text = known.get(&key).is_some_and(Value::is_str);
        table.insert(key.clone(), parse_value(&setting.value, expects_text));
        return key;
    };
    let inner_key = &key[section.len() + 1..];
    let expects_text = known[section].get(inner_key).is_some_and(Value::is_str);
    if let Value::Table(inner) = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new())) {
        inner.insert(inner_key.to_owned(), parse_value(&setting.value, expects_text));
    }
    format!("{section}.{inner_key}")
}

/// Where a text is expected, a number is one: racks are called 12.
fn parse_value(text: &str, expects_text: bool) -> Value {
    let parsed = format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    parsed.filter(|value| value.is_str() || !expects_text).unwrap_or_else(|| Value::String(text.to_owned()))
}
