use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::safetensors::{Content, Float, Limits, Outgoing, Weights};
use super::super::{AdapterConfig, Claimant, Dora, Remap};
use super::*;

fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters").join(name)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A preparer with a root of its own.
struct Node {
    _dir: tempfile::TempDir,
    preparer: Preparer,
}

impl Node {
    fn new(policy: Policy) -> Self {
        Self::with(policy, false)
    }

    fn with(policy: Policy, base: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = AdapterRoot::open(&dir.path().join("adapters")).unwrap();
        let weights = base.then(|| BaseWeights::open(&recorded("base")).unwrap());
        let base = vec!["acme/tiny-llama-0.1b".parse().unwrap()];
        let settings = Settings { policy, engine: Engine::default(), base, weights };
        Self { preparer: Preparer::new(root, settings).unwrap(), _dir: dir }
    }

    fn prepare(&self, source: &Path) -> Result<Prepared, PrepareError> {
        self.preparer.prepare(&Source::open(source, None).unwrap(), &[], soon())
    }

    /// The only reason.
    fn refusal(&self, source: &Path) -> Refusal {
        match self.prepare(source) {
            Err(PrepareError::Refused(mut refusals)) if refusals.len() == 1 => refusals.remove(0),
            other => panic!("{other:?}"),
        }
    }

    /// Names below the root, without the control directories.
    fn names(&self) -> usize {
        self.preparer.root().list().unwrap().len()
    }

    fn is_swept(&self) -> bool {
        let staging = self.preparer.root().path().join(".staging");
        std::fs::read_dir(staging).unwrap().next().is_none()
    }
}

/// An adapter of these tensors, each `[rows, columns]` with one value throughout.
fn adapter(config: Value, tensors: &[(&str, [u64; 2], f32)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let made = |(name, shape, value): &(&str, [u64; 2], f32)| Outgoing {
        name: (*name).to_owned(),
        dtype: Float::Bf16.dtype(),
        shape: shape.to_vec(),
        content: Content::Bytes(Float::Bf16.encode(&vec![*value; (shape[0] * shape[1]) as usize])),
    };
    let mut bytes = Vec::new();
    write(&mut bytes, tensors.iter().map(made).collect(), &BTreeMap::new()).unwrap();
    std::fs::write(dir.path().join(WEIGHTS), bytes).unwrap();
    std::fs::write(dir.path().join(CONFIG), config.to_string()).unwrap();
    dir
}

const LANGUAGE: [(&str, [u64; 2], f32); 2] = [
    ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", [2, 4], 0.5),
    ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", [4, 2], 0.25),
];

/// With a part in the vision tower whose `lora_B` has this value.
fn with_vision(value: f32) -> tempfile::TempDir {
    let path = "base_model.model.visual.merger.mlp.0";
    let (a, b) = (format!("{path}.lora_A.weight"), format!("{path}.lora_B.weight"));
    let tensors = [LANGUAGE[0], LANGUAGE[1], (&*a, [2, 4], 1.0), (&*b, [4, 2], value)];
    adapter(json!({ "peft_type": "LORA", "r": 2, "base_model_name_or_path": "acme/Tiny-Llama-0.1B" }), &tensors)
}

fn config_of(prepared: &Prepared) -> Value {
    serde_json::from_slice(&std::fs::read(prepared.directory.join(CONFIG)).unwrap()).unwrap()
}

fn weights_of(prepared: &Prepared) -> Weights {
    Weights::open(&prepared.directory.join(WEIGHTS), &Limits::ADAPTER).unwrap()
}

fn names_of(weights: &Weights) -> Vec<&str> {
    weights.header().tensors().iter().map(|tensor| tensor.name.as_str()).collect()
}

fn remapping() -> Policy {
    let template = "base_model.model.model.language_model.layers.{suffix}".parse().unwrap();
    Policy { remap: Some(Remap::to(template)), ..Policy::default() }
}

fn dora(dora: Dora) -> Policy {
    Policy { dora, ..Policy::default() }
}

#[test]
fn an_adapter_that_needs_nothing_keeps_its_numbers_and_gets_a_report() {
    let node = Node::new(Policy::default());
    let prepared = node.prepare(&recorded("plain")).unwrap();
    let (ours, theirs) =
        (weights_of(&prepared), Weights::open(&recorded("plain").join(WEIGHTS), &Limits::ADAPTER).unwrap());
    assert_eq!(ours.header().tensors(), theirs.header().tensors());
    for tensor in ours.header().tensors() {
        assert_eq!(ours.floats(tensor, 1 << 20).unwrap(), theirs.floats(tensor, 1 << 20).unwrap());
    }
    let config = config_of(&prepared);
    assert_eq!(config["target_modules"], json!(["down_proj", "gate_proj", "q_proj", "v_proj"]));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(4), &json!(8)));
    assert!(config.get("eva_config").is_none() && config.get("peft_version").is_some());
    let report: Report = serde_json::from_slice(&std::fs::read(prepared.directory.join(REPORT)).unwrap()).unwrap();
    assert_eq!(report, prepared.report);
    assert_eq!(report.removed_settings, ["eva_config", "exclude_modules", "lora_bias"]);
    assert_eq!((report.modules, report.renamed, report.dora), (4, 0, None));
    let mode = |name: &str| prepared.directory.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert!([CONFIG, WEIGHTS, REPORT].into_iter().all(|name| mode(name) == 0o400));
}

