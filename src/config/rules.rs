//! What a configuration cannot mean, whatever its form: values out of range, and settings that exclude each other. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use super::problem::Problem;
use super::{AgentFile, MetadataConfig, ServedEngine};
use crate::agent::AgentConfig;
use crate::discovery::Mode;
use crate::identity::TrustConfig;
use crate::local::MAX_SOCKET_PATH;
use crate::protocol::metadata::Endpoint;
use crate::serve::serving::ServeConfig;
use crate::telemetry::{LogConfig, TracingConfig};
use crate::transport::Carriers;

/// Collects what does not hold.
#[derive(Default)]
struct Rules(Vec<Problem>);

impl Rules {
    fn require(&mut self, holds: bool, keys: &[&str], otherwise: &str) {
        if !holds {
            self.0.push(Problem::error(keys, otherwise));
        }
    }

    fn at_least_one(&mut self, numbers: &[(&str, u64)]) {
        for (key, number) in numbers {
            self.require(*number > 0, &[key], "must be at least 1");
        }
    }

    fn takes_time(&mut self, times: &[(&str, Duration)]) {
        for (key, time) in times {
            self.require(!time.is_zero(), &[key], "must be longer than 0s");
        }
    }

    /// Of TCP. Port 0 takes any free one.
    fn apart(&mut self, listeners: &[(&str, Option<SocketAddr>)]) {
        let bound = listeners.iter().filter_map(|(key, addr)| Some((*key, (*addr)?))).filter(|(_, a)| a.port() != 0);
        let bound: Vec<(&str, SocketAddr)> = bound.collect();
        for (at, (key, addr)) in bound.iter().enumerate() {
            let meets = |other: &&(&str, SocketAddr)| {
                let any = addr.ip().is_unspecified() || other.1.ip().is_unspecified();
                other.1.port() == addr.port() && (any || other.1.ip() == addr.ip())
            };
            if let Some((other, _)) = bound[..at].iter().find(meets) {
                let text = format!("{addr} is where `{other}` listens too: choose another port for one of them");
                self.0.push(Problem::error(&[key, other], text));
            }
        }
    }

    fn log(&mut self, log: &LogConfig) {
        if let Err(error) = log.check() {
            let text = format!("{error}: expected a level such as \"info\", or \"warmd=debug,quinn=warn\"");
            self.0.push(Problem::error(&["log.level"], text));
        }
    }

    fn tracing(&mut self, tracing: &TracingConfig) {
        let is_share = (0.0..=1.0).contains(&tracing.sample);
        self.require(is_share, &["tracing.sample"], "must be 0 to 1: 0.1 is every tenth start");
        self.at_least_one(&[("tracing.queue", tracing.queue as u64)]);
        self.takes_time(&[("tracing.timeout", tracing.timeout)]);
    }

    fn trust(&mut self, trust: &TrustConfig) {
        let keys = ["trust.threshold", "trust.roots"];
        self.require(trust.threshold > 0, &keys, "must be at least 1");
        let enough = trust.roots.is_empty() || trust.threshold <= trust.roots.len();
        self.require(enough, &keys, "no policy can have more signatures than there are `trust.roots`");
        let needed = !trust.roots.is_empty() || trust.threshold <= 1;
        self.require(needed, &keys, "needs the keys in `trust.roots` that it counts");
    }
}

pub(super) fn tracing(config: &TracingConfig) -> Vec<Problem> {
    let mut rules = Rules::default();
    rules.tracing(config);
    rules.0
}

pub(super) fn agent(config: &AgentConfig) -> Vec<Problem> {
    let mut rules = Rules::default();
    provide(&mut rules, config);
    discovery(&mut rules, config);
    for problem in config.transport.problems() {
        let key = problem.split('`').nth(1).unwrap_or("transport");
        let text = problem.split_once("` ").map_or(problem, |(_, text)| text);
        rules.0.push(Problem::error(&[key], text));
    }
    let fits = config.local.socket.as_os_str().len() <= MAX_SOCKET_PATH;
    rules.require(fits, &["local.socket"], &format!("too long for a socket: at most {MAX_SOCKET_PATH} bytes"));
    let has_peers = config.advertise.iter().all(|addr| Endpoint::new(*addr).is_ok());
    let dialled = "peers cannot dial port 0, or an address that stands for all: name one of this node's";
    rules.require(has_peers, &["advertise"], dialled);
    rules.require(
        config.origin.push.is_empty() || config.origin.url.is_some(),
        &["origin.push", "origin.url"],
        "needs `origin.url`, which says where to",
    );
    rules.at_least_one(&[("store.max_bytes", config.store.max_bytes.unwrap_or(1))]);
    rules.takes_time(&[
        ("fetch_deadline", config.fetch_deadline),
        ("metadata.deadline", config.metadata.deadline),
        ("discovery.deadline", config.discovery.deadline),
        ("origin.deadline", config.origin.deadline),
        ("origin.find_deadline", config.origin.find_deadline),
    ]);
    let peers = Some(config.transport.listen).filter(|_| config.transport.carrier != Carriers::Quic);
    rules.apart(&[
        ("transport.listen", peers),
        ("discovery.listen", config.discovery.listen),
        ("metrics.listen", config.metrics.listen),
        ("web.listen", config.web.listen),
    ]);
    rules.takes_time(&[("web.session", config.web.session)]);
    rules.trust(&config.trust);
    rules.log(&config.log);
    rules.tracing(&config.tracing);
    rules.0
}

