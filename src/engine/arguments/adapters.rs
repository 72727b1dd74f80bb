//! Options that have vLLM serve adapters.

use serde::{Deserialize, Serialize};

use super::ArgumentsError;
use crate::caches::Launch;

/// What `--max-lora-rank` can be (vLLM 0.16 to 0.33).
const RANKS: [u32; 9] = [1, 8, 16, 32, 64, 128, 256, 320, MAX_RANK];

pub(super) const MAX_RANK: u32 = 512;

/// What the engine is to hold of adapters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adapters {
    /// Different ones in one batch; each costs GPU memory, used or not. 4.
    pub max_loras: u32,
    /// In host memory; raised to `max_loras`. 32.
    pub max_cpu_loras: u32,
    /// Raised to one that vLLM takes; each adapter costs the memory of the largest. 64.
    pub max_lora_rank: u32,
}

impl Default for Adapters {
    fn default() -> Self {
        Self { max_loras: 4, max_cpu_loras: 32, max_lora_rank: 64 }
    }
}

/// What the engine will hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Different adapters in one batch.
    pub max_loras: u32,
    /// Adapters in host memory; the least recently used one gives way.
    pub max_cpu_loras: u32,
    pub max_lora_rank: u32,
}

/// Adds the options that the command lacks. `None` if there will be no adapters.
pub(super) fn add(
    launch: &Launch,
    wanted: Option<&Adapters>,
    words: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<Option<Limits>, ArgumentsError> {
    let Some(wanted) = wanted else { return Ok(None) };
    if launch.has("no-enable-lora") && !launch.has("enable-lora") {
        notes.push("adapters are off: the command says --no-enable-lora".to_owned());
        return Ok(None);
    }
    let limits = Limits::of(launch, wanted, notes)?;
    if !launch.has("enable-lora") {
        words.push("--enable-lora".to_owned());
    }
    let Limits { max_loras, max_cpu_loras, max_lora_rank } = limits;
    let numbers = [(GPU, max_loras), (CPU, max_cpu_loras), (RANK, max_lora_rank)];
    for (option, number) in numbers.into_iter().filter(|(option, _)| !launch.has(option)) {
        words.extend([format!("--{option}"), number.to_string()]);
    }
    match launch.option("api-server-count") {
        None => words.extend(["--api-server-count".to_owned(), "1".to_owned()]),
        Some("1") => {}
        Some(other) => return Err(ArgumentsError::ApiServers(other.to_owned())),
    }
    Ok(Some(limits))
}

const GPU: &str = "max-loras";
const CPU: &str = "max-cpu-loras";
const RANK: &str = "max-lora-rank";

impl Limits {
    fn of(launch: &Launch, wanted: &Adapters, notes: &mut Vec<String>) -> Result<Self, ArgumentsError> {
        let given = |option| number(launch, option);
        let (gpu, cpu, rank) = (given(GPU)?, given(CPU)?, given(RANK)?);
        for (option, given, wanted) in
            [(GPU, gpu, wanted.max_loras), (CPU, cpu, wanted.max_cpu_loras), (RANK, rank, wanted.max_lora_rank)]
        {
            if let Some(given) = given.filter(|given| *given != wanted) {
                notes.push(format!("--{option} {given} of the command counts, not {wanted} of the configuration"));
            }
        }
        let (max_loras, max_cpu_loras) = slots((gpu, cpu), wanted, notes)?;
        let max_lora_rank = match rank {
            Some(rank) => rank,
            None => rounded(wanted.max_lora_rank, notes)?,
        };
        if rank.is_some() && !RANKS.contains(&max_lora_rank) {
            notes.push(format!("--{RANK} {max_lora_rank}: vLLM up to 0.33 takes one of {RANKS:?} only"));
        }
        Ok(Self { max_loras, max_cpu_loras, max_lora_rank })
    }
}

/// In GPU and in host memory: vLLM needs at least as many in the second.
fn slots(
    given: (Option<u32>, Option<u32>),
    wanted: &Adapters,
    notes: &mut Vec<String>,
) -> Result<(u32, u32), ArgumentsError> {
    let wanted_gpu = wanted.max_loras.max(1);
    match given {
        (Some(gpu), Some(cpu)) if cpu < gpu => Err(ArgumentsError::Slots { gpu, cpu }),
        (Some(gpu), Some(cpu)) => Ok((gpu, cpu)),
        (None, Some(cpu)) => {
            if cpu < wanted_gpu {
                notes.push(format!(
                    "--{GPU} is {cpu}, not {wanted_gpu}: there is room for no more of them with --{CPU}"
                ));
            }
            Ok((wanted_gpu.min(cpu), cpu))
        }
        (gpu, None) => {
            let gpu = gpu.unwrap_or(wanted_gpu);
            if wanted.max_cpu_loras < gpu {
                notes.push(format!("--{CPU} is {gpu}, not {}: it is never below --{GPU}", wanted.max_cpu_loras));
            }
            Ok((gpu, wanted.max_cpu_loras.max(gpu)))
        }
    }
}

fn rounded(rank: u32, notes: &mut Vec<String>) -> Result<u32, ArgumentsError> {
    let up = RANKS.into_iter().find(|allowed| *allowed >= rank).ok_or(ArgumentsError::Rank(rank))?;
    if up != rank {
        notes.push(format!("--{RANK} is {up}, not {rank}: vLLM takes certain ranks only"));
    }
    Ok(up)
}

fn number(launch: &Launch, option: &'static str) -> Result<Option<u32>, ArgumentsError> {
    let Some(value) = launch.option(option) else { return Ok(None) };
    let number = value.parse().ok().filter(|number| *number > 0);
    number.map(Some).ok_or_else(|| ArgumentsError::Number { option, value: value.to_owned() })
}
