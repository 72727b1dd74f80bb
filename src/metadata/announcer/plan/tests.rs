use std::sync::Arc;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::metadata::registry::tests::{held, node};
use crate::metadata::registry::{Config, Registry};
use crate::protocol::metadata::{Epoch, Lookup};

const SERVER: ServerEpoch = ServerEpoch(1);

struct Harness {
    plan: Plan,
    now: Instant,
    rng: StdRng,
}

impl Harness {
    fn new() -> Self {
        let announced = AnnouncedNode {
            node: node(1),
            epoch: Epoch(3),
            endpoints: Arc::from(["10.0.0.1:1".parse().unwrap()]),
            locality: Arc::default(),
        };
        let now = Instant::now();
        let plan = Plan::new(announced, AnnounceConfig::default(), now);
        Self { plan, now, rng: StdRng::seed_from_u64(5) }
    }

    /// Waits for the next message, which must be an announcement.
    fn announcement(&mut self) -> Announcement {
        match self.message() {
            Message::Announce(announcement) => announcement,
            Message::Withdraw(withdrawal) => panic!("{withdrawal:?}"),
        }
    }

    fn message(&mut self) -> Message {
        self.now = self.now.max(self.plan.due().expect("more to say"));
        self.plan.message(self.now).expect("what is due is sent")
    }

    fn reply(&mut self, server_epoch: ServerEpoch, announce_in_full: bool) {
        let seconds = Duration::from_secs;
        let reply =
            AnnounceReply { server_epoch, lease: seconds(30), heartbeat: seconds(10), announce_in_full, trust: 0 };
        self.plan.answered(reply.into(), self.now, &mut self.rng);
    }

    fn fail(&mut self, refusal: Option<Refusal>) {
        self.plan.failed(refusal, self.now, &mut self.rng);
    }

    fn hold(&mut self, n: u8) {
        self.plan.hold(held(n, 1, 4, 4)).unwrap();
    }

    /// Past the first announcement, with artifacts 1 and 2 told.
    fn settled() -> Self {
        let mut harness = Self::new();
        harness.hold(1);
        harness.hold(2);
        harness.plan.set_state(NodeState::Ready, harness.now);
        let first = harness.announcement();
        assert!(first.full && first.held.len() == 2 && first.server_epoch.is_none());
        harness.reply(SERVER, false);
        assert!(harness.plan.is_settled());
        harness
    }
}

#[test]
fn a_server_is_silent_after_two_missed_heartbeats_and_until_it_answers() {
    let mut harness = Harness::settled();
    let heard = harness.now;
    harness.announcement();
    harness.fail(None);
    assert!(!harness.plan.is_silent(heard + Duration::from_secs(20)));
    assert!(harness.plan.is_silent(heard + Duration::from_millis(20_001)));
    while !harness.plan.is_silent(harness.now) {
        harness.announcement();
        harness.fail(None);
    }
    harness.announcement();
    harness.fail(Some(Refusal::Full));
    assert!(!harness.plan.is_silent(harness.now), "it refused, so it is there");
}

#[test]
fn after_a_full_announcement_only_changes_and_heartbeats_are_sent() {
    let mut harness = Harness::settled();
    let told = harness.now;
    let beat = harness.announcement();
    assert!(!beat.full && beat.held.is_empty() && beat.sequence == 2 && beat.server_epoch == Some(SERVER));
    assert!(harness.now - told >= Duration::from_secs(9) && harness.now - told <= Duration::from_secs(10));
    harness.reply(SERVER, false);
    let told = harness.now;
    harness.hold(3);
    harness.hold(1);
    let change = harness.announcement();
    assert_eq!(change.held, [held(3, 1, 4, 4)], "1 is held as it was");
    assert_eq!(harness.now - told, AnnounceConfig::default().spacing);
    harness.reply(SERVER, false);
    harness.plan.drop_artifact(held(3, 1, 4, 4).artifact.artifact);
    assert!(matches!(harness.message(), Message::Withdraw(Withdrawal { sequence: 4, .. })));
    harness.plan.answered(Answer::Withdrawn(SERVER), harness.now, &mut harness.rng);
    assert!(harness.plan.is_settled());
}

