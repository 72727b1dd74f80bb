use serde_json::{Value, json};

use super::*;
use crate::adapters::safetensors::Limits;

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// Tensors by name, type and shape, one after the other.
fn header(tensors: &[(&str, &str, &[u64])]) -> Header {
    let (mut entries, mut at) = (serde_json::Map::new(), 0);
    for (name, dtype, shape) in tensors {
        let bits = crate::adapters::safetensors::Dtype::named(dtype).unwrap().bits();
        let end = at + shape.iter().product::<u64>() * bits / 8;
        entries.insert((*name).to_owned(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    Header::parse(Value::Object(entries).to_string().as_bytes(), at, &Limits::ADAPTER).unwrap()
}

/// A good one of rank 8.
fn module(path: &str) -> Header {
    header(&[
        (&format!("{path}.lora_A.weight"), "BF16", &[8, 32]),
        (&format!("{path}.lora_B.weight"), "BF16", &[32, 8]),
    ])
}

struct Judge {
    engine: Engine,
    policy: Policy,
    base: Vec<BaseModel>,
    claims: Vec<Claim>,
    config: Value,
}

impl Default for Judge {
    fn default() -> Self {
        Self {
            engine: Engine::default(),
            policy: Policy::default(),
            base: vec!["acme/Tiny-0.8B".parse().unwrap()],
            claims: Vec::new(),
            config: json!({ "peft_type": "LORA", "r": 8, "base_model_name_or_path": "acme/tiny_0.8b" }),
        }
    }
}

impl Judge {
    fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    fn verdict(&self, header: &Header) -> Verdict {
        let config = AdapterConfig::parse(self.config.to_string().as_bytes()).unwrap();
        let Self { engine, policy, base, claims, .. } = self;
        check(&config, header, claims, &Requirements { engine, policy, base, weights: None })
    }

    /// The only reason.
    fn refusal(&self, header: &Header) -> Refusal {
        let mut refusals = self.verdict(header).refusals;
        assert_eq!(refusals.len(), 1, "{refusals:?}");
        refusals.remove(0)
    }

    fn release(&self, base: &str, rank: u32, dora: bool) -> Vec<Refusal> {
        let release = Release {
            alias: "sql".parse().unwrap(),
            base: base.parse().unwrap(),
            content: crate::digest::ContentId::of(b"x"),
            rank,
            dora,
            owner: None,
            provenance: None,
        };
        let Self { engine, policy, base, .. } = self;
        check_release(&release, &Requirements { engine, policy, base, weights: None }).refusals
    }
}

fn svd() -> Policy {
    Policy { dora: Dora::Svd { rank: None, max_error: 0.1 }, ..Policy::default() }
}

#[test]
fn a_good_adapter_has_nothing_wrong_and_nothing_odd() {
    assert_eq!(Judge::default().verdict(&module(Q)), Verdict::default());
}

#[test]
fn an_adapter_of_another_base_model_is_refused_naming_both() {
    let judge = Judge::default().with("base_model_name_or_path", json!("acme/Tiny-2B"));
    let text = judge.refusal(&module(Q)).to_string();
    assert!(text.contains("`acme/Tiny-2B`") && text.contains("`acme/Tiny-0.8B`"), "{text}");
}

#[test]
fn what_a_registry_says_of_the_base_model_is_a_warning_and_the_adapter_itself_counts() {
    let claim = |by, base: &str| Claim { by, base: base.parse().unwrap() };
    let wrong = Judge { claims: vec![claim(Claimant::Registry, "acme/Tiny-2B")], ..Judge::default() };
    let verdict = wrong.verdict(&module(Q));
    assert!(verdict.is_ok());
    let text = verdict.warnings[0].to_string();
    assert!(
        text.contains("registry") && text.contains("`acme/Tiny-2B`") && text.contains("`acme/tiny_0.8b`"),
        "{text}"
    );
    // A registry that vouches for the engine's model does not make another adapter fit.
    let vouched = Judge { claims: vec![claim(Claimant::Request, "acme/Tiny-0.8B")], ..Judge::default() };
    let verdict = vouched.with("base_model_name_or_path", json!("acme/Tiny-2B")).verdict(&module(Q));
    assert!(matches!(verdict.refusals[..], [Refusal::Base { .. }]) && verdict.warnings.len() == 1);
}

#[test]
fn an_adapter_that_names_no_base_model_is_served_with_a_warning() {
    for none in [json!(null), json!("")] {
        let verdict = Judge::default().with("base_model_name_or_path", none).verdict(&module(Q));
        assert!(verdict.is_ok() && matches!(verdict.warnings[..], [Warning::BaseUnsaid { .. }]));
    }
}

#[test]
fn a_rank_above_the_engines_is_refused_with_the_flag_that_would_do() {
    let judge = Judge::default().with("r", json!(24));
    let refusals = judge.verdict(&module(Q)).refusals;
    assert_eq!(refusals[0], Refusal::Rank { rank: 24, limit: 16 });
    assert!(refusals[0].to_string().contains("--max-lora-rank 32"));
}

#[test]
fn a_rank_that_the_tensors_do_not_have_is_refused() {
    let refusal = Judge::default().with("r", json!(16)).refusal(&module(Q));
    assert_eq!(refusal, Refusal::RankOfTensor { module: Q.to_owned(), found: 8, configured: 16 });
}

#[test]
fn settings_that_engines_reject_or_misread_are_refused_before_they_see_them() {
    for (key, value, expected) in [
        ("modules_to_save", json!(["lm_head"]), Refusal::ModulesToSave(vec!["lm_head".to_owned()])),
        ("peft_type", json!("LOHA"), Refusal::PeftType("LOHA".to_owned())),
        ("bias", json!("lora_only"), Refusal::Bias("lora_only".to_owned())),
        ("layer_replication", json!([[0, 2]]), Refusal::Setting("layer_replication")),
        ("alora_invocation_tokens", json!([1]), Refusal::Setting("alora_invocation_tokens")),
        ("init_lora_weights", json!("pissa"), Refusal::ChangedBase("pissa".to_owned())),
        ("rank_pattern", json!({ "q_proj": 4 }), Refusal::Patterns),
        ("alpha_pattern", json!({ "q_proj": 4 }), Refusal::Patterns),
        ("use_dora", json!(true), Refusal::Dora),
    ] {
        assert_eq!(Judge::default().with(key, value).refusal(&module(Q)), expected);
    }
}

#[test]
fn patterns_are_fine_where_the_engine_follows_them() {
    let mut judge = Judge::default().with("rank_pattern", json!({ "q_proj": 8, "k_proj": 4 }));
    judge.engine.follows_patterns = true;
    assert!(judge.verdict(&module(Q)).is_ok());
}

#[test]
fn an_adapter_whose_tensors_are_decomposed_is_dora_whatever_its_configuration_says() {
    let tensors = [
        (&*format!("{Q}.lora_A.weight"), "F32", &[8, 32][..]),
        (&format!("{Q}.lora_B.weight"), "F32", &[32, 8]),
        (&format!("{Q}.lora_magnitude_vector"), "F32", &[32]),
    ];
    assert_eq!(Judge::default().refusal(&header(&tensors)), Refusal::Dora);
    let strip = Judge { policy: Policy { dora: Dora::Strip, ..Policy::default() }, ..Judge::default() };
    assert_eq!(strip.verdict(&header(&tensors)).warnings, [Warning::DoraStripped]);
    let short = [tensors[0], tensors[1], (tensors[2].0, "F32", &[31][..])];
    assert!(matches!(strip.refusal(&header(&short)), Refusal::Magnitude { outputs: 32, .. }));
}

#[test]
fn an_approximation_without_base_weights_is_refused_before_anything_is_fetched() {
    let judge = Judge { policy: svd(), ..Judge::default() };
    assert_eq!(judge.release("acme/tiny-0.8b", 8, true), [Refusal::DoraWithoutBase]);
    assert_eq!(judge.release("acme/tiny-0.8b", 8, false), []);
    assert!(matches!(judge.release("acme/tiny-2b", 64, false)[..], [Refusal::Base { .. }, Refusal::Rank { .. }]));
    assert_eq!(Judge::default().release("acme/tiny-0.8b", 8, true), [Refusal::Dora]);
}

#[test]
fn a_half_decomposed_adapter_is_not_approximated() {
    let judge = Judge { policy: svd(), ..Judge::default() }.with("use_dora", json!(true));
    let refusals = judge.verdict(&module(Q)).refusals;
    assert_eq!(refusals, [Refusal::DoraWithoutBase, Refusal::HalfDora(Q.to_owned())]);
}

#[test]
fn tensors_that_belong_to_no_module_are_refused_by_name() {
    for name in ["lm_head.weight", "base_model.model.model.embed_tokens.lora_embedding_A", "x.lora_B.bias"] {
        let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
        let header = header(&[(&a, "F16", &[8, 4]), (&b, "F16", &[4, 8]), (name, "F16", &[1])]);
        assert_eq!(Judge::default().refusal(&header), Refusal::Stray(name.to_owned()));
    }
}

#[test]
fn shapes_types_and_halves_that_make_no_adapter_are_refused() {
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let refusal = |tensors: &[(&str, &str, &[u64])]| Judge::default().refusal(&header(tensors));
    assert_eq!(refusal(&[(&a, "F16", &[8, 4])]), Refusal::Half(Q.to_owned()));
    assert!(matches!(refusal(&[(&a, "F16", &[8, 4]), (&b, "F16", &[4, 4])]), Refusal::Shape { .. }));
    assert!(matches!(refusal(&[(&a, "F16", &[32]), (&b, "F16", &[4, 8])]), Refusal::Shape { .. }));
    assert!(matches!(refusal(&[(&a, "F16", &[8, 0]), (&b, "F16", &[4, 8])]), Refusal::Shape { .. }));
    assert!(matches!(refusal(&[(&a, "F8_E4M3", &[8, 4]), (&b, "F16", &[4, 8])]), Refusal::Dtype { .. }));
}

#[test]
fn modules_that_the_engine_does_not_serve_are_refused_and_not_dropped_in_silence() {
    let head = "base_model.model.lm_head";
    let refusal = Judge::default().refusal(&module(head));
    assert!(matches!(&refusal, Refusal::Module { module, .. } if module == head));
    assert!(refusal.to_string().contains("q_proj"));
}

#[test]
fn an_adapter_of_the_vision_tower_alone_has_nothing_to_serve() {
    let vision = "base_model.model.visual.blocks.0.attn.q_proj";
    assert_eq!(Judge::default().refusal(&module(vision)), Refusal::NoModules { vision: 1 });
    let mut keep = Judge::default();
    keep.policy.vision.filter = false;
    assert!(keep.verdict(&module(vision)).is_ok());
}

#[test]
fn only_whole_components_of_a_path_make_a_vision_tower() {
    assert!(Judge::default().verdict(&module("base_model.model.model.visually.emerger.q_proj")).is_ok());
}

#[test]
fn two_modules_that_would_get_one_name_are_refused() {
    let mut judge = Judge::default();
    judge.policy.remap = Some(crate::adapters::Remap::to("m.{suffix}".parse().unwrap()));
    let mut tensors = Vec::new();
    for prefix in ["model.layers", "model.language_model.layers"] {
        tensors.push((format!("{prefix}.0.q_proj.lora_A.weight"), [8u64, 4]));
        tensors.push((format!("{prefix}.0.q_proj.lora_B.weight"), [4, 8]));
    }
    let tensors: Vec<(&str, &str, &[u64])> = tensors.iter().map(|(n, s)| (n.as_str(), "F16", s.as_slice())).collect();
    assert_eq!(judge.refusal(&header(&tensors)), Refusal::OneName("m.0.q_proj".to_owned()));
}

#[test]
fn a_module_of_another_size_than_the_base_models_is_refused_naming_both() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters/base");
    let weights = BaseWeights::open(&directory).unwrap();
    let judge = Judge::default();
    let verdict = |header: &Header| {
        let config = AdapterConfig::parse(judge.config.to_string().as_bytes()).unwrap();
        let Judge { engine, policy, base, .. } = &judge;
        check(&config, header, &[], &Requirements { engine, policy, base, weights: Some(&weights) })
    };
    assert_eq!(verdict(&module(Q)), Verdict::default());
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let other = verdict(&header(&[(&a, "F16", &[8, 64]), (&b, "F16", &[64, 8])]));
    let expected = Refusal::ShapeOfBase { module: Q.to_owned(), adapter: [64, 64], base: [32, 32] };
    assert_eq!(other.refusals, [expected]);
    assert!(matches!(verdict(&module(&Q.replace(".0.", ".7."))).warnings[..], [Warning::NotInBase(_)]));
}

#[test]
fn targets_without_tensors_are_told() {
    let judge = Judge::default().with("target_modules", json!(["q_proj", "self_attn.q_proj", "v_proj", "proj"]));
    let expected = ["proj", "v_proj"].map(str::to_owned).to_vec();
    assert_eq!(judge.verdict(&module(Q)).warnings, [Warning::TargetsWithoutTensors(expected)]);
}

#[test]
fn thousands_of_names_are_told_in_one_line() {
    let names: Vec<String> = (0..5000).map(|at| format!("m{at}")).collect();
    let verdict = Judge::default().with("target_modules", json!(names)).verdict(&module(Q));
    let text = verdict.warnings[0].to_string();
    assert!(text.ends_with("and 4990 more, which have no tensors") && text.len() < 200, "{text}");
}

#[test]
fn a_file_that_is_wrong_everywhere_gives_a_short_list() {
    let names: Vec<String> = (0..1000).map(|at| format!("stray{at}")).collect();
    let tensors: Vec<(&str, &str, &[u64])> = names.iter().map(|name| (name.as_str(), "F16", &[1][..])).collect();
    assert_eq!(Judge::default().verdict(&header(&tensors)).refusals.len(), MOST_TOLD);
}
