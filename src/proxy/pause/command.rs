//! The routes of the gates, on the admin listener only.
//!
//! | route | body or query | answer |
//! | --- | --- | --- |
//! | `POST /admin/v1/adapters/{name}/pause` | `{"lease_s": 60, "by": "trainer-0"}` | `{"paused":true,"epoch":7,"lease_s":60.0,"by":"trainer-0","in_flight":3}` |
//! | `POST /admin/v1/adapters/{name}/resume` | `{"epoch": 7}` or nothing | `{"paused":false,"was_paused":true}` |
//! | `POST /admin/v1/adapters/{name}/abort` | nothing | `{"aborted":["id",...],"count":3}` |
//! | `GET /admin/v1/adapters/{name}/wait` | `?timeout_s=60` | `{"paused":false}`, or the pause after the timeout |
//!
//! What SkyRL's controllers ask for, in their words, each with `{"lora_name": ...}`:
//! `POST /skyrl/v1/abort_lora_requests` (pauses, then aborts), `.../resume_lora_requests` and
//! `.../wait_lora_unpaused` (and `timeout_s`). The fourth, `load_lora_adapter`, belongs to the adapters.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{GateError, Gates, Pause, Seconds};

/// Of a pause whose request names no lease, and of a wait that names no timeout.
const USUAL: Duration = Duration::from_secs(60);

/// Controllers of SkyRL know no leases and do not renew.
const SKYRL_LEASE: Duration = Duration::from_secs(600);

/// The holder of their pauses.
const SKYRL: &str = "skyrl";

/// Bytes of a body that could be a command.
pub const MAX_BODY: usize = 4096;

/// What a request asks of the gates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Pause {
        adapter: String,
        by: String,
        lease: Duration,
    },
    Resume {
        adapter: String,
        epoch: Option<u64>,
        skyrl: bool,
    },
    Abort {
        adapter: String,
    },
    /// Pause and abort in one.
    Stop {
        adapter: String,
        by: String,
        lease: Duration,
    },
    Wait {
        adapter: String,
        timeout: Duration,
    },
}

/// The request is no command. `Display` is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    #[error("no such route")]
    NoRoute,
    #[error("this route takes {0} only")]
    Method(&'static str),
    #[error("not the name of an adapter: expected 1 to 128 letters, digits, `.`, `_` and `-`")]
    Name,
    #[error("a body of more than {MAX_BODY} bytes")]
    TooLarge,
    #[error("{0}")]
    Content(String),
}

impl BadCommand {
    /// HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoRoute => 404,
            Self::Method(_) => 405,
            Self::TooLarge => 413,
            Self::Name | Self::Content(_) => 400,
        }
    }
}

