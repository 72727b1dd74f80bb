//! How long a real vLLM takes to its first answer: cold, warm where it compiled, moved by hand, and warmed by warmd elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::Options;
use crate::harness::{Killed, Report, Row, Sample, free_port, fresh, shell};
use crate::warmd::Cluster;

/// Names a virtual environment as tests/real_vllm/README.md makes it.
pub(crate) const VENV: &str = "WARMD_TEST_VLLM";
const READY: Duration = Duration::from_secs(400);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Without a line of warmd for this long, everything is published.
const PUBLISHED: Duration = Duration::from_secs(12);
const END: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Mode {
    /// `vllm serve` as it is.
    Stock,
    /// Workers are forked, and the model that was compiled ahead of time is loaded on a CPU too.
    Forked,
}

impl Mode {
    fn title(self) -> &'static str {
        match self {
            Self::Stock => "vllm serve as it is",
            Self::Forked => "vllm serve, forked workers, AOT loads",
        }
    }

    fn switches(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Stock => &[],
            Self::Forked => &[("FASTSERVE_FORK", "1"), ("FASTSERVE_FIX_AOT", "1")],
        }
    }
}

/// `show` is given each table as soon as it is known: all of them take a quarter of an hour.
pub(crate) fn run(report: &mut Report, options: &Options, show: &dyn Fn(String)) -> Result<()> {
    let Some(venv) = std::env::var_os(VENV).map(PathBuf::from) else {
        show(format!("engine-start: skipped, {VENV} names no virtual environment with vLLM"));
        return Ok(());
    };
    let bench = Bench::new(&venv, &options.dir)?;
    let modes = options.engine.map_or_else(|| vec![Mode::Forked, Mode::Stock], |mode| vec![mode]);
    for mode in modes {
        let mut cluster = Cluster::start(&options.dir.join("cluster"))?;
        cluster.start_agent("a")?;
        let nothing = bench.nothing_found(&cluster, options.runs)?;
        let mut text = report.add("warmd exec where nothing is found", vec![nothing.clone()]);
        text += &report.at_most("seconds that warmd adds when nothing is found", nothing.seconds(), 1.5);
        let rows = bench.starts(&mut cluster, mode, options.runs)?;
        let ratio = rows[3].seconds() / rows[1].seconds();
        text += &report.add(&format!("Start to the first answer: {}", mode.title()), rows);
        text += &report.at_most(format!("{}: warmd elsewhere / warm where it compiled", mode.title()), ratio, 1.05);
        show(text);
    }
    Ok(())
}

struct Bench {
    dir: PathBuf,
    program: PathBuf,
    noop: PathBuf,
    model: PathBuf,
}