fn provide(rules: &mut Rules, config: &AgentConfig) {
    let provide = &config.provide;
    let is_share = provide.link_share.is_none_or(|share| share > 0.0 && share <= 1.0);
    rules.require(is_share, &["provide.link_share"], "must be above 0 and at most 1: 0.5 is half of the link");
    let keys = ["provide.max_rate"];
    rules.require(provide.max_rate != Some(0), &keys, "0 would send nothing: say `enabled = false`, or leave it out");
    rules.at_least_one(&[
        ("provide.upload_slots", provide.upload_slots.into()),
        ("provide.max_connections", provide.max_connections.into()),
    ]);
}

fn discovery(rules: &mut Rules, config: &AgentConfig) {
    let discovery = &config.discovery;
    let asks_server = discovery.mode != Mode::Serverless || config.metadata.servers.is_empty();
    let keys = ["metadata.servers", "discovery.mode"];
    rules.require(asks_server, &keys, "nobody asks them in mode \"serverless\": leave them out, or say \"hybrid\"");
    let asks_agents = discovery.mode != Mode::Server || (discovery.bootstrap.is_empty() && !discovery.mdns);
    let keys = [if discovery.mdns { "discovery.mdns" } else { "discovery.bootstrap" }, "discovery.mode"];
    rules.require(asks_agents, &keys, "no agent is asked in mode \"server\": leave it out, or say \"hybrid\"");
}

pub(super) fn metadata(config: &MetadataConfig) -> Vec<Problem> {
    let mut rules = Rules::default();
    let (server, compatibility) = (&config.server, &config.compatibility);
    rules.require(
        server.lease >= 2 * server.heartbeat,
        &["server.lease", "server.heartbeat"],
        "must be two heartbeats or more: a node that was not heard once would be gone",
    );
    rules.require(
        server.forget >= server.lease,
        &["server.forget", "server.lease"],
        "must not be shorter than `server.lease`",
    );
    rules.takes_time(&[
        ("server.heartbeat", server.heartbeat),
        ("compatibility.lease", compatibility.lease),
        ("compatibility.forget", compatibility.forget),
    ]);
    rules.at_least_one(&[
        ("server.max_nodes", server.max_nodes as u64),
        ("server.max_connections", server.max_connections as u64),
        ("server.max_requests", server.max_requests as u64),
        ("compatibility.max_workers", compatibility.max_workers as u64),
        ("compatibility.max_connections", compatibility.max_connections as u64),
    ]);
    let redis = &config.redis;
    let is_shared = redis.url.is_some() || (redis.user.is_none() && redis.password_file.is_none());
    let keys = [if redis.user.is_some() { "redis.user" } else { "redis.password_file" }, "redis.url"];
    rules.require(is_shared, &keys, "needs `redis.url`, which says where to");
    rules.apart(&[
        ("server.listen", Some(server.listen)),
        ("compatibility.listen", Some(compatibility.listen.addr()).filter(|_| compatibility.model_express)),
        ("metrics.listen", config.metrics.listen),
        ("web.listen", config.web.listen),
    ]);
    rules.takes_time(&[("web.session", config.web.session)]);
    rules.log(&config.log);
    rules.tracing(&config.tracing);
    rules.0
}

pub(super) fn serve(config: &ServeConfig) -> Vec<Problem> {
    let mut rules = Rules::default();
    let (supervision, adapters, proxy) = (&config.supervision, &config.adapters, &config.proxy);
    rules.require(
        supervision.backoff_first <= supervision.backoff_most,
        &["supervision.backoff_first", "supervision.backoff_most"],
        "must not be longer than `supervision.backoff_most`",
    );
    rules.require(
        proxy.max_body_bytes <= proxy.max_held_bytes,
        &["proxy.max_body_bytes", "proxy.max_held_bytes"],
        "must not be more than `proxy.max_held_bytes`: no such body could be held",
    );
    rules.takes_time(&[
        ("supervision.prepare_timeout", supervision.prepare_timeout),
        ("supervision.ready_timeout", supervision.ready_timeout),
        ("supervision.health_every", supervision.health_every),
        ("adapters.desired_every", adapters.desired_every),
        ("adapters.refresh", adapters.refresh),
        ("adapters.reconcile", adapters.reconcile),
        ("adapters.look", adapters.look),
        ("adapters.fetch", adapters.fetch),
        ("adapters.prepare", adapters.prepare),
        ("adapters.register", adapters.register),
        ("proxy.connect", proxy.connect),
        ("proxy.first_byte", proxy.first_byte),
        ("proxy.idle", proxy.idle),
    ]);
    rules.at_least_one(&[
        ("supervision.health_failures", supervision.health_failures.into()),
        ("supervision.crash_loop_crashes", supervision.crash_loop_crashes as u64),
        ("adapters.max_loading", adapters.max_loading as u64),
        ("adapters.max_preparing", adapters.max_preparing as u64),
        ("adapters.max_registering", adapters.max_registering as u64),
        ("proxy.max_connections", proxy.max_connections as u64),
        ("proxy.max_requests", proxy.max_requests as u64),
        ("limits.max_requests", config.limits.max_requests as u64),
    ]);
    for (key, reason) in config.auth.problems() {
        rules.0.push(Problem::error(&[&format!("auth.{key}")], reason));
    }
    rules.apart(&[("listen", config.listen), ("metrics.listen", config.metrics.listen)]);
    rules.log(&config.log);
    rules.tracing(&config.tracing);
    rules.0
}

