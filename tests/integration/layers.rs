//! The architecture as a test: who may use whom, and who may name which crate.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Top row first. A module uses only rows below its own.
const ROWS: [&[&str]; 15] = [
    &["cli"],
    &["config"],
    &["agent", "serve"],
    &["proxy"],
    &["transfer", "metadata", "install", "local", "origin"],
    &["store", "transport", "discovery", "engine"],
    &["adapters"],
    &["caches"],
    &["protocol"],
    &["artifact"],
    &["identity"],
    &["web"],
    &["telemetry"],
    &["http"],
    &["lifecycle", "digest", "durable"],
];

/// Crates that only one module may name.
const OWNED: [(&str, &str); 11] = [
    ("h2", "transport"),
    ("quinn", "transport"),
    ("libp2p", "discovery"),
    ("redb", "metadata"),
    ("redis", "metadata"),
    ("memmap2", "store"),
    ("tar", "store"),
    ("rcgen", "identity"),
    ("k256", "proxy"),
    ("object_store", "origin"),
    ("anyhow", "cli"),
];

/// Every module's source: file and text, without the tests in it.
fn sources() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules: BTreeMap<String, Vec<(PathBuf, String)>> = BTreeMap::new();
    let mut directories = vec![src.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let inside = path.strip_prefix(&src).unwrap().to_str().unwrap();
            let module = inside.split(['/', '.']).next().unwrap().to_owned();
            let is_test = inside.contains("/tests") || inside.ends_with("sim.rs");
            if inside.ends_with(".rs") && !["lib", "main"].contains(&module.as_str()) && !is_test {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                let code: String = code
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("//"))
                    .map(|line| format!("{line}\n"))
                    .collect();
                modules.entry(module).or_default().push((path, code));
            }
        }
    }
    modules
}

fn row(module: &str) -> usize {
    ROWS.iter().position(|row| row.contains(&module)).unwrap_or_else(|| panic!("`{module}` is in no row of the table"))
}

fn ends(c: char) -> bool {
    !(c.is_alphanumeric() || c == '_')
}

/// Identifiers that follow `prefix` wherever it stands on its own, each of those in braces.
fn named_after<'t>(text: &'t str, prefix: &str) -> Vec<&'t str> {
    let all = text.match_indices(prefix).filter(|(at, _)| text[..*at].chars().next_back().is_none_or(ends));
    all.flat_map(|(at, _)| {
        let rest = &text[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => first_of_each(group),
            None => vec![rest.split(ends).next().unwrap()],
        }
    })
    .collect()
}

/// The first identifier of each path in a group, whose opening brace is before `group`.
fn first_of_each(group: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '}' | ',' if depth == 0 => {
                found.push(group[begin..at].trim_start().split(ends).next().unwrap());
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => (),
        }
    }
    found
}

#[test]
fn modules_use_only_the_rows_below_their_own() {
    let modules = sources();
    assert!(modules.len() >= 15, "the scan found only {:?}", modules.keys());
    let mut wrong = Vec::new();
    for (module, files) in &modules {
        for (path, code) in files {
            for used in named_after(code, "crate::") {
                let is_module = modules.contains_key(used);
                if is_module && used != module && row(used) <= row(module) {
                    wrong.push(format!("{}: `{module}` uses `{used}`", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_with_an_owner_are_named_nowhere_else() {
    let mut wrong = Vec::new();
    for (module, files) in sources() {
        for (path, code) in files {
            for (name, owner) in OWNED {
                let names_it = !named_after(&code, &format!("{name}::")).is_empty();
                if names_it && module != owner {
                    wrong.push(format!("{}: `{module}` names `{name}`, which belongs to `{owner}`", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_scan_sees_uses_inline_paths_and_not_comments() {
    assert_eq!(named_after("use crate::store::Store; mycrate::x crate::identity", "crate::"), ["store", "identity"]);
    let grouped = "use crate::{artifact::{Family, Kind}, cli,\n    store};\nuse std::{fs, io};\nuse crate::{web};";
    assert_eq!(named_after(grouped, "crate::"), ["artifact", "cli", "store", "web"]);
}