impl Bench {
    fn new(venv: &Path, dir: &Path) -> Result<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_vllm");
        let python = venv.join("bin/python");
        let script = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, format!("#!{}\n{text}", python.display()))?;
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            anyhow::Ok(path)
        };
        fs::create_dir_all(dir.join("bin"))?;
        let program = script("bin/vllm", &fs::read_to_string(here.join("vllm_fastserve.py"))?)?;
        let noop = script("bin/noop", "")?;
        let models = dir.join("models");
        shell(&format!(
            "'{}' '{}' '{}' > /dev/null",
            python.display(),
            here.join("tiny_model.py").display(),
            models.display()
        ))?;
        Ok(Self { dir: dir.to_owned(), program, noop, model: models.join("base") })
    }

    /// What `warmd exec` itself takes before it starts the engine, the interpreter's facts being known.
    fn nothing_found(&self, cluster: &Cluster, runs: usize) -> Result<Row> {
        let root = self.root("nothing")?;
        let mut samples = Vec::new();
        // The first one asks the interpreter.
        for run in 0..=runs {
            let mut exec = cluster.exec("a")?;
            environment(&mut exec, &root, Mode::Stock).arg("--").arg(&self.noop).arg("serve").arg(&self.model);
            let output = exec.stdin(Stdio::null()).output()?;
            let seconds = hook_seconds(&String::from_utf8_lossy(&output.stderr))?;
            if run == 0 {
                samples.push(Sample { values: BTreeMap::from([("probe not kept s", seconds)]), ..Default::default() });
            } else {
                samples.push(Sample { seconds, ..Default::default() });
            }
        }
        let first = samples.remove(0);
        samples[0].values = first.values;
        Ok(Row { name: "warmd exec".to_owned(), samples })
    }

    fn starts(&self, cluster: &mut Cluster, mode: Mode, runs: usize) -> Result<Vec<Row>> {
        let seed = self.root("seed")?;
        self.publish(cluster, mode, &seed)?;
        Cluster::settle();
        let names = ["cold", "warm where it compiled", "caches moved by tar", "warmd, other node, root and HOME"];
        let mut rows = names.map(|name| Row { name: name.to_owned(), samples: Vec::new() });
        for run in 0..runs {
            let (own, moved, other) = (self.root("own")?, self.root("moved")?, self.root("other")?);
            rows[0].samples.push(self.plain(mode, &own, Instant::now())?);
            rows[1].samples.push(self.plain(mode, &own, Instant::now())?);
            let begin = Instant::now();
            shell(&format!("tar -C '{}' -c vllm | tar -C '{}' -x", own.display(), moved.display()))?;
            rows[2].samples.push(self.plain(mode, &moved, begin)?);
            let agent = format!("b{run}");
            cluster.start_agent(&agent)?;
            Cluster::settle();
            rows[3].samples.push(self.warmed(cluster, &agent, mode, &other)?);
            cluster.kill(&agent)?;
        }
        Ok(rows.into())
    }

    fn plain(&self, mode: Mode, root: &Path, begin: Instant) -> Result<Sample> {
        let mut engine = Command::new(&self.program);
        let port = self.arguments(environment(&mut engine, root, mode))?;
        let engine = Running::start(&mut engine, &root.join("log"))?;
        engine.await_ready(&port)?;
        let seconds = begin.elapsed().as_secs_f64();
        engine.end()?;
        Ok(Sample { seconds, ..Default::default() })
    }

    fn warmed(&self, cluster: &Cluster, agent: &str, mode: Mode, root: &Path) -> Result<Sample> {
        let mut exec = cluster.exec(agent)?;
        let port = self.arguments(environment(&mut exec, root, mode).arg("--").arg(&self.program))?;
        let begin = Instant::now();
        let engine = Running::start(&mut exec, &root.join("log"))?;
        engine.await_ready(&port)?;
        let seconds = begin.elapsed().as_secs_f64();
        let hook = hook_seconds(&fs::read_to_string(root.join("log"))?)?;
        engine.end()?;
        Ok(Sample { seconds, values: BTreeMap::from([("warmd s", hook)]), ..Default::default() })
    }

    /// One cold start through warmd on `a`, until all that it compiled is published.
    fn publish(&self, cluster: &Cluster, mode: Mode, root: &Path) -> Result<()> {
        let mut exec = cluster.exec("a")?;
        environment(exec.args(["--quiet", "3s"]), root, mode);
        let port = self.arguments(exec.arg("--").arg(&self.program))?;
        let log = root.join("log");
        let engine = Running::start(&mut exec, &log)?;
        engine.await_ready(&port)?;
        let (mut told, mut since) = (0, Instant::now());
        while told == 0 || since.elapsed() < PUBLISHED {
            ensure!(since.elapsed() < READY, "nothing was published; see {}", log.display());
            std::thread::sleep(LOOK_EVERY);
            let now = fs::read_to_string(&log)?.matches(": published as generation").count();
            if now > told {
                (told, since) = (now, Instant::now());
            }
        }
        engine.end()
    }

    fn root(&self, name: &str) -> Result<PathBuf> {
        let root = self.dir.join(name);
        fresh(&root)?;
        for name in ["home", "tmp", "vllm"] {
            fs::create_dir(root.join(name))?;
        }
        Ok(root)
    }

    fn arguments(&self, command: &mut Command) -> Result<String> {
        let addr = free_port()?;
        let port = addr.rsplit(':').next().context("a port")?;
        command.arg("serve").arg(&self.model).args(["--host", "127.0.0.1", "--port", port]);
        command.args(["--kv-cache-memory-bytes", "67108864"]);
        Ok(addr)
    }
}

fn environment<'a>(command: &'a mut Command, root: &Path, mode: Mode) -> &'a mut Command {
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(mode.switches().iter().copied());
    command.env("HOME", root.join("home")).env("TMPDIR", root.join("tmp")).env("WARMD_CACHE_ROOT", root.join("vllm"));
    command.env("VLLM_CACHE_ROOT", root.join("vllm"));
    command.envs([("HF_HUB_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind")])
}

/// What warmd says that it took.
fn hook_seconds(log: &str) -> Result<f64> {
    let told = log.lines().find_map(|line| line.strip_prefix("warmd: starting the engine after ")?.strip_suffix(" s"));
    Ok(told.with_context(|| format!("no start of an engine in: {log}"))?.parse()?)
}

/// A process group.
struct Running(Killed);

impl Running {
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let log = fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        Ok(Self(Killed::spawn(command)?))
    }

    fn await_ready(&self, addr: &str) -> Result<()> {
        let begin = Instant::now();
        while !is_healthy(addr) {
            ensure!(begin.elapsed() < READY, "no engine at {addr} after {READY:?}");
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        let pid = Pid::from_raw(self.0.pid() as i32).context("a process id")?;
        kill_process(pid, Signal::TERM)?;
        let begin = Instant::now();
        while self.0.0.try_wait()?.is_none() {
            if begin.elapsed() > END {
                kill_process_group(pid, Signal::KILL)?;
                bail!("the engine did not end");
            }
            std::thread::sleep(LOOK_EVERY);
        }
        // What a leader that has ended may have left behind.
        let _ = kill_process_group(pid, Signal::KILL);
        Ok(())
    }
}

fn is_healthy(addr: &str) -> bool {
    let asked = || -> std::io::Result<String> {
        let mut http = TcpStream::connect(addr)?;
        http.set_read_timeout(Some(Duration::from_secs(5)))?;
        http.write_all(b"GET /health HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        http.read_to_string(&mut text)?;
        Ok(text)
    };
    asked().is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
}
