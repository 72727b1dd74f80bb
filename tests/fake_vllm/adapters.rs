//! What the front end knows by name, and what the worker holds.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use serde_json::Value;

use super::options::Release;

/// Prompts whose KV cache is remembered.
const MAX_PROMPTS: usize = 1024;

/// What a request for an adapter takes with it, whatever becomes of the name.
#[derive(Clone)]
pub struct Adapter {
    pub name: String,
    pub path: String,
    id: u64,
    /// Read again in every step.
    sticky: bool,
}

/// Why an adapter is not read.
pub enum Failure {
    Missing,
    /// The worker's text.
    Worker(String),
}

pub struct Adapters {
    names: Vec<Adapter>,
    last_id: u64,
    /// Least recently used first: id and digest.
    held: VecDeque<(u64, String)>,
    capacity: usize,
    max_rank: u64,
    release: Release,
    /// The weights that a prompt's KV was computed with.
    prompts: HashMap<String, String>,
}

impl Adapters {
    pub fn new(capacity: usize, max_rank: u64, release: Release) -> Self {
        let (names, held, prompts) = (Vec::new(), VecDeque::new(), HashMap::new());
        Self { names, last_id: 0, held, capacity, max_rank, release, prompts }
    }

    pub fn find(&self, name: &str) -> Option<Adapter> {
        self.names.iter().find(|adapter| adapter.name == name).cloned()
    }

    pub fn list(&self) -> &[Adapter] {
        &self.names
    }

    /// An id of its own for each load of a new name: the copy of the one before stays until others need the room.
    pub fn load(&mut self, name: &str, path: &str, in_place: bool) -> Result<(), Failure> {
        let known = self.find(name);
        let id = known.map_or(self.last_id + 1, |adapter| adapter.id);
        let digest = read(Path::new(path), self.max_rank)?;
        self.last_id = self.last_id.max(id);
        self.hold(id, digest);
        self.names.retain(|adapter| adapter.name != name);
        let sticky = in_place && self.release < (0, 33, 0);
        self.names.push(Adapter { name: name.to_owned(), path: path.to_owned(), id, sticky });
        Ok(())
    }

    /// Only the name: what is held stays held.
    pub fn unload(&mut self, name: &str) -> bool {
        let before = self.names.len();
        self.names.retain(|adapter| adapter.name != name);
        self.names.len() < before
    }

    /// The digest that a step of the model is made with. A failure is the engine's death.
    pub fn step(&mut self, adapter: &Adapter) -> Result<String, Failure> {
        let held = self.held.iter().find(|(id, _)| *id == adapter.id).map(|(_, digest)| digest.clone());
        let digest = match held.filter(|_| !adapter.sticky) {
            Some(digest) => digest,
            None => read(Path::new(&adapter.path), self.max_rank)?,
        };
        self.hold(adapter.id, digest.clone());
        Ok(digest)
    }

    /// The digest that the prompt's KV was computed with, now or before.
    pub fn prefill(&mut self, adapter: Option<&Adapter>, salt: &str, prompt: &str, digest: &str) -> String {
        let path = adapter.filter(|_| self.release >= (0, 32, 0)).map_or("", |adapter| adapter.path.as_str());
        let name = adapter.map_or("", |adapter| adapter.name.as_str());
        if self.prompts.len() >= MAX_PROMPTS {
            self.prompts.clear();
        }
        let key = [name, path, salt, prompt].join("\0");
        self.prompts.entry(key).or_insert_with(|| digest.to_owned()).clone()
    }

    fn hold(&mut self, id: u64, digest: String) {
        self.held.retain(|(held, _)| *held != id);
        if self.held.len() >= self.capacity {
            self.held.pop_front();
        }
        self.held.push_back((id, digest));
    }
}

fn read(path: &Path, max_rank: u64) -> Result<String, Failure> {
    let config = std::fs::read(path.join("adapter_config.json")).map_err(|_| Failure::Missing)?;
    let worker = |text: String| Failure::Worker(text);
    let config: Value = serde_json::from_slice(&config).map_err(|error| worker(error.to_string()))?;
    let rank = config["r"].as_u64().unwrap_or(8);
    if rank > max_rank {
        return Err(worker(format!("LoRA rank {rank} is greater than max_lora_rank {max_rank}.")));
    }
    if config["use_dora"] == true {
        return Err(worker("vLLM does not yet support DoRA.".to_owned()));
    }
    let weights = std::fs::read(path.join("adapter_model.safetensors"));
    let weights = weights.map_err(|_| worker(format!("{} doesn't contain tensors", path.display())))?;
    Ok(blake3::hash(&weights).to_hex()[..16].to_owned())
}
