//! What a configuration needs of the machine: files that can be read, certificates and policies that are in force, ports
//! that are free, a collector that is there. Looked for before anything is started. Blocks.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::time::Duration;

use super::problem::{Problem, Problems, Severity};
use super::{AgentFile, ConfigError, Environmental, MetadataConfig, ServedEngine};
use crate::agent::{AgentConfig, GpuSection};
use crate::discovery::Mode;
use crate::identity::trust::read_root;
use crate::identity::{CertificateState, NodeConfig, PrivateKey, RENEW, TrustConfig, UnixTime};
use crate::local::chain;
use crate::serve::serving::ServeConfig;
use crate::telemetry::TracingConfig;
use crate::transport::Carriers;
use crate::web::WebSection;

/// For a connection to a collector.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// What a start fails by, or without which it does nothing useful.
    Start,
    /// And whom it would only miss later.
    All,
}

pub fn agent(file: &AgentFile, scope: Scope) -> Vec<Problem> {
    let AgentConfig {
        node, trust, signer, state_dir, transport, metrics, web, tracing, discovery, metadata, gpu, ..
    } = &file.agent;
    let mut found = Vec::new();
    identity(&mut found, node, state_dir);
    if discovery.mode != Mode::Serverless && metadata.servers.is_empty() {
        let text = "there is no server to ask: say at least one, or `discovery.mode = \"serverless\"`";
        found.push(Problem::error(&["metadata.servers"], text));
    }
    if let Some(signer) = signer
        && let Err(error) = PrivateKey::load(signer)
    {
        let text = format!("{}. Without the line nothing is published here", chain(&error));
        found.push(Problem::error(&["signer"], text));
    }
    policy(&mut found, trust);
    let udp = Some(transport.listen).filter(|_| transport.carrier != Carriers::Tcp);
    let tcp = Some(transport.listen).filter(|_| transport.carrier != Carriers::Quic);
    free(&mut found, "transport.listen", udp, "UDP", |addr| UdpSocket::bind(addr).map(drop));
    listens(&mut found, "transport.listen", tcp);
    let discovers = discovery.listen.filter(|_| discovery.mode != Mode::Server);
    listens(&mut found, "discovery.listen", discovers);
    listens(&mut found, "metrics.listen", metrics.listen);
    page(&mut found, web);
    exporter(&mut found, tracing, scope);
    gpus(&mut found, gpu);
    if let Some(ServedEngine { serve, .. }) = &file.served {
        found.extend(self::serve(serve, scope).into_iter().map(|problem| problem.within("serve")));
    }
    found
}

pub fn metadata(config: &MetadataConfig, scope: Scope) -> Vec<Problem> {
    let mut found = Vec::new();
    identity(&mut found, &config.node, &config.state_dir);
    if let Some(root) = &config.trust.root
        && let Err(error) = read_root(root)
    {
        found.push(Problem::error(&["trust.root"], format!("{}: `warmd policy root` writes it", chain(&error))));
    }
    readable(&mut found, "redis.password_file", config.redis.password_file.as_deref());
    listens(&mut found, "server.listen", Some(config.server.listen));
    let compatible = Some(config.compatibility.listen.addr()).filter(|_| config.compatibility.model_express);
    listens(&mut found, "compatibility.listen", compatible);
    listens(&mut found, "metrics.listen", config.metrics.listen);
    page(&mut found, &config.web);
    exporter(&mut found, &config.tracing, scope);
    found
}

pub fn serve(config: &ServeConfig, scope: Scope) -> Vec<Problem> {
    let mut found = Vec::new();
    readable(&mut found, "auth.keys.file", config.auth.keys.as_ref().map(|keys| keys.file.as_path()));
    readable(&mut found, "auth.jwt.keys", config.auth.jwt.as_ref().and_then(|jwt| jwt.keys.as_deref()));
    listens(&mut found, "listen", config.listen);
    listens(&mut found, "metrics.listen", config.metrics.listen);
    exporter(&mut found, &config.tracing, scope);
    found
}

