//! Disks that fail under an agent: what it cannot do it says, and afterwards nothing of it is left wrong.

use std::time::Duration;

use warmd::serve::warm::{Verdict, warm};

use crate::harness::cluster::{Cluster, identity, publish};
use crate::harness::disk::BadDisk;
use crate::harness::process::AgentProcess;
use crate::harness::tree::{self, Tree, noise};

const FLUSHES: &str = "fsync,fdatasync,syncfs";
const RENAMES: &str = "rename,renameat,renameat2";

/// Which calls fail, how, and after how many of one thread the next one does.
const FAULTS: [(&str, &str, u32); 9] = [
    ("openat", "EMFILE", 3),
    ("openat", "EIO", 7),
    ("openat", "ENOSPC", 2),
    ("openat", "EINTR", 2),
    (FLUSHES, "EIO", 2),
    (FLUSHES, "ENOSPC", 1),
    (RENAMES, "EIO", 2),
    (RENAMES, "ENOSPC", 1),
    ("read,pread64,statx,newfstatat", "EIO", 5),
];

/// Different bytes for each fault: what is there already would not be written again.
fn files(fault: usize) -> Tree {
    let seed = 1_000 * fault as u64;
    let large = (0..3).map(|n| (format!("model/rank_{n}"), (false, noise(seed + n, 1_500_000))));
    let small = (10..40).map(|n| (format!("triton/{n}/kernel.cubin"), (false, noise(seed + n, 3_000))));
    large.chain(small).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_under_a_fetching_agent_costs_that_attempt_and_nothing_else() {
    let cluster = Cluster::start().await;
    let holder = cluster.agent("a").await;
    let puller = AgentProcess::start(&cluster.config("b")).await;
    for (fault, (calls, error, every)) in FAULTS.into_iter().enumerate() {
        let (files, identity) = (files(fault), identity(&[("fault", &fault.to_string())]));
        let [source, bad, good] = ["source", "bad", "good"].map(|name| cluster.path(&format!("{name}{fault}")));
        tree::write(&source, &files);
        holder.publish(&source, &identity, "").await.unwrap();
        let Some(disk) = BadDisk::under(puller.pid(), calls, error, every).await else { return };
        let mut job = cluster.job(identity.clone(), &format!("bad{fault}"));
        job.budget = Duration::from_secs(30);
        // It may not even take the connection.
        let report = warm(&puller.client, job, &|_| ()).await;
        assert!(disk.release().await > 0, "no {calls} failed: nothing was tried");
        match report {
            Ok(report) if matches!(report.verdict, Verdict::Installed) => tree::assert_same(&tree::read(&bad), &files),
            Ok(_) => {
                assert!(tree::read(&bad).is_empty(), "{error} in {calls}: something is there of what was not installed")
            }
            Err(_) => {}
        }
        let report = puller.warm(cluster.job(identity, &format!("good{fault}"))).await;
        assert!(matches!(report.verdict, Verdict::Installed), "after {error} in {calls}: {report:?}");
        tree::assert_same(&tree::read(&good), &files);
    }
    assert_eq!(puller.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_under_a_publishing_agent_publishes_all_or_nothing() {
    let cluster = Cluster::start().await;
    let config = cluster.config("a");
    let publisher = AgentProcess::start(&config).await;
    let puller = cluster.agent("b").await;
    for (fault, (calls, error, every)) in FAULTS.into_iter().enumerate() {
        let (files, identity) = (files(fault), identity(&[("fault", &fault.to_string())]));
        let [source, cache] = ["source", "cache"].map(|name| cluster.path(&format!("{name}{fault}")));
        tree::write(&source, &files);
        let Some(disk) = BadDisk::under(publisher.pid(), calls, error, every).await else { return };
        let publishing = publish(&config.local.socket, &source, &identity, "");
        let published = tokio::time::timeout(Duration::from_secs(20), publishing).await;
        assert!(disk.release().await > 0, "no {calls} failed: nothing was tried");
        if !matches!(published, Ok(Ok(_))) {
            publisher.publish(&source, &identity).await;
        }
        let report = puller.warm(cluster.job(identity, &format!("cache{fault}"))).await;
        assert!(matches!(report.verdict, Verdict::Installed), "after {error} in {calls}: {report:?}");
        tree::assert_same(&tree::read(&cache), &files);
    }
    assert_eq!(publisher.terminate().await, Some(0));
}
