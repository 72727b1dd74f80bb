//! JSON from strangers: bounded, nested at most 128 deep (serde_json's own limit), and no key twice in one object. Readers
//! disagree about which of two equal keys counts, so a file that has them says different things to different programs.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The text is not JSON as we take it; says where and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// Numbers that JSON does not have (`NaN`, `Infinity`) are errors, as everything else that is not JSON.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict.deserialize(&mut deserializer);
    let end = value.and_then(|value| deserializer.end().map(|()| value));
    end.map_err(|error| JsonError(error.to_string()))
}

/// What is the same whatever the order of its keys was; for texts that a digest covers.
pub(super) fn canonical(value: &impl serde::Serialize) -> String {
    // A map of ours is sorted, and none of our types has keys that are not texts.
    serde_json::to_value(value).map(|value| value.to_string()).unwrap_or_default()
}

/// For people, keys sorted, with a line end.
pub(super) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The start of a text that a stranger wrote, fit for a message.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 120;
    let start: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() { format!("{start}...") } else { start }
}

/// A value in which no object has a key twice.
#[derive(Clone, Copy)]
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("key `{}` occurs twice", shown(&key))));
            }
            map.insert(key, entries.next_value_seed(Self)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn plain_json_is_what_it_is() {
        let text = r#"{"a":[1,-2,3.5,"x",null,true],"b":{"c":{}}}"#;
        assert_eq!(parse(text.as_bytes()).unwrap().to_string(), text);
    }

    #[test]
    fn a_key_that_occurs_twice_is_refused_at_any_depth() {
        assert!(refused(r#"{"r":8,"r":16}"#).contains("key `r` occurs twice"));
        assert!(refused(r#"{"a":[{"b":{"r":8,"r":8}}]}"#).contains("`r` occurs twice"));
    }

    #[test]
    fn nesting_ten_thousand_deep_is_refused_and_does_not_end_the_stack() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(refused(&deep).contains("recursion limit"));
    }

    #[test]
    fn numbers_that_json_does_not_have_are_refused() {
        for text in [r#"{"r":NaN}"#, r#"{"r":Infinity}"#, r#"{"r":1e999}"#, r#"{"r":8}x"#, ""] {
            assert!(!refused(text).is_empty());
        }
    }

    #[test]
    fn a_strangers_text_is_shown_short_and_without_control_characters() {
        assert_eq!(shown("a\x1b[2J"), "a\\u{1b}[2J");
        assert!(shown(&"x".repeat(10_000)).len() < 200);
    }
}