#[test]
fn two_nodes_make_the_same_bytes_of_one_adapter() {
    let svd = Dora::Svd { rank: Some(16), max_error: 0.9 };
    for (policy, source) in [(remapping(), "plain"), (dora(Dora::Strip), "dora"), (dora(svd), "dora")] {
        let [one, two] = [(); 2].map(|()| Node::with(policy.clone(), true).prepare(&recorded(source)).unwrap());
        assert_eq!((one.id, one.report), (two.id, two.report));
    }
}

#[test]
fn changing_the_policy_never_finds_what_another_one_made() {
    let node = Node::new(Policy::default());
    let one = node.prepare(&recorded("plain")).unwrap();
    let Preparer { root, settings, .. } = node.preparer;
    let other = Preparer::new(root, Settings { policy: remapping(), ..settings }).unwrap();
    let source = Source::open(&recorded("plain"), None).unwrap();
    assert_eq!(other.find(source.content()).unwrap(), None);
    let two = other.prepare(&source, &[], soon()).unwrap();
    assert_ne!(one.directory, two.directory);
    assert_eq!(two.report.renamed, 8);
    assert!(one.directory.exists() && two.directory.exists());
}

#[test]
fn keys_get_the_templates_names_and_preparing_again_changes_nothing() {
    let node = Node::new(remapping());
    let prepared = node.prepare(&recorded("plain")).unwrap();
    let weights = weights_of(&prepared);
    assert!(names_of(&weights).iter().all(|name| name.starts_with("base_model.model.model.language_model.layers.0.")));
    let again = Node::new(remapping()).prepare(&prepared.directory).unwrap();
    assert_eq!((again.report.renamed, again.report.weights), (0, prepared.report.weights));
    assert_eq!(again.report.config, prepared.report.config);
}

#[test]
fn a_vision_tower_that_does_nothing_is_dropped_and_one_that_was_trained_is_refused() {
    let node = Node::new(Policy::default());
    let prepared = node.prepare(with_vision(0.0).path()).unwrap();
    assert_eq!(names_of(&weights_of(&prepared)).len(), 2);
    assert_eq!(prepared.report.dropped.tensors, 2);
    assert_eq!(config_of(&prepared)["target_modules"], json!(["q_proj"]));
    let refusal = node.refusal(with_vision(0.5).path());
    // Eight elements of 0.5.
    let norm = 2f64.sqrt();
    assert!(
        matches!(&refusal, Refusal::VisionTrained { norm: found, .. } if (found - norm).abs() < 1e-12),
        "{refusal}"
    );
    assert!(node.is_swept() && node.names() == 1);
}

#[test]
fn a_threshold_lets_a_hardly_trained_vision_tower_go() {
    let mut policy = Policy::default();
    policy.vision.threshold = 1.5;
    let prepared = Node::new(policy.clone()).prepare(with_vision(0.5).path()).unwrap();
    assert!((prepared.report.dropped.largest_norm - 2f64.sqrt()).abs() < 1e-12);
    policy.vision.threshold = 1.4;
    assert!(matches!(Node::new(policy).refusal(with_vision(0.5).path()), Refusal::VisionTrained { .. }));
}

