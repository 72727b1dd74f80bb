//! What the proxy adds to an engine that takes no time, beside what nginx and HAProxy add as plain reverse proxies.

pub(crate) mod engine;
mod load;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::Options;
use crate::harness::{Contestant, Killed, Report, Row, Sample, free_port, fresh, interleave, process_cpu};
use crate::http;
use crate::warmd::Cluster;
use load::{Ask, quantile};

const CLIENTS: usize = 32;
const STREAMS: usize = 64;
const ABORTS: usize = 10_000;
const DIRECT: &str = "the engine itself";
const NGINX: &str = "nginx";
const NGINX_UNIX: &str = "nginx, Unix socket";
const PLAIN_TCP: &str = "warmd, TCP";
/// As `warmd serve` reaches the engine that it has started.
const PLAIN: &str = "warmd, Unix socket";
const KEYED: &str = "warmd, Unix socket, adapter and key";

/// Somebody between the clients and the engine.
struct Front {
    name: &'static str,
    /// None: the engine itself.
    process: Option<Killed>,
    ask: Ask,
}

pub(crate) fn run(report: &mut Report, options: &Options) -> Result<String> {
    let dir = options.dir.join("proxy");
    fresh(&dir)?;
    let upstream: SocketAddr = free_port()?.parse()?;
    let _engine = engine_process(upstream, &dir)?;
    let mut cluster = Cluster::start(&dir.join("cluster"))?;
    cluster.start_agent("a")?;
    let fronts = fronts(&cluster, &dir, upstream)?;
    let time = if options.quick { Duration::from_millis(500) } else { Duration::from_secs(4) };
    let rows = throughput(&fronts, options.runs, time)?;
    let mut text = report.add("Requests through a proxy, engine at zero latency", rows.clone());
    text += &judge_throughput(report, &rows);
    let rows = streaming(&fronts, options.runs)?;
    text += &report.add("64 streams of 200 tokens, 10 ms apart", rows.clone());
    text += &judge_streams(report, &rows);
    text += &aborts(report, &fronts, upstream, if options.quick { ABORTS / 10 } else { ABORTS })?;
    Ok(text)
}

fn value(rows: &[Row], name: &str, value: &str) -> Option<f64> {
    rows.iter().find(|row| row.name == name)?.values().get(value).copied()
}

fn judge_throughput(report: &mut Report, rows: &[Row]) -> String {
    let per_core = |name: &str| value(rows, name, "requests/CPU s");
    let mut lines = String::new();
    let mut judge = |own: &str, rival: &str, target| {
        if let (Some(own_rate), Some(rival_rate)) = (per_core(own), per_core(rival)) {
            lines +=
                &(report.at_least(format!("requests per core: {own} / {rival}"), own_rate / rival_rate, target) + "\n");
        }
    };
    judge(PLAIN, NGINX, 1.0);
    judge(KEYED, NGINX, 0.7);
    // The same way to the engine on both sides.
    judge(PLAIN_TCP, NGINX, 1.0);
    judge(PLAIN, NGINX_UNIX, 1.0);
    lines
}

fn judge_streams(report: &mut Report, rows: &[Row]) -> String {
    let mut lines = String::new();
    for name in [PLAIN, KEYED] {
        let get = |of, what| value(rows, of, what).unwrap_or(f64::NAN);
        let added = (get(name, "delay p99 us") - get(DIRECT, "delay p99 us")) / 1e3;
        lines += &(report.at_most(format!("{name}: ms added to a token, p99"), added, 1.0) + "\n");
        // Where the client is late itself, two pieces of one read are nobody's doing: the direct row shows how often.
        let coalesced = get(name, "coalesced") - get(DIRECT, "coalesced");
        lines += &(report.at_most(format!("{name}: tokens that came together, beyond the direct row"), coalesced, 0.0)
            + "\n");
    }
    lines
}

