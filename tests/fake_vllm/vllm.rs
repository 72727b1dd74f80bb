//! A fake vLLM for the terminal: what `warmd serve` needs of one, without Python and without a GPU.
//!
//! ```text
//! cargo build --example fake_vllm
//! ln -s "$PWD/target/debug/examples/fake_vllm" /somewhere/on/PATH/vllm
//! VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_API_KEY=k vllm serve MODEL --enable-lora --uds /tmp/engine.sock
//! curl --unix-socket /tmp/engine.sock -H 'Authorization: Bearer k' -H 'Content-Type: application/json' \
//!     http://x/v1/load_lora_adapter -d '{"lora_name": "a", "lora_path": "/adapters/a"}'
//! curl --unix-socket /tmp/engine.sock -H 'Authorization: Bearer k' -H 'Content-Type: application/json' \
//!     http://x/v1/completions -d '{"model": "a", "prompt": "hello", "stream": true}'
//! ```
//!
//! It takes vLLM's own options, of which these have an effect: `--uds`, `--host`, `--port`, `--api-key`,
//! `--served-model-name`, `--enable-lora`, `--max-cpu-loras`, `--max-loras`, `--max-lora-rank`, `--shutdown-timeout`,
//! `--api-server-count`; and of the environment `VLLM_API_KEY`, `VLLM_ALLOW_RUNTIME_LORA_UPDATING` and `VLLM_PORT`.
//!
//! | option | effect |
//! | --- | --- |
//! | `--fake-version 0.32.0` | answers as that version does: 0.16 to 0.33 |
//! | `--fake-version-file P` | the version is what that file says at the start |
//! | `--fake-start 2` | seconds until it listens |
//! | `--fake-fail 1` | exits with that code instead of listening |
//! | `--fake-load 0.2` | seconds of a load |
//! | `--fake-hold FILE` | loads wait while there is that file |
//! | `--fake-end FILE` | ends without an answer when it is asked for its version while there is that file, which it removes |
//! | `--fake-token 0.05` | seconds of a token |
//! | `--fake-lifetime 3600` | seconds after which nothing of it is left, whatever happened |
//!
//! The answer to a request has `max_tokens` words. The first, `kv=<digest>`, names the weights that the prompt's KV cache
//! was computed with, each other one, `w=<digest>`, the weights that the step was made with: the first 16 digits of the
//! BLAKE3 of `adapter_model.safetensors`, or `base`. As in vLLM, an unload only takes the name away, an adapter that has
//! left the host's memory (`--max-cpu-loras`) is read again from its path in the step that needs it, and if it is not
//! there the engine dies, with exit code 0.
//!
//! The leader has a child, the engine core. `kill -9` of the core ends the engine as in vLLM, of the leader it leaves the
//! core behind. `POST /fake/crash` with `{"who": "core"}` or `{"who": "leader"}` does the same. `GET /fake` tells the
//! core's process id and the names of all loads that were asked for.

#![expect(unreachable_pub, clippy::unwrap_used, reason = "a test program has no outside, and ends by panicking")]

#[path = "program.rs"]
mod program;

use std::process::{Command, exit};

fn main() {
    let own = std::env::current_exe().unwrap();
    exit(program::main(std::env::args().skip(1).collect(), Command::new(own)));
}
