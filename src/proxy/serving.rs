//! The way of one request.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::Proxy;
use super::admission::{Asking, Permit};
use super::answer::Answer;
use super::auth::Caller;
use super::body::{Body, Held, Relay};
use super::config::Loading;
use super::forward::{Answered, Head, framing, names_us, relayed};
use super::intake;
use super::metrics::{By, Class, State};
use super::models::{Lease, Resolution, Route};
use super::request::{Asked, Waiting};
use super::rewrite::{Framing, Rewriter};
use super::route::Endpoint;
use super::slots::Slot;
use super::trace::Trace;
use super::upstream::{Exchange, Pool, Upstream};

/// How long an adapter that the engine has lost may take to be there again.
const HEALING: Duration = Duration::from_secs(30);

/// A request from its head on.
struct Received {
    begun: Instant,
    endpoint: Endpoint,
    head: Parts,
    trace: Trace,
    class: Class,
    pool: Arc<Pool>,
}

/// A [`Route`], taken apart.
struct Target {
    class: Class,
    engine_name: String,
    client_name: String,
    salt: Option<String>,
    lease: Option<Lease>,
}

impl Target {
    fn of(route: Route, asked: &str) -> Self {
        match route {
            Route::Base { upstream_name } => {
                let client_name = asked.to_owned();
                Self { class: Class::Base, engine_name: upstream_name, client_name, salt: None, lease: None }
            }
            Route::Adapter { upstream_name, shown_name, cache_salt, lease } => Self {
                class: Class::Adapter,
                engine_name: upstream_name,
                client_name: shown_name,
                salt: cache_salt,
                lease: Some(lease),
            },
        }
    }
}

impl Target {
    fn adapter(&self) -> Option<&str> {
        (self.class == Class::Adapter).then_some(&self.client_name)
    }
}

impl Proxy {
    /// `has_length`: the head has a `Content-Length`. `pool` is the thread's.
    pub(super) async fn serve(
        self: &Arc<Self>,
        request: Request<Incoming>,
        has_length: bool,
        pool: Arc<Pool>,
    ) -> Response<Body> {
        let (head, body) = request.into_parts();
        let (endpoint, trace) = (Endpoint::of(head.uri.path()), Trace::of(&head.headers));
        let mut received = Received { begun: Instant::now(), endpoint, head, trace, class: Class::None, pool };
        let span = received.trace.span(endpoint);
        let is_framed_twice = has_length && received.head.headers.contains_key(TRANSFER_ENCODING);
        let answered = self.answer(&mut received, body, is_framed_twice).instrument(span).await;
        let mut response = answered.unwrap_or_else(|answer| {
            tracing::debug!(request = received.trace.id(), code = answer.code(), %answer, "refused");
            answer.response()
        });
        self.metrics.answered(received.class, endpoint, response.status().as_u16());
        received.trace.answer(response.headers_mut());
        if is_framed_twice || self.draining.is_cancelled() {
            close(&mut response);
        }
        response
    }

    /// Of a connection over the limit.
    pub(super) fn too_many(&self) -> Response<Body> {
        let mut response = Answer::Overloaded { what: "connections" }.response();
        self.metrics.answered(Class::None, Endpoint::Other, response.status().as_u16());
        close(&mut response);
        response
    }

    async fn answer(
        self: &Arc<Self>,
        received: &mut Received,
        body: Incoming,
        is_framed_twice: bool,
    ) -> Result<Response<Body>, Answer> {
        if is_framed_twice {
            let message = "the request has both Content-Length and Transfer-Encoding".to_owned();
            return Err(Answer::BadRequest { message, param: None });
        }
        received.endpoint.check(&received.head.method)?;
        if received.endpoint == Endpoint::Health {
            return self.health();
        }
        let mut slot = Some(self.slot()?);
        let caller = self.caller(&received.head, None)?;
        if let Endpoint::Models | Endpoint::Capabilities = received.endpoint {
            let caller = caller.map_or_else(|| self.known(&received.head, &[]), Ok)?;
            return match received.endpoint {
                Endpoint::Models => Ok(self.list(&caller).await),
                _ => Ok(self.capabilities(&caller).await),
            };
        }
        self.has_engine()?;
        let stage = self.metrics.enter(State::Reading);
        let taken = self.intake.take(body).await?;
        let caller = caller.map_or_else(|| self.known(&received.head, &taken.body), Ok)?;
        let asked = intake::parse(taken.body).await?;
        drop(stage);
        let mut target = self.target(&asked, &caller, &mut slot).await?;
        received.class = target.class;
        let permit = self.admitted(&caller, target.adapter(), received.trace.id()).await?;
        if permit.waited {
            target = self.settled(self.models.resolve(&asked.model, &caller).await, &asked)?;
        }
        let aborted = permit.aborted.clone();
        let relayed = self.relay(received, Turn { caller, asked, target, permit, slot });
        let response = match aborted {
            None => relayed.await,
            Some(aborted) => self.unless_aborted(&aborted, relayed).await,
        };
        // The body is not needed again once the engine has begun to answer.
        drop(taken.share);
        response
    }

