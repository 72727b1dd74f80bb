//! What clients are told when the engine does not answer them: always in OpenAI's shape.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::body::Body;

/// An answer of the proxy itself. Texts go to the client: they name what it asked for and the way out, and no secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Answer {
    #[error("there is no such route")]
    NoRoute,
    #[error("use {allow}")]
    WrongMethod { allow: &'static str },
    #[error("{message}")]
    BadRequest { message: String, param: Option<&'static str> },
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("the body did not arrive in time")]
    BodyTimeout,
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("the model `{model}` does not exist")]
    ModelNotFound { model: String },
    #[error("the adapter `{model}` was made for `{made_for}`, and this server serves `{served}`")]
    OtherBase { model: String, made_for: String, served: String },
    /// `accepted`: 202, or 503, which OpenAI's clients try again.
    #[error("the model `{model}` is not ready: {state}")]
    Loading { model: String, state: String, retry_after: Duration, accepted: bool },
    /// An operator holds requests for it back.
    #[error("the model `{model}` is paused")]
    Paused { model: String, retry_after: Duration },
    /// Of this caller there is too much.
    #[error("{reason}")]
    Limited { reason: String, retry_after: Duration },
    /// Of all callers there is too much.
    #[error("the server is busy: too many {what}")]
    Overloaded { what: &'static str },
    #[error("the engine is not ready")]
    NotReady { retry_after: Duration },
    #[error("the server is shutting down")]
    Draining,
    #[error("the request was aborted by an operator")]
    Aborted,
    /// The engine's side of a request failed.
    #[error("the engine failed: {0}")]
    Engine(&'static str),
    #[error("the engine did not answer in time: {0}")]
    EngineTimeout(&'static str),
    /// Anything else that whoever knows the models says. The status is one of an error.
    #[error("{reason}")]
    Refused { status: StatusCode, reason: String },
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute | Self::ModelNotFound { .. } | Self::OtherBase { .. } => StatusCode::NOT_FOUND,
            Self::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadRequest { .. } => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Loading { accepted: true, .. } => StatusCode::ACCEPTED,
            Self::Limited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Loading { .. }
            | Self::Paused { .. }
            | Self::Overloaded { .. }
            | Self::NotReady { .. }
            | Self::Draining
            | Self::Aborted => StatusCode::SERVICE_UNAVAILABLE,
            Self::Engine(_) => StatusCode::BAD_GATEWAY,
            Self::EngineTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Refused { status, .. } => *status,
        }
    }

    /// When to come again, where that helps.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Loading { retry_after, .. }
            | Self::Paused { retry_after, .. }
            | Self::Limited { retry_after, .. }
            | Self::NotReady { retry_after } => Some(*retry_after),
            Self::Overloaded { .. } | Self::Draining => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRoute => "route_not_found",
            Self::WrongMethod { .. } => "method_not_allowed",
            Self::BadRequest { .. } => "invalid_request",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::Unauthorized(_) => "invalid_api_key",
            Self::Forbidden(_) => "forbidden",
            Self::ModelNotFound { .. } | Self::OtherBase { .. } => "model_not_found",
            Self::Loading { .. } => "model_loading",
            Self::Paused { .. } => "model_paused",
            Self::Limited { .. } => "rate_limit_exceeded",
            Self::Overloaded { .. } => "overloaded",
            Self::NotReady { .. } => "engine_not_ready",
            Self::Draining => "draining",
            Self::Aborted => "aborted",
            Self::Engine(_) => "engine_error",
            Self::EngineTimeout(_) => "engine_timeout",
            Self::Refused { .. } => "refused",
        }
    }

    fn kind(&self) -> &'static str {
        match self.status().as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 => "service_unavailable_error",
            _ => "server_error",
        }
    }

    /// The body, as `{"error":{message,type,param,code}}`; of a model that is loading also its name and state.
    pub(super) fn json(&self) -> Value {
        let param = match self {
            Self::BadRequest { param, .. } => *param,
            Self::ModelNotFound { .. } | Self::OtherBase { .. } | Self::Loading { .. } | Self::Paused { .. } => {
                Some("model")
            }
            _ => None,
        };
        let error = json!({"message": self.to_string(), "type": self.kind(), "param": param, "code": self.code()});
        match self {
            Self::Loading { model, state, .. } => json!({"error": error, "status": state, "model": model}),
            _ => json!({"error": error}),
        }
    }

    /// One server-sent event. `type` and the event's name are those that the other protocols' clients look for.
    pub(super) fn event(&self) -> Bytes {
        let mut json = self.json();
        json["type"] = "error".into();
        format!("event: error\ndata: {json}\n\n").into()
    }

    pub(super) fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(Bytes::from(self.json().to_string())));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.describe(headers);
        response
    }

    fn describe(&self, headers: &mut HeaderMap) {
        if let Some(wait) = self.retry_after() {
            // Whole seconds, and never "at once".
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, seconds.max(1).into());
        }
        match self {
            Self::WrongMethod { allow } => drop(headers.insert(ALLOW, HeaderValue::from_static(allow))),
            Self::Unauthorized(_) => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_openais_shape_and_says_when_to_come_again() {
        let wait = Duration::from_millis(1200);
        let loading =
            Answer::Loading { model: "a".to_owned(), state: "fetching".to_owned(), retry_after: wait, accepted: false };
        let response = loading.response();
        assert_eq!((response.status().as_u16(), &response.headers()[RETRY_AFTER]), (503, &HeaderValue::from(2)));
        assert_eq!(
            loading.json(),
            json!({
                "error": {
                    "message": "the model `a` is not ready: fetching", "type": "service_unavailable_error",
                    "param": "model", "code": "model_loading",
                },
                "status": "fetching",
                "model": "a",
            })
        );
        let now = Answer::Limited { reason: "slow down".to_owned(), retry_after: Duration::ZERO }.response();
        assert_eq!((now.status().as_u16(), &now.headers()[RETRY_AFTER]), (429, &HeaderValue::from(1)));
    }

    #[test]
    fn an_error_within_a_stream_is_one_whole_event() {
        let event = String::from_utf8(Answer::Engine("it closed the \n connection").event().to_vec()).unwrap();
        let data = event.strip_prefix("event: error\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!data.contains('\n'));
        assert_eq!(serde_json::from_str::<Value>(data).unwrap()["error"]["code"], "engine_error");
    }
}
