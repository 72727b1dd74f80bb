//! Words that say which weights they were made with.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;

use super::adapters::Adapter;
use super::routes::{Body, Running, State, json, response};
use super::texts::{self, Refusal};

const MAX_TOKENS: u64 = 100_000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Chat,
    Text,
}

/// A request that the engine has taken on.
struct Generation {
    state: Arc<State>,
    kind: Kind,
    model: String,
    /// Absent for the base model.
    adapter: Option<Adapter>,
    prompt: String,
    salt: String,
    tokens: u64,
    usage: bool,
    _running: Running,
}

pub async fn answer(state: &Arc<State>, kind: Kind, body: &Value) -> Result<Response<Body>, Refusal> {
    let generation = Generation::new(state, kind, body)?;
    if body["stream"] == true {
        return Ok(generation.stream());
    }
    let mut words = Vec::new();
    for n in 0..generation.tokens {
        words.push(generation.word(n).await?);
    }
    Ok(json(200, &generation.whole(&words.join(" "))))
}

impl Generation {
    fn new(state: &Arc<State>, kind: Kind, body: &Value) -> Result<Self, Refusal> {
        let model = body["model"].as_str().unwrap_or(&state.options.names[0]).to_owned();
        let adapter = state.adapters.lock().unwrap().find(&model);
        if adapter.is_none() && !state.options.names.contains(&model) {
            return Err(texts::unknown_model(state.options.release, &model, &state.options.names));
        }
        state.refuses(texts::DRAINING)?;
        let tokens = body["max_tokens"].as_u64().unwrap_or(8).min(MAX_TOKENS);
        let prompt = body[if kind == Kind::Chat { "messages" } else { "prompt" }].to_string();
        let salt = body["cache_salt"].as_str().unwrap_or_default().to_owned();
        let usage = body["stream_options"]["include_usage"] == true;
        Ok(Self { state: state.clone(), kind, model, adapter, prompt, salt, tokens, usage, _running: state.run() })
    }

    /// One step of the model.
    async fn word(&self, n: u64) -> Result<String, Refusal> {
        sleep(self.state.options.token).await;
        self.state.refuses_dead()?;
        let mut adapters = self.state.adapters.lock().unwrap();
        let digest = match &self.adapter {
            None => "base".to_owned(),
            Some(adapter) => adapters.step(adapter).map_err(|_| {
                self.state.die();
                texts::internal(texts::DEAD)
            })?,
        };
        if n > 0 {
            return Ok(format!("w={digest}"));
        }
        Ok(format!("kv={}", adapters.prefill(self.adapter.as_ref(), &self.salt, &self.prompt, &digest)))
    }

    fn stream(self) -> Response<Body> {
        let (sender, pieces) = mpsc::channel(1);
        let state = self.state.clone();
        state.tasks.spawn("stream", async move {
            // Whoever reads has gone: so does the request.
            let _ = self.send(&sender).await;
        });
        let body = StreamBody::new(ReceiverStream::new(pieces)).boxed();
        response(200, "text/event-stream; charset=utf-8", body)
    }

    async fn send(&self, to: &mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>) -> Option<()> {
        let event = async |event: &str| to.send(Ok(Frame::data(Bytes::from(format!("data: {event}\n\n"))))).await.ok();
        for n in 0..self.tokens {
            let word = tokio::select! {
                word = self.word(n) => word,
                () = to.closed() => return None,
            };
            match word {
                Ok(word) => event(&self.chunk(n, &word).to_string()).await?,
                Err((_, error)) => {
                    event(&error.to_string()).await?;
                    return event("[DONE]").await;
                }
            }
        }
        if self.usage {
            event(&self.object(json!([]), Some(self.counts())).to_string()).await?;
        }
        event("[DONE]").await
    }

    fn chunk(&self, n: u64, word: &str) -> Value {
        let text = if n == 0 { word.to_owned() } else { format!(" {word}") };
        let finish = (n + 1 == self.tokens).then_some("length");
        let choice = match self.kind {
            Kind::Chat => json!({"index": 0, "delta": {"content": text}, "logprobs": null, "finish_reason": finish}),
            Kind::Text => json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish}),
        };
        self.object(json!([choice]), None)
    }

    fn whole(&self, text: &str) -> Value {
        let choice = match self.kind {
            Kind::Chat => {
                json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"})
            }
            Kind::Text => json!({"index": 0, "text": text, "logprobs": null, "finish_reason": "length"}),
        };
        let mut whole = self.object(json!([choice]), Some(self.counts()));
        if self.kind == Kind::Chat {
            whole["object"] = json!("chat.completion");
        }
        whole
    }

    fn object(&self, choices: Value, usage: Option<Value>) -> Value {
        let (id, object) = match self.kind {
            Kind::Chat => ("chatcmpl-fake", "chat.completion.chunk"),
            Kind::Text => ("cmpl-fake", "text_completion"),
        };
        let mut object = json!({"id": id, "object": object, "created": 1, "model": self.model, "choices": choices});
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        object
    }

    fn counts(&self) -> Value {
        json!({"prompt_tokens": 1, "total_tokens": self.tokens + 1, "completion_tokens": self.tokens})
    }
}
