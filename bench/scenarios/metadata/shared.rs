//! Several metadata servers over one Redis or Valkey: rates, and how long a lost server or a lost store is felt.

use std::path::PathBuf;

use warmd::lifecycle::Tasks;
use warmd::metadata::{AnnounceConfig, AnnouncedNode, Announcer};
use warmd::protocol::metadata::PageRequest;

use super::*;

const PROGRAMS: [&str; 2] = ["valkey-server", "redis-server"];

/// Longest wait for a directory that was lost.
const REFILL: Duration = Duration::from_secs(120);

/// Clients whose server is killed.
const LEFT_ALONE: usize = 100;

struct Cluster {
    dir: PathBuf,
    ca: ClusterCa,
    redis: Killed,
    servers: Vec<(Killed, ServerAddr)>,
}

pub(super) fn run(report: &mut Report, options: &Options) -> Result<String> {
    let fewer = if options.quick { 10 } else { 1 };
    let most = options.servers.max(1);
    let mut rows = Vec::new();
    for count in 1..=most {
        let (mut announced, mut looked) = (Vec::new(), Vec::new());
        for _ in 0..options.runs {
            let cluster = Cluster::start(&options.dir.join("shared"), count)?;
            let (announce, lookup) = cluster.rates(fewer)?;
            announced.push(announce);
            looked.push(lookup);
        }
        let name = |what: String| format!("servers {count}: {what}");
        rows.push(Row { name: name(format!("{} announcements", NODES / fewer)), samples: announced });
        rows.push(Row { name: name(format!("{} lookups by {count} clients", LOOKUPS / fewer)), samples: looked });
    }
    let (mut failed_over, mut refilled) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        if most > 1 {
            failed_over.push(Cluster::start(&options.dir.join("shared"), most)?.failover(fewer)?);
        }
        refilled.push(Cluster::start(&options.dir.join("shared"), most)?.refill(fewer)?);
    }
    if most > 1 {
        rows.push(Row { name: format!("one of {most} servers killed, {LEFT_ALONE} clients"), samples: failed_over });
    }
    rows.push(Row { name: format!("store lost, {} nodes announce again", NODES / fewer), samples: refilled });
    Ok(report.add("Metadata servers over one store", rows))
}

impl Cluster {
    fn start(dir: &Path, count: usize) -> Result<Self> {
        fresh(dir)?;
        let ca = authority(dir)?;
        let redis = redis(dir)?;
        let server = |number: usize| {
            let own = dir.join(format!("server-{number}"));
            fresh(&own)?;
            fs::copy(dir.join("ca.pem"), own.join("ca.pem"))?;
            fs::write(own.join("redis"), format!("unix://{}", dir.join("socket").display()))?;
            start(&own, &ca)
        };
        let servers = (0..count).map(server).collect::<Result<_>>()?;
        Ok(Self { dir: dir.to_owned(), ca, redis, servers })
    }

    fn addrs(&self) -> Vec<ServerAddr> {
        self.servers.iter().map(|(_, addr)| addr.clone()).collect()
    }

    fn nodes(&self, count: usize) -> Result<Vec<NodeTls>> {
        (0..count).map(|_| node(&self.dir, &self.ca)).collect()
    }

    fn rates(&self, fewer: usize) -> Result<(Sample, Sample)> {
        let (nodes, addrs) = (self.nodes(NODES / fewer)?, self.addrs());
        runtime()?.block_on(async {
            let announced = announce(&nodes, &addrs, fewer).await?;
            let mut looked = lookups(&nodes[..addrs.len()], &addrs, fewer).await?;
            looked.values.insert("server RSS MiB", status(self.servers[0].0.pid(), "VmRSS:") / MIB);
            looked.values.insert("store RSS MiB", status(self.redis.pid(), "VmRSS:") / MIB);
            Ok((announced, looked))
        })
    }

