//! Log output: text or JSON on standard error, never on standard output, which belongs to results. What peers and engines
//! say cannot reach a terminal's controls ([`escape`]), and no line drowns the others ([`limit`]).

mod escape;
mod limit;

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

pub use self::escape::escaped;
use self::escape::{Escaping, Form};
use self::limit::Limited;
use super::trace::{self, Exporter, TracingConfig, TracingError};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// `[log]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Level or filter, such as `info` or `warmd=debug,quinn=warn`.
    pub level: String,
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

impl LogConfig {
    /// Whether the level can be used.
    pub fn check(&self) -> Result<(), LevelError> {
        filter(&self.level).map(drop)
    }
}

/// Libraries that warn of what is nothing to worry about, and tell the node's name in their own words. What the filter says of
/// them counts more.
const QUIET: &str = "libp2p_swarm=warn,libp2p_kad=error";

/// Not a level or filter.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// To the library it would be a module, and nothing else would be logged.
    #[error("`{0}` is no level: error, warn, info, debug, trace or off; one module's is `MODULE=LEVEL`")]
    Word(String),
    #[error(transparent)]
    Filter(#[from] ParseError),
}

fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    let words = level.split(',').map(str::trim).filter(|part| !part.is_empty() && !part.contains(['=', '[']));
    if let Some(word) = words.into_iter().find(|word| word.parse::<LevelFilter>().is_err()) {
        return Err(LevelError::Word(word.to_owned()));
    }
    Ok(EnvFilter::builder().parse(format!("{QUIET},{level}"))?)
}

/// The filter in force, for [`set_level`].
static FILTER: OnceLock<Mutex<reload::Handle<EnvFilter, Registry>>> = OnceLock::new();

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("log.level: {0}")]
    Level(#[from] LevelError),
    #[error(transparent)]
    Tracing(#[from] TracingError),
}

/// Sets up logging for the process; a second call does nothing. `service` is the role's name in traces. The exporter, if
/// traces are exported, is to be run.
pub fn init(log: &LogConfig, tracing: &TracingConfig, service: &str) -> Result<Option<Exporter>, InitError> {
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let (exporting, exporter) = trace::layer(tracing, service)?.unzip();
    let colours = std::io::stderr().is_terminal();
    let lines = fmt::layer::<Registry>();
    let lines = match log.format {
        LogFormat::Text => {
            let writer = Escaping::new(std::io::stderr, Form::Text { colours });
            let format = Limited::new(fmt::format(), log.format);
            lines.with_ansi(colours).with_writer(writer).event_format(format).boxed()
        }
        LogFormat::Json => {
            let writer = Escaping::new(std::io::stderr, Form::Json);
            let format = Limited::new(fmt::format().json(), log.format);
            lines.json().with_writer(writer).event_format(format).boxed()
        }
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter)).with(exporting);
    // A second subscriber in one process (tests) is refused; the first one stays.
    if subscriber.try_init().is_err() {
        return Ok(None);
    }
    let _ = FILTER.set(Mutex::new(handle));
    Ok(exporter)
}

/// Changes the level of a running process.
pub fn set_level(level: &str) -> Result<(), LevelError> {
    let filter = filter(level)?;
    if let Some(handle) = FILTER.get() {
        // Fails only where the subscriber is gone, and with it whoever would read the lines.
        let _ = handle.lock().unwrap_or_else(PoisonError::into_inner).reload(filter);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_refused_instead_of_logging_nothing() {
        for level in ["info", "OFF", "warmd=debug,quinn=warn", "warn,warmd::transfer=trace", "info,[warm]=debug", ""] {
            assert!(filter(level).is_ok(), "{level}");
        }
        let said = filter("inof").unwrap_err().to_string();
        assert_eq!(said, "`inof` is no level: error, warn, info, debug, trace or off; one module's is `MODULE=LEVEL`");
        assert!(matches!(filter("info,quinn"), Err(LevelError::Word(word)) if word == "quinn"));
        assert!(matches!(filter("warmd=inof"), Err(LevelError::Filter(_))));
    }
}