    async fn unless_aborted(
        &self,
        aborted: &CancellationToken,
        relayed: impl Future<Output = Result<Response<Body>, Answer>>,
    ) -> Result<Response<Body>, Answer> {
        tokio::select! {
            biased;
            () = aborted.cancelled() => {
                self.metrics.aborted(By::Operator);
                Err(Answer::Aborted)
            }
            response = relayed => response,
        }
    }

    fn caller(&self, head: &Parts, body: Option<&[u8]>) -> Result<Option<Caller>, Answer> {
        let mut headers = head.headers.get_all(AUTHORIZATION).iter();
        let authorization = headers.next().map(HeaderValue::as_bytes);
        if headers.next().is_some() {
            return Err(Answer::Unauthorized("more than one Authorization header".to_owned()));
        }
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        self.admission.authenticate(&Asking { method: head.method.as_str(), path, authorization }, body)
    }

    fn known(&self, head: &Parts, body: &[u8]) -> Result<Caller, Answer> {
        let unknown = || Answer::Unauthorized("the credentials do not say who you are".to_owned());
        self.caller(head, Some(body))?.ok_or_else(unknown)
    }

    async fn admitted(&self, caller: &Caller, adapter: Option<&str>, request: &str) -> Result<Permit, Answer> {
        let (_stage, since) = (self.metrics.enter(State::Gate), Instant::now());
        let permit = self.admission.admit(caller, adapter, request).await;
        self.metrics.gate_waited(since.elapsed());
        permit
    }

    fn slot(&self) -> Result<Slot, Answer> {
        self.requests.take().ok_or(Answer::Overloaded { what: "requests" })
    }

    fn engine(&self) -> Result<Upstream, Answer> {
        self.upstream.borrow().clone().ok_or_else(|| self.not_ready())
    }

    fn has_engine(&self) -> Result<(), Answer> {
        self.upstream.borrow().is_some().then_some(()).ok_or_else(|| self.not_ready())
    }

    fn not_ready(&self) -> Answer {
        Answer::NotReady { retry_after: self.config.retry_after }
    }

    fn health(&self) -> Result<Response<Body>, Answer> {
        if self.draining.is_cancelled() {
            return Err(Answer::Draining);
        }
        self.has_engine().map(|()| Response::new(Body::from(Bytes::new())))
    }

    async fn list(&self, caller: &Caller) -> Response<Body> {
        let cards = self.models.list(caller).await;
        let data: Vec<_> = cards
            .into_iter()
            .map(|card| {
                let mut card = json!(card);
                card["object"] = "model".into();
                card
            })
            .collect();
        whole(&json!({"object": "list", "data": data}))
    }

    async fn capabilities(&self, caller: &Caller) -> Response<Body> {
        let mut capabilities = json!(self.models.capabilities());
        let visible = self.models.list(caller).await;
        capabilities["models"] = visible.into_iter().map(|card| card.id).collect::<Vec<_>>().into();
        capabilities["limits"] = json!({
            "max_body_bytes": self.config.max_body_bytes,
            "max_requests": self.config.max_requests,
            "wait_for_model_seconds": self.config.wait_for_model.as_secs(),
        });
        whole(&capabilities)
    }

    /// Where the model is; waits for it if the client does. Who waits is counted apart from those who are served.
    async fn target(&self, asked: &Asked, caller: &Caller, slot: &mut Option<Slot>) -> Result<Target, Answer> {
        if !self.models.knows(&asked.model, caller) {
            self.admission.look_for_unknown(caller)?;
        }
        let resolution = self.models.resolve(&asked.model, caller).await;
        let longest = match asked.waiting {
            Waiting::AtMost(time) => Some(time.min(self.config.wait_for_model)),
            Waiting::Yes => Some(self.config.wait_for_model),
            Waiting::No => None,
        };
        let (Some(longest), Resolution::Loading { .. }) = (longest, &resolution) else {
            return self.settled(resolution, asked);
        };
        let _place = self.admission.wait(caller)?;
        let _turn = self.waiting.try_acquire().map_err(|_| Answer::Overloaded { what: "waiting requests" })?;
        let _stage = self.metrics.enter(State::Loading);
        *slot = None;
        let resolution = self.models.wait(&asked.model, caller, Instant::now() + longest).await;
        *slot = Some(self.slot()?);
        self.settled(resolution, asked)
    }

