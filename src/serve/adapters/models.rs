//! What the proxy asks.

use std::sync::Arc;

use hyper::StatusCode;
use tokio::time::{Instant, timeout_at};

use super::entry::Kind;
use super::source::{Foreign, Signed};
use super::table::{Found, Granted};
use super::{Adapters, Shared};
use crate::adapters::{Address, Alias, ServedName};
use crate::proxy::limits::{Limit, Limited};
use crate::proxy::{AdapterSlots, BoxFuture, Caller, Capabilities, ModelCard, Models, Resolution, Route};

/// Why a caller may not use an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// Of an error; 404 is answered as if there were no such adapter.
    pub status: StatusCode,
    /// For the client.
    pub reason: String,
}

impl Denied {
    fn resolution(self) -> Resolution {
        match self.status {
            // The very answer to a name that nobody has.
            StatusCode::NOT_FOUND => Resolution::Unknown,
            status => Resolution::Refused { status, reason: self.reason },
        }
    }
}

/// Who may use which adapter. Asked with a lock held: answers at once.
pub trait Access: Send + Sync + 'static {
    /// `owner` is absent if it is everybody's, and as long as nobody has seen what is signed; then it is asked again.
    fn permits(&self, caller: &Caller, alias: &Alias, owner: Option<Address>) -> Result<(), Denied>;

    /// How many adapters may be here at a time because the caller's tenant has asked for them.
    fn max_adapters(&self, _: &Caller) -> usize {
        usize::MAX
    }
}

/// Permits everything to everybody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Everybody;

impl Access for Everybody {
    fn permits(&self, _: &Caller, _: &Alias, _: Option<Address>) -> Result<(), Denied> {
        Ok(())
    }
}

/// One request uses a version.
struct InUse {
    shared: Arc<Shared>,
    name: ServedName,
}

impl Drop for InUse {
    fn drop(&mut self) {
        if self.shared.table().release(&self.name) {
            self.shared.stir.notify_one();
        }
    }
}

/// What can be said now, and whether it may change by itself soon.
enum Reply {
    Settled(Resolution),
    /// The fleet has not answered yet whether there is one, and whose it is.
    Looking(Resolution),
    Loading(Resolution),
}

impl Reply {
    fn resolution(self) -> Resolution {
        match self {
            Self::Settled(resolution) | Self::Looking(resolution) | Self::Loading(resolution) => resolution,
        }
    }
}

impl Shared {
    fn reply(self: &Arc<Self>, model: &str, caller: &Caller, is_first: bool) -> Reply {
        if self.base.iter().any(|card| card.id == model) {
            return Reply::Settled(Resolution::Ready(Route::Base { upstream_name: model.to_owned() }));
        }
        let Ok(alias) = model.parse::<Alias>() else { return Reply::Settled(Resolution::Unknown) };
        let found = {
            let mut table = self.table();
            let found = table.resolve(&alias, caller, &*self.access, Instant::now());
            if is_first {
                table.count(&alias, &found);
            }
            found
        };
        if matches!(found, Found::Loading(_) | Found::Looking) {
            self.causes.asked(&alias);
            self.stir.notify_one();
        }
        self.answer(alias, found, caller)
    }

    fn answer(self: &Arc<Self>, alias: Alias, found: Found, caller: &Caller) -> Reply {
        let refused = |status, reason| Reply::Settled(Resolution::Refused { status, reason });
        let loading = |state: &str| {
            let retry_after = self.config().retry_after;
            Resolution::Loading { state: state.to_owned(), retry_after }
        };
        match found {
            Found::Ready(granted) => self.unless_revoked(alias, granted),
            Found::Loading(state) => Reply::Loading(loading(state.as_str())),
            Found::Looking => Reply::Looking(loading("looking-up")),
            Found::Unknown => Reply::Settled(Resolution::Unknown),
            Found::Foreign(foreign) => Reply::Settled(self.foreign(&alias, &foreign, caller)),
            Found::Full => {
                let retry_after = self.config().retry_after;
                Reply::Settled(Resolution::Limited(Limited { limit: Limit::Adapters, retry_after }))
            }
            Found::Denied(denied) => Reply::Settled(denied.resolution()),
            Found::Failed(failure) => {
                let status = match failure.kind {
                    Kind::Refused => StatusCode::UNPROCESSABLE_ENTITY,
                    Kind::Failed => StatusCode::SERVICE_UNAVAILABLE,
                };
                refused(status, format!("adapter `{alias}` cannot be served: {}", failure.reason))
            }
            Found::Stopped => refused(StatusCode::NOT_FOUND, format!("adapter `{alias}` was unloaded by an operator")),
            Found::Unreachable => {
                let reason = format!("it cannot be told now whether there is a model `{alias}`; try again");
                refused(StatusCode::SERVICE_UNAVAILABLE, reason)
            }
            Found::Busy => {
                let reason = "too many unknown models are being asked for; try again".to_owned();
                refused(StatusCode::SERVICE_UNAVAILABLE, reason)
            }
        }
    }

