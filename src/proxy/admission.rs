//! What the proxy asks of those who decide who may ask for what, and how much.

use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use super::auth::{AnonymousConfig, Caller};
use super::limits::Limited;
use super::models::{BoxFuture, Lease};

/// A request's head, as far as it decides who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'r> {
    /// Upper case, as in HTTP.
    pub method: &'r str,
    /// With the query, as it came.
    pub path: &'r str,
    /// The value of the only such header.
    pub authorization: Option<&'r [u8]>,
}

/// Leave to ask the engine once.
#[derive(Default)]
pub struct Permit {
    /// Held until the answer has ended.
    pub held: Option<Lease>,
    /// When cancelled, the request ends at once, and its client is told so.
    pub aborted: Option<CancellationToken>,
    /// Time has passed at a gate: the model may be another one by now.
    pub waited: bool,
}

/// Whoever decides who may ask for what, and how much.
pub trait Admission: Send + Sync {
    /// First without the body; `None` if only the body can tell, and then again with it.
    fn authenticate(&self, asking: &Asking<'_>, body: Option<&[u8]>) -> Result<Option<Caller>, Answer>;

    /// Before anybody else is asked about a model that nobody knows here.
    fn look_for_unknown(&self, caller: &Caller) -> Result<(), Answer>;

    /// What is said where others have counted too much.
    fn limited(&self, limited: Limited) -> Answer {
        Answer::Limited { reason: limited.to_string(), retry_after: limited.retry_after }
    }

    /// Before a request waits for a model to be loaded; held as long as it does.
    fn wait(&self, caller: &Caller) -> Result<Lease, Answer>;

    /// Right before the engine is asked for `adapter`, or for its base model; may wait, as long as a gate is closed.
    fn admit<'a>(
        &'a self,
        caller: &'a Caller,
        adapter: Option<&'a str>,
        request: &'a str,
    ) -> BoxFuture<'a, Result<Permit, Answer>>;

    /// When an answer has ended, also one that was cut off: how many tokens it cost, as far as is known.
    fn account(&self, caller: &Caller, tokens: u64);
}

/// Admits everybody as one tenant.
#[derive(Debug, Clone)]
pub struct Everybody(Caller);

impl Default for Everybody {
    fn default() -> Self {
        Self(Caller::anonymous(&AnonymousConfig::default()))
    }
}

impl Admission for Everybody {
    fn authenticate(&self, _: &Asking<'_>, _: Option<&[u8]>) -> Result<Option<Caller>, Answer> {
        Ok(Some(self.0.clone()))
    }

    fn look_for_unknown(&self, _: &Caller) -> Result<(), Answer> {
        Ok(())
    }

    fn wait(&self, _: &Caller) -> Result<Lease, Answer> {
        Ok(Box::new(()))
    }

    fn admit<'a>(&'a self, _: &'a Caller, _: Option<&'a str>, _: &'a str) -> BoxFuture<'a, Result<Permit, Answer>> {
        Box::pin(std::future::ready(Ok(Permit::default())))
    }

    fn account(&self, _: &Caller, _: u64) {}
}
