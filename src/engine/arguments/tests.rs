use super::*;

const SOCKET: &str = "/run/warmd/engine.sock";

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn with(line: &str, config: &Config, variables: &[(&str, &str)]) -> Result<Arguments, ArgumentsError> {
    let command = words(line);
    let environment: Environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let launch = Launch::parse(&command).unwrap();
    let socket = Path::new(SOCKET);
    Arguments::new(Given { command: &command, launch: &launch, environment: &environment, config, socket })
}

fn plain(line: &str) -> Result<Arguments, ArgumentsError> {
    with(line, &Config::default(), &[])
}

fn adapters() -> Config {
    Config { adapters: Some(Adapters::default()), ..Config::default() }
}

/// What follows the socket in the command.
fn added(line: &str, config: &Config) -> (String, Vec<String>) {
    let made = with(line, config, &[]).unwrap();
    let line = made.command.join(" ");
    let (_, after) = line.split_once(&format!("--uds {SOCKET}")).unwrap();
    (after.trim().to_owned(), made.notes)
}

#[test]
fn the_engine_listens_on_the_socket_and_the_proxy_where_the_engine_would_have() {
    let table = [
        ("vllm serve m --host 0.0.0.0 --port 81", "vllm serve m", Some("0.0.0.0"), Some(81)),
        ("vllm serve --port=81 m -tp 2", "vllm serve m -tp 2", None, Some(81)),
        ("vllm serve m", "vllm serve m", None, None),
        (
            "python3 -m vllm.entrypoints.openai.api_server --model m --host h",
            "python3 -m vllm.entrypoints.openai.api_server --model m",
            Some("h"),
            None,
        ),
    ];
    for (line, rest, host, port) in table {
        let made = plain(line).unwrap();
        assert_eq!(made.command.join(" "), format!("{rest} --uds {SOCKET}"), "{line}");
        assert_eq!(made.listen, Wish { host: host.map(str::to_owned), port }, "{line}");
        assert_eq!((made.address, made.limits), (Address::Uds(SOCKET.into()), None));
        assert!(made.notes.is_empty(), "{line}: {:?}", made.notes);
    }
}

#[test]
fn each_launch_is_told_another_key_by_its_environment_unless_the_user_has_one_in_the_command() {
    let made = plain("vllm serve m").unwrap();
    let launches = [(); 2].map(|()| {
        let key = made.key.for_launch().unwrap().unwrap();
        assert_eq!(made.variables(Some(&key)), [("VLLM_API_KEY".to_owned(), key.reveal().into_owned())]);
        key
    });
    assert_ne!(launches[0], launches[1]);
    assert!(made.set.is_empty());

    let own = plain("vllm serve m --api-key one two").unwrap();
    let key = own.key.for_launch().unwrap();
    assert_eq!((&key, own.variables(key.as_ref())), (&Some(Secret::new("one").unwrap()), vec![]));
    assert!(own.command.join(" ").contains("--api-key one two") && own.notes[0].contains("--api-key"));
    assert!(!own.notes[0].contains("one two"));

    let inherited = with("vllm serve m", &Config::default(), &[("VLLM_API_KEY", "old")]).unwrap();
    assert_eq!((inherited.key, inherited.set.len()), (Key::PerLaunch, 0));
    assert!(inherited.notes[0].contains("VLLM_API_KEY") && !inherited.notes[0].contains("old"));
}

#[test]
fn what_a_proxy_cannot_stand_in_front_of_is_refused_with_the_way_out() {
    let table = [
        ("vllm serve m --uds /s", "leave it out"),
        ("vllm serve m --headless", "warmd exec"),
        ("vllm serve m --grpc", "warmd exec"),
        ("vllm serve m --ssl-certfile c", "without TLS"),
        ("vllm serve m -dpm", "warmd exec"),
        ("trtllm-serve m", "`engine.address`"),
        ("sglang serve --model-path m", "`engine.address`"),
    ];
    for (line, way_out) in table {
        let error = plain(line).unwrap_err().to_string();
        assert!(error.contains(way_out), "{line}: {error}");
    }
    let command = words("vllm serve m");
    let launch = Launch::parse(&command).unwrap();
    let (environment, config) = (Environment::default(), Config::default());
    for socket in ["engine.sock", &format!("/{}", "x".repeat(MAX_SOCKET))] {
        let socket = Path::new(socket);
        let given = Given { command: &command, launch: &launch, environment: &environment, config: &config, socket };
        assert!(matches!(Arguments::new(given), Err(ArgumentsError::Socket(_))), "{socket:?}");
    }
}