pub fn hook(config: &Environmental, scope: Scope) -> Vec<Problem> {
    let mut found = Vec::new();
    exporter(&mut found, &config.tracing, scope);
    found
}

/// Logs what a role can start without, and fails on the rest.
pub fn require(found: Vec<Problem>) -> Result<(), ConfigError> {
    let (errors, warnings): (Vec<_>, Vec<_>) = found.into_iter().partition(|one| one.severity == Severity::Error);
    for problem in warnings {
        tracing::warn!(key = problem.keys.join(", "), "{problem}");
    }
    if errors.is_empty() { Ok(()) } else { Err(ConfigError::Wrong(Problems(errors))) }
}

fn identity(found: &mut Vec<Problem>, node: &NodeConfig, state: &Path) {
    let keys = ["node.certificate", "node.key", "node.ca", "state_dir"];
    match node.tls(state) {
        Err(error) => {
            found.push(Problem::error(&keys, chain(&error)));
        }
        Ok(tls) => {
            let text = match tls.certificate(UnixTime::now()) {
                CertificateState::Good => return,
                soon @ CertificateState::EndsSoon(_) => format!("{}: the certificate {soon}", node.files(state, None)),
                CertificateState::Bad(reason) => format!(
                    "nobody will speak with this node: {}: its certificate {reason}",
                    node.files(state, Some(&reason))
                ),
            };
            found.push(Problem::warning(&keys, format!("{text}. {RENEW}")));
        }
    }
}

fn policy(found: &mut Vec<Problem>, trust: &TrustConfig) {
    if let Some(root) = &trust.root {
        if let Err(error) = read_root(root) {
            found.push(Problem::error(&["trust.root"], format!("{}: `warmd policy root` writes it", chain(&error))));
        }
        return;
    }
    match trust.load(None) {
        Err(error) => {
            let text =
                format!("{}: `warmd policy init` writes one, `warmd policy check` says what is wrong", chain(&error));
            found.push(Problem::error(&["trust.policy"], text));
        }
        Ok(Some(policy)) => {
            if let Some(reason) = policy.lapse(UnixTime::now()) {
                let text = format!("nothing will be fetched: {reason}. Put a newer one in place");
                found.push(Problem::warning(&["trust.policy"], text));
            }
        }
        Ok(None) => {}
    }
}

fn page(found: &mut Vec<Problem>, web: &WebSection) {
    listens(found, "web.listen", web.listen);
    if let Err(error) = web.check() {
        found.push(Problem::error(&["web.token_file", "web.listen"], chain(&error)));
    }
}

fn readable(found: &mut Vec<Problem>, key: &str, path: Option<&Path>) {
    let Some(path) = path else { return };
    if let Err(error) = std::fs::File::open(path) {
        let text = format!("read {}: {error}: it must be there, and readable for this user", path.display());
        found.push(Problem::error(&[key], text));
    }
}

fn listens(found: &mut Vec<Problem>, key: &str, addr: Option<SocketAddr>) {
    free(found, key, addr, "TCP", |addr| TcpListener::bind(addr).map(drop));
}

fn free(
    found: &mut Vec<Problem>,
    key: &str,
    addr: Option<SocketAddr>,
    of: &str,
    bind: impl Fn(SocketAddr) -> std::io::Result<()>,
) {
    let Some(addr) = addr.filter(|addr| addr.port() != 0) else { return };
    if let Err(error) = bind(addr) {
        let (is_taken, way_out) = match error.kind() {
            ErrorKind::AddrInUse => (true, "stop what is there, or choose another one"),
            ErrorKind::AddrNotAvailable => {
                (false, "no interface of this machine has this address: say one that it has, or 0.0.0.0 for all")
            }
            ErrorKind::PermissionDenied => (false, "choose a port above 1023, or let this user have it"),
            _ => (false, "choose another one"),
        };
        let text = format!("listen on {addr} ({of}): {error}: {way_out}");
        found.push(Problem { is_taken, ..Problem::error(&[key], text) });
    }
}

