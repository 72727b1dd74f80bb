//! An engine in the foreground: its processes, what it prints, what its log says about caches, and when it is ready.
//!
//! [`Engine::start`] puts vLLM, or any other server, under warmd: it has a session of its own, and no process of it
//! outlives [`Engine::stop`] or the [`Engine`]. What it prints passes through unchanged; each line also goes to an
//! [`Observer`], which can collect a [`StartLog`]. [`wait`] asks the engine's own address until it answers. A [`Supervisor`]
//! keeps one running.
//!
//! [`arguments`] makes of the user's command the one that runs behind a proxy, [`lora`] tells a running engine which
//! adapters there are, and [`quirks`] says in what vLLM's versions differ.

mod address;
pub mod arguments;
mod evidence;
mod health;
pub mod lora;
mod output;
mod process;
pub mod quirks;
pub mod supervision;

pub use address::{Address, Secret};
pub use evidence::{AotSlot, Cache, Evidence, Graphs, Seen, StartLog};
pub use health::{Probe, ProbeError, ProbeFailure, Readiness, Serving, wait};
pub use output::{MAX_LINE, Observer, Output, Stream};
pub use process::{Command, Engine, Exit, Member, Signal, StartError, Stopped, check, replace_by};
pub use supervision::{End, Launch, Metrics, Starter, State, Status, SupervisionConfig, Supervisor, unhealthy};
