//! What differs between two configurations, key by key.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::{Table, Value};

/// A key whose values differ; one that is absent says nothing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    pub key: String,
    pub a: Option<Value>,
    pub b: Option<Value>,
}

/// Every value of a configuration by `section.key`; lists are values.
pub fn values(table: &Table) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => {
                all.extend(values(inner).into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            value => {
                all.insert(name.clone(), value.clone());
            }
        }
    }
    all
}

/// In order of keys.
pub fn between(a: &Table, b: &Table) -> Vec<Difference> {
    let (a, b) = (values(a), values(b));
    let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differs = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
    differs.map(|key| Difference { key: key.clone(), a: a.get(key).cloned(), b: b.get(key).cloned() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_removed_and_changed_is_told_and_nothing_else() {
        let a = "x = 1\n[s]\ny = [1]\nz = true\n".parse().unwrap();
        let b = "x = 1\n[s]\ny = [1, 2]\n[t]\nw = \"w\"\n".parse().unwrap();
        let found = between(&a, &b);
        let keys: Vec<&str> = found.iter().map(|difference| difference.key.as_str()).collect();
        assert_eq!(keys, ["s.y", "s.z", "t.w"]);
        assert_eq!((&found[1].a, &found[1].b), (&Some(Value::Boolean(true)), &None));
        assert!(between(&a, &a).is_empty());
    }
}
