//! Certificates and authorities are replaced while roles run: what an operator does, and what he is told before he has to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use warmd::agent::AgentConfig;
use warmd::config::{self, MetadataConfig};
use warmd::discovery::Mode;
use warmd::identity::{ClusterCa, NodeConfig, NodeTls, PEER_ALPN, PrivateKey, RPC_ALPN, server_name};
use warmd::local::Client;
use warmd::transport::{Endpoint, TransportConfig};

use super::harness::cluster::{Cluster, DEADLINE, certify, until};
use super::harness::ports;
use super::harness::program::Program;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The certificate that is shown to `caller` at `addr`, once both sides have admitted each other.
async fn shown(addr: SocketAddr, caller: &NodeTls, server: &NodeTls, alpn: &[u8]) -> std::io::Result<Vec<u8>> {
    let connector = TlsConnector::from(Arc::new(caller.client_config(alpn).unwrap()));
    let name = ServerName::try_from(server_name(server.node_id())).unwrap();
    let mut stream = connector.connect(name, TcpStream::connect(addr).await?).await?;
    // In TLS 1.3 the client is done before the server has looked at its certificate: whoever is admitted hears more.
    timeout(DEADLINE, stream.read_u8()).await??;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
}

fn tls(state: &Path) -> NodeTls {
    NodeConfig::default().tls(state).unwrap()
}

/// The certificate in a state directory, in DER.
fn certificate(state: &Path) -> Vec<u8> {
    tls(state).membership().chain().remove(0)
}

/// `warmd agent` by that file.
fn agent(cluster: &Cluster, config: &AgentConfig) -> (Program, PathBuf) {
    let file = cluster.path("agent.toml");
    std::fs::write(&file, config::render(config)).unwrap();
    (Program::start(&["agent", "--config", file.to_str().unwrap()], &[("WARMD_LOG_LEVEL", "info")]), file)
}

/// A state directory of a node that `ca` has certified, and that speaks with nodes of these authorities.
fn node_of(cluster: &Cluster, name: &str, ca: &ClusterCa, authorities: &str) -> PathBuf {
    let state = cluster.state_dir(name, &[]);
    certify(ca, &state, 30 * DAY);
    std::fs::write(state.join("ca.pem"), authorities).unwrap();
    state
}

