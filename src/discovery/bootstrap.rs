//! Finds the first other agents: dials those that were met before, and resolves the configured names, again and again while
//! nobody is connected.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::seq::IteratorRandom;
use tokio::net::lookup_host;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::BootstrapAddr;
use super::driver::Command;

/// Of many addresses, these are dialled: the lowest are the same for everybody, so that no two groups of nodes stay apart;
/// the others spread the load.
const LOWEST: usize = 3;
const RANDOM: usize = 5;

/// Of those that were met before.
const MET: usize = 8;

/// Addresses that one name may stand for.
const MAX_ADDRS: usize = 4_096;

const RESOLVE: Duration = Duration::from_secs(2);

/// Between two tries while nobody is connected; and while somebody is.
const FIRST: Duration = Duration::from_millis(250);
const LAST: Duration = Duration::from_secs(10);
const CONNECTED: Duration = Duration::from_secs(300);

/// Ends when nobody listens any more.
pub(super) async fn run(
    addrs: Vec<BootstrapAddr>,
    commands: mpsc::Sender<Command>,
    mut connected: watch::Receiver<usize>,
    met: watch::Receiver<Vec<SocketAddr>>,
) {
    let addrs: Arc<[BootstrapAddr]> = addrs.into();
    let mut pause = FIRST;
    loop {
        let before: Vec<_> = met.borrow().iter().copied().sample(&mut rand::rng(), MET);
        let chosen = choose(resolve(&addrs).await, &mut rand::rng());
        for addrs in [before, chosen] {
            if commands.send(Command::Meet(addrs)).await.is_err() {
                return;
            }
        }
        let found = timeout(pause, connected.wait_for(|connected| *connected > 0)).await;
        match found.map(|found| found.is_ok()) {
            Err(_) => pause = (pause * 2).min(LAST),
            Ok(false) => return,
            Ok(true) => {
                pause = FIRST;
                let alone = timeout(CONNECTED, connected.wait_for(|connected| *connected == 0)).await;
                if let Ok(Err(_)) = alone {
                    return;
                }
            }
        }
    }
}

async fn resolve(addrs: &[BootstrapAddr]) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for addr in addrs {
        match timeout(RESOLVE, lookup_host((addr.host(), addr.port()))).await {
            Ok(Ok(addrs)) => found.extend(addrs.take(MAX_ADDRS)),
            Ok(Err(error)) => tracing::debug!(%addr, %error, "resolve bootstrap address"),
            Err(_) => tracing::debug!(%addr, "resolve bootstrap address: no answer in time"),
        }
    }
    found
}

fn choose<R: Rng + ?Sized>(addrs: BTreeSet<SocketAddr>, rng: &mut R) -> Vec<SocketAddr> {
    let mut addrs = addrs.into_iter();
    let mut chosen: Vec<_> = addrs.by_ref().take(LOWEST).collect();
    chosen.extend(addrs.sample(rng, RANDOM));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_addresses_the_lowest_and_a_few_others_are_dialled() {
        let all: BTreeSet<SocketAddr> = (1..=200).map(|n| SocketAddr::from(([10, 0, 0, n], 4780))).collect();
        let chosen = choose(all.clone(), &mut rand::rng());
        assert_eq!(chosen[..LOWEST], all.iter().copied().take(LOWEST).collect::<Vec<_>>());
        assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), LOWEST + RANDOM);
        let few: BTreeSet<SocketAddr> = all.into_iter().take(2).collect();
        assert_eq!(choose(few.clone(), &mut rand::rng()), few.into_iter().collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn addresses_resolve_to_themselves_and_a_name_that_is_none_to_nothing() {
        let addrs = ["127.0.0.1:4780".parse().unwrap(), "[::1]:1".parse().unwrap()];
        let found: Vec<_> = resolve(&addrs).await.into_iter().map(|addr| addr.to_string()).collect();
        assert_eq!(found, ["127.0.0.1:4780", "[::1]:1"]);
    }
}
