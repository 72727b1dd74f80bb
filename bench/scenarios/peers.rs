//! The programs that warmd is compared with, each driven as one sample: those of `bench/peers`, and tar, zstd and rsync.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::{Killed, Sample, children_cpu, fresh, gone, shell, wait_for};

const START: Duration = Duration::from_secs(120);

/// Where the peers' program is and where it may write.
pub(crate) struct Peers {
    program: PathBuf,
    dir: PathBuf,
}

impl Peers {
    /// Builds the program when needed and makes its keys below `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/peers");
        let built = Command::new("cargo").args(["build", "--release", "--quiet"]).current_dir(&package).status()?;
        ensure!(built.success(), "build bench/peers: {built}");
        let peers = Self { program: package.join("target/release/peers"), dir: dir.join("peers") };
        fresh(&peers.dir)?;
        let made = Command::new(&peers.program).arg("keys").arg(peers.keys()).status()?;
        ensure!(made.success(), "make keys: {made}");
        Ok(peers)
    }

    fn keys(&self) -> PathBuf {
        self.dir.join("keys")
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// File to file over one TCP connection.
    pub(crate) fn tcp(&self, from: &Path, to: &Path, tls: bool) -> Result<Sample> {
        let ready = self.dir.join("ready");
        gone(&ready)?;
        gone(to)?;
        let with_tls = |command: &mut Command| {
            if tls {
                command.arg("--tls").arg(self.keys());
            }
        };
        let mut receive = self.command("recv");
        receive.arg(to).arg("--ready").arg(&ready);
        with_tls(&mut receive);
        let receiver = Killed::spawn(&mut receive)?;
        let mut send = self.command("send");
        send.arg(wait_for(&ready, START)?).arg(from);
        with_tls(&mut send);
        let sent = report(&Killed::spawn(&mut send)?.output()?)?;
        let received = report(&receiver.output()?)?;
        both(&sent, &received)
    }

    /// File to file with bare quinn.
    pub(crate) fn quic(&self, from: &Path, to: &Path) -> Result<Sample> {
        let ready = self.dir.join("ready");
        gone(&ready)?;
        gone(to)?;
        let mut serve = self.command("quic-serve");
        serve.arg(from).arg("--ready").arg(&ready).arg("--keys").arg(self.keys());
        let server = Killed::spawn(&mut serve)?;
        let mut get = self.command("quic-get");
        get.arg(wait_for(&ready, START)?).arg(to).arg("--keys").arg(self.keys());
        let got = report(&Killed::spawn(&mut get)?.output()?)?;
        let mut sample = sample(&got)?;
        let server_cpu = crate::harness::process_cpu(server.pid());
        sample.cpu_seconds = sample.cpu_seconds.map(|cpu| cpu + server_cpu);
        sample.values.insert("datagram B", number(&got, "datagram_bytes")?);
        Ok(sample)
    }

    /// `tar | zstd -T0 | TLS over TCP | zstd -d | tar`, start of the first program to end of the last.
    pub(crate) fn tar(&self, from: &Path, to: &Path, level: u32, bytes: u64) -> Result<Sample> {
        let (ready, wire) = (self.dir.join("ready"), self.dir.join("wire"));
        gone(&ready)?;
        fresh(to)?;
        let (program, keys) = (self.program.display(), self.keys());
        let script = format!(
            "{program} recv - --ready {ready} --tls {keys} 2>/dev/null | zstd -dcq | tar -x -C {to} & \
             while [ ! -e {ready} ]; do sleep 0.002; done; \
             tar -c -C {from} . | zstd -qc -T0 -{level} | {program} send $(cat {ready}) - --tls {keys} > {wire}; wait $!",
            ready = ready.display(),
            keys = keys.display(),
            to = to.display(),
            from = from.display(),
            wire = wire.display(),
        );
        let (seconds, cpu) = shell(&script)?;
        let wire_bytes = Some(number(&report(&fs::read_to_string(&wire)?)?, "bytes")? as u64);
        Ok(Sample { seconds, bytes, wire_bytes, cpu_seconds: Some(cpu), ..Sample::default() })
    }

    /// `rsync -a` from a daemon on loopback into an empty directory.
    pub(crate) fn rsync(&self, from: &Path, to: &Path, compress: bool, bytes: u64) -> Result<Sample> {
        fresh(to)?;
        let daemon = RsyncDaemon::start(&self.dir, from)?;
        let (cpu, begin) = (children_cpu(), Instant::now());
        let mut rsync = Command::new("rsync");
        rsync.args(["-a", "--stats"]).args(compress.then_some("-z")).arg(&daemon.url).arg(to);
        let text = Killed::spawn(rsync.stdin(Stdio::null()).stdout(Stdio::piped()))?.output()?;
        let seconds = begin.elapsed().as_secs_f64();
        // The daemon's own children are waited for by the daemon, and that by us when it ends.
        drop(daemon);
        let received =
            text.lines().find_map(|line| line.strip_prefix("Total bytes received: ")).context("rsync's statistics")?;
        let wire_bytes = Some(received.replace(',', "").trim().parse()?);
        Ok(Sample { seconds, bytes, wire_bytes, cpu_seconds: Some(children_cpu() - cpu), ..Sample::default() })
    }

    /// iroh-blobs: import at one process, fetch and export at another; the sum of both.
    pub(crate) fn iroh(&self, from: &Path, to: &Path) -> Result<Sample> {
        let (ticket, a, b) = (self.dir.join("ticket"), self.dir.join("iroh-a"), self.dir.join("iroh-b"));
        gone(&ticket)?;
        fresh(&a)?;
        fresh(&b)?;
        fresh(to)?;
        let mut provide = self.command("iroh-provide");
        provide.arg(from).arg("--store").arg(&a).arg("--ready").arg(&ticket);
        let mut provider = Killed::spawn(&mut provide)?;
        wait_for(&ticket, START)?;
        let mut line = String::new();
        let stdout = provider.0.stdout.take().context("the provider's output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
        let import = number(&report(&line)?, "seconds")?;
        let mut fetch = self.command("iroh-fetch");
        fetch.arg(&ticket).arg(to).arg("--store").arg(&b);
        let fetched = report(&Killed::spawn(&mut fetch)?.output()?)?;
        let mut sample = sample(&fetched)?;
        sample.seconds += import;
        let provider_cpu = crate::harness::process_cpu(provider.pid());
        sample.cpu_seconds = sample.cpu_seconds.map(|cpu| cpu + provider_cpu);
        sample.values.insert("import s", import);
        sample.values.insert("fetch s", number(&fetched, "fetch_seconds")?);
        sample.values.insert("export s", number(&fetched, "export_seconds")?);
        drop(provider);
        gone(&a)?;
        gone(&b)?;
        Ok(sample)
    }
}

struct RsyncDaemon {
    _process: Killed,
    url: String,
}

impl RsyncDaemon {
    fn start(dir: &Path, from: &Path) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = dir.join("rsyncd.conf");
        let text = format!(
            "use chroot = no\nuid = {uid}\n[tree]\npath = {}\nread only = yes\n",
            from.display(),
            uid = rustix::process::getuid().as_raw()
        );
        fs::write(&config, text)?;
        let mut daemon = Command::new("rsync");
        daemon.args(["--daemon", "--no-detach", "--address=127.0.0.1"]).arg(format!("--port={port}"));
        let process = Killed::spawn(
            daemon.arg(format!("--config={}", config.display())).stdin(Stdio::null()).stdout(Stdio::null()),
        )?;
        let begin = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(begin.elapsed() < START, "the rsync daemon did not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { _process: process, url: format!("rsync://127.0.0.1:{port}/tree/") })
    }
}

fn report(line: &str) -> Result<Value> {
    serde_json::from_str(line.trim()).with_context(|| format!("a report: {line}"))
}

fn number(report: &Value, name: &str) -> Result<f64> {
    report[name].as_f64().with_context(|| format!("`{name}` in {report}"))
}

fn sample(report: &Value) -> Result<Sample> {
    Ok(Sample {
        seconds: number(report, "seconds")?,
        bytes: number(report, "bytes")? as u64,
        wire_bytes: report["wire_bytes"].as_u64(),
        cpu_seconds: Some(number(report, "cpu_seconds")?),
        ..Sample::default()
    })
}

/// The sender's clock ends when the receiver has written all.
fn both(sent: &Value, received: &Value) -> Result<Sample> {
    let mut sample = sample(sent)?;
    let cpu = number(received, "cpu_seconds")?;
    sample.cpu_seconds = sample.cpu_seconds.map(|own| own + cpu);
    ensure!(received["bytes"] == sent["bytes"], "the receiver got {} of {} bytes", received["bytes"], sent["bytes"]);
    Ok(sample)
}
