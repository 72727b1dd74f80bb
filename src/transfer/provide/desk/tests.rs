use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::identity::PrivateKey;

fn neighbour(seed: u8) -> Neighbour {
    let endpoint = format!("10.0.0.{seed}:4780").parse().unwrap();
    Neighbour { node: PrivateKey::from_seed(seed).node_id(), endpoint }
}

fn ask(desk: &mut Desk, by: u8, what: What<'_>) -> Result<Slot, NotNow> {
    ask_at(desk, by, what, Instant::now())
}

fn ask_at(desk: &mut Desk, by: u8, what: What<'_>, now: Instant) -> Result<Slot, NotNow> {
    let by = neighbour(by);
    let ask = Ask { artifact: ArtifactId::of(b"a"), by: by.node, reachable: Some(by), what };
    desk.ask(&ask, now, &mut SmallRng::seed_from_u64(1))
}

fn chunks(indices: &[u32], fresh: bool) -> What<'_> {
    What::Chunks { count: 100, indices, fresh }
}

/// One slot for as long as is usual.
fn measure(desk: &mut Desk, now: Instant) {
    let slot = ask_at(desk, 9, chunks(&[99], false), now).unwrap();
    desk.end(slot, now + Duration::from_secs_f64(USUAL_TURN));
}

fn busy(answer: Result<Slot, NotNow>) -> Busy {
    let Err(NotNow::Busy(busy)) = answer else { panic!("not busy: {answer:?}") };
    busy
}

#[test]
fn chunks_that_others_have_leave_room_for_fresh_ones_and_both_for_manifests() {
    let mut desk = Desk::new(4);
    let any: Vec<Slot> = (0..3).map(|_| ask(&mut desk, 1, chunks(&[0], false)).unwrap()).collect();
    busy(ask(&mut desk, 1, chunks(&[0], false)));
    let fresh = ask(&mut desk, 1, chunks(&[1], true)).unwrap();
    busy(ask(&mut desk, 1, chunks(&[2], true)));
    assert_eq!(desk.load(), (4, 4));
    ask(&mut desk, 2, What::Manifest).unwrap();
    desk.end(fresh, Instant::now());
    busy(ask(&mut desk, 1, chunks(&[0], false)));
    any.into_iter().for_each(|slot| desk.end(slot, Instant::now()));
    assert_eq!(desk.load(), (0, 4));
    ask(&mut desk, 1, chunks(&[0], false)).unwrap();
}

#[test]
fn a_single_slot_serves_everything() {
    let mut desk = Desk::new(1);
    let slot = ask(&mut desk, 1, chunks(&[0], false)).unwrap();
    desk.end(slot, Instant::now());
    ask(&mut desk, 1, chunks(&[0], true)).unwrap();
}

#[test]
fn there_are_fewer_slots_while_uploads_are_slow() {
    let mut desk = Desk::new(4);
    let taken: Vec<Slot> = (0..3).map(|_| ask(&mut desk, 1, chunks(&[0], false)).unwrap()).collect();
    desk.at_most(0);
    assert_eq!(desk.load(), (3, 1));
    busy(ask(&mut desk, 2, chunks(&[1], true)));
    taken.into_iter().for_each(|slot| desk.end(slot, Instant::now()));
    let only = ask(&mut desk, 2, chunks(&[1], true)).unwrap();
    busy(ask(&mut desk, 2, chunks(&[2], true)));
    desk.at_most(u32::MAX);
    ask(&mut desk, 2, chunks(&[2], true)).unwrap();
    desk.end(only, Instant::now());
    assert_eq!(desk.load(), (1, 4));
}

#[test]
fn slots_of_those_who_take_long_are_there_for_others_but_no_more_than_twice() {
    let (mut desk, start) = (Desk::new(2), Instant::now());
    let ask = |desk: &mut Desk, by: u8, now| ask_at(desk, by, chunks(&[u32::from(by)], true), now);
    measure(&mut desk, start);
    let first = [1, 2].map(|by| ask(&mut desk, by, start).unwrap());
    busy(ask(&mut desk, 3, start + Duration::from_millis(50)));
    let late = start + Duration::from_millis(100);
    let second = [3, 4].map(|by| ask(&mut desk, by, late).unwrap());
    assert_eq!(desk.load(), (4, 4));
    busy(ask(&mut desk, 5, late));
    let later = late + Duration::from_millis(100);
    busy(ask(&mut desk, 5, later));
    for slot in first.into_iter().chain(second) {
        desk.end(slot, later);
    }
    ask(&mut desk, 5, later).unwrap();
    assert_eq!(desk.load(), (1, 2));
}

