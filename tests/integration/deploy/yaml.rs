//! As much of YAML as `deploy/` uses: blocks that are indented, scalars on one line, lists in brackets. Anything else is a
//! mistake there, and ends the test.

use serde_json::{Map, Value};

/// The documents of a file.
pub fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(document).collect()
}

fn document(text: &str) -> Value {
    let content = |line: &&str| !line.trim_start().starts_with('#') && !line.trim().is_empty();
    let lines = text.lines().filter(content).map(|line| (line.len() - line.trim_start().len(), line.trim()));
    let mut lines: Vec<(usize, &str)> = lines.rev().collect();
    let value = block(&mut lines, 0);
    assert!(lines.is_empty(), "not understood: {:?}", lines.last());
    value
}

/// What stands at `indent`, from the last line backwards.
fn block(lines: &mut Vec<(usize, &str)>, indent: usize) -> Value {
    let first = lines.last().map_or("", |(_, line)| line);
    if first.starts_with("- ") {
        let mut items = Vec::new();
        while let Some(&(at, line)) = lines.last().filter(|(at, line)| *at == indent && line.starts_with("- ")) {
            lines.pop();
            let rest = &line[2..];
            if pair(rest).is_some() {
                lines.push((at + 2, rest));
                items.push(block(lines, at + 2));
            } else {
                items.push(scalar(rest));
            }
        }
        return Value::Array(items);
    }
    if pair(first).is_none() {
        return lines.pop().map_or(Value::Null, |(_, line)| scalar(line));
    }
    let mut map = Map::new();
    while let Some((_, line)) = lines.last().copied().filter(|(at, _)| *at == indent) {
        lines.pop();
        let (key, value) = pair(line).unwrap_or_else(|| panic!("no key: {line}"));
        let deeper = lines.last().map(|(at, _)| *at).filter(|at| *at > indent);
        let value = match (value, deeper) {
            ("", Some(deeper)) => block(lines, deeper),
            (value, _) => scalar(value),
        };
        assert!(map.insert(key.to_owned(), value).is_none(), "twice: {line}");
    }
    Value::Object(map)
}

fn pair(line: &str) -> Option<(&str, &str)> {
    let quoted = line.starts_with(['"', '\'', '[', '{']);
    let found = line.split_once(": ").or_else(|| Some((line.strip_suffix(':')?, "")));
    found.filter(|_| !quoted)
}

fn scalar(text: &str) -> Value {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        return inner.into();
    }
    assert!(!text.starts_with(['&', '*', '|', '>']) && !text.contains(" #"), "not used here: {text}");
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        let parts = inner.split(',').map(str::trim).filter(|part| !part.is_empty());
        return parts.map(scalar).collect();
    }
    match text {
        "" => Value::Null,
        _ => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    }
}

#[test]
fn blocks_lists_and_scalars_are_read() {
    let text =
        "# c\na: 1\nb:\n  - name: x\n    to: {}\n  - [\"p\", q]\n  - 'it: #1'\nc:\n  d: \"0\"\ne:\n---\nf: 0440\n";
    let expected = [
        serde_json::json!({"a": 1, "b": [{"name": "x", "to": {}}, ["p", "q"], "it: #1"], "c": {"d": "0"}, "e": null}),
        serde_json::json!({"f": "0440"}),
    ];
    assert_eq!(documents(text), expected);
}
