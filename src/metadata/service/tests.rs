use super::*;
use crate::metadata::registry::tests::{announcement, held, identity, node};
use crate::metadata::server::tests::bare_directory;
use crate::protocol::metadata::NodeState;

#[test]
fn what_is_of_tomorrow_is_left_out_of_an_announcement() {
    let now = UnixTime::from_seconds(1_000_000);
    let mut told = announcement(1, 1, 1, NodeState::Ready);
    told.held = vec![held(1, 1, 1, 1), held(2, 1, 1, 1)];
    Arc::make_mut(&mut told.held[0].artifact).created = now.after(MAX_AHEAD);
    Arc::make_mut(&mut told.held[1].artifact).created = now.after(MAX_AHEAD * 2);
    let kept = without_tomorrow(told.clone(), now);
    assert_eq!(kept.held, told.held[..1]);
}

#[tokio::test]
async fn loopback_endpoints_are_taken_from_this_machine_only() {
    let service = Service(bare_directory());
    for (caller, taken) in [("127.0.0.1:5", true), ("[::ffff:127.0.0.1]:5", true), ("10.0.0.9:5", false)] {
        let mut told = announcement(1, 1, 1 + u64::from(caller.starts_with('[')), NodeState::Ready);
        told.endpoints = Arc::from(["127.0.0.1:9".parse().unwrap()]);
        let mut request = Request::new(pb::AnnounceRequest::from(&told));
        request.extensions_mut().insert(Peer { node: node(1), addr: caller.parse().unwrap() });
        let code = service.announce(request).await.err().map(|status| status.code());
        assert_eq!(code, (!taken).then_some(tonic::Code::InvalidArgument), "{caller}");
    }
}

#[tokio::test]
async fn upkeep_forgets_herds_that_are_over_and_a_new_clock_forgets_all() {
    let directory = bare_directory();
    let mut told = announcement(1, 1, 1, NodeState::Ready);
    told.held = vec![held(1, 1, 4, 4)];
    directory.change(|registry, now| registry.announce(&told, now)).unwrap();
    let lookup = Lookup { identities: vec![identity(1)], ..Lookup::default() };
    let later = |time| directory.set_clock(Duration::from_secs(time), Instant::now());
    later(10);
    directory.lookup(&lookup, node(2));
    assert_eq!(directory.herds.len(), 1);
    later(15);
    directory.expire();
    assert_eq!(directory.herds.len(), 0);
    directory.lookup(&lookup, node(2));
    directory.replace(Registry::new(Default::default(), ServerEpoch(2)), Duration::ZERO);
    assert_eq!(directory.herds.len(), 0);
}