/// Clients that go away: nothing may be left of them, and the engine has to hear of it before it has sent everything.
fn aborts(report: &mut Report, fronts: &[Front], engine: SocketAddr, count: usize) -> Result<String> {
    let mut lines = String::new();
    for front in fronts.iter().filter(|front| [PLAIN, KEYED].contains(&front.name)) {
        let pid = front.process.as_ref().map(Killed::pid).context("a process")?;
        let descriptors = || -> Result<f64> { Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64) };
        load::requests(&front.ask, 1, Duration::ZERO)?;
        settled(&descriptors)?;
        let (before, (_, finished)) = (descriptors()?, streams(engine)?);
        load::aborts(&front.ask, count, CLIENTS)?;
        let left = settled(&descriptors)? - before;
        let (running, now_finished) = streams(engine)?;
        let after = [
            ("descriptors left", left),
            ("streams that the engine still sends", running),
            ("streams that the engine sent to their end", now_finished - finished),
        ];
        for (what, number) in after {
            lines += &(report.at_most(format!("{}: {what} after {count} aborts", front.name), number, 0.0) + "\n");
        }
    }
    Ok(lines)
}

/// That the engine sends, and that it has sent to their end.
fn streams(engine: SocketAddr) -> Result<(f64, f64)> {
    let counts = http::ask(&engine.to_string(), "GET", engine::STREAMS, "")?.text;
    serde_json::from_str(&counts).with_context(|| format!("two numbers, not {counts}"))
}

