//! Variables that the engine is to see otherwise than warmd.

use super::Config;
use crate::caches::Environment;

const PLUGINS: &str = "VLLM_PLUGINS";
const PORT: &str = "VLLM_PORT";
const UPDATING: &str = "VLLM_ALLOW_RUNTIME_LORA_UPDATING";
const DEVICES: &str = "CUDA_VISIBLE_DEVICES";

#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) set: Vec<(String, String)>,
    pub(super) unset: Vec<String>,
}

impl Changes {
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.set.push((name.to_owned(), value.to_owned()));
    }
}

pub(super) fn of_vllm(environment: &Environment, config: &Config, adapters: bool, notes: &mut Vec<String>) -> Changes {
    let mut changes = of_other(config);
    if adapters {
        let off =
            environment.get(UPDATING).filter(|value| !["1", "true"].contains(&value.trim().to_lowercase().as_str()));
        if let Some(value) = off {
            notes.push(format!("{UPDATING} is 1, not {value}: adapters are on"));
        }
        changes.set(UPDATING, "1");
    }
    if let Some(plugins) = plugins(environment, &config.plugins) {
        notes.push(format!("{PLUGINS} is {plugins}: the plugins of the configuration are added"));
        changes.set(PLUGINS, &plugins);
    }
    // Kubernetes links a service of that name so, and vLLM expects a number.
    if environment.get(PORT).is_some_and(|port| port.contains("://")) {
        notes.push(format!("{PORT} is unset for the engine: it is the address of a service"));
        changes.unset.push(PORT.to_owned());
    }
    changes
}

pub(super) fn of_other(config: &Config) -> Changes {
    let mut changes = Changes::default();
    if let Some(devices) = &config.devices {
        changes.set(DEVICES, devices);
    }
    changes
}

/// The user's allow-list with those that it lacks; `None` if it is to stay as it is. An empty one allows nothing.
fn plugins(environment: &Environment, needed: &[String]) -> Option<String> {
    let (_, list) = environment.iter().find(|(name, _)| *name == PLUGINS)?;
    let mut names: Vec<&str> = list.split(',').filter(|name| !name.is_empty()).collect();
    let before = names.len();
    for plugin in needed {
        if !names.contains(&plugin.as_str()) {
            names.push(plugin);
        }
    }
    (names.len() > before).then(|| names.join(","))
}
