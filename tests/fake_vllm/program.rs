//! The life of a fake vLLM's processes.

mod adapters;
mod completions;
mod options;
mod routes;
mod texts;

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

use self::options::Options;
use self::routes::State;

/// Set in the core's environment: seconds after which it ends.
const CORE: &str = "FAKE_VLLM_CORE";

/// Between the death of the core and the leader's exit.
const LAST_BREATH: Duration = Duration::from_millis(500);

/// `words` are the arguments. `own` starts this program again; what it has for arguments stays.
pub fn main(words: Vec<String>, own: Command) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        if let Ok(lifetime) = std::env::var(CORE) {
            let lifetime = Duration::from_secs_f64(lifetime.parse().unwrap());
            let _ = timeout(lifetime, signal(SignalKind::terminate()).unwrap().recv()).await;
            return 0;
        }
        match Options::parse(words) {
            Ok(options) => timeout(options.lifetime, lead(options, own)).await.unwrap_or(99),
            Err(complaint) => {
                say(&format!("vllm: error: {complaint}"));
                2
            }
        }
    })
}

/// In one write, and on a line of its own.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever read the output may have gone.
    let _ = out.write_all(format!("\n{line}\n").as_bytes()).and_then(|()| out.flush());
}

fn log(text: &str) {
    say(&format!("(APIServer pid={}) INFO 11-21 05:43:39 [fake.py:1] {text}", std::process::id()));
}

async fn lead(options: Options, own: Command) -> i32 {
    let ends = [signal(SignalKind::terminate()).unwrap(), signal(SignalKind::interrupt()).unwrap()];
    let mut core = Core::start(own, options.lifetime);
    log(&format!("vLLM API server version {}, engine core pid {}", options.version, core.0.id()));
    live(options, ends, &mut core).await
}

async fn live(options: Options, mut ends: [Signal; 2], core: &mut Core) -> i32 {
    tokio::select! {
        () = sleep(options.start) => {}
        () = told(&mut ends) => return 0,
    }
    if let Some(code) = options.fail {
        say("RuntimeError: Engine core initialization failed. See root cause above.");
        return code;
    }
    let state = Arc::new(State::new(options, core.0.id()));
    if let Err(error) = listen(&state).await {
        say(&format!("OSError: [Errno {}] {error}", error.raw_os_error().unwrap_or(0)));
        return 1;
    }
    say("INFO:     Application startup complete.");
    tokio::select! {
        () = told(&mut ends) => drain(&state).await,
        () = core.ended() => die(&state).await,
        () = state.died() => {
            core.kill();
            die(&state).await;
        }
    }
    0
}

async fn told([terminate, interrupt]: &mut [Signal; 2]) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Without `--shutdown-timeout` what runs is cut off.
async fn drain(state: &State) {
    state.begin_drain();
    log(&format!("shutting down, {:?} for what runs", state.options.shutdown_timeout));
    let _ = timeout(state.options.shutdown_timeout, state.idle()).await;
}

async fn die(state: &State) {
    state.die();
    say("(APIServer pid=1) ERROR 11-21 05:43:39 [async_llm.py:906] AsyncLLM output_handler failed.");
    sleep(LAST_BREATH).await;
}

async fn listen(state: &Arc<State>) -> std::io::Result<()> {
    let accepting = state.clone();
    if let Some(path) = &state.options.uds {
        let listener = UnixListener::bind(path)?;
        state.tasks.spawn("listener", async move {
            loop {
                serve(&accepting, listener.accept().await.unwrap().0);
            }
        });
    } else {
        let listener = TcpListener::bind((state.options.host.as_str(), state.options.port)).await?;
        state.tasks.spawn("listener", async move {
            loop {
                serve(&accepting, listener.accept().await.unwrap().0);
            }
        });
    }
    Ok(())
}

fn serve(state: &Arc<State>, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let answering = state.clone();
    state.tasks.spawn("connection", async move {
        let service = service_fn(move |request| routes::answer(answering.clone(), request));
        // A client that goes away is no concern of the engine.
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    });
}

/// The engine core; the leader's own end takes it along.
struct Core(Child);

impl Core {
    fn start(mut own: Command, lifetime: Duration) -> Self {
        own.env(CORE, lifetime.as_secs_f64().to_string()).stdin(Stdio::null()).stdout(Stdio::null());
        Self(own.spawn().unwrap())
    }

    async fn ended(&mut self) {
        while self.0.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn kill(&mut self) {
        // That it has ended already is as good.
        let _ = self.0.kill();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.kill();
        let _ = self.0.wait();
    }
}