#[test]
fn a_new_server_epoch_or_a_request_brings_everything_after_some_jitter() {
    for (epoch, asked) in [(ServerEpoch(9), false), (SERVER, true)] {
        let mut harness = Harness::settled();
        harness.announcement();
        harness.reply(epoch, asked);
        let told = harness.now;
        let mut next = harness.announcement();
        if !next.full {
            harness.reply(epoch, true);
            next = harness.announcement();
        }
        assert!(next.full && next.held.len() == 2 && next.server_epoch == Some(epoch));
        assert!(harness.now - told <= Duration::from_secs(11));
        harness.reply(epoch, false);
        assert!(harness.plan.is_settled());
    }
    let after = |seed| {
        let mut harness = Harness::settled();
        harness.rng = StdRng::seed_from_u64(seed);
        harness.announcement();
        harness.reply(ServerEpoch(9), false);
        harness.plan.full_due.unwrap() - harness.now
    };
    let mut delays: Vec<_> = (0..100).map(after).collect();
    delays.sort_unstable();
    assert!(delays[10] < Duration::from_secs(3) && delays[90] > Duration::from_secs(7), "{delays:?}");
}

#[test]
fn what_failed_is_told_again_with_growing_waits() {
    let mut harness = Harness::settled();
    harness.hold(3);
    let mut waits = Vec::new();
    for _ in 0..7 {
        assert_eq!(harness.announcement().held, [held(3, 1, 4, 4)]);
        let sent = harness.now;
        harness.fail(None);
        assert!(!harness.plan.is_settled());
        waits.push(harness.plan.due().unwrap() - sent);
    }
    for (wait, longest) in waits.iter().zip([1, 2, 4, 8, 10, 10, 10]) {
        let longest = Duration::from_secs(longest);
        assert!(*wait <= longest && *wait >= longest / 2, "{waits:?}");
    }
    assert_eq!(harness.announcement().held.len(), 1);
    harness.reply(SERVER, false);
    assert!(harness.plan.is_settled());
}

#[test]
fn a_failed_full_announcement_is_sent_in_full_again_and_a_failed_withdrawal_too() {
    let mut harness = Harness::new();
    harness.hold(1);
    harness.announcement();
    harness.fail(None);
    let again = harness.announcement();
    assert!(again.full && again.held.len() == 1);
    harness.reply(SERVER, false);
    harness.plan.drop_artifact(held(1, 1, 4, 4).artifact.artifact);
    assert!(matches!(harness.message(), Message::Withdraw(_)));
    harness.fail(None);
    assert!(matches!(harness.message(), Message::Withdraw(_)));
}

#[test]
fn a_server_without_room_still_hears_heartbeats() {
    let mut harness = Harness::settled();
    harness.hold(3);
    assert_eq!(harness.announcement().held.len(), 1);
    harness.fail(Some(Refusal::Full));
    let refused = harness.now;
    let beat = harness.announcement();
    assert!(beat.held.is_empty() && !beat.full);
    harness.reply(SERVER, true);
    for _ in 0..5 {
        let beat = harness.announcement();
        assert!(beat.held.is_empty() && !beat.full);
        harness.reply(SERVER, true);
    }
    while harness.now < refused + AnnounceConfig::default().hold_back {
        harness.announcement();
        harness.reply(SERVER, true);
    }
    harness.reply(SERVER, true);
    assert!(harness.announcement().full);
}

#[test]
fn many_artifacts_are_told_in_parts_and_many_withdrawals_as_one_announcement() {
    let mut harness = Harness::new();
    let all: Vec<_> = (0..MAX_HELD as u32)
        .map(|n| {
            let mut summary = held(1, 1, 4, 4).artifact.as_ref().clone();
            summary.artifact = ArtifactId::of(&n.to_be_bytes());
            Held { artifact: summary.into(), chunks_held: 4 }
        })
        .collect();
    all.iter().for_each(|held| harness.plan.hold(held.clone()).unwrap());
    assert_eq!(harness.plan.hold(held(1, 1, 4, 4)), Err(TooManyArtifacts(MAX_HELD)));
    let mut told = BTreeSet::new();
    let mut first = true;
    while told.len() < MAX_HELD {
        let part = harness.announcement();
        assert_eq!(part.full, first);
        assert!(part.encode().len() < 3 * 1024 * 1024);
        told.extend(part.held.iter().map(|held| held.artifact.artifact));
        harness.reply(SERVER, false);
        first = false;
    }
    assert!(harness.plan.is_settled());
    all[100..].iter().for_each(|held| harness.plan.drop_artifact(held.artifact.artifact));
    let full = harness.announcement();
    assert!(full.full && full.held.len() == 100);
    harness.reply(SERVER, false);
    assert!(harness.plan.is_settled());
}

