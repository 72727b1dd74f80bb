//! `[tracing]` of the configuration file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where traces and log lines are exported to, if anywhere, and how many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingConfig {
    /// An OpenTelemetry collector, `http://HOST:PORT`. Absent: nothing is exported.
    pub endpoint: Option<CollectorUrl>,
    pub protocol: OtlpProtocol,
    /// Share of the traces that begin here that are recorded, 0 to 1. 1.
    pub sample: f64,
    /// Traces that others began and record, and that are recorded here too: so many new spans a second at most. 1000.
    pub remote_per_second: u32,
    /// Whether log lines of level `info` and above are exported too. True.
    pub logs: bool,
    /// A file with a `NAME: VALUE` on each line, sent with each export. Read at start. Absent: none.
    pub headers_file: Option<PathBuf>,
    /// For one export, connecting included. 5 s.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Spans and lines that wait to be exported; more are dropped and counted. 4096.
    pub queue: usize,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: OtlpProtocol::default(),
            sample: 1.0,
            remote_per_second: 1000,
            logs: true,
            headers_file: None,
            timeout: Duration::from_secs(5),
            queue: 4096,
        }
    }
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpProtocol {
    /// OTLP over gRPC, usually port 4317.
    #[default]
    Grpc,
    /// OTLP over HTTP with protobuf, usually port 4318.
    Http,
}

/// Traces cannot be exported as configured.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    #[error("tracing.headers_file: read {path}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The line is not told: it may hold a secret.
    #[error("tracing.headers_file: line {line} of {path} is no `NAME: VALUE`", path = path.display())]
    Header { path: PathBuf, line: usize },
    #[error("tracing.headers_file: {path} is larger than headers can be", path = .0.display())]
    TooLarge(PathBuf),
}

/// The text is no collector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a collector: expected http://HOST:PORT, without credentials; a collector beside this one may speak TLS")]
pub struct InvalidCollectorUrl;

/// `http://HOST:PORT`. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectorUrl {
    authority: String,
}

impl CollectorUrl {
    /// `HOST:PORT`.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

impl FromStr for CollectorUrl {
    type Err = InvalidCollectorUrl;

    fn from_str(text: &str) -> Result<Self, InvalidCollectorUrl> {
        let authority = text.strip_prefix("http://").ok_or(InvalidCollectorUrl)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority.rsplit_once(':').ok_or(InvalidCollectorUrl)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_[]:".contains(c);
        let is_port = port.parse::<u16>().is_ok_and(|port| port != 0);
        if host.is_empty() || !host.chars().all(is_plain) || !is_port {
            return Err(InvalidCollectorUrl);
        }
        Ok(Self { authority: authority.to_owned() })
    }
}

impl fmt::Display for CollectorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

impl Serialize for CollectorUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CollectorUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Longest file of headers.
const MAX_HEADERS: u64 = 16 * 1024;

/// Names and values of a file. Empty lines and those that begin with `#` say nothing.
pub(super) fn headers(path: &Path) -> Result<Vec<(String, String)>, TracingError> {
    let failed = |source| TracingError::Read { path: path.to_owned(), source };
    if path.metadata().map_err(failed)?.len() > MAX_HEADERS {
        return Err(TracingError::TooLarge(path.to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let header = |(at, line): (usize, &str)| {
        let wrong = || TracingError::Header { path: path.to_owned(), line: at + 1 };
        let (name, value) = line.split_once(':').ok_or_else(wrong)?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let is_value = value.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if is_name && is_value { Ok((name, value.to_owned())) } else { Err(wrong()) }
    };
    lines.map(header).collect()
}

impl TracingConfig {
    /// Whether what it names can be read.
    pub fn check(&self) -> Result<(), TracingError> {
        self.headers_file.as_deref().map_or(Ok(()), |path| headers(path).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_a_host_and_a_port_without_secrets() {
        for text in ["http://collector:4317", "http://127.0.0.1:4318", "http://[::1]:4317"] {
            assert_eq!(text.parse::<CollectorUrl>().unwrap().to_string(), text);
        }
        for text in
            ["", "collector:4317", "https://c:4317", "http://c", "http://u:p@c:1", "http://c:0", "http://c:1/v1"]
        {
            assert_eq!(text.parse::<CollectorUrl>(), Err(InvalidCollectorUrl), "{text}");
        }
    }

    #[test]
    fn headers_are_read_and_a_wrong_line_is_named_without_its_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# for the collector\nAuthorization: Bearer hunter2\n\nx-scope:a\n").unwrap();
        let read = headers(file.path()).unwrap();
        assert_eq!(read[0], ("authorization".to_owned(), "Bearer hunter2".to_owned()));
        assert_eq!(read[1], ("x-scope".to_owned(), "a".to_owned()));
        std::fs::write(file.path(), "a: b\nhunter2\n").unwrap();
        let error = headers(file.path()).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
    }
}