    /// From the kill until every client of that server has an answer from another one.
    fn failover(mut self, fewer: usize) -> Result<Sample> {
        let (nodes, addrs) = (self.nodes(LEFT_ALONE)?, self.addrs());
        runtime()?.block_on(async {
            announce(&nodes, &addrs, fewer).await?;
            let clients: Vec<Client> = nodes.iter().map(|tls| client(tls, &addrs, 0)).collect::<Result<_>>()?;
            let page = PageRequest { size: Some(1), ..PageRequest::default() };
            let ask = async |client: &Client| anyhow::Ok(client.list(&page).await?.nodes);
            futures_util::future::try_join_all(clients.iter().map(&ask)).await?;
            drop(self.servers.remove(0));
            let begin = Instant::now();
            futures_util::future::try_join_all(clients.iter().map(&ask)).await?;
            Ok(Sample { seconds: begin.elapsed().as_secs_f64(), ..Sample::default() })
        })
    }

    /// From the return of the store, empty, until every node has announced everything again.
    fn refill(self, fewer: usize) -> Result<Sample> {
        let (nodes, addrs) = (self.nodes(NODES / fewer)?, self.addrs());
        runtime()?.block_on(async {
            let tasks = Tasks::new();
            let mut agents = Vec::new();
            for (index, tls) in nodes.iter().enumerate() {
                agents.push(agent(tls, index, &addrs, fewer, &tasks)?);
            }
            settled(&agents).await?;
            let asker = client(&nodes[0], &addrs, 0)?;
            let before = asker.list(&PageRequest::default()).await?.server_epoch;
            drop(self.redis);
            let _redis = redis(&self.dir)?;
            let begin = Instant::now();
            while begin.elapsed() < REFILL {
                let page = asker.list(&PageRequest::default()).await.ok();
                // Every node has heard of the new epoch, and knows what it has to do.
                if page.is_some_and(|page| page.server_epoch != before && page.nodes as usize == agents.len()) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            settled(&agents).await?;
            let seconds = begin.elapsed().as_secs_f64();
            tasks.shutdown(START).await;
            Ok(Sample { seconds, ..Sample::default() })
        })
    }
}

fn agent(tls: &NodeTls, index: usize, addrs: &[ServerAddr], fewer: usize, tasks: &Tasks) -> Result<Announcer> {
    let each = ARTIFACTS / NODES;
    let numbers = index * each..(index + 1) * each;
    let told = announcement(tls, index, numbers, IDENTITIES / fewer)?;
    let node = AnnouncedNode {
        node: told.node,
        epoch: told.epoch,
        endpoints: told.endpoints.clone(),
        locality: told.locality.clone(),
    };
    let agent = Announcer::spawn(client(tls, addrs, index)?, node, AnnounceConfig::default(), tasks);
    for held in told.held {
        agent.hold(held)?;
    }
    agent.set_state(NodeState::Ready);
    Ok(agent)
}

async fn settled(agents: &[Announcer]) -> Result<()> {
    for agent in agents {
        anyhow::ensure!(agent.settled(REFILL).await, "an agent could not announce");
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// An empty store that listens on `dir/socket`.
fn redis(dir: &Path) -> Result<Killed> {
    let _ = fs::remove_file(dir.join("socket"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut programs = PROGRAMS.iter().flat_map(|name| places.iter().map(move |place| place.join(name)));
    let program =
        programs.find(|program| program.is_file()).context("neither valkey-server nor redis-server is installed")?;
    let mut command = Command::new(program);
    command.current_dir(dir).args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
    command.arg(dir.join("socket")).stdin(Stdio::null()).stdout(Stdio::null());
    let redis = Killed::spawn(&mut command)?;
    let begin = Instant::now();
    while std::os::unix::net::UnixStream::connect(dir.join("socket")).is_err() {
        anyhow::ensure!(begin.elapsed() < START, "the store does not listen");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(redis)
}
