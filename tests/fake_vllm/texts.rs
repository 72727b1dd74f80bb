//! What vLLM's versions answer, word for word.

use serde_json::{Value, json};

use super::adapters::Failure;
use super::options::Release;

/// Status and body of an error.
pub type Refusal = (u16, Value);

pub const DEAD: &str = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
pub const DRAINING: &str = "cannot schedule new futures after shutdown";
pub const DRAINING_LOAD: &str = "Server shutting down";

pub fn error(status: u16, kind: &str, param: Option<&str>, message: &str) -> Refusal {
    (status, json!({"error": {"message": message, "type": kind, "param": param, "code": status}}))
}

pub fn internal(message: &str) -> Refusal {
    error(500, "InternalServerError", None, message)
}

pub fn no_route() -> Refusal {
    error(404, "Not Found", None, "Not Found")
}

pub fn unauthorized() -> Refusal {
    (401, json!({"error": "Unauthorized"}))
}

pub fn unreadable(message: &str) -> Refusal {
    error(400, "Bad Request", None, &format!("1 validation error: {message}"))
}

pub fn loaded(name: &str) -> String {
    format!("Success: LoRA adapter '{name}' added successfully.")
}

pub fn unloaded(name: &str) -> String {
    format!("Success: LoRA adapter '{name}' removed successfully.")
}

pub fn not_loaded(name: &str) -> Refusal {
    error(404, "NotFoundError", None, &format!("The lora adapter '{name}' cannot be found."))
}

pub fn duplicate(name: &str) -> Refusal {
    let text = format!(
        "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
    );
    error(400, "InvalidUserInput", None, &text)
}

pub fn base_name(name: &str) -> Refusal {
    error(400, "InvalidUserInput", None, &format!("The lora adapter '{name}' conflicts with a served base model."))
}

pub fn empty() -> Refusal {
    error(400, "InvalidUserInput", None, "Both 'lora_name' and 'lora_path' must be provided.")
}

pub fn not_read(release: Release, name: &str, path: &str, failure: Failure) -> Refusal {
    let reason = match failure {
        Failure::Missing => {
            let text = format!("Loading lora {name} failed: No adapter found for {path}");
            return error(404, "NotFoundError", None, &text);
        }
        Failure::Worker(reason) => reason,
    };
    let text = format!(
        "Call to add_lora method failed: Worker failed with error '{reason}', please check the stack trace above for the root cause"
    );
    if release < (0, 22, 1) { error(400, "BadRequestError", None, &text) } else { internal(&text) }
}

pub fn unknown_model(release: Release, name: &str, names: &[String]) -> Refusal {
    let mut text = format!("The model `{name}` does not exist.");
    if release >= (0, 32, 0) {
        text.push_str(&format!(" Valid aliases: {}.", names.join(", ")));
    }
    error(404, "NotFoundError", Some("model"), &text)
}
