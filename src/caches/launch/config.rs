//! The part of YAML that engines' configuration files are written in: option names at the top, and plain values.

use super::options::Options;

/// The options of a configuration file. Values that are mappings, or written in other ways than on one line or as a plain
/// list, are kept as their text. `None` if the top of the file is no mapping of names: then nothing can be told of it.
pub(super) fn parse(text: &str) -> Option<Options> {
    let mut options = Options::default();
    let mut lines = text.lines().map(without_comment).filter(|line| !line.trim().is_empty()).peekable();
    lines.next_if(|line| line.trim_end() == "---");
    while let Some(line) = lines.next() {
        let (name, value) = line.trim_end().split_once(':')?;
        let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !plain || !(value.is_empty() || value.starts_with(' ')) {
            return None;
        }
        let mut below = Vec::new();
        while let Some(line) = lines.next_if(|line| line.starts_with([' ', '\t']) || is_item(line)) {
            below.push(line.trim_end());
        }
        if let Some((name, values)) = option(name, value.trim(), &below) {
            options.named.insert(name, values);
        }
    }
    Some(options)
}

/// As vLLM makes arguments of it: `true` is a flag, `false` its absence, a list several values.
fn option(name: &str, value: &str, below: &[&str]) -> Option<(String, Vec<String>)> {
    let dashed = name.replace('_', "-");
    match (value, below) {
        ("true" | "True" | "yes" | "on", []) => Some((dashed, Vec::new())),
        ("false" | "False" | "no" | "off", []) => Some((format!("no-{dashed}"), Vec::new())),
        ("", []) | ("null" | "~" | "[]", []) => None,
        (value, []) => Some((dashed, values(value))),
        ("", items) if items.iter().all(|line| is_item(line)) => {
            let items = items.iter().filter_map(|line| line.trim_start().strip_prefix('-'));
            Some((dashed, items.map(|item| scalar(item.trim())).collect()))
        }
        (value, lines) => Some((dashed, vec![format!("{value}\n{}", lines.join("\n"))])),
    }
}

fn is_item(line: &str) -> bool {
    let line = line.trim_start();
    line == "-" || line.starts_with("- ")
}

/// `[a, b]` is a list; quotes and braces in it are left as they are.
fn values(text: &str) -> Vec<String> {
    let list = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match list.filter(|list| !list.contains(['[', '{', '"', '\''])) {
        Some(list) => list.split(',').map(|item| scalar(item.trim())).collect(),
        None => vec![scalar(text)],
    }
}

fn scalar(text: &str) -> String {
    let quoted = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    match (quoted('\''), quoted('"')) {
        (Some(inner), _) => inner.replace("''", "'"),
        // JSON strings are YAML's, but for rare escapes.
        (None, Some(inner)) => serde_json::from_str(text).unwrap_or_else(|_| inner.to_owned()),
        (None, None) => text.to_owned(),
    }
}

/// A `#` begins a comment at the start of a line or after a space, outside of quotes.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') if before.is_whitespace() => return &line[..at],
            (None, '\'' | '"') if !before.is_alphanumeric() => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
        before = c;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Vec<(String, Vec<String>)> {
        parse(text).unwrap().named.into_iter().collect()
    }

    fn option(name: &str, values: &[&str]) -> (String, Vec<String>) {
        (name.to_owned(), values.iter().map(|&value| value.to_owned()).collect())
    }

    #[test]
    fn plain_values_flags_and_lists_are_options() {
        let text = "---\n# served by the gateway\nmodel: org/model # the big one\nport: 8001\nserved_model_name:\n  - a\n  \
                    - 'b''s'\nmiddleware:\n- x.y\ncudagraph-capture-sizes: [1, 2, 4]\nenable-lora: true\n\
                    enforce-eager: false\nchat-template: \"a # b\\n\"\nrevision:\n";
        let expected = [
            option("chat-template", &["a # b\n"]),
            option("cudagraph-capture-sizes", &["1", "2", "4"]),
            option("enable-lora", &[]),
            option("middleware", &["x.y"]),
            option("model", &["org/model"]),
            option("no-enforce-eager", &[]),
            option("port", &["8001"]),
            option("served-model-name", &["a", "b's"]),
        ];
        assert_eq!(named(text), expected);
    }

    #[test]
    fn mappings_are_kept_as_text() {
        let text = "compilation-config:\n  mode: 3 # all\n  pass_config:\n    fuse: true\nport: 1\n";
        let expected =
            [option("compilation-config", &["\n  mode: 3\n  pass_config:\n    fuse: true"]), option("port", &["1"])];
        assert_eq!(named(text), expected);
    }

    #[test]
    fn a_file_that_is_no_mapping_of_names_is_left_alone() {
        for text in ["- a\n- b\n", "{port: 1}\n", "a b c\n", "? port\n: 1\n", "<<: *base\n"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("# nothing\n"), Some(Options::default()));
    }
}