    fn settled(&self, resolution: Resolution, asked: &Asked) -> Result<Target, Answer> {
        let model = || asked.model.clone();
        match resolution {
            Resolution::Ready(route) => Ok(Target::of(route, &asked.model)),
            Resolution::Loading { state, retry_after } => {
                let accepted = self.config.loading == Loading::Accepted;
                Err(Answer::Loading { model: model(), state, retry_after, accepted })
            }
            Resolution::Unknown => Err(Answer::ModelNotFound { model: model() }),
            Resolution::OtherBase { made_for, served } => Err(Answer::OtherBase { model: model(), made_for, served }),
            Resolution::Limited(limited) => Err(self.admission.limited(limited)),
            Resolution::Refused { status, reason } => Err(Answer::Refused { status, reason }),
        }
    }
}

/// What a request has got on its way to the engine.
struct Turn {
    caller: Caller,
    asked: Asked,
    target: Target,
    permit: Permit,
    slot: Option<Slot>,
}

impl Turn {
    /// For the engine.
    fn body(&self) -> Bytes {
        self.asked.body_for(&self.target.engine_name, self.target.salt.as_deref())
    }
}

impl Proxy {
    async fn relay(&self, received: &Received, mut turn: Turn) -> Result<Response<Body>, Answer> {
        let stage = self.metrics.enter(State::Engine);
        let Received { endpoint, head, trace, pool, .. } = received;
        let head = Head { endpoint: *endpoint, headers: &head.headers, trace, pool };
        let mut upstream = self.engine()?;
        let mut answered = self.forward.ask(&upstream, &head, turn.body()).await?;
        if answered.status == StatusCode::NOT_FOUND && turn.target.class == Class::Adapter {
            let mut error = self.forward.whole(&mut answered.exchange).await?;
            if names_us(&error, &turn.target.engine_name) {
                self.heal(&mut turn, upstream.epoch).await?;
                upstream = self.engine()?;
                answered = self.forward.ask(&upstream, &head, turn.body()).await?;
                if answered.status != StatusCode::NOT_FOUND {
                    drop(stage);
                    return Ok(self.streamed(answered, turn, received.begun));
                }
                error = self.forward.whole(&mut answered.exchange).await?;
                if names_us(&error, &turn.target.engine_name) {
                    return Err(Answer::ModelNotFound { model: turn.asked.model });
                }
            }
            let framing = framing(&answered.headers);
            return Ok(reply(answered.status, relayed(answered.headers, framing, true), error.into()));
        }
        drop(stage);
        Ok(self.streamed(answered, turn, received.begun))
    }

    /// The engine has lost the adapter. No byte has reached the client: once, it can be brought back.
    async fn heal(&self, turn: &mut Turn, epoch: u64) -> Result<(), Answer> {
        self.metrics.self_heals.inc();
        tracing::warn!(model = turn.target.engine_name, epoch, "the engine does not know an adapter that it was given");
        self.models.not_found(&turn.target.engine_name, epoch);
        turn.target.lease = None;
        let deadline = Instant::now() + HEALING.min(self.config.wait_for_model);
        let resolution = self.models.wait(&turn.asked.model, &turn.caller, deadline).await;
        turn.target = self.settled(resolution, &turn.asked)?;
        Ok(())
    }

    fn streamed(&self, mut answered: Answered, turn: Turn, begun: Instant) -> Response<Body> {
        let framing = framing(&answered.headers);
        let Target { engine_name, client_name, .. } = &turn.target;
        let names = (engine_name != client_name).then_some((engine_name.as_str(), client_name.as_str()));
        let mut rewriter = Rewriter::new(framing, names);
        let headers = relayed(answered.headers, framing, !rewriter.changes_length());
        let whole = if framing == Framing::Events { None } else { answered.exchange.whole() };
        let body = match whole {
            Some(body) => {
                let body = rewriter.whole(body);
                self.metrics.tokens.inc_by(rewriter.tokens());
                self.admission.account(&turn.caller, rewriter.tokens());
                Body::Whole(body)
            }
            None => Body::Relay(self.relaying(answered.exchange, rewriter, turn, begun)),
        };
        reply(answered.status, headers, body)
    }

    fn relaying(&self, exchange: Exchange, rewriter: Rewriter, turn: Turn, begun: Instant) -> Box<Relay> {
        let Turn { caller, target, permit, slot, .. } = turn;
        let stage = self.metrics.enter(if rewriter.is_events() { State::Streaming } else { State::Engine });
        let held = Held { lease: target.lease, permit: permit.held, slot, stage };
        let admission = self.admission.clone();
        let account = Box::new(move |tokens| admission.account(&caller, tokens));
        let relay = Relay::new(exchange, rewriter, self.config.idle, begun, self.metrics.clone());
        Box::new(relay.holding(held, permit.aborted, account))
    }
}

fn whole(body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::from(body.to_string())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn reply(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn close(response: &mut Response<Body>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}