#[test]
fn what_a_slow_node_was_given_is_fresh_for_others_until_it_is_quick_again() {
    let (mut desk, start) = (Desk::new(4), Instant::now());
    let ms = |ms| start + Duration::from_millis(ms);
    measure(&mut desk, start);
    let slow = ask_at(&mut desk, 1, chunks(&[1], true), start).unwrap();
    assert!(matches!(ask_at(&mut desk, 2, chunks(&[1], true), ms(50)), Err(NotNow::Given(_))));
    let second = ask_at(&mut desk, 2, chunks(&[1], true), ms(70)).expect("1 is late");
    assert!(matches!(ask_at(&mut desk, 3, chunks(&[1], true), ms(70)), Err(NotNow::Given(_))));
    desk.end(slow, ms(80));
    let again = ask_at(&mut desk, 1, chunks(&[4], true), ms(80)).unwrap();
    let third = ask_at(&mut desk, 3, chunks(&[4], true), ms(80)).expect("1 was slow with what it had before");
    for slot in [second, third, again] {
        desk.end(slot, ms(90));
    }
    ask_at(&mut desk, 1, chunks(&[5], true), ms(90)).unwrap();
    assert!(matches!(ask_at(&mut desk, 2, chunks(&[5], true), ms(90)), Err(NotNow::Given(_))));
}

#[test]
fn nobody_is_late_before_it_is_known_how_long_others_take() {
    let (mut desk, start) = (Desk::new(2), Instant::now());
    let ms = |ms| start + Duration::from_millis(ms);
    let first = [1, 2].map(|by| ask_at(&mut desk, by, chunks(&[u32::from(by)], true), start).unwrap());
    busy(ask_at(&mut desk, 3, chunks(&[3], true), ms(200)));
    for slot in first {
        desk.end(slot, ms(220));
    }
    assert!(matches!(ask_at(&mut desk, 3, chunks(&[1], true), ms(220)), Err(NotNow::Given(_))), "1 is not slow");
    let _fourth = [4, 5].map(|by| ask_at(&mut desk, by, chunks(&[u32::from(by)], true), ms(220)).unwrap());
    busy(ask_at(&mut desk, 3, chunks(&[3], true), ms(640)));
    ask_at(&mut desk, 3, chunks(&[3], true), ms(680)).expect("twice as long as the first ones");
}

#[test]
fn who_is_sent_away_hears_of_others_and_nothing_is_noted_as_given() {
    let mut desk = Desk::new(1);
    let slot = ask(&mut desk, 1, chunks(&[0], true)).unwrap();
    assert_eq!(busy(ask(&mut desk, 2, chunks(&[1], true))).others, [neighbour(1)]);
    desk.end(slot, Instant::now());
    ask(&mut desk, 3, chunks(&[1], true)).expect("2 was not given it");
    let Err(NotNow::Given(given)) = ask(&mut desk, 2, chunks(&[0], true)) else { panic!("1 was given it") };
    assert_eq!(given.ones().collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn who_comes_first_keeps_no_more_than_a_share_while_others_are_sent_away() {
    let (mut desk, now) = (Desk::new(8), Instant::now());
    let fresh = |index: u32| [index];
    let mut first: Vec<Slot> =
        (0..8).map(|index| ask_at(&mut desk, 1, chunks(&fresh(index), true), now).unwrap()).collect();
    busy(ask_at(&mut desk, 2, chunks(&fresh(10), true), now));
    first.drain(..3).for_each(|slot| desk.end(slot, now));
    busy(ask_at(&mut desk, 1, chunks(&fresh(11), true), now));
    let second = ask_at(&mut desk, 2, chunks(&fresh(10), true), now).unwrap();
    ask_at(&mut desk, 2, chunks(&fresh(12), true), now).unwrap();
    busy(ask_at(&mut desk, 2, chunks(&fresh(13), true), now));
    desk.end(second, now);
    ask_at(&mut desk, 1, chunks(&fresh(11), true), now + SCARCE_FOR).expect("nobody was sent away lately");
}

#[test]
fn who_is_sent_away_comes_back_before_a_turn_is_over() {
    let (mut desk, start) = (Desk::new(1), Instant::now());
    let ms = Duration::from_millis;
    for turn in 0..60 {
        let slot = ask_at(&mut desk, 1, chunks(&[0], false), start).unwrap();
        desk.end(slot, start + if turn < 30 { ms(10) } else { ms(5_000) });
        let slot = ask_at(&mut desk, 1, chunks(&[0], false), start).unwrap();
        let after = busy(ask_at(&mut desk, 2, chunks(&[0], false), start)).retry_after;
        match turn {
            29 => assert!(after > ms(7) && after < ms(10), "{after:?}"),
            59 => assert_eq!(after, LATEST),
            _ => {}
        }
        desk.end(slot, start + if turn < 30 { ms(10) } else { ms(5_000) });
    }
}
