use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::FutureExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const LEASE: Duration = Duration::from_secs(60);

fn admitted(gates: &Gates, adapter: &str, request: &str, now: Instant) -> Permit {
    match gates.admit(adapter, request, now) {
        Admission::Admitted(permit) => permit,
        Admission::Paused(paused) => panic!("{:?}", paused.pause),
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[test]
fn a_paused_adapter_admits_nobody_and_others_are_not_touched() {
    let (gates, now) = (Gates::default(), Instant::now());
    let pause = gates.pause("a", "trainer", LEASE, now).unwrap();
    assert!(matches!(gates.admit("a", "1", now), Admission::Paused(paused) if paused.pause == pause));
    let _other = admitted(&gates, "b", "2", now);
    assert_eq!((gates.in_flight("a"), gates.in_flight("b")), (0, 1));
    assert_eq!(gates.resume("a", Some(pause.epoch), now), Ok(true));
    let _first = admitted(&gates, "a", "3", now);
}

#[test]
fn a_controller_that_died_does_not_pause_for_ever() {
    let (gates, start) = (Gates::default(), Instant::now());
    gates.pause("a", "trainer", LEASE, start).unwrap();
    let last = start + LEASE - Duration::from_nanos(1);
    assert!(matches!(gates.admit("a", "1", last), Admission::Paused(_)));
    let _permit = admitted(&gates, "a", "2", start + LEASE);
    assert_eq!(gates.paused("a", last), None, "a lease that has ended does not come back");
}

#[test]
fn the_holder_renews_its_lease_and_nobody_else_takes_it() {
    let (gates, start) = (Gates::default(), Instant::now());
    let first = gates.pause("a", "one", LEASE, start).unwrap();
    let renewed = gates.pause("a", "one", LEASE, start + LEASE / 2).unwrap();
    assert_eq!((renewed.epoch, renewed.until), (first.epoch, start + LEASE / 2 + LEASE));
    let held = gates.pause("a", "two", LEASE, start + LEASE);
    assert_eq!(held, Err(GateError::Held { by: "one".to_owned(), until: renewed.until }));
    for lease in [Duration::ZERO, Duration::from_secs(3601), Duration::MAX] {
        assert_eq!(gates.pause("a", "one", lease, start), Err(GateError::Lease));
    }
    assert_eq!(gates.pause("a", "", LEASE, start), Err(GateError::Holder));
}

#[test]
fn who_lost_its_lease_does_not_end_somebody_elses_pause() {
    let (gates, start) = (Gates::default(), Instant::now());
    let lost = gates.pause("a", "one", LEASE, start).unwrap();
    let later = start + LEASE;
    let current = gates.pause("a", "two", LEASE, later).unwrap();
    let stale = gates.resume("a", Some(lost.epoch), later);
    assert_eq!(stale, Err(GateError::Stale { current: Some(current.epoch) }));
    assert_eq!(gates.paused("a", later), Some(current));
    assert_eq!(gates.resume("a", None, later), Ok(true), "an operator can always resume");
    assert_eq!(gates.resume("a", Some(lost.epoch), later), Err(GateError::Stale { current: None }));
}

#[test]
fn abort_cuts_off_all_that_passed_the_gate_each_once() {
    let (gates, now) = (Gates::default(), Instant::now());
    let permits = [admitted(&gates, "a", "r1", now), admitted(&gates, "a", "r2", now)];
    let other = admitted(&gates, "b", "r3", now);
    gates.pause("a", "trainer", LEASE, now).unwrap();
    assert_eq!(gates.abort("a"), ["r1", "r2"]);
    assert!(permits.iter().all(|permit| permit.aborted().is_cancelled()) && !other.aborted().is_cancelled());
    assert_eq!(gates.in_flight("a"), 2, "they count until their answers have ended");
    assert!(gates.abort("a").is_empty() && gates.abort("unknown").is_empty());
    drop(permits);
    assert_eq!(gates.in_flight("a"), 0);
}

#[test]
fn arbitrary_names_leave_nothing_behind_and_pauses_are_bounded() {
    let (gates, now) = (Gates::default(), Instant::now());
    for number in 0..table::MAX_PAUSED {
        let name = format!("a{number}");
        assert_eq!(gates.resume(&name, None, now), Ok(false));
        assert!(gates.paused(&name, now).is_none());
        drop(admitted(&gates, &name, "r", now));
        assert_eq!(gates.lock().len(), number);
        gates.pause(&name, "x", LEASE, now).unwrap();
    }
    assert_eq!(gates.pause("one-more", "x", LEASE, now), Err(GateError::Full));
    assert!(gates.pause("one-more", "x", LEASE, now + LEASE).is_ok(), "ended leases make room");
    assert_eq!(gates.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_on_at_the_resume_and_not_at_another_adapters() {
    let gates = Gates::default();
    gates.pause("a", "trainer", LEASE, now()).unwrap();
    gates.pause("b", "trainer", LEASE, now()).unwrap();
    let mut waiting = Box::pin(gates.admit_by("a", "1", now() + LEASE));
    assert!(waiting.as_mut().now_or_never().is_none());
    gates.resume("b", None, now()).unwrap();
    assert!(waiting.as_mut().now_or_never().is_none());
    gates.resume("a", None, now()).unwrap();
    let permit = waiting.await.unwrap();
    assert_eq!(gates.in_flight("a"), 1);
    drop(permit);
    assert_eq!(gates.lock().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_resume_between_the_look_at_the_gate_and_the_wait_is_not_lost() {
    let gates = Gates::default();
    gates.pause("a", "trainer", LEASE, now()).unwrap();
    let Admission::Paused(mut paused) = gates.admit("a", "1", now()) else { panic!("admitted") };
    gates.resume("a", None, now()).unwrap();
    let deadline = now() + LEASE;
    assert_eq!(paused.opened(deadline).now_or_never(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_lease_wakes_those_who_wait_and_a_renewed_one_does_not() {
    let gates = Gates::default();
    let start = now();
    gates.pause("a", "trainer", LEASE, start).unwrap();
    let waiting = gates.admit_by("a", "1", start + 10 * LEASE);
    let renewing = async {
        tokio::time::sleep(LEASE / 2).await;
        gates.pause("a", "trainer", LEASE, now()).unwrap();
    };
    let (permit, ()) = tokio::join!(waiting, renewing);
    assert!(permit.is_ok());
    assert_eq!(now() - start, LEASE / 2 + LEASE);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_its_deadline_with_the_pause_and_at_once_where_nothing_is_paused() {
    let gates = Gates::default();
    let start = now();
    assert_eq!(gates.wait("a", start + LEASE).now_or_never(), Some(None));
    let pause = gates.pause("a", "trainer", LEASE, start).unwrap();
    assert_eq!(gates.wait("a", start + LEASE / 2).await, Some(pause.clone()));
    assert_eq!(now() - start, LEASE / 2);
    assert_eq!(gates.admit_by("a", "1", now()).await.unwrap_err(), pause);
    assert_eq!(gates.wait("a", start + 2 * LEASE).await, None);
    assert_eq!(now() - start, LEASE);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_the_queue_does_not_run_after_the_resume() {
    let gates = Gates::default();
    gates.pause("a", "trainer", LEASE, now()).unwrap();
    let mut waiting = Box::pin(gates.admit_by("a", "1", now() + LEASE));
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(waiting);
    gates.resume("a", None, now()).unwrap();
    assert_eq!((gates.in_flight("a"), gates.lock().len()), (0, 0));
}

async fn call(gates: &Gates, method: &str, path: &str, query: Option<&str>, body: &str) -> (u16, Value) {
    match Command::parse(method, path, query, body.as_bytes(), "uid:0") {
        Ok(command) => {
            let reply = gates.run(command).await;
            (reply.status, reply.body)
        }
        Err(error) => (error.status(), json!(error.to_string())),
    }
}

#[tokio::test(start_paused = true)]
async fn the_admin_routes_pause_abort_wait_and_resume() {
    let gates = Gates::default();
    let permit = admitted(&gates, "a", "r1", now());
    let post =
        async |verb: &str, body: &str| call(&gates, "POST", &format!("/admin/v1/adapters/a/{verb}"), None, body).await;
    let (status, body) = post("pause", r#"{"lease_s": 30, "by": "trainer-0"}"#).await;
    assert_eq!(status, 200);
    assert_eq!(body, json!({"paused": true, "epoch": 1, "lease_s": 30.0, "by": "trainer-0", "in_flight": 1}));
    assert_eq!(post("pause", "").await.0, 409, "uid:0 is not trainer-0");
    assert_eq!(post("abort", "").await, (200, json!({"aborted": ["r1"], "count": 1})));
    drop(permit);
    let (status, body) = call(&gates, "GET", "/admin/v1/adapters/a/wait", Some("timeout_s=10"), "").await;
    assert_eq!((status, &body["paused"], &body["lease_s"]), (200, &json!(true), &json!(20.0)));
    assert_eq!(post("resume", r#"{"epoch": 9}"#).await.0, 409);
    assert_eq!(post("resume", r#"{"epoch": 1}"#).await, (200, json!({"paused": false, "was_paused": true})));
    let open = call(&gates, "GET", "/admin/v1/adapters/a/wait", None, "").await;
    assert_eq!(open, (200, json!({"paused": false})));
}

#[tokio::test(start_paused = true)]
async fn the_routes_of_skyrl_close_the_gate_before_they_abort() {
    let gates = Gates::default();
    let permit = admitted(&gates, "a", "r1", now());
    let post = async |route: &str, body: &str| call(&gates, "POST", &format!("/skyrl/v1/{route}"), None, body).await;
    let stopped = post("abort_lora_requests", r#"{"lora_name": "a"}"#).await;
    assert_eq!(stopped, (200, json!({"status": "ok", "aborted": ["r1"], "count": 1})));
    assert!(permit.aborted().is_cancelled() && gates.paused("a", now()).is_some());
    let (status, body) = post("wait_lora_unpaused", r#"{"lora_name": "a", "timeout_s": 0.5}"#).await;
    assert_eq!((status, &body["paused"]), (200, &json!(true)));
    assert_eq!(post("resume_lora_requests", r#"{"lora_name": "a"}"#).await, (200, json!({"status": "ok"})));
    assert_eq!(post("wait_lora_unpaused", r#"{"lora_name": "a"}"#).await, (200, json!({"paused": false})));
    assert_eq!(post("abort_lora_requests", "{}").await.0, 400);
    assert_eq!(post("abort_lora_requests", "").await.0, 400);
}

#[tokio::test(start_paused = true)]
async fn timeouts_and_leases_that_are_no_times_are_400_and_change_nothing() {
    let gates = Gates::default();
    for time in ["NaN", "Infinity", "-1", "\"60\"", "1e400", "3601"] {
        let body = format!(r#"{{"lora_name": "a", "timeout_s": {time}}}"#);
        assert_eq!(call(&gates, "POST", "/skyrl/v1/wait_lora_unpaused", None, &body).await.0, 400, "{time}");
        let body = format!(r#"{{"lease_s": {time}}}"#);
        assert_eq!(call(&gates, "POST", "/admin/v1/adapters/a/pause", None, &body).await.0, 400, "{time}");
    }
    for query in
        ["timeout_s=nan", "timeout_s=inf", "timeout_s=-1", "timeout_s=", "timeout_s", "timeout_s=1&timeout_s=2", "t=1"]
    {
        assert_eq!(call(&gates, "GET", "/admin/v1/adapters/a/wait", Some(query), "").await.0, 400, "{query}");
    }
    assert_eq!(call(&gates, "POST", "/admin/v1/adapters/a/pause", None, r#"{"lease_s": 0}"#).await.0, 400);
    assert_eq!(gates.lock().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn names_and_bodies_that_are_none_are_refused_before_they_reach_a_gate() {
    let gates = Gates::default();
    let long = "a".repeat(129);
    for name in ["", "..", "a..b", "a@b", "a%2Fb", ".a", "a b", "\u{e4}", &long] {
        let status = call(&gates, "POST", &format!("/admin/v1/adapters/{name}/pause"), None, "").await.0;
        assert_eq!(status, 400, "{name}");
    }
    let huge = format!("{{\"by\": \"{}\"}}", "x".repeat(command::MAX_BODY));
    for (method, path, body, status) in [
        ("POST", "/admin/v1/adapters/a/b/pause", "", 404),
        ("POST", "/admin/v1/adapters/a", "", 404),
        ("POST", "/admin/v1/adapters/a/stop", "", 404),
        ("GET", "/admin/v1/adapters/a/pause", "", 405),
        ("POST", "/admin/v1/adapters/a/wait", "", 405),
        ("GET", "/skyrl/v1/abort_lora_requests", "", 405),
        ("POST", "/skyrl/v1/load_lora_adapter", "{}", 404),
        ("POST", "/admin/v1/adapters/a/pause", "{\"leases\": 1}", 400),
        ("POST", "/admin/v1/adapters/a/pause", "{\"by\": \"x\", \"by\": \"y\"}", 400),
        ("POST", "/admin/v1/adapters/a/pause", "not json", 400),
        ("POST", "/admin/v1/adapters/a/pause", &huge, 413),
    ] {
        assert_eq!(call(&gates, method, path, None, body).await.0, status, "{method} {path} {body:.20}");
    }
    assert_eq!(gates.lock().len(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Admit(u8),
    End(usize),
    Pause(u8, u8, u64),
    Resume(u8, bool),
    Abort(u8),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..3).prop_map(Step::Admit),
        3 => (0usize..16).prop_map(Step::End),
        2 => (0u8..3, 0u8..2, 1u64..50).prop_map(|(gate, by, lease)| Step::Pause(gate, by, lease)),
        1 => (0u8..3, any::<bool>()).prop_map(|(gate, current)| Step::Resume(gate, current)),
        1 => (0u8..3).prop_map(Step::Abort),
        2 => (0u64..40).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Against a model that knows nothing but when each pause ends.
    #[test]
    fn no_order_of_steps_admits_into_a_paused_gate_or_loses_a_permit(steps in prop::collection::vec(step(), 1..120)) {
        let gates = Gates::default();
        let mut now = Instant::now();
        let mut pauses: BTreeMap<u8, (u8, u64, Instant)> = BTreeMap::new();
        let mut permits: Vec<(u8, bool, Permit)> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            pauses.retain(|_, (_, _, until)| now < *until);
            match step {
                Step::Admit(gate) => match gates.admit(&gate.to_string(), &number.to_string(), now) {
                    Admission::Admitted(permit) => {
                        prop_assert!(!pauses.contains_key(&gate), "admitted into a paused gate");
                        permits.push((gate, false, permit));
                    }
                    Admission::Paused(_) => prop_assert!(pauses.contains_key(&gate), "an open gate was shut"),
                },
                Step::End(at) => {
                    if at < permits.len() {
                        drop(permits.swap_remove(at));
                    }
                }
                Step::Pause(gate, by, lease) => {
                    let lease = Duration::from_secs(lease);
                    let result = gates.pause(&gate.to_string(), &by.to_string(), lease, now);
                    match pauses.get(&gate) {
                        Some((holder, _, _)) if *holder != by => prop_assert!(result.is_err()),
                        known => {
                            let pause = result.unwrap();
                            prop_assert!(known.is_none_or(|(_, epoch, _)| *epoch == pause.epoch));
                            pauses.insert(gate, (by, pause.epoch, now + lease));
                        }
                    }
                }
                Step::Resume(gate, current) => {
                    let epoch = pauses.get(&gate).map(|(_, epoch, _)| *epoch);
                    let named = if current { epoch } else { Some(u64::MAX) };
                    let result = gates.resume(&gate.to_string(), named, now);
                    prop_assert_eq!(result.is_ok(), current);
                    if current {
                        pauses.remove(&gate);
                    }
                }
                Step::Abort(gate) => {
                    let expected = permits.iter().filter(|(of, aborted, _)| *of == gate && !aborted).count();
                    prop_assert_eq!(gates.abort(&gate.to_string()).len(), expected);
                    permits.iter_mut().filter(|(of, ..)| *of == gate).for_each(|(_, aborted, _)| *aborted = true);
                }
                Step::Pass(seconds) => now += Duration::from_secs(seconds),
            }
            for gate in 0..3 {
                let count = permits.iter().filter(|(of, ..)| *of == gate).count();
                prop_assert_eq!(gates.in_flight(&gate.to_string()), count);
            }
            prop_assert!(permits.iter().all(|(_, aborted, permit)| permit.aborted().is_cancelled() == *aborted));
        }
        permits.clear();
        now += Duration::from_secs(100);
        for gate in 0..3 {
            prop_assert!(gates.paused(&gate.to_string(), now).is_none());
        }
        prop_assert_eq!(gates.lock().len(), 0);
    }
}

#[test]
fn after_a_pause_and_the_end_of_what_passed_nothing_runs_on_any_thread() {
    let (gates, running, stop) = (Gates::default(), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (gates, running, stop) = (&gates, &running, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    if let Admission::Admitted(permit) = gates.admit("a", &worker.to_string(), Instant::now()) {
                        running.fetch_add(1, Ordering::SeqCst);
                        running.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                }
            });
        }
        for _ in 0..200 {
            let pause = gates.pause("a", "x", LEASE, Instant::now()).unwrap();
            while gates.in_flight("a") > 0 {
                std::thread::yield_now();
            }
            let still = (0..100).map(|_| running.load(Ordering::SeqCst)).max();
            gates.resume("a", Some(pause.epoch), Instant::now()).unwrap();
            if still != Some(0) {
                stop.store(true, Ordering::SeqCst);
            }
            assert_eq!(still, Some(0));
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(gates.lock().len(), 0);
}
