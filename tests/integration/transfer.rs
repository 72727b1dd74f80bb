//! Publish, discover, pull, verify, install: whole agents.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;
use warmd::digest::ArtifactId;
use warmd::install::CacheRoot;
use warmd::local::chunk_socket;
use warmd::local::chunks::Buffer;
use warmd::serve::warm::{Job, Step, Verdict, warm};
use warmd::transport::Carriers;

use crate::harness::cluster::{Cluster, DEADLINE, identity, reason};
use crate::harness::ports;
use crate::harness::process::AgentProcess;
use crate::harness::tree::{self, Tree};

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_published_on_one_node_is_installed_on_another() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let files = tree::sample();
    tree::write(&cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    let published = a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    assert_eq!((published.generation, published.files as usize), (1, files.len()));
    let report = b.warm(cluster.job(identity.clone(), "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    assert_eq!(report.artifacts[0].wire_bytes, published.wire_bytes);
    tree::assert_same(&tree::read(&cluster.path("cache")), &files);

    let metrics = b.scrape().await;
    for action in ["fetched", "installed"] {
        assert!(metrics.contains(&format!(r#"warmd_audit_events_total{{action="{action}"}} 1"#)), "{metrics}");
    }

    let again = b.warm(cluster.job(identity, "cache")).await;
    assert_eq!((again.artifacts[0].installed, again.artifacts[0].wire_bytes), (0, 0), "nothing is done twice");
    b.stop().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_does_not_see_the_socket_of_chunks_gets_them_all_the_same() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let files = tree::sample();
    tree::write(&cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    std::fs::remove_file(chunk_socket(a.agent.socket())).unwrap();
    let report = a.warm(cluster.job(identity, "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    tree::assert_same(&tree::read(&cluster.path("cache")), &files);
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_udp_does_not_get_through_a_transfer_goes_over_tcp_and_holders_serve_both() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config("a");
    config.transport.carrier = Carriers::Tcp;
    config.transport.listen = ports::free();
    // TCP would win where QUIC is slow to begin.
    let mut over_quic = cluster.config("c");
    over_quic.transport.carrier = Carriers::Quic;
    let (a, b, c) = (cluster.agent_with(config).await, cluster.agent("b").await, cluster.agent_with(over_quic).await);
    // Datagrams to the holder are taken and never answered.
    let _silent = std::net::UdpSocket::bind(a.agent.addr()).unwrap();
    let files = tree::sample();
    tree::write(&cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    let report = b.warm(cluster.job(identity.clone(), "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    tree::assert_same(&tree::read(&cluster.path("cache")), &files);
    let metrics = b.scrape().await;
    assert!(metrics.contains(r#"warmd_transfer_connections{carrier="tcp"} 1"#), "{metrics}");
    a.stop().await;
    let report = c.warm(cluster.job(identity, "elsewhere")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    let metrics = c.scrape().await;
    assert!(metrics.contains(r#"warmd_transfer_connections{carrier="quic"} 1"#), "{metrics}");
    b.stop().await;
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_chunks_that_are_not_there_is_told_so() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    tree::write(&cluster.path("source"), &tree::sample());
    let published = a.publish(&cluster.path("source"), &identity(&[]), "").await.unwrap();
    for (id, index, reason) in [
        (ArtifactId::of(b"other"), 0, "is not on this node"),
        (published.artifact, 100_000, "a chunk that the artifact does not have"),
    ] {
        let mut chunks = a.client.read_chunks(id, vec![index]).await.unwrap();
        let error = chunks.next(&mut Buffer::default()).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_vllm_caches_come_over_byte_for_byte() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    for name in ["vllm-cpu-aot", "vllm-cpu-inductor"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        let identity = identity(&[("cache", name)]);
        let published = a.publish(&source, &identity, "").await.unwrap();
        b.warm(cluster.job(identity, name)).await;
        let files = tree::read(&source);
        tree::assert_same(&tree::read(&cluster.path(name)), &files);
        let raw: usize = files.values().map(|(_, content)| content.len()).sum();
        assert!(published.wire_bytes * 4 < raw as u64, "{} of {raw} bytes on the wire", published.wire_bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_generation_brings_only_what_is_new_and_touches_nothing_that_is_there() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let mut files = tree::sample();
    tree::write(&cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    b.warm(cluster.job(identity.clone(), "cache")).await;

    let added: Tree = [("later/kernel.cubin".to_owned(), (false, tree::noise(999, 50_000)))].into();
    tree::write(&cluster.path("source"), &added);
    let second = a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    assert_eq!((second.generation, second.new_wire_bytes), (2, 50_000));
    let report = b.warm(cluster.job(identity.clone(), "cache")).await;
    assert_eq!((report.artifacts[0].installed, report.artifacts[0].wire_bytes), (1, 50_000));
    files.extend(added);
    tree::assert_same(&tree::read(&cluster.path("cache")), &files);

    let third = a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    assert!(third.unchanged, "{third:?}");
    assert_eq!(third.artifact, second.artifact);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_directory_has_the_same_content_id_on_every_node() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let files = tree::sample();
    tree::write(&cluster.path("here"), &files);
    tree::write(&cluster.path("there"), &files);
    let here = a.publish(&cluster.path("here"), &identity(&[("n", "1")]), "").await.unwrap();
    let there = b.publish(&cluster.path("there"), &identity(&[("n", "2")]), "").await.unwrap();
    assert_eq!(here.content, there.content);
    assert_ne!(here.artifact, there.artifact);
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_cold_nodes_at_once_are_all_served_and_serve_each_other() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let files: Tree = (0..40u64).map(|n| (format!("f{n}"), (false, tree::noise(n, 400_000)))).collect();
    tree::write(&cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    let mut pullers = Vec::new();
    for n in 0..8 {
        pullers.push(cluster.agent(&format!("puller-{n}")).await);
    }
    let warming =
        pullers.iter().enumerate().map(|(n, node)| node.warm(cluster.job(identity.clone(), &format!("cache-{n}"))));
    for (n, report) in futures_util::future::join_all(warming).await.into_iter().enumerate() {
        assert!(matches!(report.verdict, Verdict::Installed), "puller {n}: {report:?}");
        tree::assert_same(&tree::read(&cluster.path(&format!("cache-{n}"))), &files);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pod_shares_the_first_ones_attempt() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    let files = tree::sample();
    tree::write(&cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    let published = a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    let ranks = (0..4).map(|_| b.warm(cluster.job(identity.clone(), "cache")));
    let reports = futures_util::future::join_all(ranks).await;
    let wire: u64 = reports.iter().flat_map(|report| &report.artifacts).map(|artifact| artifact.wire_bytes).sum();
    assert_eq!(wire, published.wire_bytes, "four ranks cost one transfer");
    assert_eq!(reports.iter().flat_map(|r| &r.artifacts).filter(|artifact| artifact.installed > 0).count(), 1);
    tree::assert_same(&tree::read(&cluster.path("cache")), &files);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_while_another_installs_takes_that_over_and_nothing_older() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    tree::write(&cluster.path("source"), &tree::sample());
    let identity = identity(&[("torch", "2.13.0")]);
    a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    let running = Mutex::new(JoinSet::new());
    let (comes, come) = std::sync::mpsc::sync_channel(1);
    let come = Mutex::new(come);
    // Returns once it is about to wait for the lock.
    let second = || {
        let (client, comes) = (a.client.clone(), comes.clone());
        let job = Job { ignore_markers: false, ..cluster.job(identity.clone(), "cache") };
        running.lock().unwrap().spawn(async move {
            let tell = |step| {
                if matches!(step, Step::Waiting) {
                    comes.send(()).unwrap()
                }
            };
            warm(&client, job, &tell).await.unwrap()
        });
        come.lock().unwrap().recv_timeout(DEADLINE).unwrap();
    };
    let begin = |step| {
        if matches!(step, Step::Looking) {
            second()
        }
    };
    let first = warm(&a.client, cluster.job(identity.clone(), "cache"), &begin).await.unwrap();
    let ended = async || {
        let mut running = std::mem::take(&mut *running.lock().unwrap());
        timeout(DEADLINE, running.join_next()).await.unwrap().unwrap().unwrap()
    };
    let other = ended().await;
    assert!(matches!((&first.verdict, &other.verdict), (Verdict::Installed, Verdict::Shared)), "{first:?} {other:?}");

    let lock = CacheRoot::open(&cluster.path("cache")).unwrap().lock(Instant::now() + DEADLINE).unwrap();
    second();
    drop(lock);
    let late = ended().await;
    assert!(matches!(late.verdict, Verdict::Installed) && late.artifacts[0].installed == 0, "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_it_is_told_at_once_and_remembered_for_the_other_ranks() {
    let cluster = Cluster::start().await;
    let b = cluster.agent("b").await;
    let job = || Job { ignore_markers: false, ..cluster.job(identity(&[("torch", "9")]), "cache") };
    assert!(reason(&b.warm(job()).await).starts_with("none-found"));
    let second = reason(&b.warm(job()).await);
    assert!(second.contains("remembered"), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_resumes_where_it_was() {
    let cluster = Cluster::start().await;
    let a = cluster.agent("a").await;
    let files: Tree = (0..30u64).map(|n| (format!("f{n}"), (false, tree::noise(n, 1_500_000)))).collect();
    tree::write(&cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    let published = a.publish(&cluster.path("source"), &identity, "").await.unwrap();

    let config = cluster.config("b");
    let mut slow = config.clone();
    slow.fetch_deadline = Duration::from_millis(20);
    let b = AgentProcess::start(&slow).await;
    let interrupted = reason(&warm(&b.client, cluster.job(identity.clone(), "cache"), &|_| ()).await.unwrap());
    assert!(interrupted.contains("time for the fetch is over"), "{interrupted}");
    b.kill().await;
    let b = AgentProcess::start(&config).await;
    let report = warm(&b.client, cluster.job(identity, "cache"), &|_| ()).await.unwrap();
    let artifact = &report.artifacts[0];
    assert_eq!(artifact.wire_bytes + artifact.reused_bytes, published.wire_bytes);
    tree::assert_same(&tree::read(&cluster.path("cache")), &files);
    assert_eq!(b.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_evicted_goes_on_being_announced() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    // More than is on its way to a caller that takes nothing.
    let files: Tree = [("large".to_owned(), (false, tree::noise(1, 64 << 20)))].into();
    tree::write(&cluster.path("source"), &files);
    let identity = identity(&[("torch", "2.13.0")]);
    let published = a.publish(&cluster.path("source"), &identity, "").await.unwrap();
    let export = a.client.export(published.artifact).await.unwrap();
    let refused = a.client.evict(published.artifact).await.unwrap_err();
    assert!(warmd::local::chain(&refused).contains("in use"), "{refused}");
    // The server has heard all that was said before this.
    tree::write(&cluster.path("other"), &[("small".to_owned(), (false, vec![1]))].into());
    a.publish(&cluster.path("other"), &identity, "other").await.unwrap();
    let report = b.warm(cluster.job(identity, "cache")).await;
    assert!(matches!(report.verdict, Verdict::Installed), "{report:?}");
    drop(export);
    b.stop().await;
    a.stop().await;
}
