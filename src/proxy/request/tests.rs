use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::proxy::json::tests as values;

fn parse(text: &str) -> Result<Asked, BadBody> {
    Asked::parse(Bytes::copy_from_slice(text.as_bytes()))
}

fn edited(text: &str, model: &str, salt: Option<&str>) -> String {
    String::from_utf8(parse(text).unwrap().body_for(model, salt).to_vec()).unwrap()
}

#[test]
fn only_the_bytes_that_mean_something_else_to_the_engine_change() {
    let text = "{ \"temperature\": 1.0e0 , \"model\" : \"sql\",\n\"messages\":[ ] , \"x\": 1e400 }";
    assert_eq!(edited(text, "sql@ab", None), text.replace("\"sql\"", "\"sql@ab\""));
    assert_eq!(edited(text, "sql", None), text);
}

#[test]
fn an_unchanged_body_is_not_copied() {
    let body = Bytes::from_static(br#"{"model":"base","stream":true}"#);
    assert_eq!(Asked::parse(body.clone()).unwrap().body_for("base", None).as_ptr(), body.as_ptr());
}

#[test]
fn our_own_field_is_cut_out_wherever_it_stands() {
    assert_eq!(edited(r#"{"wait_for_model":true, "model":"a"}"#, "a", None), r#"{"model":"a"}"#);
    assert_eq!(edited(r#"{"model":"a" , "wait_for_model" : 2.5 }"#, "a", None), r#"{"model":"a" }"#);
    assert_eq!(edited(r#"{"x":1,"wait_for_model":true,"model":"a"}"#, "b", None), r#"{"x":1,"model":"b"}"#);
}

#[test]
fn the_cache_salt_is_set_or_stands_before_the_clients_own() {
    assert_eq!(edited(r#" {"model":"a"}"#, "a", Some("d1")), r#" {"cache_salt":"d1","model":"a"}"#);
    assert_eq!(
        edited(r#"{"model":"a","cache_salt":"x\n"}"#, "a", Some("d1")),
        r#"{"model":"a","cache_salt":"d1:x\n"}"#
    );
    assert_eq!(edited(r#"{"model":"a","cache_salt":null}"#, "a", Some("d1")), r#"{"model":"a","cache_salt":"d1"}"#);
    let all = edited(r#"{"wait_for_model":true,"model":"a"}"#, "b", Some("d1"));
    assert_eq!(all, r#"{"cache_salt":"d1","model":"b"}"#);
}

#[test]
fn a_second_model_is_refused_however_it_is_spelled() {
    for text in [r#"{"model":"a","model":"b"}"#, r#"{"model":"a","m\u006fdel":"a"}"#] {
        assert_eq!(parse(text).unwrap_err(), BadBody::Twice("model"));
    }
    for field in ["stream", "wait_for_model", "cache_salt"] {
        let text = format!(r#"{{"{field}":null,"model":"a","{field}":null}}"#);
        assert_eq!(parse(&text).unwrap_err(), BadBody::Twice(field));
    }
    assert_eq!(parse(r#"{"model":"a","x":{"model":"b"},"tools":[{"model":1}]}"#).unwrap().model, "a");
}

#[test]
fn a_body_that_another_parser_could_read_otherwise_is_refused() {
    assert_eq!(Asked::parse(Bytes::from_static(b"{\"model\":\"\xff\"}")).unwrap_err(), BadBody::NotUtf8);
    let utf16: Vec<u8> = "{\"model\":\"a\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(Asked::parse(utf16.into()).is_err());
    for text in ["", "[]", "3", "\"model\"", "{\"model\":\"a\"", "{\"model\":\"a\"} {}", "{\"model\":NaN}"] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn names_of_models_are_bounded_text() {
    for name in ["org/model", "../../etc/passwd", "a@b", "ü"] {
        assert_eq!(parse(&format!(r#"{{"model":"{name}"}}"#)).unwrap().model, name);
    }
    let long = "x".repeat(10 << 10);
    for name in ["", "a\\u0000b", "a\\nb", "\\u007f", &long] {
        assert_eq!(parse(&format!(r#"{{"model":"{name}"}}"#)).unwrap_err(), BadBody::ModelName, "{name}");
    }
    for value in ["1", "null", "[\"a\"]", "\"\\ud800\""] {
        let refused = parse(&format!(r#"{{"model":{value}}}"#)).unwrap_err();
        assert!(matches!(refused, BadBody::Type { field: "model", .. }), "{value}");
    }
    assert_eq!(parse("{}").unwrap_err(), BadBody::NoModel);
}

#[test]
fn a_wait_is_a_flag_or_a_finite_time() {
    let waiting =
        |value: &str| parse(&format!(r#"{{"model":"a","wait_for_model":{value}}}"#)).map(|asked| asked.waiting);
    assert_eq!(waiting("true"), Ok(Waiting::Yes));
    assert_eq!(waiting("null"), Ok(Waiting::No));
    assert_eq!(waiting("1.5"), Ok(Waiting::AtMost(Duration::from_millis(1500))));
    for value in ["-1", "1e999", "1e300", "\"5\"", "[]"] {
        assert!(matches!(waiting(value), Err(BadBody::Type { field: "wait_for_model", .. })), "{value}");
    }
}

proptest! {
    #[test]
    fn an_edited_body_means_what_a_parser_would_have_made_of_it(
        members in prop::collection::vec((values::name(), values::value()), 0..8),
        at in any::<prop::sample::Index>(), wait in any::<Option<bool>>(), salted in any::<Option<Option<bool>>>()
    ) {
        let mut fields: Vec<(String, Value)> =
            members.into_iter().filter(|(name, _)| !["model", "stream", "wait_for_model", "cache_salt"].contains(&name.as_str())).collect();
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        fields.dedup_by(|a, b| a.0 == b.0);
        let mut put = |name: &str, value: Value| fields.insert(at.index(fields.len() + 1), (name.to_owned(), value));
        put("model", json!("asked"));
        if let Some(wait) = wait { put("wait_for_model", json!(wait)); }
        if let Some(salted) = salted { put("cache_salt", salted.map_or(Value::Null, |_| json!("own"))); }
        let text: Vec<String> = fields.iter().map(|(name, value)| format!("{}: {value}", quoted(name))).collect();
        let edited = edited(&format!("{{ {} }}", text.join(" , ")), "served@1", Some("d"));
        let mut wanted: Map<String, Value> = fields.into_iter().collect();
        wanted.insert("model".to_owned(), json!("served@1"));
        wanted.remove("wait_for_model");
        wanted.insert("cache_salt".to_owned(), json!(if salted.flatten().is_some() { "d:own" } else { "d" }));
        prop_assert_eq!(serde_json::from_str::<Value>(&edited).unwrap(), Value::from(wanted), "{}", edited);
    }
}
