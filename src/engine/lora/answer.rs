//! What vLLM's answers mean.

use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;

use super::super::quirks::{BASE_NAME, DUPLICATE, LoadFailure, MISSING_FILES, Quirks};

/// Characters of an engine's text that are passed on.
const MAX_REASON: usize = 500;

/// What an engine says that is about to end, or has lost its core (0.32).
const ENDING: [&str; 4] = [
    "EngineCore encountered an issue",
    "cannot schedule new futures after shutdown",
    "Server shutting down",
    "EngineDead",
];

/// How a failure of `add_lora` begins in every version that passes it on.
const LOADING: &str = "Call to add_lora method failed";

/// A whole answer.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// What an answer to a change means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    /// The name is that of an adapter or of the base model.
    InUse,
    MissingFiles,
    Refused(String),
    NoRoute,
    Unavailable(String),
}

impl Reply {
    pub(super) fn verdict(&self, quirks: &Quirks) -> Verdict {
        if self.status == StatusCode::OK {
            return Verdict::Done;
        }
        let message = self.message();
        let says = |text: &str| message.contains(text);
        match self.status {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED if !says(MISSING_FILES) => self.without_adapter(),
            _ if says(MISSING_FILES) => Verdict::MissingFiles,
            StatusCode::BAD_REQUEST if says(DUPLICATE) || says(BASE_NAME) => Verdict::InUse,
            // The key, or whoever else listens there.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::SERVICE_UNAVAILABLE => {
                Verdict::Unavailable(self.reason())
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Verdict::Unavailable(self.reason()),
            _ if ENDING.iter().any(|text| says(text)) => Verdict::Unavailable(self.reason()),
            status if status.is_client_error() || says(LOADING) => Verdict::Refused(self.reason()),
            // Where exceptions are raised through, their text may be lost on the way.
            StatusCode::INTERNAL_SERVER_ERROR if quirks.load_failure != LoadFailure::BadRequest => {
                Verdict::Refused(self.reason())
            }
            _ => Verdict::Unavailable(self.reason()),
        }
    }

    /// 404 is also what a name gets that is not loaded; a route that is not there has no text of its own.
    fn without_adapter(&self) -> Verdict {
        let no_route = self.status == StatusCode::METHOD_NOT_ALLOWED || self.message() == "Not Found";
        if no_route { Verdict::NoRoute } else { Verdict::Refused(self.reason()) }
    }

    /// The engine's own words. vLLM's errors are an object, but for 401 and 503, and FastAPI has its own form.
    fn message(&self) -> String {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Body {
            Error { error: Object },
            Text { error: String },
            Detail { detail: String },
        }
        #[derive(Deserialize)]
        struct Object {
            message: String,
        }
        match serde_json::from_slice(&self.body) {
            Ok(
                Body::Error { error: Object { message: text } }
                | Body::Text { error: text }
                | Body::Detail { detail: text },
            ) => text,
            Err(_) => String::from_utf8_lossy(&self.body).into_owned(),
        }
    }

    /// Status and text, on one line and not long.
    pub(super) fn reason(&self) -> String {
        let text: String =
            self.message().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect();
        if text.trim().is_empty() {
            self.status.to_string()
        } else {
            format!("{}: {}", self.status.as_u16(), text.trim())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status: StatusCode::from_u16(status).unwrap(), body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    fn verdict(version: &str, status: u16, message: &str) -> Verdict {
        let body = serde_json::json!({"error": {"message": message, "type": "t", "param": null, "code": status}});
        let (quirks, _) = Quirks::of(&super::super::Version::new(version));
        reply(status, &body.to_string()).verdict(&quirks)
    }

    const RANK: &str =
        "Call to add_lora method failed: Worker failed with error 'LoRA rank 64 is greater than max_lora_rank 32.'";
    const TAKEN: &str = "The lora adapter 'a' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.";

    #[test]
    fn what_each_version_answers_to_a_load_is_told_apart() {
        for version in ["0.16.0", "0.22.1", "0.23.0", "0.26.0", "0.33.0"] {
            assert_eq!(verdict(version, 400, TAKEN), Verdict::InUse, "{version}");
            let missing = "Loading lora a failed: No adapter found for /a";
            assert_eq!(verdict(version, 404, missing), Verdict::MissingFiles, "{version}");
            assert_eq!(verdict(version, 404, "Not Found"), Verdict::NoRoute, "{version}");
            for (status, ending) in
                [(500, "Server shutting down"), (500, ENDING[0]), (503, "Generation is paused"), (401, "Unauthorized")]
            {
                assert!(matches!(verdict(version, status, ending), Verdict::Unavailable(_)), "{version} {ending}");
            }
            for status in [400, 500] {
                let refused = verdict(version, status, RANK);
                assert_eq!(refused, Verdict::Refused(format!("{status}: {RANK}")), "{version}");
            }
        }
        assert_eq!(verdict("0.32.0", 400, "The lora adapter 'm' conflicts with a served base model."), Verdict::InUse);
        // An old engine says in so many words what is wrong with an adapter.
        assert!(matches!(verdict("0.16.0", 500, "Internal Server Error"), Verdict::Unavailable(_)));
        assert!(matches!(verdict("0.22.1", 500, "Internal Server Error"), Verdict::Refused(_)));
    }

    #[test]
    fn answers_of_every_form_have_a_reason_of_one_short_line() {
        assert_eq!(reply(401, r#"{"error":"Unauthorized"}"#).reason(), "401: Unauthorized");
        assert_eq!(reply(404, r#"{"detail":"Not Found"}"#).reason(), "404: Not Found");
        assert_eq!(reply(500, "Internal\nServer\u{1b} Error").reason(), "500: Internal Server  Error");
        assert_eq!(reply(503, "").reason(), "503 Service Unavailable");
        assert!(reply(500, &"x".repeat(10_000)).reason().len() < 600);
    }
}
