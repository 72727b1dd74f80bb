//! What can be said of `deploy/kustomize` without rendering it: containers, their commands, ports, and configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::Value;
use warmd::cli::Cli;
use warmd::config::{self, AgentFile, MetadataConfig};
use warmd::serve::serving::ServeConfig;

use super::{deploy, files, yaml};

/// A container that has an image, and the pod that it is in.
struct Container {
    file: PathBuf,
    pod: Value,
    spec: Value,
}

impl Container {
    fn name(&self) -> String {
        format!("{}: {}", self.file.display(), self.spec["name"])
    }

    /// What of warmd it runs, word by word.
    fn warmd(&self) -> Option<Vec<String>> {
        let (command, args) = (words(&self.spec["command"]), words(&self.spec["args"]));
        let is_warmd = |words: &Vec<String>| words.first().is_some_and(|word| word.ends_with("/warmd"));
        match self.spec["image"].as_str() {
            Some(image) if image.starts_with("warmd:") && command.is_empty() => {
                Some([vec!["warmd".to_owned()], args].concat())
            }
            _ => Some(command).filter(is_warmd),
        }
    }

    fn ports(&self) -> BTreeMap<String, u64> {
        let ports = self.spec["ports"].as_array().into_iter().flatten();
        ports.map(|port| (port["name"].as_str().unwrap().to_owned(), port["containerPort"].as_u64().unwrap())).collect()
    }

