//! The admin API of a serving proxy: JSON on a Unix socket, callers known by their credentials.
//!
//! | route | what it does |
//! | --- | --- |
//! | `GET /admin/v1/health` | the engine, adapters by state and tier, requests in flight |
//! | `GET /admin/v1/engine`, `POST .../restart`, `.../stop`, `.../start` | the engine; requests under way end first |
//! | `GET /admin/v1/config` | `{"toml": "..."}`: the configuration in force, every key at its value |
//! | `GET /admin/v1/capacity` | slots for adapters and requests: all, used, free |
//! | `GET /admin/v1/adapters`, `GET .../{name}` | what there is of each |
//! | `POST /admin/v1/adapters/{name}/load`, `unload`, `pin`, `unpin` | before anybody asks; until it is loaded again; to stay |
//! | `POST /admin/v1/adapters/{name}/pause`, `resume`, `abort`, `GET .../wait` | gates, see [`crate::proxy::pause`] |
//! | `POST /skyrl/v1/...` | gates in the words of SkyRL's controllers |
//! | `POST /admin/v1/auth/reload` | reads the files of keys again |
//! | `POST /admin/v1/sessions/{address}/revoke` | `{"token": 3}`, or all of them without a body |

mod http;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use self::http::{Answers, Asked, failed};
use super::adapters::{AdapterStatus, Adapters, OrderError};
use super::serving::{Catalogue, Effective};
use super::target::Say;
use crate::adapters::{Address, Alias};
use crate::engine::Supervisor;
use crate::lifecycle::Tasks;
use crate::local::{Listener, SocketConfig, SocketError};
use crate::proxy::auth::TokenId;
use crate::proxy::limits::Place;
use crate::proxy::pause::{BadCommand, Command, Reply};
use crate::proxy::{Access, BoxFuture};

/// The socket and those who use it.
pub(super) struct Admin {
    tasks: Tasks,
    connections: Arc<Tasks>,
    _listener: Listener,
}

impl Admin {
    /// For this user and root.
    pub(super) async fn bind(socket: PathBuf) -> Result<Listener, SocketError> {
        Listener::bind(&SocketConfig { socket, ..SocketConfig::default() }).await
    }

    pub(super) fn serve(mut listener: Listener, control: Control, say: &Say) -> Self {
        let socket = listener.path().display();
        say(&format!("admin API: curl --unix-socket {socket} http://admin/admin/v1/health"));
        let tasks = Tasks::new();
        let connections = Arc::new(tasks.child());
        tasks.spawn("admin", http::serve(Box::pin(listener.incoming()), Arc::new(control), connections.clone()));
        Self { tasks, connections, _listener: listener }
    }

    pub(super) async fn shutdown(self, deadline: Duration) {
        self.tasks.shutdown(deadline).await;
        // Each of them has a hand on the engine.
        self.connections.shutdown(deadline).await;
    }
}

/// What operators can look at and change.
pub(super) struct Control {
    access: Arc<Access>,
    catalogue: Arc<Catalogue>,
    /// Absent where somebody else runs the engine.
    supervisor: Option<Arc<Supervisor>>,
    config: Effective,
}

type Answer = Result<Value, Reply>;

impl Answers for Control {
    fn answer(&self, asked: Asked) -> BoxFuture<'_, Reply> {
        Box::pin(async move {
            let answered = self.route(&asked).await;
            answered.map_or_else(|reply| reply, |body| Reply { status: 200, body })
        })
    }
}

impl Control {
    pub(super) fn new(
        access: Arc<Access>,
        catalogue: Arc<Catalogue>,
        supervisor: Option<Arc<Supervisor>>,
        config: Effective,
    ) -> Self {
        Self { access, catalogue, supervisor, config }
    }

    async fn route(&self, asked: &Asked) -> Answer {
        let path = asked.path.strip_prefix("/admin/v1/").unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        match (asked.method.as_str(), parts.as_slice()) {
            ("GET", ["health"]) => Ok(self.health()),
            ("GET", ["config"]) => self.config(),
            ("GET", ["capacity"]) => Ok(self.capacity()),
            ("GET", ["engine"]) => Ok(self.engine()),
            ("POST", ["engine", order]) => self.order(order),
            ("GET", ["adapters"]) => Ok(json!({"adapters": self.adapters()?.status()})),
            ("GET", ["adapters", name]) => self.adapter(name),
            ("POST", ["adapters", name, order @ ("load" | "unload" | "pin" | "unpin")]) => self.change(name, order),
            ("POST", ["auth", "reload"]) => self.reload().await,
            ("POST", ["sessions", address, "revoke"]) => self.revoke(address, asked).await,
            _ => self.gate(asked).await,
        }
    }

    /// Those of `proxy::pause`, and no others.
    async fn gate(&self, asked: &Asked) -> Answer {
        let by = format!("uid:{}", asked.uid);
        let command = Command::parse(&asked.method, &asked.path, asked.query.as_deref(), &asked.body, &by);
        let command = command.map_err(|bad: BadCommand| {
            failed(StatusCode::from_u16(bad.status()).unwrap_or(StatusCode::BAD_REQUEST), &bad.to_string())
        })?;
        Err(self.access.gates().run(command).await)
    }

