//! The first answer of an adapter that only a peer has, and where its time goes.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::Options;
use crate::corpus::random::Random;
use crate::harness::{Report, Row, Sample, free_port, fresh};
use crate::http;
use crate::proxy::engine_process;
use crate::warmd::{Cluster, scrape};

/// Of a model of 8 billion parameters: inputs and outputs of what is trained in each layer.
const MODULES: [(&str, u64, u64); 4] =
    [("q_proj", 4096, 4096), ("k_proj", 4096, 1024), ("v_proj", 4096, 1024), ("o_proj", 4096, 4096)];
const LAYERS: u64 = 32;
/// With these modules and layers, 41 MB.
const RANK: u64 = 24;

/// What is shown of a load, and the stages of /metrics that it consists of.
const STAGES: [(&str, &[&str]); 5] = [
    ("look-up", &["look", "open"]),
    ("fetch", &["fetch"]),
    ("check", &["check"]),
    ("prepare", &["prepare"]),
    ("register", &["register"]),
];
const REST: &str = "answer, and what lies between";
const ALL: &str = "request to answer";

const READY: Duration = Duration::from_secs(30);

pub(crate) fn run(report: &mut Report, options: &Options) -> Result<String> {
    let dir = options.dir.join("adapter");
    fresh(&dir)?;
    let (upstream, listen): (SocketAddr, SocketAddr) = (free_port()?.parse()?, free_port()?.parse()?);
    let metrics = free_port()?;
    let _engine = engine_process(upstream, &dir)?;
    let mut cluster = Cluster::start(&dir.join("cluster"))?;
    cluster.start_agent("trainer")?;
    cluster.start_agent("pod")?;
    let _serving = cluster.serve_adapters("pod", &dir, &format!("http://{upstream}"), listen, &metrics)?;
    ready(listen)?;
    let layers = if options.quick { LAYERS / 10 } else { LAYERS };
    let mut rows: Vec<Row> = STAGES
        .iter()
        .map(|(name, _)| *name)
        .chain([REST, ALL])
        .map(|name| Row { name: name.to_owned(), samples: Vec::new() })
        .collect();
    for number in 0..options.runs {
        let alias = format!("sql-{number}");
        let (directory, bytes) = adapter(&dir, number as u64, layers)?;
        cluster.publish_adapter("trainer", &directory, &alias)?;
        Cluster::settle();
        let seconds = first_answer(listen, &metrics, &alias)?;
        for (row, seconds) in rows.iter_mut().zip(seconds) {
            row.samples.push(Sample { seconds, bytes, ..Sample::default() });
        }
        fs::remove_dir_all(&directory)?;
    }
    Ok(report.add("First answer of an adapter that only a peer has, engine at zero latency", rows))
}

/// Waits until it is known that there is no such adapter: an engine is there, and adapters can be looked up.
fn ready(listen: SocketAddr) -> Result<()> {
    let begun = Instant::now();
    while complete(listen, "nobodys")? != 404 {
        ensure!(begun.elapsed() < READY, "adapters are not served");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn complete(listen: SocketAddr, model: &str) -> Result<u16> {
    let body = json!({ "model": model, "prompt": "p", "max_tokens": 16, "wait_for_model": true }).to_string();
    Ok(http::ask(&listen.to_string(), "POST", "/v1/completions", &body)?.status)
}

/// The stages in their order, then what is left of the whole, then the whole.
fn first_answer(listen: SocketAddr, metrics: &str, alias: &str) -> Result<Vec<f64>> {
    let before = stages(metrics)?;
    let begun = Instant::now();
    let status = complete(listen, alias)?;
    let all = begun.elapsed().as_secs_f64();
    ensure!(status == 200, "`{alias}` was answered with {status}");
    let after = stages(metrics)?;
    let mut seconds: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    ensure!(seconds.iter().all(|seconds| *seconds > 0.0), "a stage took no time: {seconds:?}");
    let staged: f64 = seconds.iter().sum();
    seconds.extend([all - staged, all]);
    Ok(seconds)
}

/// Seconds of each so far.
fn stages(metrics: &str) -> Result<Vec<f64>> {
    let all = scrape(metrics)?;
    let sum = |stage: &&str| all.get(&format!("warmd_adapter_load_seconds_sum{{stage=\"{stage}\"}}")).copied();
    Ok(STAGES.iter().map(|(_, stages)| stages.iter().filter_map(sum).sum()).collect())
}

/// A directory with an adapter of so many layers, whose weights are like no other's; and its bytes.
fn adapter(dir: &Path, seed: u64, layers: u64) -> Result<(PathBuf, u64)> {
    let directory = dir.join("trained");
    fresh(&directory)?;
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for layer in 0..layers {
        for (module, inputs, outputs) in MODULES {
            for (half, shape) in [("A", [RANK, inputs]), ("B", [outputs, RANK])] {
                let name = format!("base_model.model.model.layers.{layer}.self_attn.{module}.lora_{half}.weight");
                let end = at + shape[0] * shape[1] * 2;
                header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, end] }));
                at = end;
            }
        }
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(&header);
    file.extend(weights(seed, at));
    let names: Vec<&str> = MODULES.iter().map(|(name, ..)| *name).collect();
    let config = json!({
        "peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": names, "bias": "none",
        "base_model_name_or_path": "base",
    });
    fs::write(directory.join("adapter_config.json"), config.to_string())?;
    fs::write(directory.join("adapter_model.safetensors"), &file).context("write the adapter")?;
    Ok((directory, file.len() as u64))
}

/// As trained ones are: any mantissa and sign, and an exponent of a small number, of 2^-13 to 2^-6.
fn weights(seed: u64, bytes: u64) -> Vec<u8> {
    let mut weights = vec![0; bytes as usize];
    Random::new(seed).fill(&mut weights);
    for value in weights.chunks_exact_mut(2) {
        // BF16, little-endian: the sign and seven bits of the exponent are the second byte.
        value[1] = value[1] & 0x80 | (0x39 + (value[1] & 0x03));
    }
    weights
}