    fn grace(&self) -> u64 {
        self.pod["terminationGracePeriodSeconds"].as_u64().unwrap()
    }
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// The pods of all manifests and patches, by file.
fn pods() -> Vec<(PathBuf, Value)> {
    let manifests = files("kustomize", "yaml");
    let documents = manifests.into_iter().flat_map(|file| {
        let documents = yaml::documents(&std::fs::read_to_string(&file).unwrap());
        documents.into_iter().map(move |document| (file.clone(), document))
    });
    let pod = |(file, document): (PathBuf, Value)| Some((file, document.pointer("/spec/template/spec")?.clone()));
    documents.filter_map(pod).collect()
}

fn containers() -> Vec<Container> {
    let containers = pods().into_iter().flat_map(|(file, pod)| {
        let inner = |list: &str| pod[list].as_array().cloned().unwrap_or_default();
        let all = [inner("initContainers"), inner("containers")].concat();
        all.into_iter().map(move |spec| Container { file: file.clone(), pod: pod.clone(), spec })
    });
    containers.collect()
}

fn with_image() -> Vec<Container> {
    let containers: Vec<Container> = containers().into_iter().filter(|c| c.spec["image"].is_string()).collect();
    assert!(containers.len() >= 9, "only {} containers were found", containers.len());
    containers
}

#[test]
fn containers_run_commands_that_there_are() {
    let mut subcommands = BTreeSet::new();
    for container in containers() {
        let hook = words(&container.spec["lifecycle"]["postStart"]["exec"]["command"]);
        for command in [container.warmd().unwrap_or_default(), hook].into_iter().filter(|words| !words.is_empty()) {
            if let Err(error) = Cli::try_parse_from(&command) {
                panic!("{}: {command:?}: {error}", container.name());
            }
            subcommands.insert(command[1].clone());
        }
    }
    let expected = ["agent", "copy", "exec", "keys", "metadata", "publish", "serve", "warm"];
    assert_eq!(subcommands, expected.map(str::to_owned).into());
}

#[test]
fn images_have_a_tag_and_warmds_is_of_this_version() {
    for container in with_image() {
        let image = container.spec["image"].as_str().unwrap();
        let tag = image.split_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest"), "{}: {image}", container.name());
        if image.starts_with("warmd:") {
            assert_eq!(tag, Some(env!("CARGO_PKG_VERSION")), "{}", container.name());
        }
    }
}

/// The restricted pod security standard (kubernetes.io, "Pod Security Standards"), and a file system that is read only.
#[test]
fn containers_are_restricted() {
    for container in with_image() {
        let (security, name) = (&container.spec["securityContext"], container.name());
        assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(words(&security["capabilities"]["drop"]), ["ALL"], "{name}");
        assert!(container.spec["resources"]["limits"]["memory"].is_string(), "{name}");
        // Gives directories of the node to the agent's user, and can do nothing else.
        let gives_away = container.spec["name"] == "directories";
        assert_eq!(security["runAsNonRoot"], !gives_away, "{name}");
        assert_eq!(words(&security["capabilities"]["add"]), if gives_away { &["CHOWN"][..] } else { &[] }, "{name}");
    }
    for (file, pod) in pods().iter().filter(|(_, pod)| pod["securityContext"].is_object()) {
        assert_eq!(pod["automountServiceAccountToken"], false, "{}", file.display());
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{}", file.display());
    }
}

/// What the environment of a container would be in a pod.
fn environment(spec: &Value) -> Vec<(String, String)> {
    let variables = spec["env"].as_array().into_iter().flatten();
    let variable = |variable: &Value| {
        let value = variable["value"].as_str().unwrap_or("eu-1a");
        (variable["name"].as_str().unwrap().to_owned(), value.replace("$(POD_IP)", "10.0.0.7"))
    };
    variables.map(variable).filter(|(name, _)| name.starts_with("WARMD_")).collect()
}

#[test]
fn ports_and_times_of_pods_are_those_of_their_configuration() {
    let mut checked = BTreeSet::new();
    for container in with_image() {
        let Some(command) = container.warmd() else { continue };
        let Some(at) = command.iter().position(|word| word == "--config") else { continue };
        let file = container.file.with_file_name(Path::new(&command[at + 1]).file_name().unwrap());
        let environment = environment(&container.spec);
        let (ports, drain) = match command[1].as_str() {
            "metadata" => {
                let config: MetadataConfig = config::load(Some(&file), environment).unwrap();
                let metrics = config.metrics.listen.unwrap();
                let ports = [("metadata", config.server.listen), ("metrics", metrics)];
                (ports.map(|(name, addr)| (name, addr.port())).to_vec(), config.drain_deadline)
            }
            "agent" => of_agent(&config::load(Some(&file), environment).unwrap()),
            other => panic!("{other}"),
        };
        let ports: BTreeMap<String, u64> =
            ports.into_iter().map(|(name, port)| (name.to_owned(), port.into())).collect();
        assert_eq!(container.ports(), ports, "{}", container.name());
        assert!(container.grace() > drain.as_secs(), "{}", container.name());
        checked.insert(file.file_name().unwrap().to_owned());
    }
    assert_eq!(checked.len(), 3, "{checked:?}");
}

fn of_agent(file: &AgentFile) -> (Vec<(&'static str, u16)>, std::time::Duration) {
    let AgentFile { agent, served } = file;
    let peers = agent.transport.listen.port();
    let discovery = agent.discovery.listen.unwrap().port();
    assert_eq!(discovery, peers + 2, "other agents would look for it there");
    let metrics = agent.metrics.listen.unwrap().port();
    let mut ports = vec![("peers", peers), ("peers-tcp", peers), ("discovery", discovery), ("metrics", metrics)];
    let Some(served) = served else { return (ports, agent.drain_deadline) };
    ports.extend([("http", 8000), ("metrics-serve", served.serve.metrics.listen.unwrap().port())]);
    (ports, agent.drain_deadline + served.serve.drain_deadline)
}

#[test]
fn the_pod_behind_a_proxy_has_its_port_and_its_time() {
    let file = deploy().join("kustomize/overlays/serve/serve.toml");
    let config: ServeConfig = config::load(Some(&file), config::settings([], [], &[])).unwrap();
    let patch = deploy().join("kustomize/overlays/serve/serve.yaml");
    let container = containers().into_iter().find(|container| container.file == patch).unwrap();
    assert_eq!(container.ports()["metrics-serve"], u64::from(config.metrics.listen.unwrap().port()));
    assert!(container.grace() > config.drain_deadline.as_secs());
}

fn patch(file: &str) -> Container {
    let patch = deploy().join("kustomize").join(file);
    containers().into_iter().find(|container| container.file == patch).unwrap()
}

#[test]
fn what_overlays_add_to_the_environment_is_configuration() {
    let patched = |overlay: &str, file: &str| environment(&patch(&format!("overlays/{overlay}/{file}")).spec);
    let base = deploy().join("kustomize/base");
    let agent: AgentFile =
        config::load(Some(&base.join("agent/agent.toml")), patched("serverless", "serverless.yaml")).unwrap();
    assert!(agent.agent.metadata.servers.is_empty() && !agent.agent.discovery.bootstrap.is_empty());
    let redis = patched("redis", "metadata.yaml");
    let metadata: MetadataConfig = config::load(Some(&base.join("metadata/metadata.toml")), redis).unwrap();
    assert!(metadata.redis.url.is_some() && metadata.redis.password_file.is_some());
}

#[test]
fn the_page_in_a_pod_has_its_port_and_its_token() {
    let patch = patch("components/page/metadata.yaml");
    let file = deploy().join("kustomize/base/metadata/metadata.toml");
    let config: MetadataConfig = config::load(Some(&file), environment(&patch.spec)).unwrap();
    assert_eq!(patch.ports(), [("page".to_owned(), config.web.listen.unwrap().port().into())].into());
    let mount = patch.spec["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let (secret, key) = (&patch.pod["volumes"][0]["secret"], config.web.token_file.unwrap());
    assert_eq!(key, Path::new(mount).join(secret["items"][0]["path"].as_str().unwrap()));
    let readme = std::fs::read_to_string(deploy().join("README.md")).unwrap();
    let made = format!("create secret generic {} --from-literal=token=", secret["secretName"].as_str().unwrap());
    assert!(readme.contains(&made), "the runbook says how to make it: {made}");
}
