//! What it costs to be watched: an agent and a metadata server at rest with much to tell, their /metrics, and the fleet's view.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use warmd::identity::NodeTls;
use warmd::metadata::{Client, ServerAddr};
use warmd::protocol::report::{NodeReport, Text};

use crate::Options;
use crate::harness::{MIB, Report, Row, Sample, free_port, fresh, process_cpu, status};
use crate::warmd::Cluster;
use crate::{http, metadata};

const ARTIFACTS: usize = 1_000;
const HOLDERS: usize = 200;
const AGENT: &str = "agent";

pub(crate) fn run(report: &mut Report, options: &Options) -> Result<String> {
    let dir = options.dir.join("watching");
    let fewer = if options.quick { 10 } else { 1 };
    let rest = Duration::from_secs(30 / fewer as u64);
    // The holders of this scenario announce once.
    let (metrics, page) = (free_port()?, free_port()?);
    let mut cluster = Cluster::start_with(
        &dir.join("cluster"),
        &["--metrics", &metrics, "--web", &page],
        &[("WARMD_SERVER_LEASE", "1h")],
    )?;
    cluster.start_agent(AGENT)?;
    let (agent, server) = (cluster.pid(AGENT)?, cluster.metadata_pid());
    let mut idle =
        vec![at_rest("agent without artifacts", agent, rest), at_rest("metadata server alone", server, rest)];
    for number in 0..ARTIFACTS / fewer {
        let from = dir.join("artifact");
        fresh(&from)?;
        fs::write(from.join("kernel.py"), format!("# kernel {number}\n"))?;
        cluster.publish_as(AGENT, &from, &number.to_string())?;
    }
    let holders = cluster.identities(HOLDERS / fewer)?;
    let addr = [cluster.metadata()?];
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _clients = runtime.block_on(announce(&holders, &addr, ARTIFACTS / fewer))?;
    idle.push(at_rest(&format!("agent with {} artifacts", ARTIFACTS / fewer), agent, rest));
    idle.push(at_rest(
        &format!("metadata server, {} holders of {} artifacts", HOLDERS / fewer, ARTIFACTS / fewer),
        server,
        rest,
    ));
    let mut text = report.add(&format!("At rest, {} s", rest.as_secs()), idle);
    let runs = options.runs.max(21);
    let scrapes = [
        ("agent's /metrics", cluster.metrics_addr(AGENT)?, "/metrics"),
        ("metadata server's /metrics", metrics, "/metrics"),
        ("the page's whole document", page, "/api/fleet"),
    ];
    let mut rows = Vec::new();
    for (name, addr, path) in scrapes {
        rows.push(Row {
            name: name.to_owned(),
            samples: (0..runs).map(|_| asked(&addr, path)).collect::<Result<_>>()?,
        });
    }
    let fleet = (0..runs).map(|_| cluster.fleet_status(AGENT).map(|seconds| Sample { seconds, ..Sample::default() }));
    rows.push(Row { name: "warmd status --fleet".to_owned(), samples: fleet.collect::<Result<_>>()? });
    text += &report.add("Looked at", rows);
    Ok(text)
}

/// What a process uses while nobody asks it anything.
fn at_rest(name: &str, pid: u32, time: Duration) -> Row {
    let before = process_cpu(pid);
    std::thread::sleep(time);
    let values =
        BTreeMap::from([("CPU ms", (process_cpu(pid) - before) * 1e3), ("RSS MiB", status(pid, "VmRSS:") / MIB)]);
    Row { name: name.to_owned(), samples: vec![Sample { seconds: time.as_secs_f64(), values, ..Sample::default() }] }
}

fn asked(addr: &str, path: &str) -> Result<Sample> {
    let begin = Instant::now();
    let reply = http::ask(addr, "GET", path, "")?;
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(reply.status == 200, "{path} of {addr} answered {}", reply.status);
    let values = BTreeMap::from([("ms", seconds * 1e3), ("kB", reply.text.len() as f64 / 1e3)]);
    Ok(Sample { seconds, values, ..Sample::default() })
}

/// Every one of them has all artifacts, and says how it is.
async fn announce(holders: &[NodeTls], addr: &[ServerAddr], artifacts: usize) -> Result<Vec<Client>> {
    stream::iter(holders.iter().enumerate())
        .map(|(index, tls)| async move {
            let client = metadata::client(tls, addr, index)?;
            client.announce(&metadata::announcement(tls, index, 0..artifacts, artifacts)?).await?;
            let name = Text::cut(&format!("gpu-{index}"));
            client.report(&NodeReport { name, ..NodeReport::default() }).await.context("report")?;
            Ok(client)
        })
        .buffer_unordered(16)
        .try_collect()
        .await
}
