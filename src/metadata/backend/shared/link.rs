//! Speaks with the store: two connections, one for commands and one that waits for the log. Every wait has a deadline.

mod trust;

use std::collections::BTreeMap;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo, RedisError, cmd};

use super::record::{self, Entry, Record, number, read_version};
use super::{Drift, RedisConfig, StoreError, StoreUrl};
use crate::identity::NodeId;
use crate::metadata::registry::{Change, Decision, Version};
use crate::protocol::metadata::{Announcement, Held, NodeState, ServerEpoch};

/// For connecting, and for each answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// How long a server leads without renewing.
const LEADERSHIP: Duration = Duration::from_secs(5);

/// Entries of the log in one answer, each at most 16 KiB.
const ENTRIES: usize = 256;

/// Fields that the store looks at for one step of a scan.
const SCAN: usize = 500;

/// Larger answers are not ours: far more than a node can announce.
const MAX_SCANNED: usize = 100_000;

const COMMIT: &str = include_str!("scripts/commit.lua");
const OPEN: &str = include_str!("scripts/open.lua");
const PULSE: &str = include_str!("scripts/pulse.lua");

#[derive(Debug)]
struct Keys {
    meta: String,
    settings: String,
    nodes: String,
    log: String,
    leader: String,
    trust: String,
    held: String,
}

impl Keys {
    /// In braces, so that a store of several shards keeps them together.
    fn new(prefix: &str) -> Self {
        let key = |name: &str| format!("{{{prefix}}}:{name}");
        let names = ["meta", "settings", "nodes", "log", "leader", "trust"];
        let [meta, settings, nodes, log, leader, trust] = names.map(key);
        Self { meta, settings, nodes, log, leader, trust, held: key("held:") }
    }

    fn held(&self, node: NodeId) -> Vec<u8> {
        [self.held.as_bytes(), node.as_bytes()].concat()
    }
}

#[derive(Debug, Clone)]
struct Scripts {
    commit: String,
    open: String,
    pulse: String,
}

/// A way to the store; made anew after each failure. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    commands: MultiplexedConnection,
    scripts: Scripts,
    keys: std::sync::Arc<Keys>,
    /// Of the process that we speak with: another one may have lost what the last one had.
    run: String,
}

/// The connection that waits for the log.
pub(super) struct Tail {
    connection: MultiplexedConnection,
    log: String,
}

/// The store as it is when a server opens it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) epoch: ServerEpoch,
    /// What the servers of the cluster have agreed on.
    pub(super) settings: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pulse {
    /// `None`: the store was emptied.
    pub(super) epoch: Option<ServerEpoch>,
    /// The last change.
    pub(super) last: Version,
    pub(super) now: Duration,
    pub(super) leads: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Committed {
    Done(Version),
    /// The node's last change is another one; the default if the store does not know the node.
    Conflict(Version),
    /// The store has begun anew.
    OtherEpoch,
}

/// A line of the log.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) version: Version,
    pub(super) node: NodeId,
    pub(super) at: Duration,
    pub(super) entry: Entry,
}

pub(super) async fn connect(url: &StoreUrl, config: &RedisConfig) -> Result<(Link, Tail), StoreError> {
    let client = client(url, config)?;
    let keys = Keys::new(&config.prefix);
    let limits = AsyncConnectionConfig::new().set_connection_timeout(Some(DEADLINE));
    let open = async |limits| client.get_multiplexed_async_connection_with_config(&limits).await.map_err(failed);
    let mut commands = open(limits.clone().set_response_timeout(Some(DEADLINE))).await?;
    let connection = open(limits.set_response_timeout(None)).await?;
    let info: String = cmd("INFO").arg("server").query_async(&mut commands).await.map_err(failed)?;
    let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default().trim().to_owned();
    let mut load = async |script: &str| {
        let sha: String = cmd("SCRIPT").arg("LOAD").arg(script).query_async(&mut commands).await.map_err(failed)?;
        Ok::<_, StoreError>(sha)
    };
    let scripts = Scripts { commit: load(COMMIT).await?, open: load(OPEN).await?, pulse: load(PULSE).await? };
    let tail = Tail { connection, log: keys.log.clone() };
    Ok((Link { commands, scripts, keys: keys.into(), run }, tail))
}

