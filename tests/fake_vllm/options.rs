//! The command line and the environment.

use std::path::PathBuf;
use std::time::Duration;

use warmd::caches::Launch;

pub type Release = (u32, u32, u32);

pub struct Options {
    pub version: String,
    pub release: Release,
    pub uds: Option<PathBuf>,
    pub host: String,
    pub port: u16,
    pub keys: Vec<String>,
    pub model: String,
    pub names: Vec<String>,
    pub enable_lora: bool,
    pub updating: bool,
    pub max_cpu_loras: usize,
    pub max_lora_rank: u64,
    pub shutdown_timeout: Duration,
    pub start: Duration,
    pub fail: Option<i32>,
    pub load: Duration,
    /// Loads wait while this file is there.
    pub hold: Option<PathBuf>,
    /// The question for its version ends it while this file is there.
    pub end: Option<PathBuf>,
    pub token: Duration,
    pub lifetime: Duration,
}

impl Options {
    pub fn parse(words: Vec<String>) -> Result<Self, String> {
        let command: Vec<String> = std::iter::once("vllm".to_owned()).chain(words).collect();
        let launch = Launch::parse(&command).map_err(|error| error.to_string())?;
        let seconds = |name: &str, default: f64| number(&launch, name, default).map(Duration::from_secs_f64);
        let flag = |name: &str| std::env::var(name).is_ok_and(|value| ["1", "true"].contains(&&*value.to_lowercase()));
        // Read at each start, so that a test can change it between two of them.
        let file = launch.option("fake-version-file").map(std::fs::read_to_string).transpose();
        let file = file.map_err(|error| format!("--fake-version-file: {error}"))?;
        let version = file.as_deref().or_else(|| launch.option("fake-version")).unwrap_or("0.32.0").trim().to_owned();
        let release = release(&version).ok_or_else(|| format!("--fake-version {version}"))?;
        let updating = flag("VLLM_ALLOW_RUNTIME_LORA_UPDATING");
        let max_loras: usize = number(&launch, "max-loras", 1)?;
        let max_cpu_loras: usize = number(&launch, "max-cpu-loras", max_loras)?;
        if launch.has("shutdown-timeout") && release < (0, 22, 1) {
            return Err("unrecognized arguments: --shutdown-timeout".to_owned());
        }
        if updating && number(&launch, "api-server-count", 1)? > 1 {
            return Err("VLLM_ALLOW_RUNTIME_LORA_UPDATING cannot be used with api_server_count > 1".to_owned());
        }
        if max_cpu_loras < max_loras {
            return Err(format!("max_cpu_loras ({max_cpu_loras}) must be >= max_loras ({max_loras})"));
        }
        if std::env::var("VLLM_PORT").is_ok_and(|port| port.parse::<u16>().is_err()) {
            return Err("VLLM_PORT appears to be a URI".to_owned());
        }
        let model = launch.model().unwrap_or("facebook/opt-125m").to_owned();
        let mut names = launch.values("served-model-name").to_vec();
        if names.is_empty() {
            names.push(model.clone());
        }
        Ok(Self {
            version,
            release,
            uds: launch.uds().map(Into::into),
            host: launch.host().unwrap_or("127.0.0.1").to_owned(),
            port: number(&launch, "port", 8000)?,
            keys: keys(&launch),
            model,
            names,
            enable_lora: launch.has("enable-lora"),
            updating,
            max_cpu_loras,
            max_lora_rank: number(&launch, "max-lora-rank", 16)?,
            shutdown_timeout: seconds("shutdown-timeout", 0.0)?,
            start: seconds("fake-start", 0.0)?,
            fail: launch.option("fake-fail").and_then(|code| code.parse().ok()),
            load: seconds("fake-load", 0.0)?,
            hold: launch.option("fake-hold").map(Into::into),
            end: launch.option("fake-end").map(Into::into),
            token: seconds("fake-token", 0.0)?,
            lifetime: seconds("fake-lifetime", 3600.0)?,
        })
    }
}

/// Those of the command line count before the one of the environment.
fn keys(launch: &Launch) -> Vec<String> {
    let given = launch.values("api-key").to_vec();
    let keys = if given.is_empty() { std::env::var("VLLM_API_KEY").into_iter().collect() } else { given };
    keys.into_iter().filter(|key| !key.is_empty()).collect()
}

fn number<T: std::str::FromStr>(launch: &Launch, name: &str, default: T) -> Result<T, String> {
    let Some(value) = launch.option(name) else { return Ok(default) };
    value.parse().map_err(|_| format!("argument --{name}: invalid value: '{value}'"))
}

fn release(version: &str) -> Option<Release> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next().map_or(Some(0), |patch| patch)?))
}
