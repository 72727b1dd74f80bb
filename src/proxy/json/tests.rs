use proptest::prelude::*;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::*;

/// Members as they were told: depth, name, text of the value.
#[derive(Default)]
struct Told {
    text: Vec<u8>,
    open: Vec<(String, usize)>,
    members: Vec<(u32, String, String)>,
}

impl Visitor for Told {
    fn name(&mut self, depth: u32, name: &[u8], at: usize) {
        assert_eq!(self.text[at], b'"');
        assert_eq!(self.open.len() + 1, depth as usize);
        self.open.push((String::from_utf8_lossy(name).into_owned(), 0));
    }

    fn begin(&mut self, _: u32, _: Kind, at: usize) {
        self.open.last_mut().unwrap().1 = at;
    }

    fn end(&mut self, depth: u32, at: usize, _: u64) {
        let (name, from) = self.open.pop().unwrap();
        self.members.push((depth, name, String::from_utf8(self.text[from..at].to_vec()).unwrap()));
    }
}

fn scan(text: &[u8], piece: usize) -> Result<Vec<(u32, String, String)>, Malformed> {
    let (mut scanner, mut told) = (Scanner::new(), Told { text: text.to_vec(), ..Told::default() });
    for piece in text.chunks(piece.max(1)) {
        scanner.scan(piece, &mut told)?;
    }
    scanner.finish(&mut told)?;
    Ok(told.members)
}

/// Values with names that clash with those asked for.
pub(in crate::proxy) fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        "\\PC{0,12}".prop_map(Value::from),
        "[\"\\\\/\\n\\t{}:,]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((name(), inner), 0..6).prop_map(|members| members.into_iter().collect()),
        ]
    })
}

pub(in crate::proxy) fn name() -> impl Strategy<Value = String> {
    prop_oneof!["model|stream|message|response|usage|wait_for_model|cache_salt", "\\PC{0,30}", "[\"\\\\]{1,3}"]
}

fn expected(value: &Value, depth: u32, into: &mut Vec<(u32, String, Value)>) {
    let Some(members) = value.as_object().filter(|_| depth <= WATCHED) else { return };
    for (name, value) in members {
        expected(value, depth + 1, into);
        let told = if name.len() > MAX_NAME { String::new() } else { name.clone() };
        into.push((depth, told, value.clone()));
    }
}

proptest! {
    #[test]
    fn members_are_those_that_a_parser_finds_however_the_text_is_cut(value in value(), piece in 1usize..40) {
        let text = serde_json::to_vec(&value).unwrap();
        let found = scan(&text, piece).unwrap();
        let mut wanted = Vec::new();
        expected(&value, 1, &mut wanted);
        prop_assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.iter().zip(&wanted) {
            prop_assert_eq!((found.0, &found.1), (wanted.0, &wanted.1));
            prop_assert_eq!(&serde_json::from_str::<Value>(&found.2).unwrap(), &wanted.2);
        }
    }

    #[test]
    fn text_is_accepted_exactly_when_a_parser_accepts_it(
        value in value(), changes in prop::collection::vec((any::<prop::sample::Index>(), "[\\[\\]{}:,\"\\\\0-9eE.+\\- tfnu\\x01]"), 0..4)
    ) {
        let mut text = serde_json::to_string(&value).unwrap();
        for (place, character) in changes {
            let at = place.index(text.len() + 1);
            if text.is_char_boundary(at) {
                text.insert_str(at, &character);
            }
        }
        let wanted = serde_json::from_str::<IgnoredAny>(&text).is_ok();
        prop_assert_eq!(scan(text.as_bytes(), 7).is_ok(), wanted, "{}", text);
    }
}

#[test]
fn a_name_is_compared_after_unescaping() {
    let found = scan(br#"{"m\u006fdel":"a","mod\/el":1,"\u006D\u00f6":2,"mo\\del":3}"#, 3).unwrap();
    let names: Vec<&str> = found.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(names, ["model", "mod/el", "m\u{fffd}", "mo\\del"]);
}

#[test]
fn nesting_is_bounded_for_arrays_and_objects() {
    for (open, close, inner) in [("[", "]", ""), ("{\"a\":", "}", "1")] {
        let nested = |depth: usize| format!("{}{inner}{}", open.repeat(depth), close.repeat(depth));
        assert!(scan(nested(128).as_bytes(), 5).is_ok());
        assert_eq!(scan(nested(129).as_bytes(), 5), Err(Malformed::TooDeep));
        assert_eq!(scan(nested(10_000).as_bytes(), 5), Err(Malformed::TooDeep));
    }
}

#[test]
fn what_follows_the_text_and_what_is_no_json_is_refused() {
    for text in [
        "{}{}",
        "{} x",
        "[1,]",
        "{\"a\":1,}",
        "{\"a\"}",
        "01",
        "1.",
        "-",
        "NaN",
        "'a'",
        "\u{feff}{}",
        "\"\u{1}\"",
        "",
        " ",
    ] {
        assert!(scan(text.as_bytes(), 2).is_err(), "{text:?}");
    }
    for text in [" {} \n", "-0.5e+3", "[[],{}]", "\"\\ud800\"", "0"] {
        assert!(scan(text.as_bytes(), 2).is_ok(), "{text:?}");
    }
}
