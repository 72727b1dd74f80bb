//! The routes there are. Everything else of the engine stays behind the proxy: its administration is not guarded by keys.

use hyper::Method;

use super::answer::Answer;
use crate::telemetry::label;

label! {
    /// A path and what it takes; also a label of metrics.
    pub enum Endpoint {
        ChatCompletions,
        Completions,
        Embeddings,
        Responses,
        Messages,
        CountTokens,
        Rerank,
        Score,
        Tokenize,
        Detokenize,
        Models,
        Capabilities,
        Health,
        Other,
    }
}

const ENDPOINTS: [(&str, Endpoint); 14] = [
    ("/v1/chat/completions", Endpoint::ChatCompletions),
    ("/v1/completions", Endpoint::Completions),
    ("/v1/embeddings", Endpoint::Embeddings),
    ("/v1/responses", Endpoint::Responses),
    ("/v1/messages", Endpoint::Messages),
    ("/v1/messages/count_tokens", Endpoint::CountTokens),
    ("/v1/rerank", Endpoint::Rerank),
    ("/v1/score", Endpoint::Score),
    ("/tokenize", Endpoint::Tokenize),
    ("/detokenize", Endpoint::Detokenize),
    ("/v1/models", Endpoint::Models),
    ("/v1/warmd/capabilities", Endpoint::Capabilities),
    ("/health", Endpoint::Health),
    ("/ping", Endpoint::Health),
];

impl Endpoint {
    /// `path` as it was sent: nothing is decoded or normalised, so that no other spelling reaches the engine.
    pub(super) fn of(path: &str) -> Self {
        ENDPOINTS.iter().find(|(exact, _)| *exact == path).map_or(Self::Other, |(_, endpoint)| *endpoint)
    }

    /// The path that the engine is asked.
    pub(super) fn path(self) -> &'static str {
        ENDPOINTS.iter().find(|(_, endpoint)| *endpoint == self).map_or("/", |(path, _)| *path)
    }

    pub(super) fn check(self, method: &Method) -> Result<(), Answer> {
        match (self, method) {
            (Self::Other, _) => Err(Answer::NoRoute),
            (Self::Models | Self::Capabilities | Self::Health, &Method::GET | &Method::HEAD) => Ok(()),
            (Self::Models | Self::Capabilities | Self::Health, _) => Err(Answer::WrongMethod { allow: "GET, HEAD" }),
            (_, &Method::POST) => Ok(()),
            _ => Err(Answer::WrongMethod { allow: "POST" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_paths_are_routes() {
        assert_eq!(Endpoint::of("/v1/chat/completions"), Endpoint::ChatCompletions);
        for path in [
            "/v1/chat/completions/",
            "//v1/chat/completions",
            "/v1/%63hat/completions",
            "/V1/models",
            "/v1/models/../load",
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter",
            "/metrics",
            "/pause",
            "/sleep",
            "/collective_rpc",
            "/",
            "*",
            "",
        ] {
            assert_eq!(Endpoint::of(path), Endpoint::Other, "{path}");
        }
    }

    #[test]
    fn a_wrong_method_is_told_the_right_one() {
        assert_eq!(Endpoint::Messages.check(&Method::GET), Err(Answer::WrongMethod { allow: "POST" }));
        assert_eq!(Endpoint::Models.check(&Method::POST), Err(Answer::WrongMethod { allow: "GET, HEAD" }));
        assert_eq!(Endpoint::Models.check(&Method::GET), Ok(()));
    }

    #[test]
    fn the_engine_is_asked_the_path_that_was_asked_for() {
        for (path, endpoint) in ENDPOINTS.iter().filter(|(path, _)| *path != "/ping") {
            assert_eq!(endpoint.path(), *path);
        }
    }
}