fn client(url: &StoreUrl, config: &RedisConfig) -> Result<Client, StoreError> {
    let info = url.to_string().into_connection_info().map_err(failed)?;
    let mut account = info.redis_settings().clone();
    if let Some(user) = &config.user {
        account = account.set_username(user);
    }
    if let Some(path) = &config.password_file {
        let secret = std::fs::read_to_string(path)
            .map_err(|error| StoreError::Refused(format!("read password file {}: {error}", path.display())))?;
        account = account.set_password(secret.trim());
    }
    Client::open(info.set_redis_settings(account)).map_err(failed)
}

impl Link {
    /// Makes the store ready for `settings`, which count if it has none yet, or if they are to be adopted.
    pub(super) async fn open(
        &self,
        candidate: ServerEpoch,
        settings: &BTreeMap<&'static str, String>,
        drift: Drift,
    ) -> Result<Opened, StoreError> {
        let keys = [&self.keys.meta, &self.keys.settings, &self.keys.log].map(String::as_bytes);
        let mut call = script(&self.scripts.open, &keys);
        call.arg(&self.run).arg(candidate.0).arg(if drift == Drift::Adopt { "adopt" } else { "keep" });
        settings.iter().for_each(|(name, value)| {
            call.arg(*name).arg(value);
        });
        let (epoch, settings): (u64, BTreeMap<String, String>) = self.ask(&call).await?;
        Ok(Opened { epoch: ServerEpoch(epoch), settings })
    }

    /// Renews or takes the leadership of `server`, or gives it up.
    pub(super) async fn pulse(&self, server: &str, lead: bool) -> Result<Pulse, StoreError> {
        let mut call = script(&self.scripts.pulse, &[self.keys.meta.as_bytes(), self.keys.leader.as_bytes()]);
        call.arg(server).arg(if lead { LEADERSHIP.as_millis() as u64 } else { 0 });
        let (epoch, last, now, leads): (String, u64, u64, bool) = self.ask(&call).await?;
        let epoch = epoch.parse().ok().map(ServerEpoch);
        Ok(Pulse { epoch, last: Version(last), now: Duration::from_millis(now), leads })
    }

    /// The last change in the store.
    pub(super) async fn last(&self) -> Result<Version, StoreError> {
        let mut call = cmd("HGET");
        call.arg(&self.keys.meta).arg("count");
        Ok(Version(self.ask::<Option<u64>>(&call).await?.unwrap_or_default()))
    }

    pub(super) async fn commit(
        &self,
        change: &Change,
        decision: &Decision,
        epoch: ServerEpoch,
    ) -> Result<Committed, StoreError> {
        let keys = &self.keys;
        let held_key = keys.held(change.node());
        let mut call = script(
            &self.scripts.commit,
            &[keys.meta.as_bytes(), keys.nodes.as_bytes(), keys.log.as_bytes(), &held_key],
        );
        let mode = match change {
            Change::Announce(_) => "renew",
            Change::Withdraw(_) => "keep",
            Change::Forget(_) => "forget",
        };
        call.arg(epoch.0).arg(change.node().as_bytes()).arg(format!("{:016}", decision.known.0)).arg(mode);
        call.arg(record::record(decision, epoch)).arg(record::entry(change));
        call.arg(if decision.replaces { "replace" } else { "amend" });
        match change {
            Change::Withdraw(told) => call.arg(1).arg(told.artifact.as_bytes()),
            Change::Announce(_) | Change::Forget(_) => call.arg(0),
        };
        if let Change::Announce(Announcement { held, state, .. }) = change
            && *state != NodeState::Stale
        {
            for held in held {
                call.arg(held.artifact.artifact.as_bytes()).arg(record::held(held));
            }
        }
        let answer: Vec<String> = self.ask(&call).await?;
        let version = answer.get(1).and_then(|text| read_version(text.as_bytes()));
        match (answer.first().map(String::as_str), version) {
            (Some("done"), Some(version)) => Ok(Committed::Done(version)),
            (Some("conflict"), Some(version)) => Ok(Committed::Conflict(version)),
            (Some("epoch"), _) => Ok(Committed::OtherEpoch),
            _ => Err(StoreError::Damaged("the answer to a change")),
        }
    }