    /// It may have been revoked since it was admitted; in the engine it stays until another version takes its place.
    fn unless_revoked(self: &Arc<Self>, alias: Alias, granted: Granted) -> Reply {
        let signed = self.table().signed_as(&granted.name);
        let route = self.route(alias.clone(), granted);
        Reply::Settled(match signed.filter(|signed| self.loader.source.is_revoked(signed)) {
            None => Resolution::Ready(route),
            Some(_) => {
                let reason = format!("adapter `{alias}` cannot be served: the trust policy has revoked it");
                Resolution::Refused { status: StatusCode::UNPROCESSABLE_ENTITY, reason }
            }
        })
    }

    fn foreign(&self, alias: &Alias, foreign: &Foreign, caller: &Caller) -> Resolution {
        let Foreign { base, owner } = foreign;
        let permitted = self.access.permits(caller, alias, *owner);
        let served = self.base.first().map(|card| card.id.clone()).unwrap_or_default();
        let other_base = |()| Resolution::OtherBase { made_for: base.to_string(), served };
        permitted.map_or_else(|denied| denied.resolution(), other_base)
    }

    fn route(self: &Arc<Self>, alias: Alias, granted: Granted) -> Route {
        let Granted { name, prepared } = granted;
        Route::Adapter {
            upstream_name: name.to_string(),
            shown_name: alias.to_string(),
            cache_salt: Some(prepared.digest().to_string()),
            lease: Box::new(InUse { shared: self.clone(), name }),
        }
    }

    /// Asks again at every change, until `is_enough` or the deadline.
    async fn reply_until(
        self: &Arc<Self>,
        model: &str,
        caller: &Caller,
        deadline: Instant,
        is_enough: impl Fn(&Reply) -> bool,
    ) -> Resolution {
        let reply = self.reply(model, caller, true);
        if is_enough(&reply) {
            return reply.resolution();
        }
        let mut changes = self.changes.subscribe();
        loop {
            // Marked as seen before the table is read: a change in between is not missed.
            changes.borrow_and_update();
            let reply = self.reply(model, caller, false);
            if is_enough(&reply) || !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                return reply.resolution();
            }
        }
    }

    fn card(&self, alias: &Alias, signed: &Signed, state: &str) -> ModelCard {
        let owner = signed.release.owner.as_ref().map(ToString::to_string);
        ModelCard {
            id: alias.to_string(),
            owned_by: owner.unwrap_or_else(|| "warmd".to_owned()),
            created: signed.created.seconds(),
            parent: self.base.first().map(|card| card.id.clone()),
            max_model_len: None,
            state: Some(state.to_owned()),
        }
    }

    fn cards(&self, caller: &Caller) -> Vec<ModelCard> {
        let mut cards = self.base.clone();
        let (table, now) = (self.table(), Instant::now());
        for (alias, entry) in table.entries().filter(|(_, entry)| entry.is_known()) {
            // Nobody knows yet whose it is.
            let Some(signed) = table.signed(alias) else { continue };
            if self.access.permits(caller, alias, signed.release.owner).is_ok() {
                cards.push(self.card(alias, signed, table.state(entry, now).as_str()));
            }
        }
        cards
    }
}

impl Models for Adapters {
    fn knows(&self, model: &str, caller: &Caller) -> bool {
        let is_base = self.shared.base.iter().any(|card| card.id == model);
        // What is no alias is asked of nobody.
        let known = |alias: Alias| self.shared.table().knows(&alias, caller, &*self.shared.access, Instant::now());
        is_base || model.parse().map_or(true, known)
    }

    /// A new name is looked up; for that, and for nothing else, it waits a moment.
    fn resolve<'a>(&'a self, model: &'a str, caller: &'a Caller) -> BoxFuture<'a, Resolution> {
        let deadline = Instant::now() + self.shared.config().patience;
        Box::pin(self.shared.reply_until(model, caller, deadline, |reply| !matches!(reply, Reply::Looking(_))))
    }

    fn wait<'a>(&'a self, model: &'a str, caller: &'a Caller, deadline: Instant) -> BoxFuture<'a, Resolution> {
        Box::pin(self.shared.reply_until(model, caller, deadline, |reply| matches!(reply, Reply::Settled(_))))
    }

    fn list<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Vec<ModelCard>> {
        Box::pin(std::future::ready(self.shared.cards(caller)))
    }

    fn capabilities(&self) -> Capabilities {
        let super::Capacity { slots, used, free, .. } = self.capacity();
        let base = self.shared.base.iter().map(|card| card.id.clone()).collect();
        Capabilities { base, template_model_id: None, adapters: Some(AdapterSlots { slots, used, free }) }
    }

    fn not_found(&self, upstream_name: &str, epoch: u64) {
        if let Ok(name) = upstream_name.parse::<ServedName>() {
            self.shared.update(|table, now| table.lost(&name, epoch, now));
        }
    }
}