    fn adapters(&self) -> Result<Arc<Adapters>, Reply> {
        let why = "there are no adapters: the engine has not been ready yet, or was started without --enable-lora";
        self.catalogue.adapters().ok_or_else(|| failed(StatusCode::CONFLICT, why))
    }

    fn health(&self) -> Value {
        let statuses = self.catalogue.adapters().map(|adapters| adapters.status()).unwrap_or_default();
        let mut by_state = serde_json::Map::new();
        for AdapterStatus { state, .. } in &statuses {
            let count = by_state.entry(state.as_str()).or_insert_with(|| json!(0));
            *count = json!(count.as_u64().unwrap_or(0) + 1);
        }
        let registered = statuses.iter().filter(|status| status.versions.iter().any(|version| version.current)).count();
        let on_disk = statuses.iter().filter(|status| !status.versions.is_empty()).count();
        let requests = self.access.limits().taken(Place::Request);
        json!({
            "engine": self.engine(),
            "adapters": {"known": statuses.len(), "by_state": by_state, "tiers": {"engine": registered, "disk": on_disk}},
            "requests": {"in_flight": requests, "waiting": self.access.limits().taken(Place::Waiter)},
        })
    }

    fn config(&self) -> Answer {
        let toml = self.config.as_toml();
        let toml = toml.map_err(|error| failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))?;
        Ok(json!({"toml": toml}))
    }

    fn capacity(&self) -> Value {
        let adapters = self.catalogue.adapters().map(|adapters| json!(adapters.capacity()));
        json!({"adapters": adapters, "requests": {"used": self.access.limits().taken(Place::Request)}})
    }

    fn engine(&self) -> Value {
        let Some(supervisor) = &self.supervisor else { return json!({"state": "attached"}) };
        let status = supervisor.status().borrow().clone();
        let since = status.since.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        json!({
            "state": status.state, "epoch": status.epoch, "since_s": since, "restarts": status.restarts,
            "leader": status.leader, "reason": status.reason,
        })
    }

    fn order(&self, order: &str) -> Answer {
        let none = || failed(StatusCode::CONFLICT, "somebody else runs this engine");
        let supervisor = self.supervisor.as_ref().ok_or_else(none)?;
        match order {
            "restart" => supervisor.restart(),
            "stop" => supervisor.stop(),
            "start" => supervisor.run(),
            _ => return Err(failed(StatusCode::NOT_FOUND, "expected restart, stop or start")),
        }
        Ok(self.engine())
    }

    fn adapter(&self, name: &str) -> Answer {
        let alias = alias(name)?;
        let status = self.adapters()?.status().into_iter().find(|status| status.alias == alias);
        status.map(|status| json!(status)).ok_or_else(|| failed(StatusCode::NOT_FOUND, "nothing is known of it here"))
    }

    fn change(&self, name: &str, order: &str) -> Answer {
        let (alias, adapters) = (alias(name)?, self.adapters()?);
        let done = match order {
            "load" => adapters.load(&alias),
            "unload" => adapters.unload(&alias),
            "pin" => adapters.pin(&alias, true),
            _ => adapters.pin(&alias, false),
        };
        done.map_err(|error: OrderError| failed(StatusCode::CONFLICT, &error.to_string()))?;
        self.adapter(name)
    }

    async fn reload(&self) -> Answer {
        let keys = self.access.authenticator().read_again().await;
        let keys = keys.map_err(|error| failed(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()))?;
        self.access.authenticator().take(keys);
        Ok(json!({"reloaded": true}))
    }

    async fn revoke(&self, address: &str, asked: &Asked) -> Answer {
        let address: Address = address.parse().map_err(|error| failed(StatusCode::BAD_REQUEST, &format!("{error}")))?;
        let (access, body) = (self.access.clone(), asked.body.clone());
        // It waits for the disk.
        let revoking = tokio::task::spawn_blocking(move || revoke(&access, address, &body));
        revoking
            .await
            .unwrap_or_else(|_| Err(failed(StatusCode::INTERNAL_SERVER_ERROR, "the revoking thread panicked")))
    }
}

/// All sessions of `address`, or the one that `body` names.
fn revoke(access: &Access, address: Address, body: &[u8]) -> Answer {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct One {
        token: TokenId,
    }
    let off = || failed(StatusCode::CONFLICT, "wallets are not configured");
    let sessions = access.authenticator().sessions().ok_or_else(off)?;
    let failure = |error: crate::proxy::auth::SessionError| failed(StatusCode::CONFLICT, &error.to_string());
    if body.is_empty() {
        let generation = sessions.revoke_all(address).map_err(failure)?;
        return Ok(json!({"revoked": "all", "generation": generation}));
    }
    let bad = |error: serde_json::Error| failed(StatusCode::BAD_REQUEST, &error.to_string());
    let One { token } = serde_json::from_slice(body).map_err(bad)?;
    sessions.revoke(address, token).map_err(failure)?;
    Ok(json!({"revoked": token}))
}

fn alias(name: &str) -> Result<Alias, Reply> {
    name.parse().map_err(|error| failed(StatusCode::BAD_REQUEST, &format!("{error}")))
}