fn gpus(found: &mut Vec<Problem>, gpu: &GpuSection) {
    let Some(program) = gpu.program.as_deref().filter(|program| gpu.enabled && !program.is_file()) else { return };
    let text = format!(
        "there is no program {}, so nothing is told of GPUs: name the one that is there, or leave the line out to look in \
         PATH",
        program.display()
    );
    found.push(Problem::warning(&["gpu.program"], text));
}

fn exporter(found: &mut Vec<Problem>, tracing: &TracingConfig, scope: Scope) {
    if let Err(error) = tracing.check() {
        found.push(Problem::error(&["tracing.headers_file"], chain(&error)));
    }
    let Some(endpoint) = tracing.endpoint.as_ref().filter(|_| scope == Scope::All) else { return };
    let addrs = endpoint.authority().to_socket_addrs().into_iter().flatten();
    let is_there = addrs.into_iter().any(|addr| TcpStream::connect_timeout(&addr, PATIENCE).is_ok());
    if !is_there {
        let text = format!(
            "no collector answers at {endpoint}: start it, or leave `endpoint` out; until then traces are dropped"
        );
        found.push(Problem::warning(&["tracing.endpoint"], text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(found: &[Problem], severity: Severity) -> Vec<&str> {
        found.iter().filter(|one| one.severity == severity).map(|one| one.keys[0].as_str()).collect()
    }

    #[test]
    fn all_that_a_metadata_server_lacks_is_named_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = MetadataConfig { state_dir: dir.path().to_owned(), ..MetadataConfig::default() };
        config.server.listen = taken.local_addr().unwrap();
        config.trust.root = Some(dir.path().join("root.json"));
        config.redis.password_file = Some(dir.path().join("password"));
        config.web.listen = Some("0.0.0.0:0".parse().unwrap());
        config.tracing.headers_file = Some(dir.path().join("headers"));
        let found = metadata(&config, Scope::Start);
        let expected = [
            "node.certificate",
            "trust.root",
            "redis.password_file",
            "server.listen",
            "web.token_file",
            "tracing.headers_file",
        ];
        assert_eq!(keys(&found, Severity::Error), expected, "{found:#?}");
        assert!(found[3].text.contains("stop what is there") && found[3].is_taken);
        assert!(require(found).is_err());
    }

    #[test]
    fn a_program_that_is_named_for_gpus_and_is_not_there_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let told = |gpu: GpuSection| {
            let mut found = Vec::new();
            gpus(&mut found, &gpu);
            keys(&found, Severity::Warning).len()
        };
        let named = |path: &Path| GpuSection { program: Some(path.to_owned()), ..GpuSection::default() };
        assert_eq!(told(GpuSection::default()), 0);
        assert_eq!(told(named(&dir.path().join("none"))), 1);
        assert_eq!(told(GpuSection { enabled: false, ..named(&dir.path().join("none")) }), 0);
        assert_eq!(told(named(&std::env::current_exe().unwrap())), 0);
    }

    #[test]
    fn of_an_address_that_this_machine_has_not_nobody_is_to_be_stopped() {
        // For documentation (RFC 5737).
        let config = ServeConfig { listen: Some("192.0.2.7:8000".parse().unwrap()), ..ServeConfig::default() };
        let found = serve(&config, Scope::Start);
        assert_eq!(keys(&found, Severity::Error), ["listen"]);
        assert!(found[0].text.contains("no interface of this machine") && !found[0].text.contains("stop"), "{found:?}");
        assert!(!found[0].is_taken);
    }

    #[test]
    fn a_collector_that_is_not_there_is_a_warning_of_a_thorough_look() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut config = ServeConfig::default();
        config.tracing.endpoint = Some(format!("http://{gone}").parse().unwrap());
        assert_eq!(serve(&config, Scope::Start), []);
        let found = serve(&config, Scope::All);
        assert_eq!(keys(&found, Severity::Warning), ["tracing.endpoint"]);
        assert!(require(found).is_ok());
    }
}
