//! The commands of documents: fenced blocks of shell, as far as is needed to see what is run of `warmd`.

/// Lines of the blocks that are called `sh` or `console`, of those only what is typed; continued ones joined.
pub fn typed(markdown: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut kind, mut open) = ("", String::new());
    for line in markdown.lines() {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            kind = if kind.is_empty() && !fence.is_empty() { fence } else { "" };
            continue;
        }
        let line = match kind {
            "sh" => line,
            "console" if !open.is_empty() => line,
            "console" => match line.strip_prefix("$ ") {
                Some(line) => line,
                None => continue,
            },
            _ => continue,
        };
        match line.strip_suffix('\\') {
            Some(line) => open.push_str(line),
            None => lines.push(std::mem::take(&mut open) + line),
        }
    }
    lines
}

/// What stands between two backticks of a text and begins with `warmd`.
pub fn inline(markdown: &str) -> Vec<String> {
    let mut text = String::new();
    let mut is_block = false;
    for line in markdown.lines() {
        let is_fence = line.trim_start().starts_with("```");
        is_block ^= is_fence;
        if !is_block && !is_fence {
            text.push_str(line.trim());
            text.push(' ');
        }
    }
    let spans = text.split('`').skip(1).step_by(2);
    spans.filter(|span| span.starts_with("warmd ")).map(str::to_owned).collect()
}

/// The words of each simple command in a line: quotes are taken off, what stands in `$(...)` is a command of its own and
/// leaves `substitute` of it.
pub fn commands(line: &str, substitute: &dyn Fn(&str) -> String) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let (mut words, mut word, mut quote): (Vec<String>, Option<String>, Option<char>) = (Vec::new(), None, None);
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '$' && rest.peek() == Some(&'(') && quote != Some('\'') {
            let inner = parenthesised(&mut rest);
            found.extend(commands(&inner, substitute));
            word.get_or_insert_default().push_str(&substitute(&inner));
            continue;
        }
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ') => words.extend(word.take()),
            (None, ';' | '|' | '&' | '>' | '<') => {
                words.extend(word.take());
                // Where output goes is not part of the command.
                found.push(std::mem::take(&mut words));
            }
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    found.push(words);
    found
}

fn parenthesised(rest: &mut std::iter::Peekable<std::str::Chars>) -> String {
    let (mut depth, mut inner) = (0, String::new());
    for c in rest.by_ref() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 {
            break;
        }
        inner.push(c);
    }
    inner[1..].to_owned()
}

#[test]
fn commands_are_found_in_the_midst_of_a_text_and_over_the_end_of_a_line() {
    let markdown = "By `warmd a b`, `it` or `warmd\n  c`.\n```sh\n`warmd d`\n```\nAnd `warmd e`.";
    assert_eq!(inline(markdown), ["warmd a b", "warmd c", "warmd e"]);
}

#[test]
fn commands_are_found_in_blocks_lines_and_substitutions() {
    let markdown = "a\n```sh\nwarmd a \\\n  b  # c\n```\nwarmd no\n```console\n$ warmd d\nwarmd output\n```\n";
    assert_eq!(typed(markdown), ["warmd a   b  # c", "warmd d"]);
    let found = commands("do warmd x \"$(warmd k f)\" 'q r' | tee; warmd y & # z", &|_| "S".to_owned());
    let expected: [&[&str]; 6] =
        [&["warmd", "k", "f"], &["do", "warmd", "x", "S", "q r"], &["tee"], &["warmd", "y"], &[], &[]];
    assert_eq!(found[..5], expected[..5], "{found:?}");
}