/// HTTP status and JSON body.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub status: u16,
    pub body: Value,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PauseBody {
    lease_s: Option<Seconds>,
    by: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ResumeBody {
    epoch: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct NoBody {}

/// SkyRL's clients may send more than they must.
#[derive(Deserialize)]
struct SkyrlBody {
    lora_name: String,
    timeout_s: Option<Seconds>,
}

impl Command {
    /// `path` is without the query. `by` names who calls, for pauses that do not say.
    pub fn parse(method: &str, path: &str, query: Option<&str>, body: &[u8], by: &str) -> Result<Self, BadCommand> {
        if body.len() > MAX_BODY {
            return Err(BadCommand::TooLarge);
        }
        if let Some(route) = path.strip_prefix("/skyrl/v1/") {
            return Self::parse_skyrl(method, route, body);
        }
        let rest = path.strip_prefix("/admin/v1/adapters/").ok_or(BadCommand::NoRoute)?;
        let (adapter, verb) = rest.split_once('/').ok_or(BadCommand::NoRoute)?;
        let expected = match verb {
            "pause" | "resume" | "abort" => "POST",
            "wait" => "GET",
            _ => return Err(BadCommand::NoRoute),
        };
        if method != expected {
            return Err(BadCommand::Method(expected));
        }
        let adapter = name(adapter)?;
        Ok(match verb {
            "pause" => {
                let PauseBody { lease_s, by: named } = json_or_default(body)?;
                let lease = lease_s.map_or(USUAL, Seconds::get);
                Self::Pause { adapter, by: named.unwrap_or_else(|| by.to_owned()), lease }
            }
            "resume" => Self::Resume { adapter, epoch: json_or_default::<ResumeBody>(body)?.epoch, skyrl: false },
            "abort" => {
                json_or_default::<NoBody>(body)?;
                Self::Abort { adapter }
            }
            _ => Self::Wait { adapter, timeout: timeout(query)? },
        })
    }

    fn parse_skyrl(method: &str, route: &str, body: &[u8]) -> Result<Self, BadCommand> {
        if !["abort_lora_requests", "resume_lora_requests", "wait_lora_unpaused"].contains(&route) {
            return Err(BadCommand::NoRoute);
        }
        if method != "POST" {
            return Err(BadCommand::Method("POST"));
        }
        let body: SkyrlBody = json(body)?;
        let adapter = name(&body.lora_name)?;
        Ok(match route {
            "abort_lora_requests" => Self::Stop { adapter, by: SKYRL.to_owned(), lease: SKYRL_LEASE },
            "resume_lora_requests" => Self::Resume { adapter, epoch: None, skyrl: true },
            _ => Self::Wait { adapter, timeout: body.timeout_s.map_or(USUAL, Seconds::get) },
        })
    }
}

/// The alphabet of adapters' aliases.
fn name(text: &str) -> Result<String, BadCommand> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fits = text.len() <= 128
        && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && text.bytes().all(plain)
        && !text.contains("..");
    fits.then(|| text.to_owned()).ok_or(BadCommand::Name)
}

fn json_or_default<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, BadCommand> {
    if body.is_empty() { Ok(T::default()) } else { json(body) }
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadCommand> {
    serde_json::from_slice(body).map_err(|error| BadCommand::Content(error.to_string()))
}

fn timeout(query: Option<&str>) -> Result<Duration, BadCommand> {
    let mut timeout = None;
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let Some(("timeout_s", value)) = pair.split_once('=') else {
            return Err(BadCommand::Content("the query may name `timeout_s` only".to_owned()));
        };
        let seconds: Seconds = value.parse().map_err(|error| BadCommand::Content(format!("timeout_s: {error}")))?;
        if timeout.replace(seconds.get()).is_some() {
            return Err(BadCommand::Content("the query names `timeout_s` twice".to_owned()));
        }
    }
    Ok(timeout.unwrap_or(USUAL))
}

impl Gates {
    /// Does what `command` says. A wait ends when its client goes away: drop the future.
    pub async fn run(&self, command: Command) -> Reply {
        let now = tokio::time::Instant::now().into_std();
        match command {
            Command::Pause { adapter, by, lease } => {
                answer(self.pause(&adapter, &by, lease, now).map(|pause| self.shown(&adapter, &pause, now)))
            }
            Command::Resume { adapter, epoch, skyrl } => answer(self.resume(&adapter, epoch, now).map(|was_paused| {
                if skyrl { json!({"status": "ok"}) } else { json!({"paused": false, "was_paused": was_paused}) }
            })),
            Command::Abort { adapter } => answer(Ok(aborted(self.abort(&adapter)))),
            Command::Stop { adapter, by, lease } => {
                // Whoever passed before the pause is counted, so nobody slips between the two.
                answer(self.pause(&adapter, &by, lease, now).map(|_| {
                    let mut body = aborted(self.abort(&adapter));
                    body["status"] = "ok".into();
                    body
                }))
            }
            Command::Wait { adapter, timeout } => {
                let pause = self.wait(&adapter, now + timeout).await;
                let now = tokio::time::Instant::now().into_std();
                answer(Ok(pause.map_or_else(|| json!({"paused": false}), |pause| self.shown(&adapter, &pause, now))))
            }
        }
    }

    fn shown(&self, adapter: &str, pause: &Pause, now: Instant) -> Value {
        let lease = pause.until.saturating_duration_since(now).as_millis() as f64 / 1000.0;
        let in_flight = self.in_flight(adapter);
        json!({"paused": true, "epoch": pause.epoch, "lease_s": lease, "by": pause.by, "in_flight": in_flight})
    }
}

fn aborted(requests: Vec<String>) -> Value {
    json!({"count": requests.len(), "aborted": requests})
}

fn answer(result: Result<Value, GateError>) -> Reply {
    let error = match result {
        Ok(body) => return Reply { status: 200, body },
        Err(error) => error,
    };
    let status = match error {
        GateError::Held { .. } | GateError::Stale { .. } => 409,
        GateError::Full => 429,
        GateError::Lease | GateError::Holder => 400,
    };
    let body = json!({"error": {"message": error.to_string(), "type": "gate_error", "param": null, "code": status}});
    Reply { status, body }
}
