//! What real processes tell is what the catalogue says, in both formats.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::roles;
use super::running::Running;
use crate::harness::engine::own_proc;
use crate::harness::http::Connection;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

async fn open_metrics(addr: SocketAddr) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: {OPEN_METRICS}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// Names by the heads of metrics.
fn names(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

#[tokio::test]
async fn every_role_tells_what_the_catalogue_says_and_nothing_else() {
    if !own_proc() {
        return;
    }
    let running = Running::start().await;
    running.work().await;
    for (job, addr) in running.targets() {
        let reply = Connection::tcp(addr, None).await.unwrap().ask(Method::GET, "/metrics", "").await.unwrap();
        assert_eq!(reply.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        let told = names(&reply.text);
        let (_, registry) = roles().into_iter().find(|(role, _)| *role == job).unwrap();
        for one in registry.descriptions() {
            // Without any series yet, there is no head either.
            let has_begun = one.labels.iter().all(|(label, values)| *label != "family" && !values.is_empty());
            let is_elsewhere = one.name.starts_with("warmd_model_express");
            assert!(!has_begun || is_elsewhere || told.contains(one.name), "{job}: {} is missing", one.name);
        }
        let known: BTreeSet<&str> = registry.descriptions().iter().map(|one| one.name).collect();
        assert_eq!(told.difference(&known).next(), None, "{job}");
        let open = open_metrics(addr).await;
        assert!(open.contains(OPEN_METRICS) && open.ends_with("# EOF\n"), "{open}");
        assert_eq!(names(&open).len(), told.len(), "{job}");
    }
    running.stop().await;
}
