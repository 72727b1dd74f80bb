//! Patterns for the names in caches: `*` stands for any text, `?` for one byte, `<64 hex>` for 64 hexadecimal digits.

/// Whether one component of a path is as `pattern` says.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let digits = pattern.strip_prefix('<').and_then(|rest| rest.strip_suffix(" hex>")).map(str::parse::<usize>);
    match digits {
        Some(Ok(count)) => name.len() == count && name.bytes().all(|byte| byte.is_ascii_hexdigit()),
        _ => glob(pattern.as_bytes(), name.as_bytes()),
    }
}

/// Any of `a|b|c`.
pub(super) fn matches_any(alternatives: &str, name: &str) -> bool {
    alternatives.split('|').any(|pattern| matches(pattern, name))
}

/// Takes back the last `*` only, so it needs no more steps than the product of both lengths.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else {
                    return false;
                };
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stars_question_marks_and_digits() {
        for (pattern, name) in [
            ("rank_*_*", "rank_0_12"),
            ("*.so", "a.b.so"),
            ("*", ""),
            ("??", "ab"),
            ("*.tmp.*", "x.tmp.so"),
            ("<10 hex>", "0123456789"),
            ("a*b*c", "a-b-b-c"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("rank_*_*", "rank_0"),
            ("*.so", "a.so.1"),
            ("??", "abc"),
            ("<10 hex>", "012345678g"),
            ("<10 hex>", "01234567890"),
            ("lock", "locks"),
            ("", "a"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        assert!(matches_any("*.so|*.o", "x.o") && !matches_any("*.so|*.o", "x.c"));
    }

    proptest! {
        #[test]
        fn a_name_matches_itself_with_parts_starred(a in "[ab]{0,4}", b in "[ab]{0,4}", c in "[ab]{0,4}") {
            let name = format!("{a}{b}{c}");
            prop_assert!(matches(&name, &name));
            let [ends, within] = [format!("{a}*{c}"), format!("*{b}*")];
            prop_assert!(matches(&ends, &name));
            prop_assert_eq!(matches(&within, &c), c.contains(&b));
        }
    }
}