/// Waits until the number has not changed for longer than a kept connection lives.
fn settled(number: &dyn Fn() -> Result<f64>) -> Result<f64> {
    let (mut last, mut since) = (number()?, Instant::now());
    while since.elapsed() < Duration::from_secs(6) {
        std::thread::sleep(Duration::from_millis(100));
        let now = number()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

pub(crate) fn engine_process(addr: SocketAddr, dir: &Path) -> Result<Killed> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--serve-engine").arg(addr.to_string()).arg("--dir").arg(dir).stdin(Stdio::null());
    let process = Killed::spawn(&mut command)?;
    answers(addr)?;
    Ok(process)
}

fn answers(addr: SocketAddr) -> Result<()> {
    let begun = Instant::now();
    while TcpStream::connect(addr).is_err() {
        ensure!(begun.elapsed() < Duration::from_secs(20), "nobody answers on {addr}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn fronts(cluster: &Cluster, dir: &Path, upstream: SocketAddr) -> Result<Vec<Front>> {
    let plain = |addr| Ask { addr, model: "base".to_owned(), key: None };
    let mut fronts = vec![Front { name: DIRECT, process: None, ask: plain(upstream) }];
    let unix = format!("unix:{}", engine::socket(dir, upstream).display());
    for (name, engine) in [(NGINX, upstream.to_string()), (NGINX_UNIX, unix.clone())] {
        let nginx: SocketAddr = free_port()?.parse()?;
        fronts.extend(foreign(name, nginx_command(dir, nginx, &engine)?, plain(nginx))?);
    }
    let haproxy: SocketAddr = free_port()?.parse()?;
    fronts.extend(foreign("haproxy", haproxy_command(dir, haproxy, upstream)?, plain(haproxy))?);
    for (name, engine) in [(PLAIN_TCP, format!("http://{upstream}")), (PLAIN, unix.clone())] {
        let open: SocketAddr = free_port()?.parse()?;
        let (process, _) = cluster.serve("a", dir, &engine, open, false)?;
        fronts.push(Front { name, process: Some(process), ask: plain(open) });
    }
    let keyed: SocketAddr = free_port()?.parse()?;
    let (process, key) = cluster.serve("a", dir, &unix, keyed, true)?;
    cluster.publish_adapter("a", &adapter(dir)?, "sql")?;
    let ask = Ask { addr: keyed, model: "sql".to_owned(), key };
    answered(&ask)?;
    fronts.push(Front { name: KEYED, process: Some(process), ask });
    Ok(fronts)
}

/// One for the model that the engine serves.
fn adapter(dir: &Path) -> Result<PathBuf> {
    let (from, to) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters/plain"), dir.join("adapter"));
    fresh(&to)?;
    fs::copy(from.join("adapter_model.safetensors"), to.join("adapter_model.safetensors"))?;
    let config = fs::read_to_string(from.join("adapter_config.json"))?;
    fs::write(to.join("adapter_config.json"), config.replace("acme/Tiny-Llama-0.1B", "base"))?;
    Ok(to)
}

/// Waits until the adapter was brought.
fn answered(ask: &Ask) -> Result<()> {
    let begun = Instant::now();
    while let Err(error) = load::requests(ask, 1, Duration::ZERO) {
        ensure!(begun.elapsed() < Duration::from_secs(30), "no answer: {error:#}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// None where the program is not installed.
fn foreign(name: &'static str, mut command: Command, ask: Ask) -> Result<Option<Front>> {
    let process = match Killed::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())) {
        Err(error)
            if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) =>
        {
            return Ok(None);
        }
        process => process.context(name)?,
    };
    answers(ask.addr).context(name)?;
    Ok(Some(Front { name, process: Some(process), ask }))
}

fn nginx_command(dir: &Path, listen: SocketAddr, upstream: &str) -> Result<Command> {
    let conf = dir.join(format!("nginx-{}.conf", listen.port()));
    let run = dir.display();
    fs::write(
        &conf,
        format!(
            "daemon off; master_process off; pid {run}/nginx-{}.pid; error_log {run}/nginx.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; client_body_temp_path {run}/body; proxy_temp_path {run}/proxy;\n\
             fastcgi_temp_path {run}/f; uwsgi_temp_path {run}/u; scgi_temp_path {run}/s;\n\
             keepalive_requests 1000000000;\n\
             upstream engine {{ server {upstream}; keepalive 512; keepalive_requests 1000000000; }}\n\
             server {{ listen {listen}; location / {{ proxy_pass http://engine; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\"; proxy_buffering off; }} }} }}\n",
            listen.port()
        ),
    )?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(conf);
    Ok(command)
}

fn haproxy_command(dir: &Path, listen: SocketAddr, upstream: SocketAddr) -> Result<Command> {
    let conf = dir.join("haproxy.cfg");
    fs::write(
        &conf,
        format!(
            "global\n nbthread 1\n maxconn 4096\ndefaults\n mode http\n timeout connect 2s\n timeout client 60s\n timeout server 60s\n\
             option http-keep-alive\n http-reuse always\nfrontend f\n bind {listen}\n default_backend b\nbackend b\n server s {upstream}\n"
        ),
    )?;
    let mut command = Command::new("haproxy");
    command.arg("-f").arg(conf);
    Ok(command)
}

fn throughput(fronts: &[Front], runs: usize, time: Duration) -> Result<Vec<Row>> {
    let contestant = |front: &'static str, ask: Ask, pid: Option<u32>| {
        Contestant::new(front, move || {
            let before = pid.map(process_cpu);
            let measured = load::requests(&ask, CLIENTS, time)?;
            let cpu = pid.map(process_cpu).zip(before).map(|(after, before)| after - before);
            let mut sample = Sample { seconds: measured.seconds, ..Sample::default() };
            sample.values.insert("requests/s", measured.requests as f64 / measured.seconds);
            if let Some(cpu) = cpu.filter(|cpu| *cpu > 0.0) {
                sample.values.insert("requests/CPU s", measured.requests as f64 / cpu);
            }
            sample.values.insert("p50 us", quantile(&measured.latencies, 0.5));
            sample.values.insert("p99 us", quantile(&measured.latencies, 0.99));
            Ok(sample)
        })
    };
    let all =
        fronts.iter().map(|front| contestant(front.name, front.ask.clone(), front.process.as_ref().map(Killed::pid)));
    interleave(runs, all.collect())
}

fn streaming(fronts: &[Front], runs: usize) -> Result<Vec<Row>> {
    let contestant = |front: &'static str, ask: Ask| {
        Contestant::new(front, move || {
            let begun = Instant::now();
            let seen = load::streams(&ask, STREAMS)?;
            ensure!(seen.tokens == STREAMS * engine::TOKENS, "{} tokens arrived", seen.tokens);
            let mut sample = Sample { seconds: begun.elapsed().as_secs_f64(), ..Sample::default() };
            sample.values.insert("coalesced", seen.coalesced as f64);
            sample.values.insert("delay p50 us", quantile(&seen.delays, 0.5));
            sample.values.insert("delay p99 us", quantile(&seen.delays, 0.99));
            Ok(sample)
        })
    };
    interleave(runs, fronts.iter().map(|front| contestant(front.name, front.ask.clone())).collect())
}