#[test]
fn adapters_are_turned_on_with_what_the_command_lacks() {
    let all = "--enable-lora --max-loras 4 --max-cpu-loras 32 --max-lora-rank 64 --api-server-count 1";
    assert_eq!(added("vllm serve m", &adapters()), (all.to_owned(), vec![]));
    assert_eq!(added("vllm serve m", &Config::default()), (String::new(), vec![]));
    let made = with("vllm serve m", &adapters(), &[]).unwrap();
    assert_eq!(made.limits, Some(Limits { max_loras: 4, max_cpu_loras: 32, max_lora_rank: 64 }));
    assert_eq!(made.set[0], ("VLLM_ALLOW_RUNTIME_LORA_UPDATING".to_owned(), "1".to_owned()));

    let own = "vllm serve m --enable-lora --max_loras=2 --max-cpu-loras 9 --max-lora-rank 16 -asc 1";
    let (after, notes) = added(own, &adapters());
    assert!(after.is_empty() && notes.len() == 3, "{notes:?}");
    let limits = with(own, &adapters(), &[]).unwrap().limits;
    assert_eq!(limits, Some(Limits { max_loras: 2, max_cpu_loras: 9, max_lora_rank: 16 }));
}

#[test]
fn numbers_of_adapters_always_fit_together() {
    let of = |line: &str, wanted: (u32, u32, u32)| {
        let (max_loras, max_cpu_loras, max_lora_rank) = wanted;
        let wanted = Some(Adapters { max_loras, max_cpu_loras, max_lora_rank });
        let made = with(line, &Config { adapters: wanted, ..Config::default() }, &[])?;
        let limits = made.limits.unwrap();
        Ok::<_, ArgumentsError>(((limits.max_loras, limits.max_cpu_loras, limits.max_lora_rank), made.notes.len()))
    };
    let table = [
        ("vllm serve m", (8, 4, 64), ((8, 8, 64), 1)),
        ("vllm serve m", (0, 0, 0), ((1, 1, 1), 2)),
        ("vllm serve m", (1, 1, 24), ((1, 1, 32), 1)),
        ("vllm serve m", (1, 1, 321), ((1, 1, 512), 1)),
        ("vllm serve m --max-loras 40", (4, 32, 8), ((40, 40, 8), 2)),
        ("vllm serve m --max-cpu-loras 2", (4, 32, 8), ((2, 2, 8), 2)),
        ("vllm serve m --max-lora-rank 24", (4, 32, 8), ((4, 32, 24), 2)),
    ];
    for (line, wanted, expected) in table {
        assert_eq!(of(line, wanted).unwrap(), expected, "{line} {wanted:?}");
    }
    assert!(matches!(of("vllm serve m", (1, 1, 513)), Err(ArgumentsError::Rank(513))));
    let both = of("vllm serve m --max-loras 4 --max-cpu-loras 3", (1, 1, 8));
    assert!(matches!(both, Err(ArgumentsError::Slots { gpu: 4, cpu: 3 })));
    for value in ["0", "many", "-1"] {
        let refused = of(&format!("vllm serve m --max-loras {value}"), (1, 1, 8));
        assert!(matches!(refused, Err(ArgumentsError::Number { option: "max-loras", .. })), "{value}");
    }
}

