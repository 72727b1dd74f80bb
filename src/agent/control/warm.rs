//! Fetches, as whoever waits for them is told of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Status;

use super::super::convert;
use super::super::fetching::{Failed, Flight, Outcome, Wanted};
use super::Parts;
use crate::protocol::pb;

/// Between two reports of a fetch's progress: one for each chunk would cost more than many a chunk.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// What was looked for in the name of `family`. Fails when the caller has gone.
pub(super) async fn warm(
    parts: &Arc<Parts>,
    looked: Result<Vec<Wanted>, Failed>,
    family: &str,
    events: &mpsc::Sender<Result<pb::WarmEvent, Status>>,
) -> Result<(), ()> {
    match looked {
        Ok(wanted) => warm_all(parts, wanted, family, "no node has published this identity", events).await,
        Err(failed) => {
            parts.wanted.count(family, (&failed).into());
            events.send(Ok(convert::failed(None, failed))).await.map_err(drop)
        }
    }
}

/// Brings every subject, side by side, and tells how each goes; `none` if there is nothing to bring, which is counted for
/// `family`. Fails when the caller has gone.
pub(super) async fn warm_all(
    parts: &Arc<Parts>,
    wanted: Vec<Wanted>,
    family: &str,
    none: &str,
    events: &mpsc::Sender<Result<pb::WarmEvent, Status>>,
) -> Result<(), ()> {
    events.send(Ok(convert::offer(&wanted))).await.map_err(drop)?;
    if wanted.is_empty() {
        parts.wanted.count(family, Outcome::NoneFound);
        let none = Failed { class: "none-found", detail: none.to_owned() };
        return events.send(Ok(convert::failed(None, none))).await.map_err(drop);
    }
    let each = wanted.into_iter().map(|wanted| warm_one(parts, wanted, events));
    futures_util::future::try_join_all(each).await.map(drop)
}

/// Tells the manifest of every subject, and fetches nothing. Fails when the caller has gone.
pub(super) async fn tell_manifests(
    parts: &Arc<Parts>,
    wanted: Vec<Wanted>,
    events: &mpsc::Sender<Result<pb::WarmEvent, Status>>,
) -> Result<(), ()> {
    events.send(Ok(convert::offer(&wanted))).await.map_err(drop)?;
    let each = wanted.into_iter().map(|wanted| async move {
        let admitted = parts.fetching.admit(wanted).await;
        let event =
            admitted.map_or_else(|failed| convert::failed(None, failed), |(admitted, _)| convert::manifest(&admitted));
        events.send(Ok(event)).await.map_err(drop)
    });
    futures_util::future::try_join_all(each).await.map(drop)
}

async fn warm_one(
    parts: &Arc<Parts>,
    wanted: Wanted,
    events: &mpsc::Sender<Result<pb::WarmEvent, Status>>,
) -> Result<(), ()> {
    let tell = |event| async { events.send(Ok(event)).await.map_err(drop) };
    let family = wanted.candidates.first().map(|offer| offer.artifact.family.to_string()).unwrap_or_default();
    let coming = match parts.fetching.bring(wanted).await {
        Ok(coming) => coming,
        Err(failed) => {
            parts.wanted.count(&family, (&failed).into());
            return tell(convert::failed(None, failed)).await;
        }
    };
    let id = coming.admitted.id();
    let was_here = matches!(&*coming.flight.borrow(), Flight::Landed(_));
    let mut flight = coming.flight;
    parts.fetching.wait_until_begun(&id, &mut flight).await;
    tell(convert::manifest(&coming.admitted)).await?;
    loop {
        let now = flight.borrow_and_update().clone();
        match now {
            Flight::Running(progress) => tell(convert::progress(progress)).await?,
            Flight::Landed(fetched) => {
                parts.wanted.count(&family, if was_here { Outcome::Here } else { Outcome::Fetched });
                return tell(convert::landed(id, fetched)).await;
            }
            Flight::Failed(failed) => {
                parts.wanted.count(&family, (&failed).into());
                return tell(convert::failed(Some(id), failed)).await;
            }
        }
        // How it ends is told at once.
        let end = flight.wait_for(|flight| !matches!(flight, Flight::Running(_)));
        let known = match tokio::time::timeout(PROGRESS_EVERY, end).await.map(|end| end.is_ok()) {
            Ok(known) => known,
            Err(_) => flight.changed().await.is_ok(),
        };
        if !known {
            let ended = Failed { class: "transient", detail: "the agent is ending".to_owned() };
            return tell(convert::failed(Some(id), ended)).await;
        }
    }
}
