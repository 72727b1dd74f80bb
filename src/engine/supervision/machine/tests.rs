use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A machine, its clock, and what stands in for the world.
struct Harness {
    machine: Machine,
    now: Instant,
    rng: StdRng,
}

impl Harness {
    fn new(config: SupervisionConfig) -> Self {
        Self { machine: Machine::new(config), now: Instant::now(), rng: StdRng::seed_from_u64(5) }
    }

    /// With an engine that is ready.
    fn ready() -> Self {
        let mut harness = Self::new(SupervisionConfig::default());
        harness.order(Order::Run);
        harness.come_up();
        harness
    }

    fn on(&mut self, event: Event) -> Option<Action> {
        self.machine.on(event, self.now, &mut self.rng)
    }

    fn order(&mut self, order: Order) -> Option<Action> {
        self.on(Event::Order(order))
    }

    /// From Warming to Ready.
    fn come_up(&mut self) {
        assert_eq!(self.on(Event::Prepared), Some(Action::Launch));
        assert_eq!(self.on(Event::Ready), Some(Action::Serve));
        assert_eq!((self.state(), self.machine.reason()), (State::Ready, None));
    }

    /// The deadline passes.
    fn elapse(&mut self) -> Option<Action> {
        self.now = self.machine.deadline().expect("a deadline");
        self.on(Event::Elapsed)
    }

    fn crash(&mut self) {
        let asked = match self.on(Event::Exited("code 0".to_owned())) {
            Some(Action::Stop { asked, .. }) => asked,
            other => panic!("{other:?}"),
        };
        assert!(!asked && self.on(Event::Gone(None)).is_none());
        assert_eq!(self.state(), State::Backoff);
    }

    fn stop_at(&self, after: Duration) -> Option<Action> {
        Some(Action::Stop { kill_at: self.now + after, asked: true })
    }

    fn state(&self) -> State {
        self.machine.state()
    }
}

#[test]
fn an_engine_is_drained_before_it_is_stopped() {
    let mut harness = Harness::ready();
    assert_eq!((harness.order(Order::Stop), harness.state()), (None, State::Draining));
    assert_eq!(harness.on(Event::Drained), harness.stop_at(30 * SECOND));
    assert_eq!((harness.on(Event::Gone(None)), harness.state()), (None, State::Stopped));
    assert_eq!((harness.machine.deadline(), harness.machine.is_over()), (None, false));
}

#[test]
fn requests_that_do_not_end_are_waited_for_until_the_deadline_of_the_drain() {
    let mut harness = Harness::ready();
    harness.order(Order::Stop);
    harness.now += 59 * SECOND;
    assert_eq!((harness.on(Event::Elapsed), harness.state()), (None, State::Draining));
    harness.now += SECOND;
    assert_eq!(harness.on(Event::Elapsed), harness.stop_at(30 * SECOND));
}

#[test]
fn a_stop_before_the_process_is_there_ends_at_once_and_one_before_it_is_ready_drains_nothing() {
    let mut harness = Harness::new(SupervisionConfig::default());
    assert_eq!(harness.order(Order::Run), Some(Action::Prepare));
    assert_eq!((harness.order(Order::Stop), harness.state()), (Some(Action::Cancel), State::Stopped));
    harness.order(Order::Run);
    harness.on(Event::Prepared);
    assert_eq!(harness.order(Order::Stop), harness.stop_at(30 * SECOND));
    // The engine is wanted again while the one before ends.
    assert_eq!((harness.order(Order::Run), harness.state()), (None, State::Stopping));
    assert_eq!((harness.on(Event::Gone(None)), harness.machine.epoch()), (Some(Action::Prepare), 3));
}

#[test]
fn an_end_that_nobody_asked_for_is_a_crash_and_the_next_start_waits() {
    let mut harness = Harness::ready();
    harness.crash();
    assert_eq!((harness.machine.reason(), harness.machine.restarts()), (Some("code 0"), 0));
    assert_eq!((harness.elapse(), harness.machine.epoch()), (Some(Action::Prepare), 2));
    assert_eq!((harness.machine.restarts(), harness.machine.reason()), (1, Some("code 0")));
    harness.come_up();
}

