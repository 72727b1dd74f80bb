//! The map of warmd's code.
//!
//! warmd keeps vLLM nodes warm. A node that has compiled signs what it has; every other node with the same source identity
//! pulls it over QUIC from as many holders as there are, verifies it, and installs it before its engine starts.
//!
//! # Words
//!
//! | word | meaning |
//! | --- | --- |
//! | agent | the node daemon: store, peer endpoint, announcements, local API |
//! | metadata server | soft-state directory of who holds what; gives hints, never trust |
//! | family | a kind of cache: `vllm-aot`, `triton`, `lora`, `directory`, ... |
//! | source identity | the facts that decide whether a family's entries can be reused; its digest is the lookup key |
//! | artifact | a signed, immutable set of files of one family and identity |
//! | manifest | the signed description of an artifact |
//! | entry | what is installed by one rename |
//! | chunk | up to 1 MiB of an artifact's content stream, named by the BLAKE3 of its encoded bytes |
//! | holder | a node that has chunks of an artifact and serves them, whoever signed it |
//! | origin | an object store with the same artifacts, asked when no node has one |
//! | signer | a key whose manifests the trust policy accepts, within a scope |
//! | cache root | the directory that entries are installed into, by the pod that owns it |
//!
//! # Layers
//!
//! A module uses only rows below its own; modules of one row do not use each other. `tests/integration/layers.rs` holds
//! the same table and fails when the code says otherwise.
//!
//! | row | what is there |
//! | --- | --- |
//! | `cli` | one file a subcommand; results to standard output; `cli::agent` joins agent and serving in a pod that is everything in one |
//! | `config` | reads and checks a role's file, environment and flags; every part owns its section; what of it a running role takes again |
//! | `agent`, `serve` | the node daemon; the pod's side, which installs with the pod's uid and policy |
//! | `proxy` | OpenAI's routes in front of an engine: who may and how much, which adapter, bytes as they come |
//! | `transfer`, `metadata`, `install`, `local`, `origin` | plan, fetch, provide; the directory and its client, and a directory of weights for clients of another system; stage, commit, markers, locks; the agent's Unix socket; the object store behind all nodes |
//! | `store`, `transport`, `discovery`, `engine` | chunks and artifacts on disk; QUIC, and TCP where UDP is lost (the only place that names quinn and h2); agents that find each other (the only place that names libp2p); the engine: processes, output, log, readiness, supervision, how it is started behind a proxy, and what it is told of adapters |
//! | `adapters` | LoRA adapters: formats, checks, what is made of one before an engine sees it |
//! | `caches` | the kinds of caches, what decides whether an entry can be used elsewhere, which files make an artifact, captured consistently |
//! | `protocol` | what goes over wires; generated types stop here |
//! | `artifact` | digests, content stream, chunks, manifest |
//! | `identity` | keys, certificates, mutual TLS, signatures, the trust policy and its documents |
//! | `web` | the page for people: documents that others put on its board, served read-only |
//! | `telemetry` | logs, traces for a collector, `/metrics`, the audit log |
//! | `http` | plain HTTP for operators: the listener of `/metrics` and of the page |
//! | `lifecycle`, `digest`, `durable` | owned tasks, signals, short-lived programs, a share for each caller; ids; small files that survive a crash |
//!
//! # Invariants
//!
//! - Nothing becomes visible under a cache root before its signer was accepted by the policy for this family, identity and
//!   class, and its bytes matched (`identity::Policy`, `artifact::Admitted`, `install`). There is no unsigned mode.
//! - What is visible is whole; what exists is never replaced (`install::Installation::commit`).
//! - An agent signs only what it has read itself or has checked like a manifest from a peer, content included
//!   (`agent::publish`).
//! - What servers, holders, the directory and the DHT say is a hint: it can cost time, never correctness.
//! - Everything that waits has a deadline, everything that queues a bound, and a number from outside is checked before
//!   anything is allocated by it.
//! - Every task belongs to a `lifecycle::Tasks`. Work that blocks is off the runtime's threads.
//! - The pure parts take time as a parameter and do no I/O: `artifact` (but for the files handed to it), `transfer::plan`,
//!   `metadata::registry`, `store::evict`. The hard tests live there.
//!
//! # A directory is published
//!
//! 1. `cli::publish` asks the agent over its socket (`local`, `agent::control`). For a directory that the agent does not see,
//!    `serve::push` does the next step itself and sends chunks and manifest; `agent::publish` checks them.
//! 2. `caches::snapshot` walks the directory and has `artifact::build` read, hash, pack and compress it on all cores;
//!    chunks of the generation before are kept where they are still in use.
//! 3. `agent::publish` signs the manifest and puts it into the `store`; `agent::holdings` sees the change,
//!    `metadata::Announcer` tells the server, and `discovery::Discovery` the other agents.
//!
//! # A cache root is warmed
//!
//! 1. `serve::warm` opens the `install::CacheRoot`, takes its lock, looks at the marker, and asks the agent.
//! 2. `agent::fetching` looks the identity up: `agent::directory` asks the metadata server (`metadata::Client`), or other
//!    agents (`discovery::Discovery`) where there is none or it is silent. It gets a manifest from a holder, and admits it.
//! 3. `transfer::Fetcher` does what `transfer::plan` says: requests over `transport`, chunks verified and put into the
//!    `store`, where `transfer::Provider` serves them onward at once.
//!    Where no holder is left, `origin` brings them.
//! 4. Meanwhile `serve::warm` has admitted the same manifest by its own policy and reads chunks from the agent as they
//!    arrive; `install::Installation` checks and writes them, then commits entry by entry.
//!
//! # An engine is started warm
//!
//! 1. `cli::exec` runs `serve::exec`. `serve::target` has `caches::Directories` say which variables to set, and
//!    `caches::Probe` ask the engine's Python for facts; `serve::outlook` makes one source identity for each
//!    [`caches::CacheFamily`] of them.
//! 2. One `Find` through the agent tells which families there are; `serve::warming` has `serve::warm` bring each of them,
//!    side by side, in the order of `serve::worth`.
//!    `serve::start::trial` decides whether a start is clean, and `serve::quarantine` what is not installed any more.
//! 3. `engine::Engine` owns the processes; `engine::StartLog` collects what the log says about caches, and `engine::wait`
//!    asks until the engine is ready.
//! 4. `serve::start::proof` tells what was used, `serve::start::reporting` tells it to the agent for its metrics, and
//!    `serve::publishing` pushes what was added, again and again. `serve::doctor` says the same before a start, and names
//!    what differs where something is nearly right.
//!
//! Whom a pod trusts is asked of its agent (`serve::trust`), verified by the pod's own root document, and asked again right
//! before 3: `serve::admissions` takes away what is revoked since.
//!
//! Where something else starts the engine, `serve::hook` does 1 and 2 before it, and publishes after it.
//!
//! # A request is served
//!
//! 1. `serve::serving` joins the parts: `engine::Supervisor` keeps an engine running and says where it is, with the same
//!    `serve::start` around each of its starts as above; `serve::admin` is for operators.
//! 2. `proxy::Server` takes the connection; `proxy::Proxy` knows the route, the caller (`proxy::Admission`, which is
//!    `proxy::Access`), and how much there may be. The body is read whole and scanned, not parsed.
//! 3. `proxy::Models` says where the model is. For an adapter that is `serve::adapters`: a pure table of versions, and loads
//!    that bring one from the agent, have `adapters::Preparer` make of it what the engine can load, and register it by
//!    `engine::lora`.
//! 4. The engine, wherever `proxy::Upstream` says that it is now, gets a request of our own making. Its answer goes on as it
//!    comes; only the model's name is put back. Dropping the request closes its connection, and the engine stops.

pub mod digest;
pub mod durable;
pub mod lifecycle;

pub mod http;

pub mod telemetry;

pub mod web;

pub mod identity;

pub mod artifact;

pub mod protocol;

pub mod caches;

pub mod adapters;

pub mod discovery;
pub mod engine;
pub mod store;
pub mod transport;

pub mod install;
pub mod local;
pub mod metadata;
pub mod origin;
pub mod transfer;

pub mod proxy;

pub mod agent;
pub mod serve;

pub mod config;

pub mod cli;