pub(super) fn agent_file(file: &AgentFile) -> Vec<Problem> {
    let mut found = agent(&file.agent);
    if let Some(ServedEngine { serve: config, .. }) = &file.served {
        found.extend(serve(config).into_iter().map(|problem| problem.within("serve")));
        let mut rules = Rules::default();
        rules.apart(&[
            ("transport.listen", Some(file.agent.transport.listen)),
            ("metrics.listen", file.agent.metrics.listen),
            ("web.listen", file.agent.web.listen),
            ("serve.listen", config.listen),
            ("serve.metrics.listen", config.metrics.listen),
        ]);
        found.extend(rules.0.into_iter().filter(|problem| problem.keys[0].starts_with("serve.")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, ConfigError, ConfigFile};

    fn wrong<T: ConfigFile>(text: &str) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        match config::load::<T>(Some(file.path()), Vec::<(String, String)>::new()) {
            Ok(_) => Vec::new(),
            Err(ConfigError::Wrong(problems)) => problems.0.into_iter().map(|one| one.keys[0].clone()).collect(),
            Err(other) => panic!("{text}: {other}"),
        }
    }

    #[test]
    fn defaults_contradict_nothing() {
        assert_eq!(agent_file(&AgentFile::default()), []);
        assert_eq!(metadata(&MetadataConfig::default()), []);
        assert_eq!(serve(&ServeConfig::default()), []);
    }

    #[test]
    fn what_an_agent_cannot_mean_is_named() {
        let table = [
            ("[provide]\nlink_share = 1.5\n", "provide.link_share"),
            ("[provide]\nmax_rate = 0\n", "provide.max_rate"),
            ("[transport]\nmax_datagram = 9000\n", "transport.max_datagram"),
            ("[discovery]\nmode = \"serverless\"\n[metadata]\nservers = [\"a:1\"]\n", "metadata.servers"),
            ("[discovery]\nmode = \"server\"\nmdns = true\n", "discovery.mdns"),
            ("[origin]\npush = [\"triton\"]\n", "origin.push"),
            ("[trust]\nthreshold = 2\n", "trust.threshold"),
            ("[metrics]\nlisten = \"127.0.0.1:4780\"\n", "metrics.listen"),
            ("[tracing]\nsample = 2.0\n", "tracing.sample"),
            ("[log]\nlevel = \"warmd=loud\"\n", "log.level"),
            ("advertise = [\"0.0.0.0:4780\"]\n", "advertise"),
            ("[web]\nlisten = \"127.0.0.1:4780\"\n", "web.listen"),
            ("[web]\nsession = \"0s\"\n", "web.session"),
        ];
        for (text, key) in table {
            assert_eq!(wrong::<AgentFile>(text), [key], "{text}");
        }
        let all: String = "[provide]\nlink_share = 0.0\nupload_slots = 0\n[tracing]\nsample = -1.0\n".to_owned();
        assert_eq!(wrong::<AgentFile>(&all), ["provide.link_share", "provide.upload_slots", "tracing.sample"]);
    }

    #[test]
    fn what_a_server_cannot_mean_is_named() {
        assert_eq!(wrong::<MetadataConfig>("[server]\nlease = \"15s\"\n"), ["server.lease"]);
        assert_eq!(wrong::<MetadataConfig>("[server]\nforget = \"1s\"\n"), ["server.forget"]);
        assert_eq!(wrong::<MetadataConfig>("[redis]\nuser = \"u\"\n"), ["redis.user"]);
        assert_eq!(wrong::<MetadataConfig>("[web]\nlisten = \"127.0.0.1:4781\"\n"), ["web.listen"]);
        assert_eq!(wrong::<MetadataConfig>("[metrics]\nlisten = \"127.0.0.1:4781\"\n"), ["metrics.listen"]);
        assert_eq!(wrong::<ServeConfig>("[supervision]\nbackoff_first = \"1h\"\n"), ["supervision.backoff_first"]);
        assert_eq!(wrong::<ServeConfig>("[auth.jwt]\nissuer = \"\"\naudiences = []\n"), ["auth.jwt.issuer"]);
        let all_in_one =
            "[engine]\ncommand = [\"v\"]\n[serve]\nlisten = \"0.0.0.0:4780\"\n[serve.proxy]\nidle = \"0s\"\n";
        assert_eq!(wrong::<AgentFile>(all_in_one), ["serve.proxy.idle", "serve.listen"]);
    }
}