#[test]
fn an_engine_that_is_prepared_or_ready_too_late_has_crashed() {
    let mut harness = Harness::new(SupervisionConfig::default());
    harness.order(Order::Run);
    assert_eq!((harness.elapse(), harness.state()), (Some(Action::Cancel), State::Backoff));
    assert_eq!(harness.machine.reason(), Some("not prepared within 10m"));
    harness.elapse();
    harness.on(Event::Prepared);
    assert!(matches!(harness.elapse(), Some(Action::Stop { asked: false, .. })));
    assert_eq!(harness.machine.reason(), Some("not ready within 1h"));
}

#[test]
fn a_crash_loop_waits_longest_says_so_and_is_left_by_a_restart() {
    let mut harness = Harness::ready();
    for crash in 1..=7 {
        harness.crash();
        let wait = harness.machine.deadline().unwrap() - harness.now;
        let reason = harness.machine.reason().unwrap().to_owned();
        assert_eq!(
            (
                wait == 300 * SECOND,
                reason.starts_with("crash loop: 5 crashes within 30m"),
                harness.machine.crash_loop()
            ),
            (crash >= 5, crash >= 5, (crash >= 5).then_some("code 0"))
        );
        harness.elapse();
        assert_eq!(harness.machine.crash_loop(), None, "it is tried again");
        harness.come_up();
    }
    harness.crash();
    assert!(harness.machine.reason().unwrap().ends_with("The last one: code 0"));
    assert_eq!(harness.order(Order::Restart), Some(Action::Prepare));
}

#[test]
fn a_restart_drains_and_does_not_wait() {
    let mut harness = Harness::ready();
    assert_eq!((harness.order(Order::Restart), harness.state()), (None, State::Draining));
    // It dies by itself meanwhile: its end was asked for.
    assert_eq!(harness.on(Event::Exited("code 0".to_owned())), harness.stop_at(30 * SECOND));
    assert_eq!((harness.on(Event::Gone(None)), harness.machine.epoch()), (Some(Action::Prepare), 2));
    assert_eq!((harness.machine.restarts(), harness.machine.reason()), (0, None));
}

#[test]
fn a_shutdown_keeps_time_for_the_engine_and_takes_no_more_orders() {
    // Deadline, what the drain gets of it, and what is left for the engine.
    for (deadline, drain) in [(300, 60), (80, 50), (30, 15), (0, 0)] {
        let mut harness = Harness::ready();
        let by = harness.now + deadline * SECOND;
        assert_eq!((harness.on(Event::Shutdown(by)), harness.state()), (None, State::Draining));
        assert_eq!(harness.machine.deadline(), Some(harness.now + drain * SECOND));
        assert_eq!(harness.order(Order::Restart), None);
        assert_eq!(harness.elapse(), Some(Action::Stop { kill_at: by, asked: true }));
        assert_eq!((harness.order(Order::Run), harness.on(Event::Gone(None))), (None, None));
        assert!(harness.machine.is_over());
    }
}

#[test]
fn a_shutdown_shortens_a_drain_and_a_stop_that_are_under_way() {
    let mut harness = Harness::ready();
    harness.order(Order::Stop);
    let by = harness.now + 10 * SECOND;
    harness.on(Event::Shutdown(by));
    assert_eq!(harness.machine.deadline(), Some(harness.now + 5 * SECOND));
    harness.on(Event::Drained);
    let sooner = harness.now + SECOND;
    assert_eq!(harness.on(Event::Shutdown(sooner)), Some(Action::Hasten { kill_at: sooner }));
    assert_eq!(harness.on(Event::Shutdown(by)), Some(Action::Hasten { kill_at: sooner }));
}

#[test]
fn what_cannot_be_killed_is_told() {
    let mut harness = Harness::ready();
    harness.order(Order::Stop);
    harness.on(Event::Drained);
    harness.on(Event::Gone(Some("python (17)".to_owned())));
    assert_eq!((harness.state(), harness.machine.reason()), (State::Stopped, Some("python (17)")));
}

