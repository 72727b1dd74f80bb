use super::*;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn launch(line: &str) -> Launch {
    Launch::parse(&words(line)).unwrap()
}

fn digest(line: &str) -> Digest {
    launch(line).digest(None, None, &Environment::default())
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn engines_are_told_by_the_program_or_module() {
    let expected = [
        ("vllm serve m", Engine::Vllm),
        ("/opt/venv/bin/vllm serve m", Engine::Vllm),
        ("python3 -u -m vllm.entrypoints.openai.api_server --model m", Engine::Vllm),
        ("/usr/bin/python3.12 -X utf8 -m vllm.entrypoints.cli.main serve m", Engine::Vllm),
        ("python /opt/venv/bin/vllm serve m", Engine::Vllm),
        ("sglang serve --model-path m", Engine::Sglang),
        ("python3 -m sglang.launch_server --model-path m", Engine::Sglang),
        ("vllm bench serve", Engine::Other),
        ("vllm", Engine::Other),
        ("python3 -c pass", Engine::Other),
        ("trtllm-serve m", Engine::Other),
    ];
    for (line, engine) in expected {
        assert_eq!(launch(line).engine(), engine, "{line}");
    }
    assert!(matches!(Launch::parse(&[]), Err(LaunchError::Empty)));
}

#[test]
fn what_a_command_serves_and_where_is_read() {
    let launch = launch(
        "vllm serve org/m --revision=abc -tp 4 --pipeline_parallel_size 2 -dp=3 --host 0.0.0.0 --port 8001 \
         --uds /run/v.sock --headless --ssl-certfile c.pem",
    );
    assert_eq!((launch.model(), launch.revision()), (Some("org/m"), Some("abc")));
    assert_eq!(
        (launch.host(), launch.port(), launch.uds()),
        (Some("0.0.0.0"), Some(8001), Some(Path::new("/run/v.sock")))
    );
    assert_eq!((launch.tensor_parallel(), launch.pipeline_parallel(), launch.data_parallel()), (4, 2, 3));
    assert!(launch.is_headless() && launch.has_tls());
}

#[test]
fn a_command_with_little_in_it_has_defaults() {
    let launch = launch("sglang serve --model-path m --tp 2");
    assert_eq!(
        (launch.model(), launch.port(), launch.tensor_parallel(), launch.data_parallel()),
        (Some("m"), None, 2, 1)
    );
    assert!(!launch.is_headless() && !launch.has_tls());
}

#[test]
fn the_model_is_found_behind_options_of_every_kind() {
    for line in [
        "vllm serve --enable-lora m",
        "vllm serve --no-enable-prefix-caching m --port 1",
        "vllm serve --dtype auto m",
        "vllm serve --dtype=auto m",
        "vllm serve --disable-access-log-for-endpoints /health m",
        "vllm serve -O3 m",
        "vllm serve -qfp8 m",
        "vllm serve -ep -cc.mode 3 m",
        "vllm serve --served-model-name a b --model m",
        "vllm serve --port 1 -- m",
    ] {
        assert_eq!(launch(line).model(), Some("m"), "{line}");
    }
    assert_eq!(launch("vllm serve --served-model-name a b m").model(), None);
}

#[test]
fn a_command_is_rewritten_whatever_the_form_of_its_options() {
    let rewritten = |line: &str| Launch::rewrite(&words(line), &["host", "port"], &words("--uds s")).join(" ");
    let expected = [
        ("vllm serve m --host h --port 1", "vllm serve m --uds s"),
        ("vllm serve --port=1 --host h m", "vllm serve m --uds s"),
        ("vllm serve --port 1 --port 2 m -tp 2", "vllm serve m -tp 2 --uds s"),
        ("vllm serve --port 1 --served-model-name a b -- m", "vllm serve --served-model-name a b --uds s -- m"),
        ("vllm serve -- m --host", "vllm serve --uds s -- m --host"),
        ("vllm serve m --grpc-port 1 --root-path --host x", "vllm serve m --grpc-port 1 --root-path --uds s"),
        (
            "python3 -m vllm.entrypoints.openai.api_server --host h",
            "python3 -m vllm.entrypoints.openai.api_server --uds s",
        ),
        ("trtllm-serve m --host h", "trtllm-serve m --host h"),
        ("", ""),
    ];
    for (line, expected) in expected {
        assert_eq!(rewritten(line), expected, "{line}");
    }
    assert_eq!(launch("vllm serve m --served-model-name a b").values("served-model-name"), words("a b"));
}

#[test]
fn what_changes_no_key_changes_no_digest() {
    let plain = digest("vllm serve m --max-num-seqs 8 -tp 2");
    for line in [
        "/other/bin/vllm serve m -tp 2 --max-num-seqs 8",
        "vllm serve m --tensor_parallel_size=2 --max_num_seqs=8",
        "vllm serve --max-num-seqs 16 --max-num-seqs 8 -tp=2 m",
        "python3 -m vllm.entrypoints.openai.api_server --model m -tp 2 --max-num-seqs 8",
        "vllm serve m --max-num-seqs 8 -tp 2 --served-model-name a b --seed 1 --gpu-memory-utilization 0.5 --port 1 \
         --host h --uds u --api-key k --load-format dummy --tokenizer t --uvicorn-log-level info --ssl-keyfile k \
         --no-enable-prefix-caching -asc 2 --node-rank 1 --master-addr a --headless --disable-log-stats",
    ] {
        assert_eq!(digest(line), plain, "{line}");
    }
    let json = |config: &str| {
        let words = [words("vllm serve m --additional-config"), vec![config.to_owned()]].concat();
        Launch::parse(&words).unwrap().digest(None, None, &Environment::default())
    };
    assert_eq!(json(r#"{"a": 1, "b": [2]}"#), json(r#"{"b":[2],"a":1}"#));
    assert_ne!(json(r#"{"a": 1}"#), json(r#"{"a": 2}"#));
    assert_eq!(digest("vllm serve m -O3"), digest("vllm serve m --optimization-level 3"));
}

#[test]
fn what_changes_a_key_changes_the_digest() {
    let lines = [
        "vllm serve m",
        "vllm serve m/",
        "vllm serve m --revision a",
        "vllm serve m --max-model-len 10",
        "vllm serve m --max-model-len 11",
        "vllm serve m --dtype 10",
        "vllm serve m --enforce-eager",
        "vllm serve m -O1",
        "vllm serve m -tp 2",
        "vllm serve m -dp 2",
        "vllm serve m --enable-lora",
        "vllm serve m --compilation-config.mode 3",
        "vllm serve m --compilation-config.a+ 1",
        "vllm serve m --compilation-config.a+ 1 --compilation-config.a+ 2",
        "sglang serve --model m",
        "trtllm-serve m",
    ];
    let mut digests: Vec<Digest> = lines.iter().map(|line| digest(line)).collect();
    let launch = launch("vllm serve m");
    digests.push(launch.digest(Some("sha256:1"), None, &Environment::default()));
    digests.push(launch.digest(None, Some("sha256:1"), &Environment::default()));
    digests.push(launch.digest(None, None, &environment(&[("VLLM_USE_DEEP_GEMM", "0")])));
    digests.push(launch.digest(None, None, &environment(&[("VLLM_USE_DEEP_GEMM", "1")])));
    digests.push(launch.digest(None, None, &environment(&[("TRITON_F32_DEFAULT", "1")])));
    let count = digests.len();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), count);
}

#[test]
fn variables_that_are_in_no_key_change_no_digest() {
    let launch = launch("vllm serve m");
    let noise =
        [("VLLM_API_KEY", "s"), ("VLLM_CACHE_ROOT", "/x"), ("HOME", "/h"), ("TRITON_CACHE_DIR", "/t"), ("POD", "p")];
    let plain = launch.digest(None, None, &Environment::default());
    assert_eq!(launch.digest(None, None, &environment(&noise)), plain);
}

#[test]
fn a_configuration_file_counts_before_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    std::fs::write(&path, "model: org/m\nport: 8001\ntensor_parallel_size: 2\nenable-lora: true\n").unwrap();
    let with = |line: &str| launch(&line.replace('@', path.to_str().unwrap()));
    let plain = with("vllm serve --config @ --port 1");
    assert_eq!((plain.model(), plain.port(), plain.tensor_parallel()), (Some("org/m"), Some(1), 2));
    assert_eq!(with("vllm serve other --config @").model(), Some("other"));
    let none = Environment::default();
    let written_out = launch("vllm serve org/m --enable-lora -tp 2");
    assert_eq!(plain.digest(None, None, &none), written_out.digest(None, None, &none));
    let ignored = with("vllm serve m --config=@");
    assert!(ignored.notes()[0].contains("two words") && ignored.tensor_parallel() == 1);
}

#[test]
fn a_configuration_file_that_is_not_understood_is_hashed_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    let mut digests = Vec::new();
    for text in ["{port: 1}\n", "{port: 2}\n"] {
        std::fs::write(&path, text).unwrap();
        let launch = launch(&format!("vllm serve m --config {}", path.display()));
        assert!(launch.notes()[0].contains("c.yaml") && launch.port().is_none());
        digests.push(launch.digest(None, None, &Environment::default()));
    }
    assert_ne!(digests[0], digests[1]);
    let missing = Launch::parse(&words("vllm serve --config /no/c.yaml")).unwrap_err();
    assert!(missing.to_string().contains("/no/c.yaml"), "{missing}");
}

#[test]
fn secrets_are_not_shown() {
    let shown = format!("{:?}", launch("vllm serve m --api-key hunter2 --hf-token hunter3"));
    assert!(shown.contains("api-key") && !shown.contains("hunter"), "{shown}");
}

#[test]
fn secrets_are_in_no_digest() {
    let pairs = [
        ("trtllm-serve m --api-key a --port 1", "trtllm-serve m --api-key b --port 1"),
        ("env API_KEY=a my-server m --hf-token=a", "env API_KEY=b my-server m --hf-token=b"),
        ("vllm serve m --gateway-secret a", "vllm serve m --gateway-secret b"),
    ];
    for (one, other) in pairs {
        assert_eq!(digest(one), digest(other), "{one}");
    }
    assert_ne!(digest("my-server --max-tokens 1"), digest("my-server --max-tokens 2"));
}

#[test]
fn the_canonical_form_names_what_counts_and_no_secret() {
    let launch =
        launch("vllm serve ./m --port 1 --max_num_batched_tokens=2048 --api-key x --enforce-eager --my-token y");
    let variables =
        environment(&[("VLLM_USE_DEEP_GEMM", "1"), ("VLLM_API_KEY", "x"), ("HF_TOKEN", "y"), ("HOME", "/h")]);
    let told: Vec<(String, String)> = launch.canonical(&variables).into_iter().collect();
    let expected = [
        ("--enforce-eager", "given"),
        ("--max-num-batched-tokens", "2048"),
        ("--model", "./m"),
        ("VLLM_USE_DEEP_GEMM", "1"),
    ];
    assert_eq!(told, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn nothing_is_told_of_commands_that_are_not_understood() {
    assert!(launch("./serve --password x").canonical(&environment(&[("VLLM_X", "1")])).is_empty());
}
