//! Every expression of every panel and alert, asked of a real Prometheus that scrapes a fleet at work. Without
//! `prometheus` this test says so and ends.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::Value;
use tokio::process::{Child, Command};

use super::running::Running;
use super::{deploy, expressions, installed};
use crate::harness::cluster::{DEADLINE, until};
use crate::harness::engine::own_proc;
use crate::harness::http::Connection;
use crate::harness::ports;

/// Scrapes after the fleet was at work: rates need two.
const SCRAPES: f64 = 4.0;

struct Prometheus {
    addr: SocketAddr,
    _child: Child,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn start(program: &Path, targets: &[(&str, SocketAddr)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\nscrape_configs:\n",
            deploy("prometheus/alerts.yaml").display()
        );
        for job in ["warmd-agent", "warmd-metadata", "warmd-serve"] {
            let of_job = targets.iter().filter(|(name, _)| *name == job).map(|(_, addr)| format!("'{addr}'"));
            let of_job: Vec<_> = of_job.collect();
            writeln!(config, "- job_name: {job}\n  static_configs: [{{targets: [{}]}}]", of_job.join(", ")).unwrap();
        }
        std::fs::write(dir.path().join("prometheus.yaml"), config).unwrap();
        let addr = ports::free();
        let mut command = Command::new(program);
        command.args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--log.level=error"]);
        command.arg(format!("--web.listen-address={addr}")).current_dir(dir.path()).kill_on_drop(true);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { addr, _child: child, _dir: dir }
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let reply = Connection::tcp(self.addr, None).await?.ask(Method::GET, path, "").await?;
        serde_json::from_str(&reply.text).ok()
    }

    /// The samples of the answer.
    async fn ask(&self, expression: &str) -> Result<Vec<Value>, String> {
        let mut path = "/api/v1/query?query=".to_owned();
        for byte in expression.bytes() {
            write!(path, "%{byte:02x}").unwrap();
        }
        let answer = self.get(&path).await.ok_or("no answer")?;
        match answer["data"]["result"].as_array() {
            Some(samples) => Ok(samples.clone()),
            None => Err(answer.to_string()),
        }
    }

    /// One number, 0 without one.
    async fn number(&self, expression: &str) -> f64 {
        let samples = self.ask(expression).await.unwrap_or_default();
        samples.first().and_then(|sample| sample["value"][1].as_str()?.parse().ok()).unwrap_or(0.0)
    }

    /// `None` if something came of it.
    async fn trouble(&self, by: &str, expression: &str) -> Option<String> {
        match self.ask(expression).await {
            Ok(samples) if samples.is_empty() => Some(format!("{by}: nothing: {expression}")),
            Ok(_) => None,
            Err(error) => Some(format!("{by}: {error}: {expression}")),
        }
    }

    /// Of all that dashboards and alerts ask.
    async fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for asked in expressions::of_dashboards() {
            troubles.extend(self.trouble(&asked.by, &asked.expression).await);
        }
        let rules = self.get("/api/v1/rules").await.unwrap();
        let groups = rules["data"]["groups"].as_array().unwrap();
        let alerts: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        assert!(alerts.len() > 30, "{rules}");
        for alert in alerts {
            let (name, query) = (alert["name"].as_str().unwrap(), alert["query"].as_str().unwrap());
            for annotation in ["summary", "description", "runbook"] {
                assert!(alert["annotations"][annotation].is_string(), "{name} has no {annotation}");
            }
            if let Err(error) = self.ask(query).await {
                troubles.push(format!("{name}: {error}"));
            }
            for operand in expressions::operands(query) {
                troubles.extend(self.trouble(name, &operand).await);
            }
        }
        troubles
    }
}

#[tokio::test]
async fn every_panel_shows_something_and_every_alert_can_fire() {
    let Some(program) = installed("prometheus").filter(|_| own_proc()) else { return };
    let running = Running::start().await;
    let targets = running.targets();
    let prometheus = Prometheus::start(&program, &targets);
    let up = targets.len() as f64;
    until("not everything is scraped", async || prometheus.number("sum(up)").await == up).await;
    running.work().await;
    let worked = prometheus.number("min(count_over_time(up[5m]))").await;
    until("nothing is scraped any more", async || {
        prometheus.number("min(count_over_time(up[5m]))").await >= worked + SCRAPES
    })
    .await;
    for failures in ["bad_chunks", "bad_manifests"] {
        assert!(prometheus.number(&format!("sum(warmd_transfer_{failures}_total)")).await > 0.0, "{failures}");
    }
    // A scrape that came late leaves a hole for a moment.
    let (give_up, mut scraped) = (Instant::now() + DEADLINE, tokio::time::interval(Duration::from_secs(1)));
    let mut troubles = prometheus.troubles().await;
    while !troubles.is_empty() && Instant::now() < give_up {
        scraped.tick().await;
        troubles = prometheus.troubles().await;
    }
    running.stop().await;
    assert!(troubles.is_empty(), "{}", troubles.join("\n"));
}