fn event() -> impl Strategy<Value = Event> {
    let reason = || "reason".to_owned();
    prop_oneof![
        2 => Just(Event::Order(Order::Run)),
        1 => Just(Event::Order(Order::Stop)),
        1 => Just(Event::Order(Order::Restart)),
        4 => Just(Event::Prepared),
        1 => Just(Event::Failed(reason())),
        4 => Just(Event::Ready),
        2 => Just(Event::Exited(reason())),
        1 => Just(Event::Lost(reason())),
        2 => Just(Event::Drained),
        2 => Just(Event::Elapsed),
        4 => Just(Event::Gone(None)),
    ]
}

/// What the task would hold: whether there is a process, and what is under way.
#[derive(Debug, Default)]
struct World {
    process: bool,
    stopping: bool,
}

impl World {
    fn execute(&mut self, action: Option<&Action>) {
        match action {
            Some(Action::Prepare | Action::Cancel) => assert!(!self.process, "a process is left behind"),
            Some(Action::Launch) => {
                assert!(!self.process, "two processes");
                self.process = true;
            }
            Some(Action::Stop { .. }) => {
                assert!(self.process && !self.stopping, "stopped twice, or nothing");
                self.stopping = true;
            }
            Some(Action::Hasten { .. }) => assert!(self.stopping, "nothing to hasten"),
            Some(Action::Serve) => assert!(self.process && !self.stopping),
            None => {}
        }
    }
}

/// Lets the world do what it does by itself until nothing happens any more.
fn settle(harness: &mut Harness, world: &mut World) {
    for _ in 0..8 {
        let event = match harness.state() {
            State::Draining => Event::Drained,
            State::Stopping => {
                *world = World::default();
                Event::Gone(None)
            }
            _ => return,
        };
        let action = harness.on(event);
        world.execute(action.as_ref());
    }
    panic!("it goes on forever in {:?}", harness.state());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Also with events that come too late, or never could.
    #[test]
    fn whatever_happens_there_is_one_process_at_most_and_a_stop_ends_in_stopped(
        events in prop::collection::vec((event(), 0..400u32), 0..60),
        shutdown in any::<bool>(),
    ) {
        let mut harness = Harness::new(SupervisionConfig::default());
        let mut world = World::default();
        for (event, seconds) in events {
            harness.now += seconds * SECOND;
            let epoch = harness.machine.epoch();
            match &event {
                Event::Gone(_) if !world.stopping => continue,
                Event::Gone(_) => world = World::default(),
                _ => {}
            }
            let action = harness.on(event);
            world.execute(action.as_ref());
            let begun = u64::from(action == Some(Action::Prepare));
            prop_assert_eq!(harness.machine.epoch(), epoch + begun);
            let holds_one = matches!(
                harness.state(),
                State::Starting | State::Ready | State::Draining | State::Stopping
            );
            prop_assert_eq!(world.process, holds_one, "in {:?}", harness.state());
            prop_assert!(harness.machine.deadline().is_none_or(|at| at <= harness.now + 3600 * SECOND));
        }
        let end = if shutdown { Event::Shutdown(harness.now + SECOND) } else { Event::Order(Order::Stop) };
        let action = harness.on(end);
        world.execute(action.as_ref());
        settle(&mut harness, &mut world);
        prop_assert_eq!(harness.state(), State::Stopped);
        prop_assert_eq!((world.process, harness.machine.is_over()), (false, shutdown));
    }

    #[test]
    fn an_engine_that_is_wanted_and_works_becomes_ready(
        events in prop::collection::vec((event(), 0..400u32), 0..60),
    ) {
        let mut harness = Harness::new(SupervisionConfig::default());
        for (event, seconds) in events {
            harness.now += seconds * SECOND;
            harness.on(event);
        }
        harness.order(Order::Run);
        for _ in 0..8 {
            match harness.state() {
                State::Stopped => panic!("it was wanted"),
                State::Warming => harness.on(Event::Prepared),
                State::Starting => harness.on(Event::Ready),
                State::Draining => harness.on(Event::Drained),
                State::Stopping => harness.on(Event::Gone(None)),
                State::Backoff => harness.elapse(),
                State::Ready => break,
            };
        }
        prop_assert_eq!(harness.state(), State::Ready);
    }
}