#[test]
fn adapters_and_what_excludes_them_are_told() {
    let off = with("vllm serve m --no-enable-lora", &adapters(), &[]).unwrap();
    assert_eq!((off.limits, off.notes.len(), off.set.len()), (None, 1, 0));
    let several = with("vllm serve m --api-server-count 4", &adapters(), &[]);
    assert!(matches!(several, Err(ArgumentsError::ApiServers(_))));
    assert!(plain("vllm serve m --api-server-count 4").is_ok());
    let told = with("vllm serve m", &adapters(), &[("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0")]).unwrap();
    assert!(told.notes[0].contains("not 0"));
    let quiet = with("vllm serve m", &adapters(), &[("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")]).unwrap();
    assert!(quiet.notes.is_empty());
}

#[test]
fn an_allow_list_of_plugins_gets_longer_and_never_comes_into_being() {
    let config = Config { plugins: words("b c"), ..Config::default() };
    let plugins = |value: Option<&str>| {
        let variables: Vec<_> = value.map(|value| ("VLLM_PLUGINS", value)).into_iter().collect();
        let made = with("vllm serve m", &config, &variables).unwrap();
        made.set.into_iter().find(|(name, _)| name == "VLLM_PLUGINS").map(|(_, value)| value)
    };
    assert_eq!(plugins(None), None);
    assert_eq!(plugins(Some("a,b")).as_deref(), Some("a,b,c"));
    assert_eq!(plugins(Some("c,b")), None);
    assert_eq!(plugins(Some("")).as_deref(), Some("b,c"));
}

#[test]
fn only_the_engine_sees_the_changed_variables() {
    let config = Config { devices: Some("2,3".to_owned()), ..Config::default() };
    let variables = [("VLLM_PORT", "tcp://10.0.0.1:80"), ("CUDA_VISIBLE_DEVICES", "0"), ("HOME", "/h")];
    let made = with("vllm serve m", &config, &variables).unwrap();
    let inherited: Environment =
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    let seen = made.environment(&inherited);
    assert_eq!((seen.get("VLLM_PORT"), seen.get("CUDA_VISIBLE_DEVICES")), (None, Some("2,3")));
    assert_eq!(seen.get("HOME"), Some("/h"));
    let command = made.command();
    assert_eq!((command.program, command.unset), ("vllm".into(), vec!["VLLM_PORT".to_owned()]));
    assert_eq!(command.args.len(), 4);
    let number = with("vllm serve m", &Config::default(), &[("VLLM_PORT", "29500")]).unwrap();
    assert!(number.unset.is_empty() && number.notes.is_empty());
}

#[test]
fn what_the_engine_serves_is_known_from_the_command() {
    let model = |line: &str| plain(line).unwrap().model.unwrap();
    assert_eq!(model("vllm serve org/m"), Model { path: "org/m".to_owned(), names: words("org/m") });
    let named = model("vllm serve /models/m --served-model-name a b");
    assert_eq!(named, Model { path: "/models/m".to_owned(), names: words("a b") });
    assert_eq!(plain("vllm serve").unwrap().model, None);
}

#[test]
fn another_engine_runs_as_it_is_where_the_configuration_says() {
    let address: SocketAddr = "127.0.0.1:9000".parse().unwrap();
    let config = Config { address: Some(address), devices: Some("1".to_owned()), ..adapters() };
    let made = with("trtllm-serve m --port 9000", &config, &[("VLLM_PORT", "tcp://x")]).unwrap();
    assert_eq!(made.command, words("trtllm-serve m --port 9000"));
    assert_eq!((made.address, made.key, made.limits, made.model), (Address::Tcp(address), Key::None, None, None));
    assert_eq!(made.set, [("CUDA_VISIBLE_DEVICES".to_owned(), "1".to_owned())]);
    assert!(made.unset.is_empty() && made.notes[0].contains("adapters are off"));
}

#[test]
fn the_configuration_is_read_from_toml_and_unknown_keys_are_refused() {
    let text = "devices = \"0\"\naddress = \"[::1]:8000\"\n[adapters]\nmax_loras = 2\n";
    let config: Config = toml::from_str(text).unwrap();
    assert_eq!(config.adapters, Some(Adapters { max_loras: 2, ..Adapters::default() }));
    assert!(toml::from_str::<Config>("[adapters]\nmax_lora = 2").is_err());
}
