use proptest::prelude::*;
use serde_json::json;

use super::*;

fn parse(value: &Value) -> Result<AdapterConfig, ConfigError> {
    AdapterConfig::parse(value.to_string().as_bytes())
}

/// Says which key is wrong.
fn refused(value: &Value) -> String {
    match parse(value) {
        Err(ConfigError::Value { key, found, .. }) => format!("{key}: {found}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_real_library_writes_is_understood() {
    let read = |name: &str| {
        let path = format!("{}/tests/data/adapters/{name}/adapter_config.json", env!("CARGO_MANIFEST_DIR"));
        AdapterConfig::parse(&std::fs::read(path).unwrap()).unwrap()
    };
    let plain = read("plain");
    assert_eq!((plain.rank, plain.alpha, plain.scaling()), (4, 8.0, 2.0));
    assert_eq!(plain.base_model.unwrap().as_str(), "acme/Tiny-Llama-0.1B");
    let names = ["down_proj", "gate_proj", "q_proj", "v_proj"].map(str::to_owned);
    assert_eq!(plain.target_modules, TargetModules::Names(names.into()));
    assert_eq!((plain.bias.as_str(), plain.use_dora, plain.changes_base), ("none", false, None));
    assert!(plain.unsupported.is_empty() && plain.modules_to_save.is_empty());
    let dora = read("dora-rslora");
    assert!(dora.use_dora && dora.use_rslora);
    assert_eq!(dora.scaling(), 4.0);
}

#[test]
fn a_rank_that_is_no_whole_number_in_bounds_is_refused() {
    for rank in [json!(8.0), json!("8"), json!(true), json!(-8), json!(0), json!(16_385), json!(1u64 << 63), json!([8])]
    {
        assert!(refused(&json!({ "r": rank })).starts_with("r: "));
    }
    for text in [r#"{"r": NaN}"#, r#"{"r": Infinity}"#, r#"{"r": 1e400}"#] {
        assert!(matches!(AdapterConfig::parse(text.as_bytes()), Err(ConfigError::Json(_))), "{text}");
    }
    for value in [json!({}), json!({ "r": null })] {
        assert_eq!(parse(&value), Err(ConfigError::Missing("r")));
    }
}

#[test]
fn an_alpha_that_scales_by_nothing_or_without_bounds_is_refused() {
    for alpha in [json!(0), json!(-1), json!(1e7), json!("8")] {
        assert!(refused(&json!({ "r": 8, "lora_alpha": alpha })).starts_with("lora_alpha: "));
    }
    assert_eq!(parse(&json!({ "r": 16 })).unwrap().alpha, 8.0);
    assert_eq!(parse(&json!({ "r": 16, "lora_alpha": 0.5 })).unwrap().alpha, 0.5);
}

#[test]
fn a_file_that_is_large_deep_or_says_two_things_is_refused() {
    let large = format!(r#"{{"r":8{}}}"#, " ".repeat(100 << 20));
    assert_eq!(AdapterConfig::parse(large.as_bytes()), Err(ConfigError::TooLarge { found: large.len() as u64 }));
    let deep = format!(r#"{{"r":8,"x":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    assert!(matches!(AdapterConfig::parse(deep.as_bytes()), Err(ConfigError::Json(_))));
    let twice = AdapterConfig::parse(br#"{"r":8,"r":64}"#).unwrap_err();
    assert!(twice.to_string().contains("`r` occurs twice"));
    assert_eq!(AdapterConfig::parse(b"[]"), Err(ConfigError::NotAnObject));
    assert!(matches!(AdapterConfig::parse(b"{\"peft_type\": \"LORA\", \"r\": 8,\n"), Err(ConfigError::Json(_))));
}

#[test]
fn target_modules_may_be_names_a_pattern_or_everything() {
    let targets = |value: Value| parse(&json!({ "r": 8, "target_modules": value })).unwrap().target_modules;
    assert_eq!(targets(json!(["q_proj"])), TargetModules::Names(["q_proj".to_owned()].into()));
    assert_eq!(targets(json!(".*q_proj")), TargetModules::Pattern(".*q_proj".to_owned()));
    assert_eq!(targets(json!("all-linear")), TargetModules::AllLinear);
    assert_eq!(targets(json!(null)), TargetModules::Unsaid);
    assert!(refused(&json!({ "r": 8, "target_modules": { "q": 1 } })).starts_with("target_modules"));
    assert!(refused(&json!({ "r": 8, "target_modules": ["q\u{7}"] })).starts_with("target_modules"));
}

#[test]
fn settings_that_change_the_computation_are_named() {
    let config = parse(&json!({
        "r": 8, "lora_bias": true, "layer_replication": [[0, 4]], "use_qalora": false, "arrow_config": null,
        "trainable_token_indices": [], "kasa_config": {}, "init_lora_weights": "pissa_niter_4",
    }));
    let config = config.unwrap();
    assert_eq!(config.unsupported, ["layer_replication", "lora_bias"]);
    assert_eq!(config.changes_base.as_deref(), Some("pissa_niter_4"));
    for harmless in [json!(true), json!(false), json!("gaussian"), json!(null)] {
        assert_eq!(parse(&json!({ "r": 8, "init_lora_weights": harmless })).unwrap().changes_base, None);
    }
}

#[test]
fn patterns_that_repeat_the_rank_make_nothing_uneven() {
    let uneven = |patterns: Value| {
        let mut value = json!({ "r": 8, "lora_alpha": 16 });
        value.as_object_mut().unwrap().extend(patterns.as_object().unwrap().clone());
        parse(&value).unwrap().is_uneven()
    };
    assert!(!uneven(json!({ "rank_pattern": {}, "alpha_pattern": {} })));
    assert!(!uneven(json!({ "rank_pattern": { "q_proj": 8 }, "alpha_pattern": { "q_proj": 16 } })));
    assert!(uneven(json!({ "rank_pattern": { "q_proj": 4 } })));
    assert!(uneven(json!({ "alpha_pattern": { "q_proj": 4 } })));
    assert!(refused(&json!({ "r": 8, "rank_pattern": { "q_proj": 0.5 } })).starts_with("rank_pattern"));
}

#[test]
fn keys_that_nobody_knows_are_kept() {
    let config = parse(&json!({ "r": 8, "colour": { "of": ["the", "sky"] } })).unwrap();
    assert_eq!(config.raw()["colour"]["of"][1], "sky");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = AdapterConfig::parse(&bytes);
    }

    #[test]
    fn every_value_of_every_key_is_taken_or_refused_by_name(
        key in prop::sample::select(vec![
            "r", "lora_alpha", "peft_type", "target_modules", "modules_to_save", "use_dora", "bias", "rank_pattern",
            "layers_to_transform", "init_lora_weights", "base_model_name_or_path",
        ]),
        value in prop::sample::select(vec![
            json!(null), json!(-1), json!(1.5), json!(8), json!(""), json!("x"), json!(true), json!([1]), json!(["x"]),
            json!({}), json!({ "x": 1 }), json!([[]]),
        ]),
    ) {
        let mut config = json!({ "r": 8 });
        config[key] = value;
        match parse(&config) {
            Ok(config) => prop_assert!(config.scaling() > 0.0),
            Err(error) => prop_assert!(error.to_string().contains(key), "{}", error),
        }
    }
}
