//! The expressions of dashboards, with their variables filled in, and the operands of alerts.

use serde_json::Value;

use super::deploy;

const DASHBOARDS: [&str; 3] = ["fleet", "node", "serving"];

/// What a panel asks.
pub(super) struct Asked {
    pub(super) by: String,
    pub(super) expression: String,
}

/// Of all panels; none lacks a description or a unit.
pub(super) fn of_dashboards() -> Vec<Asked> {
    let mut asked = Vec::new();
    for name in DASHBOARDS {
        let text = std::fs::read_to_string(deploy(&format!("grafana/{name}.json"))).unwrap();
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
            let by = format!("{name}: {}", panel["title"].as_str().unwrap());
            assert!(panel["description"].as_str().is_some_and(|text| text.len() > 3), "{by} has no description");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{by} has no unit");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{by}");
            for target in panel["targets"].as_array().unwrap() {
                let expression = filled(target["expr"].as_str().unwrap());
                asked.push(Asked { by: by.clone(), expression });
            }
        }
    }
    asked
}

fn filled(expression: &str) -> String {
    let all = [("$cluster", ".*"), ("$node", ".*"), ("$family", ".*"), ("$__rate_interval", "1m"), ("$__range", "1m")];
    let filled = all.into_iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value));
    assert!(!filled.contains('$'), "{filled}: a variable that nobody fills in");
    filled
}

/// What an alert compares or joins, each without its comparison: all of it must exist for the alert ever to fire.
pub(super) fn operands(alert: &str) -> Vec<String> {
    let mut operands = Vec::new();
    for joined in split(alert, &[" and ", " unless "]) {
        let joined = joined.trim();
        // What follows a join may begin with how it joins.
        let joined =
            joined.strip_prefix("on ").map_or(joined, |rest| rest.split_once(')').map_or(rest, |(_, rest)| rest));
        let sides = split(joined, &[" == ", " > ", " < "]);
        operands.extend(sides.into_iter().filter(|side| side.trim().parse::<f64>().is_err()).map(shortened));
    }
    operands
}

/// Parts that stand between `separators`, outside of all parentheses and braces.
fn split<'t>(text: &'t str, separators: &[&str]) -> Vec<&'t str> {
    let (mut parts, mut begin, mut depth, mut at) = (Vec::new(), 0, 0, 0);
    while at < text.len() {
        match text.as_bytes()[at] {
            b'(' | b'{' => depth += 1,
            b')' | b'}' => depth -= 1,
            _ => {}
        }
        let here = separators.iter().find(|separator| depth == 0 && text[at..].starts_with(**separator));
        at += match here {
            Some(separator) => {
                parts.push(&text[begin..at]);
                begin = at + separator.len();
                separator.len()
            }
            None => 1,
        };
    }
    parts.push(&text[begin..]);
    parts
}

/// A minute instead of an hour: the processes are not older. What divides by a rate that must be high is asked without.
fn shortened(expression: &str) -> String {
    let mut rest = expression.trim();
    let mut short = String::new();
    while let Some((before, range)) = rest.split_once('[') {
        short += before;
        short += "[1m]";
        rest = range.split_once(']').map_or("", |(_, rest)| rest);
    }
    (short + rest).replace(" > 10)", ")")
}

#[test]
fn an_alert_is_taken_apart_where_it_joins_and_compares() {
    let alert = r#"a{b="c > d"} == 0 and on (job) rate(e[1h]) / (rate(f[5m]) > 10) > 0.5 unless on (job) g < h"#;
    assert_eq!(operands(alert), [r#"a{b="c > d"}"#, "rate(e[1m]) / (rate(f[1m]))", "g", "h"]);
}