#[test]
fn a_vision_tower_full_of_what_is_no_number_does_not_pass_the_gate() {
    for value in [f32::NAN, f32::INFINITY] {
        let refusal = Node::new(Policy::default()).refusal(with_vision(value).path());
        assert!(matches!(refusal, Refusal::VisionTrained { .. }));
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_the_tensors_name() {
    let broken = [LANGUAGE[0], (LANGUAGE[1].0, LANGUAGE[1].1, f32::NAN)];
    let source = adapter(json!({ "peft_type": "LORA", "r": 2 }), &broken);
    let refusal = Node::new(Policy::default()).refusal(source.path());
    assert_eq!(refusal, Refusal::NotFinite(LANGUAGE[1].0.to_owned()));
}

#[test]
fn rank_stabilised_scaling_is_kept() {
    let source = adapter(json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": true }), &LANGUAGE);
    let node = Node::new(Policy::default());
    let prepared = node.prepare(source.path()).unwrap();
    assert_eq!(config_of(&prepared)["use_rslora"], json!(true));
    assert_eq!(AdapterConfig::parse(config_of(&prepared).to_string().as_bytes()).unwrap().scaling(), 4.0 / 2f64.sqrt());
}

#[test]
fn stripping_dora_leaves_a_plain_adapter_and_says_so() {
    let node = Node::new(dora(Dora::Strip));
    let prepared = node.prepare(&recorded("dora")).unwrap();
    assert!(names_of(&weights_of(&prepared)).iter().all(|name| name.ends_with(".weight")));
    assert_eq!(config_of(&prepared)["use_dora"], json!(false));
    assert_eq!(prepared.report.dora, Some(DoraReport::Strip { modules: 3 }));
    assert_eq!(prepared.warnings, [Warning::DoraStripped]);
    assert_eq!(prepared.report.warnings, [Warning::DoraStripped.to_string()]);
}

#[test]
fn dora_is_rejected_unless_the_policy_says_otherwise() {
    assert_eq!(Node::new(Policy::default()).refusal(&recorded("dora")), Refusal::Dora);
    let svd = dora(Dora::Svd { rank: None, max_error: 0.5 });
    assert_eq!(Node::new(svd).refusal(&recorded("dora")), Refusal::DoraWithoutBase);
}

/// What the engine will add to the base weight of a module.
fn served_change(prepared: &Prepared, module: &str) -> Vec<f64> {
    let (weights, config) = (weights_of(prepared), config_of(prepared));
    let scaling = AdapterConfig::parse(config.to_string().as_bytes()).unwrap().scaling();
    let read = |end: &str| {
        let name = format!("base_model.model.{module}.{end}");
        let tensor = weights.header().tensors().iter().find(|tensor| tensor.name == name).unwrap();
        (tensor.shape.clone(), weights.floats(tensor, 1 << 20).unwrap())
    };
    let ((a_shape, a), (b_shape, b)) = (read("lora_A.weight"), read("lora_B.weight"));
    let (rank, inputs) = (a_shape[0] as usize, a_shape[1] as usize);
    let cell = |row: usize, column: usize| -> f64 {
        (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * inputs + column])).sum::<f64>() * scaling
    };
    (0..b_shape[0] as usize)
        .flat_map(|row| (0..inputs).map(move |column| (row, column)))
        .map(|(r, c)| cell(r, c))
        .collect()
}

#[test]
fn what_is_served_of_an_approximated_adapter_is_as_near_to_the_training_librarys_merge_as_reported() {
    for (name, module, rank) in [
        ("dora", "model.layers.0.self_attn.q_proj", 12),
        ("dora", "model.layers.0.mlp.down_proj", 16),
        ("dora-rslora", "model.layers.0.self_attn.k_proj", 14),
    ] {
        let policy = dora(Dora::Svd { rank: Some(rank), max_error: 0.9 });
        let node = Node::with(policy, true);
        let prepared = node.prepare(&recorded(name)).unwrap();
        let exact = Weights::open(&recorded("exact").join(format!("{name}.safetensors")), &Limits::ADAPTER).unwrap();
        let tensor = exact.header().tensors().iter().find(|tensor| tensor.name == format!("{module}.weight")).unwrap();
        let exact = exact.floats(tensor, 1 << 20).unwrap();
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let served = served_change(&prepared, module);
        let lost = norm(&mut exact.iter().zip(served).map(|(exact, served)| f64::from(*exact) - served));
        let error = lost / norm(&mut exact.iter().map(|value| f64::from(*value)));
        let Some(DoraReport::Svd { worst, modules, mean_error }) = &prepared.report.dora else { panic!() };
        assert!(
            error <= worst.error + 1e-6 && worst.error < worst.stripped_error,
            "{name} {module}: {error} {worst:?}"
        );
        assert!(*modules > 1 || (error - mean_error).abs() < 1e-6, "{name}: {error} {mean_error}");
        assert_eq!((prepared.report.rank, prepared.report.trained_rank), (rank, 4));
        assert_eq!(config_of(&prepared)["use_rslora"], json!(name == "dora-rslora"));
    }
}

#[test]
fn an_approximation_that_loses_too_much_is_refused_with_the_figure() {
    let policy = dora(Dora::Svd { rank: Some(1), max_error: 0.01 });
    let refusal = Node::with(policy, true).refusal(&recorded("dora"));
    assert!(matches!(refusal, Refusal::Approximation { error, .. } if error > 0.01 && error < 1.0), "{refusal}");
}

#[test]
fn what_was_prepared_is_found_again_and_not_made_again() {
    let node = Node::new(Policy::default());
    let source = Source::open(&recorded("plain"), None).unwrap();
    assert_eq!(node.preparer.find(source.content()).unwrap(), None);
    let first = node.preparer.prepare(&source, &[], soon()).unwrap();
    let made = first.directory.metadata().unwrap().created().ok();
    let second = node.preparer.prepare(&source, &[], soon()).unwrap();
    assert_eq!((&first, made), (&second, second.directory.metadata().unwrap().created().ok()));
    assert_eq!(node.preparer.find(source.content()).unwrap(), Some(first));
}

#[test]
fn a_damaged_directory_is_made_again_in_its_place() {
    let node = Node::new(Policy::default());
    let first = node.prepare(&recorded("plain")).unwrap();
    let path = first.directory.join(WEIGHTS);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(node.preparer.find(first.id.content).unwrap(), None);
    let second = node.prepare(&recorded("plain")).unwrap();
    assert_eq!(second, first);
    assert!(node.preparer.find(first.id.content).unwrap().is_some() && node.is_swept());
}

#[test]
fn of_many_at_the_same_time_one_does_the_work_and_all_have_it() {
    let node = Node::new(Policy::default());
    let one = || node.prepare(&recorded("plain")).unwrap();
    let prepared: Vec<Prepared> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(prepared.iter().all(|other| *other == prepared[0]));
    assert!(node.names() == 1 && node.is_swept());
}

#[test]
fn a_worker_that_died_is_cleaned_up_after_and_a_live_one_is_waited_for_until_the_deadline() {
    let node = Node::new(Policy::default());
    let source = Source::open(&recorded("plain"), None).unwrap();
    let id = node.preparer.id(source.content());
    let staging = node.preparer.root().path().join(".staging").join(id.to_string());
    std::fs::create_dir(&staging).unwrap();
    std::fs::write(staging.join(WEIGHTS), b"half").unwrap();
    let held = File::open(&staging).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(node.preparer.root().clean().unwrap(), 0);
    let late = node.preparer.prepare(&source, &[], Instant::now());
    assert!(matches!(late, Err(PrepareError::Deadline(found)) if found == id));
    drop(held);
    node.preparer.prepare(&source, &[], soon()).unwrap();
    assert!(node.is_swept());
    std::fs::create_dir(&staging).unwrap();
    assert_eq!(node.preparer.root().clean().unwrap(), 1);
    assert!(node.is_swept() && node.names() == 1);
}

#[test]
fn a_source_that_changes_meanwhile_is_not_published() {
    let node = Node::new(Policy::default());
    let dir = with_vision(0.0);
    let source = Source::open(dir.path(), None).unwrap();
    std::fs::write(dir.path().join(CONFIG), r#"{"r":2,"lora_alpha":99}"#).unwrap();
    let error = node.preparer.prepare(&source, &[], soon()).unwrap_err();
    assert!(matches!(error, PrepareError::Source(SourceError::Changed(_))), "{error}");
    assert!(node.names() == 0 && node.is_swept());
}

#[test]
fn what_a_registry_says_is_in_the_report() {
    let node = Node::new(Policy::default());
    let claim = Claim { by: Claimant::Registry, base: "acme/other".parse().unwrap() };
    let source = Source::open(&recorded("plain"), None).unwrap();
    let prepared = node.preparer.prepare(&source, &[claim], soon()).unwrap();
    assert!(prepared.report.warnings[0].contains("registry") && prepared.report.warnings[0].contains("acme/other"));
}

#[test]
fn discarding_takes_one_adapter_and_no_other() {
    let node = Node::new(Policy::default());
    let (one, two) = (node.prepare(&recorded("plain")).unwrap(), node.prepare(with_vision(0.0).path()).unwrap());
    let root = node.preparer.root();
    assert!(root.discard(&one.id).unwrap() && !root.discard(&one.id).unwrap());
    assert!(!one.directory.exists() && two.directory.exists());
    assert_eq!(root.list().unwrap(), [two.id]);
}

#[test]
fn a_root_that_others_can_enter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [open, link] = ["open", "link"].map(|name| dir.path().join(name));
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    assert!([open, link].iter().all(|root| matches!(AdapterRoot::open(root), Err(PrepareError::Root { .. }))));
}

#[test]
fn a_preparer_without_a_base_model_to_check_against_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let root = AdapterRoot::open(&dir.path().join("adapters")).unwrap();
    let settings = Settings { policy: Policy::default(), engine: Engine::default(), base: Vec::new(), weights: None };
    assert!(matches!(Preparer::new(root, settings), Err(PrepareError::NoBase)));
}
