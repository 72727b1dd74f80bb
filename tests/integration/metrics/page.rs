//! `deploy/metrics.md` says what the code does. With `WARMD_WRITE_PAGES` in the environment, this test writes it.

use std::collections::BTreeSet;
use std::fmt::Write;

use warmd::caches::FamilyName;
use warmd::telemetry::{Description, Label, Registry};

use super::{deploy, roles};

const HEAD: &str = "# Metrics

Made from the code by `WARMD_WRITE_PAGES=1 cargo test --test integration metrics::page`; a test fails while it is not up to
date.

Each process serves its own at `/metrics` of the address `metrics.listen`: OpenMetrics for who asks for it, otherwise
Prometheus's text format 0.0.4. Units are base units; a name without one counts things, or tells a state. Values of labels
are closed sets, so that no peer, client or operator can make series; where none are listed, the help says how many there
can be. Series of all values are there from the first scrape on, but for those by `family`, which come with the first
artifact of the family, by `code`, which come with the first answer, and by `gpu`, which are there while it is told of.

What engines are like that `warmd exec` starts is told to the agent of the node when it is known, and is in the agent's
metrics (`warmd_start*`): such a process may be gone before anybody scrapes it.

";

fn page() -> String {
    let common = Registry::of_process();
    let mut page = HEAD.to_owned();
    section(&mut page, "Every role", common.descriptions());
    for (role, registry) in roles() {
        let own: Vec<_> =
            registry.descriptions().iter().filter(|one| !common.descriptions().contains(one)).cloned().collect();
        section(&mut page, title(role), &own);
    }
    let families: Vec<String> = FamilyName::all().iter().map(|family| format!("`{}`", family.text())).collect();
    writeln!(page, "## Families\n\nValues of `family`: {}.", families.join(", ")).unwrap();
    page
}

fn title(role: &str) -> &'static str {
    match role {
        "warmd-agent" => "Agent",
        "warmd-metadata" => "Metadata server (`warmd_model_express_*` only with `compatibility.model_express`)",
        _ => "warmd serve",
    }
}

fn section(page: &mut String, title: &str, descriptions: &[Description]) {
    writeln!(page, "## {title}\n\n| metric | type | unit | labels | what |\n| --- | --- | --- | --- | --- |").unwrap();
    for Description { name, kind, unit, labels, help } in descriptions {
        let labels: Vec<String> = labels.iter().map(|(label, values)| of_label(label, values)).collect();
        let (unit, labels) = (unit.unwrap_or(""), labels.join("; "));
        writeln!(page, "| `{name}` | {kind} | {unit} | {labels} | {help} |").unwrap();
    }
    page.push('\n');
}

fn of_label(label: &str, values: &[String]) -> String {
    match label {
        _ if values.is_empty() => format!("`{label}`"),
        "family" => "`family` (below)".to_owned(),
        _ => format!("`{label}`: {}", values.join(", ")),
    }
}

#[test]
fn the_page_says_what_the_code_does() {
    let (path, page) = (deploy("metrics.md"), page());
    if std::env::var_os("WARMD_WRITE_PAGES").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = written.lines().zip(page.lines()).find(|(written, now)| written != now);
    assert!(written == page, "{}: WARMD_WRITE_PAGES=1 brings it up to date: {differs:?}", path.display());
}

#[test]
fn names_and_helps_are_of_one_form() {
    for (role, registry) in roles() {
        let mut names = BTreeSet::new();
        for Description { name, kind, unit, labels, help } in registry.descriptions() {
            assert!(names.insert(name), "{role}: {name} is there twice");
            assert_eq!(*kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            let stem = name.trim_end_matches("_total");
            assert!(
                unit.is_none_or(|unit| stem.ends_with(unit) && stem.matches(unit).count() == 1),
                "{name}: {unit:?}"
            );
            let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            assert!(is_plain(name) && (name.starts_with("warmd_") || name.starts_with("process_")), "{name}");
            assert!(labels.iter().all(|(label, _)| is_plain(label)), "{name}: {labels:?}");
            assert!(help.len() > 3 && !help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
        }
    }
}

#[test]
fn every_alert_has_a_section_that_says_what_to_do() {
    let rules = std::fs::read_to_string(deploy("prometheus/alerts.yaml")).unwrap();
    let readme = std::fs::read_to_string(deploy("README.md")).unwrap();
    let alerts: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let sections: BTreeSet<&str> = readme.lines().filter_map(|line| line.strip_prefix("### Warmd")).collect();
    let named: BTreeSet<&str> = alerts.iter().map(|alert| alert.trim_start_matches("Warmd")).collect();
    assert_eq!(named, sections);
    for alert in alerts {
        let line = format!("runbook: \"deploy/README.md#{}\"", alert.to_lowercase());
        assert!(rules.contains(&line), "{line}");
    }
}