#[test]
fn stale_is_said_at_once_even_while_backing_off_and_nothing_follows_it() {
    let mut harness = Harness::settled();
    harness.hold(3);
    harness.announcement();
    harness.fail(None);
    let now = harness.now;
    harness.plan.set_state(NodeState::Draining, now);
    assert_eq!(harness.announcement().state, NodeState::Draining);
    assert_eq!(harness.now, now);
    harness.reply(SERVER, false);
    harness.plan.set_state(NodeState::Stale, now);
    harness.plan.set_state(NodeState::Ready, now);
    let last = harness.announcement();
    assert!(last.state == NodeState::Stale && last.held.is_empty());
    harness.reply(SERVER, true);
    assert!(harness.plan.is_ended() && harness.plan.is_settled() && harness.plan.due().is_none());
    harness.hold(4);
    assert_eq!(harness.plan.message(now + Duration::from_secs(3600)), None);
}

#[derive(Debug, Clone)]
enum Step {
    Hold(u8, u32),
    Drop(u8),
    State(NodeState),
    /// The message arrives, and the answer does; or only the former; or neither.
    Exchange {
        arrives: bool,
        answered: bool,
    },
    /// The server loses everything.
    Restart,
}

fn arb_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6, 0u32..=4).prop_map(|(n, chunks)| Step::Hold(n, chunks)),
        2 => (0u8..6).prop_map(Step::Drop),
        1 => prop_oneof![Just(NodeState::Ready), Just(NodeState::Draining)].prop_map(Step::State),
        6 => (prop::bool::weighted(0.8), prop::bool::weighted(0.8))
            .prop_map(|(arrives, answered)| Step::Exchange { arrives, answered }),
        1 => Just(Step::Restart),
    ]
}

/// A plan and a registry with a bad line between them.
struct Line {
    harness: Harness,
    registry: Registry,
    start: Instant,
    server: u64,
}

impl Line {
    fn exchange(&mut self, arrives: bool, answered: bool) {
        let message = self.harness.message();
        let now = self.harness.now - self.start;
        let answer = if !arrives {
            None
        } else {
            match message {
                Message::Announce(told) => Some(self.registry.announce(&told, now).unwrap().into()),
                Message::Withdraw(told) => {
                    self.registry.withdraw(&told, now).unwrap();
                    Some(Answer::Withdrawn(self.registry.server_epoch()))
                }
            }
        };
        match answer.filter(|_| answered) {
            Some(answer) => self.harness.plan.answered(answer, self.harness.now, &mut self.harness.rng),
            None => self.harness.fail(None),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Hold(n, chunks) => self.harness.plan.hold(held(*n, 1, *chunks, 4)).unwrap(),
            Step::Drop(n) => self.harness.plan.drop_artifact(held(*n, 1, 4, 4).artifact.artifact),
            Step::State(state) => self.harness.plan.set_state(*state, self.harness.now),
            Step::Exchange { arrives, answered } => self.exchange(*arrives, *answered),
            Step::Restart => {
                self.server += 1;
                self.registry = Registry::new(Config::default(), ServerEpoch(self.server));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn once_the_line_is_good_the_server_knows_exactly_what_is_held(steps in prop::collection::vec(arb_step(), 0..60)) {
        let harness = Harness::new();
        let start = harness.now;
        let registry = Registry::new(Config::default(), SERVER);
        let mut line = Line { harness, registry, start, server: 1 };
        steps.iter().for_each(|step| line.step(step));
        line.step(&Step::State(NodeState::Ready));
        // A heartbeat, the full announcement that it may be asked for, and what else is waiting.
        for _ in 0..20 {
            line.exchange(true, true);
        }
        prop_assert!(line.harness.plan.is_settled());
        for n in 0..6 {
            let id = held(n, 1, 4, 4).artifact.artifact;
            prop_assert_eq!(line.registry.holding(node(1), id), line.harness.plan.held.get(&id).cloned());
        }
        let lookup = Lookup { identities: vec![held(0, 1, 4, 4).artifact.identity], ..Lookup::default() };
        let now = line.harness.now - line.start;
        let found = line.registry.lookup(&lookup, now, &mut StdRng::seed_from_u64(1));
        let servable = line.harness.plan.held.values().filter(|held| held.chunks_held > 0).count();
        prop_assert_eq!(found.offers.len(), servable);
    }
}

#[test]
fn a_thousand_that_lost_a_server_together_come_back_spread_over_half_of_the_wait() {
    let retry = AnnounceConfig::default().retry;
    let part = |seed| {
        let mut harness = Harness::settled();
        harness.rng = StdRng::seed_from_u64(seed);
        harness.announcement();
        harness.fail(None);
        (harness.plan.earliest - harness.now).as_secs_f64() / retry.as_secs_f64()
    };
    let mut tenths = [0; 10];
    for part in (0..1_000).map(part) {
        assert!((0.5..=1.0).contains(&part), "{part}");
        tenths[(((part - 0.5) * 20.0) as usize).min(9)] += 1;
    }
    assert!(tenths.iter().all(|count| (60..=140).contains(count)), "{tenths:?}");
}