    /// The node with all that it holds; `None` if there is no such node.
    pub(super) async fn node(&self, id: NodeId) -> Result<Option<Record>, StoreError> {
        let mut call = cmd("HGET");
        call.arg(&self.keys.nodes).arg(id.as_bytes());
        let bytes: Option<Vec<u8>> = self.ask(&call).await?;
        match bytes {
            None => Ok(None),
            Some(bytes) => self.with_held(record::read_record(id, &bytes)?).await.map(Some),
        }
    }

    /// Some of the nodes, without what they hold, and where to go on; 0 is the beginning and the end.
    pub(super) async fn nodes(&self, cursor: u64) -> Result<(u64, Vec<Record>), StoreError> {
        let (next, fields) = self.scan(self.keys.nodes.as_bytes(), cursor).await?;
        let read = |(id, bytes): &(Vec<u8>, Vec<u8>)| {
            let id = NodeId::from_bytes(id).map_err(|_| StoreError::Damaged("a node's id"))?;
            record::read_record(id, bytes)
        };
        Ok((next, fields.iter().map(read).collect::<Result<_, _>>()?))
    }

    pub(super) async fn with_held(&self, mut record: Record) -> Result<Record, StoreError> {
        let key = self.keys.held(record.node.node);
        let mut held: BTreeMap<Vec<u8>, Held> = BTreeMap::new();
        let mut cursor = 0;
        loop {
            let (next, fields) = self.scan(&key, cursor).await?;
            for (artifact, bytes) in fields {
                let one = record::read_held(&artifact, &bytes)?;
                held.insert(artifact, one);
            }
            if held.len() > MAX_SCANNED {
                return Err(StoreError::Damaged("the number of holdings of a node"));
            }
            if next == 0 {
                break;
            }
            cursor = next;
        }
        record.node.held = held.into_values().collect();
        Ok(record)
    }

    async fn scan(&self, key: &[u8], cursor: u64) -> Result<(u64, Vec<(Vec<u8>, Vec<u8>)>), StoreError> {
        let mut call = cmd("HSCAN");
        call.arg(key).arg(cursor).arg("COUNT").arg(SCAN);
        self.ask(&call).await
    }

    async fn ask<T: redis::FromRedisValue>(&self, call: &Cmd) -> Result<T, StoreError> {
        call.query_async(&mut self.commands.clone()).await.map_err(failed)
    }
}

impl Tail {
    /// Lines after `after`, or none if there are none for `wait`.
    pub(super) async fn read(&mut self, after: Version, wait: Duration) -> Result<Vec<Line>, StoreError> {
        let mut call = cmd("XREAD");
        call.arg("COUNT").arg(ENTRIES).arg("BLOCK").arg(wait.as_millis().max(1) as u64);
        call.arg("STREAMS").arg(&self.log).arg(format!("{}-0", after.0));
        let asked =
            call.query_async::<Option<Vec<(Vec<u8>, Vec<(String, BTreeMap<String, Vec<u8>>)>)>>>(&mut self.connection);
        let answer = tokio::time::timeout(wait + DEADLINE, asked).await.map_err(|_| StoreError::Silent)?;
        let lines = answer.map_err(failed)?.unwrap_or_default().into_iter().flat_map(|(_, lines)| lines);
        lines.map(|(id, fields)| read_line(&id, &fields).ok_or(StoreError::Damaged("a line of the log"))?).collect()
    }
}

fn read_line(id: &str, fields: &BTreeMap<String, Vec<u8>>) -> Option<Result<Line, StoreError>> {
    let version = read_version(id.strip_suffix("-0")?.as_bytes())?;
    let node = NodeId::from_bytes(fields.get("node")?).ok()?;
    let at = Duration::from_millis(number(fields.get("at")?)?);
    let entry = record::read_entry(node, fields.get("entry")?);
    Some(entry.map(|entry| Line { version, node, at, entry }))
}

fn script(sha: &str, keys: &[&[u8]]) -> Cmd {
    let mut call = cmd("EVALSHA");
    call.arg(sha).arg(keys.len()).arg(keys);
    call
}

fn failed(error: RedisError) -> StoreError {
    if error.is_timeout() {
        return StoreError::Silent;
    }
    let io = error.is_io_error() || error.is_connection_dropped() || error.is_connection_refusal();
    let text = error.to_string();
    if io { StoreError::Unreachable(text) } else { StoreError::Refused(text) }
}