async fn warmd(arguments: &[&str]) -> (Option<i32>, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_warmd")).args(arguments).output();
    let output = timeout(DEADLINE, output).await.expect("it does not end").unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_soon_is_told_of_and_replaced_while_connections_go_on() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config("a");
    config.transport.listen = ports::free();
    config.metrics.listen = Some(ports::free());
    let (state, socket) = (config.state_dir.clone(), config.local.socket.clone());
    cluster.certify(&state, DAY / 4);
    let before = tls(&state);
    let (mut program, _) = agent(&cluster, &config);
    let told = program.says("this node's certificate expires at ").await;
    assert!(told.contains("`warmd keys node`") && told.contains("SIGHUP"), "{told}");
    program.says_or_has_said("agent ready").await;
    let client = Client::connect(&socket).await.unwrap();
    let metric = async || {
        let mut http = super::harness::http::Connection::tcp(config.metrics.listen.unwrap(), None).await.unwrap();
        let page = http.ask(hyper::Method::GET, "/metrics", "").await.unwrap().text;
        let line = page.lines().find_map(|line| line.strip_prefix("warmd_certificate_expiry_timestamp_seconds "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let doctor = async || warmd(&["doctor", "--fleet", "--socket", socket.to_str().unwrap()]).await.1;
    until("the doctor says nothing", async || doctor().await.contains("its certificate expires at ")).await;
    let start =
        warmd(&["doctor", "--socket", socket.to_str().unwrap(), "--", "/nonexistent/vllm", "serve", "m"]).await.1;
    assert!(start.contains("problem: the agent: its certificate expires at "), "{start}");
    let ends = metric().await;

    let caller = tls(&cluster.state_dir("caller", &[]));
    let dial = TransportConfig { listen: ([127, 0, 0, 1], 0).into(), ..TransportConfig::default() };
    let endpoint = Endpoint::bind(&dial, &caller).unwrap();
    let old = endpoint.connect(before.node_id(), &[config.transport.listen]).await.unwrap();
    let old_shown = shown(config.transport.listen, &caller, &before, PEER_ALPN).await.unwrap();
    assert_eq!(old_shown, certificate(&state));

    cluster.certify(&state, 100 * DAY);
    program.hang_up().await.unwrap();
    let new_shown = shown(config.transport.listen, &caller, &before, PEER_ALPN).await.unwrap();
    assert!(new_shown == certificate(&state) && new_shown != old_shown, "new connections get the new one");
    let new = endpoint.connect(before.node_id(), &[config.transport.listen]).await.unwrap();
    assert!(!old.is_closed() && !new.is_closed(), "and those that were open go on");
    until("the metric is as before", async || metric().await > ends + 90 * DAY.as_secs()).await;
    until("the doctor still says so", async || !doctor().await.contains("certificate")).await;
    client.status().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_replaced_by_another_without_a_restart_of_agent_or_metadata_server() {
    let cluster = Cluster::without_server();
    let next = ClusterCa::create("next", &PrivateKey::generate().unwrap()).unwrap();
    let both = format!("{}{}", cluster.authority_pem(), next.certificate_pem());
    let newcomer = node_of(&cluster, "newcomer", &next, &both);
    let newcomer = tls(&newcomer);

    let mut config = cluster.config("a");
    config.transport.listen = ports::free();
    config.discovery.mode = Mode::Serverless;
    config.metrics.listen = None;
    let (mut agent, _) = agent(&cluster, &config);
    agent.says("agent ready").await;
    let server_state = cluster.state_dir("metadata", &["localhost"]);
    let mut server_config = MetadataConfig { state_dir: server_state.clone(), ..MetadataConfig::default() };
    server_config.server.listen = ports::free();
    let file = cluster.path("metadata.toml");
    std::fs::write(&file, config::render(&server_config)).unwrap();
    let arguments = ["metadata", "--config", file.to_str().unwrap(), "--log-level", "info"];
    let mut server = Program::start(&arguments, &[]);
    server.says("metadata server ready").await;

    let roles = [
        (&mut agent, &config.state_dir, config.transport.listen, PEER_ALPN),
        (&mut server, &server_state, server_config.server.listen, RPC_ALPN),
    ];
    for (program, state, addr, alpn) in roles {
        let role = tls(state);
        shown(addr, &newcomer, &role, alpn).await.expect_err("of an authority that is not known yet");
        let told = program.says("a node is refused: its certificate ").await;
        assert!(told.starts_with("is of another authority than this cluster's"), "{told}");
        std::fs::write(state.join("ca.pem"), &both).unwrap();
        program.hang_up().await.unwrap();
        shown(addr, &newcomer, &role, alpn).await.unwrap();

        // Too early: this node's own certificate is not of the new authority yet.
        std::fs::write(state.join("ca.pem"), next.certificate_pem()).unwrap();
        let refused = program.hang_up().await.unwrap_err();
        assert!(
            refused.contains("node.pem, with the authority in") && refused.contains("another authority"),
            "{refused}"
        );
        shown(addr, &newcomer, &role, alpn).await.unwrap();
        certify(&next, state, 30 * DAY);
        program.hang_up().await.unwrap();
        assert_eq!(shown(addr, &newcomer, &role, alpn).await.unwrap(), certificate(state));
        let of_old = cluster.state_dir("old", &[]);
        std::fs::write(of_old.join("ca.pem"), &both).unwrap();
        let of_old = tls(&of_old);
        shown(addr, &of_old, &tls(state), alpn).await.expect_err("the old authority's time is over");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_look_for_each_other_admit_by_the_authority_of_the_moment() {
    let cluster = Cluster::without_server();
    let next = ClusterCa::create("next", &PrivateKey::generate().unwrap()).unwrap();
    let both = format!("{}{}", cluster.authority_pem(), next.certificate_pem());
    node_of(&cluster, "b", &next, &both);
    let config = |name: &str| {
        let mut config = cluster.config(name);
        (config.discovery.mode, config.discovery.listen) = (Mode::Serverless, Some(([127, 0, 0, 1], 0).into()));
        config
    };
    let a = cluster.agent_with(config("a")).await;
    let mut of_b = config("b");
    of_b.discovery.bootstrap = vec![a.agent.discovery_addr().unwrap().into()];
    let b = cluster.agent_with(of_b).await;
    let turned_away = async || {
        let page = a.scrape().await;
        let line = page.lines().find_map(|line| line.strip_prefix("warmd_discovery_turned_away_total "));
        line.is_some_and(|count| count != "0")
    };
    until("nobody is turned away", turned_away).await;
    // The other side admits this one, and so is connected until it hears that it was turned away.
    assert_eq!(a.client.status().await.unwrap().connected_agents, 0);
    let of_a = config("a");
    std::fs::write(of_a.state_dir.join("ca.pem"), &both).unwrap();
    a.agent.take(a.agent.read_again(&of_a).await.unwrap());
    until("they do not meet", async || a.client.status().await.unwrap().connected_agents == 1).await;
    b.stop().await;
    a.stop().await;
}
