//! Whether anybody takes what this node says, and if not, why: told at once, and then now and then.

use std::fmt::{self, Write};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::{Directory, Server};
use crate::discovery::BootstrapAddr;
use crate::local::chain;
use crate::protocol::metadata::PageRequest;

/// For the first announcement.
const FIRST: Duration = Duration::from_secs(2);

/// Between two looks, and between two words about the same.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const TELL_EVERY: Duration = Duration::from_secs(600);

/// For one bootstrap address, of which so many are tried.
const DIAL: Duration = Duration::from_secs(2);
const DIALLED: usize = 4;

impl Directory {
    /// Why nobody takes what this node says, as of the last look.
    pub(in crate::agent) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `bootstrap` is where other agents were said to be.
    pub(in crate::agent) async fn watch_reach(self: Arc<Self>, bootstrap: Vec<BootstrapAddr>) {
        let mut told = Told::default();
        sleep(FIRST).await;
        loop {
            let failure = self.look(&bootstrap).await;
            let of_all = failure.as_ref().filter(|failure| !failure.others_take).map(|failure| failure.why.clone());
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = of_all;
            let text = failure.as_ref().map(ToString::to_string);
            match (told.is_news(text.as_deref(), Instant::now()), text) {
                (true, Some(text)) => tracing::warn!("{text}"),
                (true, None) => tracing::info!("what this node has is taken again"),
                (false, _) => {}
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, bootstrap: &[BootstrapAddr]) -> Option<Failure> {
        if let Some(server) = &self.server {
            let others_take = self.connected_agents() > 0;
            return match server.announcer.is_connected() {
                true => None,
                false => Some(Failure { why: ask(server).await, others_take }),
            };
        }
        if self.connected_agents() > 0 || bootstrap.is_empty() {
            return None;
        }
        let mut text = "no other agent is connected".to_owned();
        for addr in bootstrap.iter().take(DIALLED) {
            let why = match timeout(DIAL, TcpStream::connect((addr.host(), addr.port()))).await {
                Ok(Ok(_)) => "something answers there that is no agent of this cluster, or this one".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {DIAL:?}"),
            };
            // Writing to a string does not fail.
            let _ = write!(text, "; {addr}: {why}");
        }
        Some(Failure { why: text, others_take: false })
    }
}

/// Why somebody does not take what this node says.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    why: String,
    /// Agents that it is connected with do.
    others_take: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.others_take {
            true => write!(f, "only agents nearby take what this node has, and no metadata server: {}", self.why),
            false => write!(f, "nobody takes what this node has: {}", self.why),
        }
    }
}

/// The announcer keeps the reason to itself; whoever asks something else fails by the same.
async fn ask(server: &Server) -> String {
    let page = PageRequest { size: Some(1), ..PageRequest::default() };
    match server.client.list(&page).await {
        Ok(_) => "the metadata server answers, but has taken no announcement yet".to_owned(),
        Err(error) => chain(&error),
    }
}

/// What was told last, and when.
#[derive(Default)]
struct Told {
    failure: Option<String>,
    at: Option<Instant>,
}

impl Told {
    fn is_news(&mut self, failure: Option<&str>, now: Instant) -> bool {
        let is_new = failure != self.failure.as_deref();
        let is_long_ago = self.at.is_none_or(|at| now - at >= TELL_EVERY);
        let is_news = is_new || (failure.is_some() && is_long_ago);
        if is_news {
            *self = Self { failure: failure.map(str::to_owned), at: Some(now) };
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_at_once_and_again_only_after_a_while_or_when_it_is_another_one() {
        let (mut told, now) = (Told::default(), Instant::now());
        assert!(!told.is_news(None, now), "a node that is well says nothing");
        assert!(told.is_news(Some("refused"), now));
        assert!(!told.is_news(Some("refused"), now + LOOK_EVERY));
        assert!(told.is_news(Some("wrong name"), now + LOOK_EVERY));
        assert!(!told.is_news(Some("wrong name"), now + TELL_EVERY));
        assert!(told.is_news(Some("wrong name"), now + LOOK_EVERY + TELL_EVERY));
        assert!(told.is_news(None, now + LOOK_EVERY + TELL_EVERY));
        assert!(!told.is_news(None, now + 9 * TELL_EVERY));
    }

    #[test]
    fn where_other_agents_are_connected_it_is_not_said_that_nobody_takes_it() {
        let of = |others_take| Failure { why: "refused".to_owned(), others_take }.to_string();
        assert!(of(false).starts_with("nobody") && !of(true).contains("nobody"), "{}", of(true));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_with_the_reason() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let agent: BootstrapAddr = gone.to_string().parse().unwrap();
        let alone = Directory::new(None, None);
        assert_eq!(alone.look(&[]).await, None);
        let failure = alone.look(std::slice::from_ref(&agent)).await.unwrap().to_string();
        assert!(failure.starts_with("nobody takes"));
        assert!(failure.contains(&format!("{gone}: ")) && failure.contains("refused"), "{failure}");
    }
}
