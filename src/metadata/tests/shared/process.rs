//! A Redis or Valkey server on a Unix socket in a directory of its own, killed when dropped.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::*;

const PROGRAMS: [&str; 2] = ["valkey-server", "redis-server"];

pub(in crate::metadata::tests) struct Redis {
    program: PathBuf,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Redis {
    /// `None`, and the reason on standard error, where neither program is installed.
    #[expect(clippy::print_stderr, reason = "why nothing was tested is worth reading")]
    pub(in crate::metadata::tests) async fn start() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places: Vec<_> = std::env::split_paths(&path).collect();
        let programs = PROGRAMS.iter().flat_map(|name| places.iter().map(move |place| place.join(name)));
        let Some(program) = programs.into_iter().find(|program| program.is_file()) else {
            eprintln!("skipped: neither {} is installed", PROGRAMS.join(" nor "));
            return None;
        };
        let mut redis = Self { program, dir: tempfile::tempdir().unwrap(), child: None };
        redis.run().await;
        Some(redis)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(super) async fn run(&mut self) {
        let mut command = Command::new(&self.program);
        command.current_dir(self.dir.path()).args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
        command.arg(self.socket()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let up = async {
            while UnixStream::connect(self.socket()).is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, up).await.unwrap();
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(in crate::metadata::tests) fn empty(&self) {
        assert!(self.ask(&["FLUSHALL"]).starts_with("+OK"));
    }

    /// The raw answer without the type of a number.
    pub(in crate::metadata::tests) fn ask(&self, words: &[&str]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.write_all(format!("{}\r\n", words.join(" ")).as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.trim_start_matches(':').to_owned()
    }

    pub(in crate::metadata::tests) fn store(&self, drift: Drift) -> Store {
        let url: StoreUrl = format!("unix://{}", self.socket().display()).parse().unwrap();
        Store::Shared(url.clone(), RedisConfig { url: Some(url), drift, ..RedisConfig::default() })
    }

    pub(super) async fn server(&self, cluster: &Cluster) -> Server {
        cluster.server_over(self.store(Drift::Abort)).await.unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
