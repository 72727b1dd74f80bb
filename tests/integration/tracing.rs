//! One trace across processes, as an OpenTelemetry collector gets it.

mod collector;
mod secrets;

use std::net::SocketAddr;

use hyper::Method;
use warmd::config::{self, AgentFile, EngineSection, MetadataConfig, ServedEngine};
use warmd::identity::NodeConfig;
use warmd::telemetry::TracingConfig;

use self::collector::{Collector, Told};
use super::all_in_one;
use super::exec::{Pod, engine};
use super::harness::cluster::Cluster;
use super::harness::engine::own_proc;
use super::harness::http::Connection;
use super::harness::ports;
use super::harness::process::{AgentProcess, Role};
use super::harness::served::{Adapter, Fleet, until, waiting};

fn find<'t>(trace: &'t [Told], role: &str, name: &str) -> Option<&'t Told> {
    trace.iter().find(|told| told.role == role && told.span.name == name)
}

/// Each is the child of the one after it.
fn descends(trace: &[Told], line: &[(&str, &str)]) {
    let mut at = find(trace, line[0].0, line[0].1).unwrap_or_else(|| panic!("{:?} is not there", line[0]));
    for (role, name) in &line[1..] {
        let parent = trace.iter().find(|told| told.span.id == at.span.parent);
        let parent = parent.unwrap_or_else(|| panic!("{} {} has no parent in the trace", at.role, at.span.name));
        assert_eq!((parent.role.as_str(), parent.span.name.as_str()), (*role, *name), "above {}", at.span.name);
        at = parent;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_start_is_one_trace_across_pod_agent_holder_and_metadata_server() {
    if !own_proc() {
        return;
    }
    let collector = Collector::start().await;
    let mut cluster = Cluster::without_server();
    let state = cluster.state_dir("metadata", &["localhost", "127.0.0.1"]);
    let free = ports::free();
    let mut server = MetadataConfig { state_dir: state.clone(), tracing: collector.config(), ..Default::default() };
    server.server.listen = free;
    let file = state.join("warmd.toml");
    std::fs::write(&file, config::render(&server)).unwrap();
    let _server = Role::start(&[], &["metadata", "--config", file.to_str().unwrap()], &state).await;
    let node = NodeConfig::default().tls(&state).unwrap().node_id();
    cluster.ask(format!("{node}@{free}").parse().unwrap());
    let agent = async |name: &str| {
        let mut config = cluster.config(name);
        (config.metrics.listen, config.tracing) = (None, collector.config());
        AgentProcess::start(&config).await
    };
    let (_a, _b) = (agent("a").await, agent("b").await);
    let cold = Pod::new(&cluster, "a").run(&engine(), "vllm-aot 59af47c66413: published").await;
    assert_eq!(cold.code, Some(0), "{}", cold.stderr);

    let mut pod = Pod::new(&cluster, "b");
    pod.within = collector.environment();
    let warm = pod.run(&engine(), "warmd: ready after").await;
    assert_eq!(warm.code, Some(0), "{}", warm.stderr);
    assert!(warm.stderr.contains("vllm-aot: warm"), "{}", warm.stderr);

    let (pod, agent, metadata) = ("warmd", "warmd-agent", "warmd-metadata");
    let needed = [(pod, "start"), (pod, "engine start"), (pod, "install"), (agent, "fetch"), (agent, "holder")];
    let needed = [&needed[..], &[(agent, "serve"), (metadata, "Lookup")]].concat();
    let is_whole = |of: &[Told]| {
        let holder = find(of, agent, "holder");
        let is_served = |told: &Told| holder.is_some_and(|holder| told.span.parent == holder.span.id);
        let has_parent =
            |told: &Told| told.span.parent.is_empty() || of.iter().any(|other| other.span.id == told.span.parent);
        // A span is sent when it ends, which is before its parent's end.
        let is_complete = needed.iter().all(|(role, name)| find(of, role, name).is_some()) && of.iter().all(has_parent);
        is_complete && of.iter().any(is_served)
    };
    let trace = collector.trace("start", is_whole).await;
    let family = [(pod, "family"), (pod, "warm"), (pod, "start")];
    let asked = [&[(agent, "Warm")][..], &family].concat();
    descends(&trace, &[&[(pod, "install")][..], &family].concat());
    descends(&trace, &[&[(agent, "holder"), (agent, "fetch")][..], &asked].concat());
    descends(&trace, &[(pod, "engine start"), (pod, "start")]);
    descends(&trace, &[(metadata, "Lookup"), (agent, "lookup")]);
    // What the holder gave is below what was asked of it.
    let holder = find(&trace, agent, "holder").unwrap();
    let served = trace.iter().find(|told| told.span.parent == holder.span.id).unwrap();
    assert_eq!(served.span.name, "serve");
    assert!(served.attribute("artifact").is_some() && served.span.end >= served.span.start);
    let roots = trace.iter().filter(|told| told.span.parent.is_empty());
    assert_eq!(roots.map(|told| told.span.name.as_str()).collect::<Vec<_>>(), ["start"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_of_an_adapter_is_in_the_trace_of_the_request_that_asked_for_it() {
    if !own_proc() {
        return;
    }
    let collector = Collector::start().await;
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let engine = EngineSection {
        command: fleet.command(""),
        cache_root: Some(fleet.cluster.path("caches")),
        reserve_bytes: 0,
        ..EngineSection::default()
    };
    let served = Some(ServedEngine { engine, serve: fleet.config() });
    let mut file = AgentFile { agent: fleet.cluster.config("all"), served };
    file.agent.tracing = collector.config();
    let mut process = all_in_one::start(&fleet, &file);
    let proxy: SocketAddr = process.says("clients connect to http://").await.parse().unwrap();
    let ask = async |method, path: &str, body: String| {
        Connection::tcp(proxy, None).await.unwrap().ask(method, path, &body).await.unwrap()
    };
    until("it is not ready", async || ask(Method::GET, "/health", String::new()).await.status == 200).await;
    ask(Method::POST, "/v1/completions", waiting("sql").to_string()).await.weights();
    let told = process.says("traceparent of /v1/load_lora_adapter is ").await;
    let needed = ["request", "load adapter", "register adapter", "Warm", "fetch"];
    let is_whole = |of: &[Told]| needed.iter().all(|name| of.iter().any(|told| told.span.name == *name));
    let trace = collector.trace("load adapter", is_whole).await;
    let role = "warmd-agent";
    descends(&trace, &[(role, "load adapter"), (role, "request")]);
    descends(&trace, &[(role, "register adapter"), (role, "request")]);
    let register = &find(&trace, role, "register adapter").unwrap().span;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(told.trim(), format!("00-{}-{}-01", hex(&register.trace), hex(&register.id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_collector_a_start_goes_on_and_says_so_once() {
    if !own_proc() {
        return;
    }
    let (_gone, gone) = ports::deaf();
    let cluster = Cluster::start().await;
    let mut config = cluster.config("a");
    config.tracing.endpoint = Some(format!("http://{gone}").parse().unwrap());
    let node = AgentProcess::start(&config).await;
    let mut pod = Pod::new(&cluster, "a");
    pod.within = vec!["env".to_owned(), format!("WARMD_TRACING_ENDPOINT=http://{gone}")];
    let ran = pod.run(&engine(), "vllm-aot 59af47c66413: published").await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("traces are dropped").count(), 1, "{}", ran.stderr);
    assert_eq!(node.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_reach_a_collector_over_grpc_with_level_role_and_fields() {
    let collector = Collector::start().await;
    let cluster = Cluster::start().await;
    let mut config = cluster.config("a");
    config.tracing = TracingConfig { logs: true, ..collector.config() };
    let node = AgentProcess::start(&config).await;
    let ready = collector.line("agent ready").await;
    let id = config.node.tls(&config.state_dir).unwrap().node_id().to_string();
    assert_eq!((ready.role.as_str(), ready.attribute("node")), ("warmd-agent", Some(id.as_str())));
    assert_eq!((ready.record.severity, ready.record.level.as_str()), (9, "INFO"));
    assert!(ready.record.time > 0);
    cluster.write_policy(0, "nonsense = true");
    node.hang_up();
    let refused = collector.line("the configuration is not taken").await;
    assert_eq!((refused.record.severity, refused.record.level.as_str()), (17, "ERROR"));
    assert_eq!(node.terminate().await, Some(0));
    collector.line("agent ended").await;
}

/// A collector that takes connections and nothing else is worse than none: exports wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_gone_or_does_not_answer_neither_slows_nor_stops_a_role() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_gone, gone) = ports::deaf();
    let cluster = Cluster::start().await;
    for (name, endpoint) in [("silent", silent.local_addr().unwrap()), ("gone", gone)] {
        let mut config = cluster.config(name);
        config.metrics.listen = Some(ports::free());
        config.tracing.endpoint = Some(format!("http://{endpoint}").parse().unwrap());
        // So few that they run over, and a wait that no test has time for.
        (config.tracing.queue, config.tracing.timeout) = (4, std::time::Duration::from_secs(3600));
        let node = AgentProcess::start(&config).await;
        for _ in 0..20 {
            node.hang_up();
            node.client.status().await.unwrap();
        }
        until("nothing is dropped and counted", async || {
            node.hang_up();
            let mut http = Connection::tcp(config.metrics.listen.unwrap(), None).await.unwrap();
            let page = http.ask(Method::GET, "/metrics", "").await.unwrap().text;
            let dropped = page.lines().filter(|line| line.starts_with("warmd_tracing_dropped_total{"));
            dropped.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>() > 0
        })
        .await;
        assert_eq!(node.terminate().await, Some(0), "{name}");
    }
}
